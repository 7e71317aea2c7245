"""Temporary files and folders: what a killed writer leaves goes with the next one; a writer at work is left alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from smalti.core import temporary_paths
from smalti.core.files import folder_written_atomically, remove_written, write_atomically, write_text
from smalti.core.temporary_paths import temporary_file, temporary_folder, temporary_name

pytestmark = pytest.mark.skipif(not temporary_paths.LOCKS, reason="no locks on this system, so names are random")


def killed_in(write: Callable[[], object]) -> None:
    """Another process that is killed while it does something; `write` kills it."""
    child = os.fork()
    if child == 0:
        try:
            write()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def die() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def write_folder(path: Path, text: str, *, killed: bool = False) -> None:
    with folder_written_atomically(path) as temporary:
        (temporary / text).mkdir()
        (temporary / text / "file").write_text(text)
        if killed:
            die()


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path: Path) -> None:
    """Each kill once left a file more, for ever."""
    path = tmp_path / "there.txt"
    for _ in range(2):
        killed_in(lambda: write_atomically(path, lambda to: to.write_text("a longer text") and die()))
    assert os.listdir(tmp_path) == [temporary_name(path).name]
    write_text(path, "whole")
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_text() == "whole"


def test_of_folders_too(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for text in "ab":
        killed_in(lambda text=text: write_folder(path, text, killed=True))  # type: ignore[misc]
    assert os.listdir(tmp_path) == [temporary_name(path).name]
    write_folder(path, "c")
    assert os.listdir(tmp_path) == [path.name]
    assert os.listdir(path) == ["c"]


def test_what_is_not_written_again_is_removed_with_the_result(tmp_path: Path) -> None:
    path = tmp_path / "there.txt"
    killed_in(lambda: write_atomically(path, lambda to: die()))
    remove_written(path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("temporary", [temporary_file, temporary_folder])
def test_a_writer_at_work_is_left_alone(temporary: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "there"
    with temporary(path) as one, temporary(path) as other:  # type: ignore[attr-defined]
        assert one == temporary_name(path)
        assert other != one
        other.rename(path)
        assert one.exists()
        one.rename(tmp_path / "first")
    assert sorted(os.listdir(tmp_path)) == ["first", "there"]


def test_somebody_elses_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    """In a folder such as /tmp others can put something where the name is known."""
    (tmp_path / "precious").write_text("x")
    path = tmp_path / "there.txt"
    temporary_name(path).symlink_to("precious")
    write_text(path, "new")
    temporary_name(path).unlink()
    os.link(tmp_path / "precious", temporary_name(path))
    write_text(path, "newer")
    assert (tmp_path / "precious").read_text() == "x"
    assert path.read_text() == "newer"
