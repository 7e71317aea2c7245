"""Published weights: where they are looked for, in which order, and the error if they are unavailable."""

from __future__ import annotations

import hashlib
import http.server
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from smalti.core import published_weights
from smalti.core.errors import SmaltiError
from smalti.core.published_weights import (
    WEIGHTS,
    PublishedFile,
    cache_folder,
    find_weights,
    load_strictly,
    load_weights,
)

NAME = "lpips-squeeze"
FIRST, OTHER = WEIGHTS[NAME].files


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """An empty folder of the user's own and an empty cache; downloads are forbidden unless a test allows them."""
    own, cache = tmp_path / "own", tmp_path / "cache"
    own.mkdir()
    cache.mkdir()
    monkeypatch.setenv("SMALTI_WEIGHTS", str(own))
    monkeypatch.setenv("SMALTI_CACHE", str(cache))
    monkeypatch.setenv("SMALTI_OFFLINE", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return own, cache


class _Files(http.server.BaseHTTPRequestHandler):
    """Answers every request with `content`, promising `promised` bytes; an empty content is "not found"."""

    content = b""
    promised = 0

    def do_GET(self) -> None:
        self.send_response(200 if self.content else 404)
        self.send_header("Content-Length", str(self.promised))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Files]]:
    """A server on this machine that publishes one file, called "published", 40000 bytes long."""

    class Handler(_Files):
        content = bytes(range(250)) * 160
        promised = 40000

    monkeypatch.delenv("SMALTI_OFFLINE")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{httpd.server_port}/published_weights.pth"
        digest = hashlib.sha256(Handler.content).hexdigest()
        entry = PublishedFile(files=("first.pth", "second.pth"), url=url, sha256=digest, about="a test", license="none")
        monkeypatch.setitem(WEIGHTS, "published", entry)
        yield Handler
        httpd.shutdown()
        thread.join()


def test_the_users_folder_comes_before_the_cache(folders: tuple[Path, Path]) -> None:
    own, cache = folders
    (cache / FIRST).touch()
    assert find_weights(NAME) == cache / FIRST
    (own / OTHER).touch()
    assert find_weights(NAME) == own / OTHER
    (own / FIRST).touch()
    assert find_weights(NAME) == own / FIRST


