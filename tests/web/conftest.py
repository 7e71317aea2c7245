"""A browser, and the page of a tiny model in it: for the tests that are marked `web`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from smalti.web.limits import Limits
from tests.small_pipeline import pipeline
from tests.web.browser import PageUnderTest
from tests.web.pipelines import all_three

LIMITS = Limits(side=64, codes=300, count=8, waiting=3, waiting_per_session=2, waiting_per_address=9)
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Chromium: the one that SMALTI_CHROMIUM names, that of this machine, or Playwright's own."""
    api = pytest.importorskip("playwright.sync_api", reason="the extra `check-web` is not installed")
    found = os.environ.get("SMALTI_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page of a tiny model with a text, classes of season and time, and label maps."""
    pytest.importorskip("fastapi", reason="the extra `web` is not installed")
    from smalti.web.server import serve

    folder = tmp_path_factory.mktemp("web") / "tiny"
    pipeline(all_three(), order="any").save_pretrained(folder, about={})
    server = serve(folder, port=7990, limits=LIMITS, device="cpu")
    yield server.address
    server.close()


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[PageUnderTest]:
    """The page as a new visitor sees it. At the end there was no error in its console, and no request elsewhere."""
    with PageUnderTest(chromium, address) as opened:
        opened.open()
        yield opened
        assert opened.complaints == []
