"""Folders that several processes make: each part once, whoever ends meanwhile, and none of their notes remain."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from smalti.core.errors import SmaltiError
from smalti.core.shared_work import SharedWork
from smalti.core.temporary_paths import LOCKS

PARTS = [f"part-{number}" for number in range(6)]


def work(out: Path, *, die_at: str = "", request: str = "it") -> bool:
    """Make the folder, and note who made which part; or end by a kill while a part is made."""
    shared = SharedWork(out, request)

    def write(part: str) -> int:
        if part == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        with (out.parent / "made.txt").open("a") as made:
            made.write(f"{part}\n")
        (shared.folder / part).write_text(part)
        return len(part)

    shared.make(PARTS, write, lambda part: None)
    return shared.finish(lambda: (shared.folder / "sum").write_text(str(sum(map(shared.notes, PARTS)))))


def in_another_process(function: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(0)
    return child


def check(out: Path) -> None:
    assert sorted(path.name for path in out.iterdir()) == [*PARTS, "sum"]
    assert (out / "sum").read_text() == str(6 * len("part-0"))
    assert sorted((out.parent / "made.txt").read_text().split()) == PARTS, "each part is made once"
    assert sorted(path.name for path in out.parent.iterdir()) == ["made.txt", "out"]


def test_one_process(tmp_path: Path) -> None:
    assert work(tmp_path / "out")
    check(tmp_path / "out")


@pytest.mark.skipif(not LOCKS, reason="no locks on this system")
def test_several_processes_make_each_part_once(tmp_path: Path) -> None:
    children = [in_another_process(lambda: work(tmp_path / "out")) for _ in range(3)]
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    check(tmp_path / "out")


@pytest.mark.skipif(not LOCKS, reason="no locks on this system")
def test_what_a_killed_process_was_making_is_made_by_another(tmp_path: Path) -> None:
    for part in ("part-1", "part-3"):
        child = in_another_process(lambda part=part: work(tmp_path / "out", die_at=part))  # type: ignore[misc]
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert not (tmp_path / "out").exists()
    assert work(tmp_path / "out")
    check(tmp_path / "out")


def test_a_failure_keeps_the_parts_that_are_there(tmp_path: Path) -> None:
    shared = SharedWork(tmp_path / "out", "it")
    shared.discard_if_empty()
    assert not list(tmp_path.iterdir())
    shared = SharedWork(tmp_path / "out", "it")
    shared.make(PARTS[:1], lambda part: 1, lambda part: None)
    shared.discard_if_empty()
    assert shared.folder.is_dir()
    with pytest.raises(SmaltiError, match=r"\.out\.parts holds a part of what another command was to write"):
        work(tmp_path / "out", request="other")