def test_the_cache_folder_is_the_first_that_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("SMALTI_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "smalti"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "home" / ".cache" / "smalti"


@pytest.mark.parametrize("name", WEIGHTS)
def test_an_entry_is_complete(name: str) -> None:
    entry = WEIGHTS[name]
    assert entry.url.startswith("https://")
    assert len(entry.sha256) >= 8
    assert set(entry.sha256) <= set("0123456789abcdef")
    assert entry.about
    assert entry.license
    assert all(Path(file).suffix in (".pth", ".safetensors") for file in entry.files)
    if "download.pytorch.org" in entry.url:  # torchvision names its files by the hash
        assert entry.sha256[:8] in entry.url


def test_no_two_entries_share_a_file_name() -> None:
    files = [file for entry in WEIGHTS.values() for file in entry.files]
    assert len(files) == len(set(files))


@pytest.mark.parametrize("variable", ["SMALTI_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_the_error_says_what_is_needed_and_where_to_put_it(
    variable: str, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SMALTI_OFFLINE")
    monkeypatch.setenv(variable, "1")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(published_weights.urllib.request, "urlopen", refuse)  # type: ignore[attr-defined]
    with pytest.raises(SmaltiError) as caught:
        load_weights(NAME)
    message = str(caught.value)
    assert all(
        part in message for part in (variable, FIRST, OTHER, WEIGHTS[NAME].url, str(folders[0]), str(folders[1]))
    )
    monkeypatch.delenv("SMALTI_WEIGHTS")
    with pytest.raises(SmaltiError, match="set SMALTI_WEIGHTS"):
        load_weights(NAME)


def test_a_users_folder_that_is_none_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SMALTI_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(SmaltiError, match=r"SMALTI_WEIGHTS.*nowhere.*not a folder"):
        find_weights(NAME)


def test_an_unknown_name_is_reported_with_the_nearest() -> None:
    with pytest.raises(SmaltiError, match="did you mean 'vgg16'"):
        find_weights("vgg61")


def test_a_download_lands_in_the_cache_once(
    server: type[_Files], folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[int, int]] = []
    with caplog.at_level(logging.INFO, "smalti"):
        path = find_weights("published", progress=lambda done, total: seen.append((done, total)))
    assert path == folders[1] / "first.pth"
    assert path.read_bytes() == server.content
    assert seen[-1] == (40000, 40000)
    assert WEIGHTS["published"].url in caplog.text
    server.content = b""
    assert find_weights("published") == path  # the server would now say "not found"


def test_a_published_beginning_of_the_hash_is_enough(server: type[_Files], monkeypatch: pytest.MonkeyPatch) -> None:
    entry = WEIGHTS["published"]
    monkeypatch.setitem(WEIGHTS, "published", entry._replace(sha256=entry.sha256[:8]))
    assert find_weights("published").read_bytes() == server.content


def test_another_file_than_the_published_one_is_refused(server: type[_Files], folders: tuple[Path, Path]) -> None:
    server.content = server.content[::-1]
    with pytest.raises(SmaltiError, match="not the published file"):
        find_weights("published")
    assert list(folders[1].iterdir()) == []


def test_a_download_that_breaks_off_leaves_nothing(server: type[_Files], folders: tuple[Path, Path]) -> None:
    server.content = server.content[:1000]
    with pytest.raises(SmaltiError, match="was interrupted after 1000"):
        find_weights("published")
    assert list(folders[1].iterdir()) == []


def test_a_file_that_is_not_there_is_reported(server: type[_Files]) -> None:
    server.content = b""
    with pytest.raises(SmaltiError, match=r"download failed.*404"):
        find_weights("published")


@pytest.mark.usefixtures("server")
def test_a_cache_that_cannot_be_made_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(SmaltiError, match="cannot write"):
        find_weights("published")


@pytest.mark.parametrize("file", [FIRST, OTHER])
def test_tensors_come_as_float32_from_either_format(file: str, folders: tuple[Path, Path]) -> None:
    tensors = {"a": torch.tensor([0.5, -2.0], dtype=torch.float16), "n": torch.tensor(3)}
    path = folders[0] / file
    if path.suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    loaded = load_weights(NAME)
    assert loaded["a"].dtype == torch.float32
    assert loaded["a"].tolist() == [0.5, -2.0]
    assert loaded["n"].dtype == torch.int64


class _Evil:
    """A pickle that would write a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_that_would_run_code_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    torch.save(_Evil(tmp_path / "was-run"), folders[0] / FIRST)
    with pytest.raises(SmaltiError, match=f"cannot read .*{FIRST}"):
        load_weights(NAME)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("file", [FIRST, OTHER])
@pytest.mark.parametrize("length", [0, 7, 200, -1])
def test_a_cut_file_is_reported(file: str, length: int, folders: tuple[Path, Path]) -> None:
    path = folders[0] / file
    tensors = {"a": torch.arange(1000.0)}
    if path.suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(SmaltiError, match=f"cannot read .*{file}.*damaged.*{WEIGHTS[NAME].url}"):
        load_weights(NAME)


def test_a_file_of_something_else_is_reported(folders: tuple[Path, Path]) -> None:
    torch.save([1, 2, 3], folders[0] / FIRST)
    with pytest.raises(SmaltiError, match="no file of tensors"):
        load_weights(NAME)


def test_tensors_that_do_not_fit_are_named(folders: tuple[Path, Path]) -> None:
    (folders[0] / FIRST).touch()
    linear = nn.Linear(2, 3)
    with pytest.raises(SmaltiError) as caught:
        load_strictly(linear, {"weight": torch.zeros(3, 1), "other": torch.zeros(1)}, name=NAME)
    message = str(caught.value)
    for part in ("bias is missing", "other is not known", "weight is (3, 1), not (3, 2)", str(folders[0] / FIRST)):
        assert part in message
    load_strictly(linear, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, name=NAME)
    assert linear.weight.eq(1).all()
