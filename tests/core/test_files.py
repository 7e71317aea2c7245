"""Files are written whole or not at all, and read whatever system wrote them."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalti.core.errors import SmaltiError
from smalti.core.files import folder_written_atomically, read_json, write_atomically, write_json, write_text


def full(temporary: Path) -> None:
    """A writer that the full disk stops halfway."""
    temporary.write_text("half of the n")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def wrapped(temporary: Path) -> None:
    """As PyTorch reports a full disk."""
    temporary.write_text("half of the n")
    raise RuntimeError("[enforce fail at inline_container.cc:815] . PytorchStreamWriter failed writing file data/0")


def interrupted(temporary: Path) -> None:
    temporary.write_text("half of the n")
    raise KeyboardInterrupt


def mistaken(temporary: Path) -> None:
    raise ZeroDivisionError("a mistake of ours")


@pytest.mark.parametrize(
    ("write", "error"),
    [
        (full, SmaltiError),
        (wrapped, SmaltiError),
        (interrupted, KeyboardInterrupt),
        (mistaken, ZeroDivisionError),
    ],
)
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, write: Callable[[Path], None], error: type[BaseException]
) -> None:
    path = tmp_path / "there.txt"
    write_text(path, "old")
    with pytest.raises(error) as raised:
        write_atomically(path, write)
    if error is SmaltiError:
        assert str(path) in str(raised.value)
        assert "nothing written before is lost" in str(raised.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["there.txt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_disk_that_is_really_full_is_reported_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "there.txt"
    write_text(path, "old")

    def write(temporary: Path) -> None:
        with open("/dev/full", "w") as file:
            file.write("new")

    with pytest.raises(SmaltiError, match=r"there\.txt: No space left on device; nothing written before is lost"):
        write_atomically(path, write)
    assert path.read_text() == "old"


@pytest.mark.parametrize("call", ["fsync", "chmod", "replace"])
def test_a_disk_that_refuses_at_the_last_moment_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "there.txt"
    write_text(path, "old")
    monkeypatch.setattr(os if call == "fsync" else Path, call, refuse)
    with pytest.raises(SmaltiError, match="Input/output error"):
        write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["there.txt"]


def test_a_written_file_is_an_ordinary_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "there.txt"
    write_text(path, "first ä\n")
    write_text(path, "second ä\n")
    (tmp_path / "plain.txt").write_text("x")
    assert path.read_bytes() == "second ä\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain.txt").stat().st_mode)
    assert os.listdir(path.parent) == ["there.txt"]


def test_a_file_in_place_of_the_folder_is_reported_in_a_sentence(tmp_path: Path) -> None:
    """Making the folder was once outside of what explains refusals, and a file in its place ended in a traceback."""
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "there.txt", tmp_path / "file" / "deeper" / "there.txt"):
        with pytest.raises(SmaltiError, match=r"cannot write .*there\.txt: "):
            write_text(path, "new")
        with pytest.raises(SmaltiError, match=r"cannot write .*there\.txt: "), folder_written_atomically(path):
            pass


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "outer" / "folder"
    with folder_written_atomically(path) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text("x")
        assert not path.exists()
    assert (path / "inner" / "file").read_text() == "x"
    assert os.listdir(path.parent) == ["folder"]
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize(
    ("write", "error"), [(full, SmaltiError), (wrapped, SmaltiError), (interrupted, KeyboardInterrupt)]
)
def test_a_folder_that_fails_leaves_nothing(
    tmp_path: Path, write: Callable[[Path], None], error: type[BaseException]
) -> None:
    with pytest.raises(error), folder_written_atomically(tmp_path / "folder") as temporary:
        write(temporary / "file")
    assert os.listdir(tmp_path) == []


def test_a_folder_is_not_written_over_another(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("x")
    with pytest.raises(SmaltiError, match="cannot write"), folder_written_atomically(tmp_path / "folder") as temporary:
        (temporary / "new").write_text("y")
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(tmp_path / "folder") == ["old"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcä", max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(value=JSON)
def test_json_comes_back(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    path.write_text(json.dumps(value))
    assert read_json(path) == value


def test_json_is_written_to_be_read(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ä": [1]})
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n  "ä": [\n    1\n  ]\n}\n'
    assert read_json(tmp_path / "a.json") == {"ä": [1]}


def test_json_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match=r"there is no file .*a\.json"):
        read_json(tmp_path / "a.json")
    for content in (b"", b"{", b"\xff\xfe\x00", b"[" * 99999):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(SmaltiError, match=r"cannot read .*a\.json: "):
            read_json(tmp_path / "a.json")
    with pytest.raises(SmaltiError, match="cannot read"):
        read_json(tmp_path)
