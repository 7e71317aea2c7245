"""The page in a browser while others use it: positions, cancelling, a full queue, and a reload."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor

from smalti.web.jobs import Report
from smalti.web.tasks import Plan
from tests.web.browser import PageUnderTest

pytestmark = pytest.mark.web
httpx = pytest.importorskip("httpx", reason="the extra `dev` is not installed")


class Gate:
    """Holds all jobs while it is closed."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.opened.set()

    def close(self) -> None:
        self.opened.clear()

    def open(self) -> None:
        self.opened.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made, generate = Gate(), Plan.generate

    def paused(plan: Plan, known: Tensor, report: Report) -> Tensor:
        while not made.opened.wait(timeout=0.02):
            report.update(0.25, 90.0)
        return generate(plan, known, report)

    monkeypatch.setattr(Plan, "generate", paused)
    yield made
    made.open()


@pytest.fixture
def others(address: str) -> Iterator[Any]:
    """Another visitor."""
    with httpx.Client(base_url=address, timeout=30) as client:
        yield client


def submit(client: Any, count: int) -> list[str]:
    """Jobs of another visitor -> their keys."""
    answers = [client.post("api/jobs", json={}) for _ in range(count)]
    assert [answer.status_code for answer in answers] == [202] * count
    return [answer.json()["job"] for answer in answers]


def says(page: PageUnderTest, text: str) -> None:
    page.tab.wait_for_function("(text) => document.querySelector('#status').textContent.includes(text)", arg=text)


def cancel(client: Any, key: str) -> None:
    client.delete(f"api/jobs/{key}")
    while client.get(f"api/jobs/{key}").json()["phase"] != "cancelled":
        time.sleep(0.02)


def test_a_waiting_job_has_a_position_and_is_cancelled_at_once(page: PageUnderTest, gate: Gate, others: Any) -> None:
    tab = page.tab
    assert tab.get_attribute("#cancel", "aria-disabled") == "true"
    gate.close()
    keys = submit(others, 2)
    tab.click("#generate")
    says(page, "Waiting: next in the queue")  # another address's turn would not make it wait longer
    assert "until it begins" in page.status
    for mode in ("edit", "reconstruct", "create"):
        page.choose("mode", mode)
        assert tab.is_visible("#cancel")
        assert tab.get_attribute("#cancel", "aria-disabled") == "false"
        box = tab.locator("#cancel").bounding_box()
        assert box["y"] + box["height"] <= 900
    tab.click("#cancel")
    says(page, "Cancelled.")
    assert others.get(f"api/jobs/{keys[1]}").json()["position"] == 1  # its place is free
    assert tab.get_attribute("#cancel", "aria-disabled") == "true"
    for key in keys:
        cancel(others, key)
    gate.open()
    page.generate()
    assert page.thumbs == 4


def test_a_running_job_shows_its_progress_and_is_cancelled(page: PageUnderTest, gate: Gate) -> None:
    tab = page.tab
    gate.close()
    tab.click("#generate")
    says(page, "25 %, about 2 min left")
    assert tab.get_attribute("#progress", "aria-valuenow") == "25"
    tab.click("#generate", force=True)  # a second press changes nothing
    tab.click("#cancel")
    says(page, "Cancelled.")
    assert page.kind == "examples"  # the stage is not empty
    gate.open()
    page.generate()


def test_a_full_queue_says_so_and_the_page_goes_on(page: PageUnderTest, gate: Gate, address: str) -> None:
    gate.close()
    clients = [httpx.Client(base_url=address, timeout=30) for _ in range(4)]
    keys = submit(clients[0], 1)
    while clients[0].get(f"api/jobs/{keys[0]}").json()["phase"] == "waiting":
        time.sleep(0.02)  # it leaves the queue, whose 3 places the others take
    keys += [submit(client, 1)[0] for client in clients[1:]]
    page.tab.click("#generate")
    page.tab.wait_for_selector("#status.error")
    assert page.status == "the queue is full: 3 jobs are waiting; try again in a minute"
    assert page.tab.get_attribute("#generate", "aria-disabled") == "false"
    for client, key in zip(clients, keys, strict=True):
        cancel(client, key)
        client.close()
    gate.open()
    page.generate()
    assert page.thumbs == 4


def test_a_reload_goes_on_with_the_running_job(page: PageUnderTest, gate: Gate) -> None:
    tab = page.tab
    gate.close()
    tab.click("#generate")
    says(page, "25 %")
    tab.reload()
    says(page, "25 %")
    assert tab.get_attribute("#cancel", "aria-disabled") == "false"
    gate.open()
    page.done()
    assert page.thumbs == 4
    assert page.kind == "results"


def test_a_server_that_is_gone_is_a_sentence(page: PageUnderTest) -> None:
    page.context.set_offline(True)
    page.tab.click("#generate")
    page.tab.wait_for_selector("#status.error")
    assert page.status == "the server cannot be reached; is it still running?"
    page.context.set_offline(False)
    page.generate()
    page.complaints[:] = [one for one in page.complaints if "ERR_INTERNET_DISCONNECTED" not in one]
