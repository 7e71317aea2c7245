"""Options of the test run."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests import golden

# No test measures time: on a busy machine an example may take a hundred times as long.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-required", action="store_true", help="fail where the original's numbers are not on this machine"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--golden-required") and not golden.COMPLETE:
        raise pytest.UsageError(
            f"the original's numbers are not in {golden.NAMED}; set SMALTI_GOLDEN to the folder that holds them"
        )
