"""Temporary files and folders beside what they will become, which a killed process does not leave behind for good.

Their name follows from the name of the result, `.NAME.tmp`, and their writer holds a lock on them: the next writer of
the same result takes over what a killed one left. While another process is writing the same result, and where there are
no locks (Windows, some network file systems), the name is a random one.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    LOCKS = False
else:
    LOCKS = True


def temporary_name(path: Path) -> Path:
    """What the temporary file or folder of a result is called, unless another process is writing the same."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Yield an empty private file beside `path`, to be renamed; on an exception it is removed. Raises `OSError`."""
    name, descriptor = _make_locked(path, lambda name: lock(name, os.O_RDWR | os.O_CREAT))
    if descriptor is None:
        descriptor, random_name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        name = Path(random_name)
    try:
        os.ftruncate(descriptor, 0)
        yield name
    except BaseException:
        name.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """As `temporary_file`, a folder."""
    name, descriptor = _make_locked(path, _make_and_lock_folder)
    if descriptor is None:
        name = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        for entry in name.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        yield name
    except BaseException:
        shutil.rmtree(name, ignore_errors=True)
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _make_locked(path: Path, make_and_lock: Callable[[Path], int | None]) -> tuple[Path, int | None]:
    """Make the folder of a result, and in it what is temporary under its `temporary_name` -> that name, and the
    descriptor that holds the lock; None where there are no locks, or where another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name, descriptor = temporary_name(path), None
    if LOCKS:
        with suppress(OSError):
            descriptor = make_and_lock(name)
    return name, descriptor


def _make_and_lock_folder(name: Path) -> int | None:
    name.mkdir(mode=0o700, exist_ok=True)
    return lock(name, os.O_RDONLY | os.O_DIRECTORY)


def lock(name: Path, flags: int) -> int | None:
    """Open and lock a file or folder -> its descriptor; None where another process has it, or another user.

    Raises `OSError` where it cannot be opened.
    """
    descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found, there = os.fstat(descriptor), os.lstat(name)
        own = found.st_uid == os.getuid() and (stat.S_ISDIR(found.st_mode) or found.st_nlink == 1)
        if own and (found.st_dev, found.st_ino) == (there.st_dev, there.st_ino):  # not renamed since it was opened
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None
