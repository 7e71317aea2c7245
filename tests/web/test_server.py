"""The server itself: ports, its end, private files, what it installs, and that it calls nobody."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smalti.core.errors import SmaltiError
from smalti.web.scratch import PREFIX
from smalti.web.server import listen, serve
from tests.small_pipeline import pipeline
from tests.web.pipelines import LIMITS, both
from tests.web.server_process import server_process

httpx = pytest.importorskip("httpx", reason="the extra `dev` is not installed")
pytest.importorskip("fastapi", reason="the extra `web` is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web") / "tiny"
    pipeline(both()).save_pretrained(folder, about={})
    return folder


def scratch_folders(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{PREFIX}*"))


def test_a_taken_port_is_followed_by_the_next_free_one(model: Path) -> None:
    first = listen("127.0.0.1", None)
    port = first.getsockname()[1]
    try:
        page = serve(model, port=port, limits=LIMITS, device="cpu")
        try:
            assert port < int(page.address.rstrip("/").rpartition(":")[2]) < port + 100
            assert httpx.get(f"{page.address}api/model").json()["model"] == "tiny"
        finally:
            page.close()
    finally:
        first.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(page.address)
    assert not page.studio.scratch.folder.exists()


def test_a_host_that_is_not_here_is_reported() -> None:
    with pytest.raises(SmaltiError, match=r"cannot be served at 203\.0\.113\.1, port 7860: .*; choose another --host"):
        listen("203.0.113.1", None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 65535))  # the last port there is
        taken.listen()
        with pytest.raises(SmaltiError, match="choose another --host or --port"):
            listen("127.0.0.1", 65535)


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "python_multipart"])
def test_missing_packages_are_reported_with_their_install_line(
    missing: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SmaltiError, match=r"pip install 'smalti\[web\]'"):
        serve(model, device="cpu")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals and /proc of Linux")
@pytest.mark.slow
def test_private_files_are_gone_after_sigterm_and_after_the_next_start(model: Path, tmp_path: Path) -> None:
    with server_process(model, temporary=tmp_path) as server:
        (folder,) = scratch_folders(tmp_path)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert server.end(signal.SIGTERM) != -signal.SIGTERM  # it ended by itself
        assert scratch_folders(tmp_path) == []
    with server_process(model, temporary=tmp_path) as server:
        (folder,) = scratch_folders(tmp_path)
        server.end(signal.SIGKILL)
        assert folder.exists()
    (tmp_path / f"{PREFIX}notes").mkdir()  # not a server's
    with server_process(model, temporary=tmp_path) as server:
        assert folder not in scratch_folders(tmp_path)
        assert len(scratch_folders(tmp_path)) == 2
        server.end(signal.SIGINT)
    assert [path.name for path in scratch_folders(tmp_path)] == [f"{PREFIX}notes"]


CALLS = """
import os, socket, sys, time, urllib.request
named, hosts = socket.getaddrinfo, set()
def noted(host, *rest, **options):
    hosts.add(str(host))
    return named(host, *rest, **options)
socket.getaddrinfo = noted
from smalti.web.server import serve
page = serve(sys.argv[1], device="cpu")
urllib.request.urlopen(page.address).read()
time.sleep(1)  # what is sent in the background
page.close()
print(*hosts)
"""


def test_the_server_calls_nobody_else(model: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", CALLS, str(model)], capture_output=True, text=True, check=True, env=environment
    )
    assert set(run.stdout.split()) <= {"127.0.0.1", "localhost", "::1", "None"}


def test_the_browser_is_opened_when_that_is_wanted(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    page = serve(model, limits=LIMITS, device="cpu")
    page.open_browser()
    page.close()
    assert opened == [page.address]


def test_closing_does_not_wait_for_open_connections(model: Path) -> None:
    page = serve(model, limits=LIMITS, device="cpu")
    client = httpx.Client(base_url=page.address)
    key = client.post("api/jobs", json={"settings": {"height": 64, "width": 64}}).json()["job"]
    with client.stream("GET", f"api/jobs/{key}/events"):
        began = time.monotonic()
        page.close()
        assert time.monotonic() - began < 30
    client.close()
