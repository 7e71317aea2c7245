"""Clients that send slowly or too much do not keep others from being served."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from smalti.web.server import Server, serve
from tests.small_pipeline import pipeline
from tests.web.pipelines import both

httpx = pytest.importorskip("httpx", reason="the extra `dev` is not installed")
api = pytest.importorskip("smalti.web.api", reason="the extra `web` is not installed")

HEAD = (
    "POST /api/{} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
    "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    '--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\nabc'
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("slow") / "tiny"
    pipeline(both()).save_pretrained(folder, about={})
    made = serve(folder, device="cpu")
    yield made
    made.close()


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with httpx.Client(base_url=server.address, timeout=20) as opened:
        yield opened


def slow(server: Server, stack: ExitStack, path: str) -> socket.socket:
    """A request whose body begins and does not end."""
    port = int(server.address.rstrip("/").rpartition(":")[2])
    opened = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
    opened.settimeout(20)
    opened.sendall(HEAD.format(path).encode())
    return opened


@pytest.mark.parametrize("path", ["images", "jobs", "maps/segmentation"])
def test_unfinished_requests_do_not_keep_others_waiting(server: Server, client: Any, path: str) -> None:
    """Two slow senders once held both turns to be read, and nobody else could request anything."""
    with ExitStack() as stack:
        for _ in range(api.READERS + 1):
            slow(server, stack, path)
        time.sleep(0.2)
        assert client.post("api/jobs", json={}).status_code == 202


def test_one_address_sends_a_bounded_number_of_requests(server: Server, client: Any) -> None:
    with ExitStack() as stack:
        for _ in range(api.UPLOADS_PER_ADDRESS):
            slow(server, stack, "images")
        time.sleep(0.2)
        answer = client.post("api/jobs", json={})
        assert answer.status_code == 429
        assert "your network is sending 8 requests already" in answer.json()["error"]
        assert client.get("api/model").status_code == 200
        proxied = {"x-forwarded-for": "192.0.2.7"}  # by a proxy on this machine: another client
        assert client.post("api/jobs", json={}, headers=proxied).status_code == 202
    deadline = time.monotonic() + 20
    while client.post("api/jobs", json=[]).status_code == 429:  # the senders are gone, and forgotten
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_request_that_never_ends_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "UPLOAD_SECONDS", 0.3)
    with ExitStack() as stack:
        connection = slow(server, stack, "images")
        answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()  # head and body may come apart
        assert answer.startswith("HTTP/1.1 408 ")
        assert "not complete after 0.3 seconds" in answer


def test_json_is_small(client: Any) -> None:
    answer = client.post("api/jobs", json={"conditions": {"label": "x" * 70_000}})
    assert answer.status_code == 413
    assert answer.json()["error"].startswith("JSON has at most 64 KiB")
