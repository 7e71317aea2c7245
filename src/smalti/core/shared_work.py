"""A folder whose parts several processes make together, each part once, and that a later start completes.

The processes need not know of each other: they may be started by torchrun, by Slurm or by hand, on one machine or on
several with a common file system, and any of them may end at any time. The one that makes a part holds a lock on it,
which the system gives back when the process ends, however it ends.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, final

from smalti.core.errors import SmaltiError
from smalti.core.files import read_json, refusals_explained, sync_folder, write_json
from smalti.core.temporary_paths import LOCKS, lock

_NOTES = ".work"
"""The folder with locks and notes, inside the one that is being made."""
_PAUSE = 0.2
"""Seconds between two looks at what others are making."""


@final
class SharedWork:
    """The making of a folder. Until all of its parts are there it is called `.NAME.parts`, beside its place."""

    def __init__(self, out: Path, request: Any) -> None:
        """`request`: plain values that decide all parts.

        Raises `SmaltiError` if parts of another request are there, and if the folder cannot be made.
        """
        self.out, self.folder = out, out.with_name(f".{out.name}.parts")
        self._notes = self.folder / _NOTES
        with refusals_explained(out):
            self._notes.mkdir(parents=True, exist_ok=True)
            if out.is_dir():  # another process has finished since, and this folder is a new one
                shutil.rmtree(self.folder)
                return
        written = self._notes / "request.json"
        if written.is_file() and read_json(written) != request:
            raise SmaltiError(
                f"{self.folder} holds a part of what another command was to write into {out}; repeat that command, "
                "or remove the folder"
            )
        write_json(written, request)

    def make(self, parts: Sequence[str], write: Callable[[str], Any], report: Callable[[str], object]) -> None:
        """Have every part made: by `write`, whose result is noted, or by another process. `report` is called with the
        name of each part that is there."""
        missing = list(parts)
        while missing:
            before = len(missing)
            for part in list(missing):
                if self._finished() or self._is_there(part) or self._written(part, write):
                    missing.remove(part)
                    report(part)
            if len(missing) == before:
                time.sleep(_PAUSE)

    def _written(self, part: str, write: Callable[[str], Any]) -> bool:
        """Make a part, unless another process is at it; whether it is there."""
        with self._alone(part) as alone:
            if alone and not self._is_there(part):
                write_json(self._notes / f"{part}.json", write(part))
            return alone

    def notes(self, part: str) -> Any:
        """What `write` returned for a part."""
        return read_json(self._notes / f"{part}.json")

    def finish(self, complete: Callable[[], object]) -> bool:
        """Give the folder its name, after the first process to come here did what is left -> whether it was this one.

        `complete` may be called again where a process ended within it.
        """
        while not self._finished():
            with self._alone("all") as alone:
                if alone and not self._finished():
                    complete()
                    with refusals_explained(self.out):
                        sync_folder(self.folder)
                        self.folder.rename(self.out)
                        shutil.rmtree(self.out / _NOTES)
                    return True
            time.sleep(_PAUSE)
        return False

    def discard_if_empty(self) -> None:
        """Remove the folder if no part is there yet and no other process is at work."""
        names = [path.name for path in self._notes.glob("*")]
        if any(name.endswith(".json") and name != "request.json" for name in names):
            return
        for name in names:
            if name.endswith(".lock"):
                with self._alone(name.removesuffix(".lock")) as alone:
                    if not alone:
                        return
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_there(self, part: str) -> bool:
        return (self._notes / f"{part}.json").is_file()

    def _finished(self) -> bool:
        """Whether another process has given the folder its name."""
        return not self._notes.is_dir() and self.out.is_dir()

    @contextmanager
    def _alone(self, part: str) -> Iterator[bool]:
        """Whether this process has a part for itself, inside."""
        if not LOCKS:  # then this is the only process
            yield True
            return
        descriptor = None
        with suppress(FileNotFoundError):  # the folder has its name now
            descriptor = lock(self._notes / f"{part}.lock", os.O_RDWR | os.O_CREAT)
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                os.close(descriptor)
