"""Files are written so that a killed process, a full disk or a power cut never leaves half a file under the real name.

They are read so that a pipe in place of a file does not block the program, and that text may come from any system.
"""

from __future__ import annotations

import codecs
import json
import os
import stat
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from smalti.core.errors import SmaltiError
from smalti.core.temporary_paths import temporary_file, temporary_folder, temporary_name


def _sync(path: Path) -> None:
    """Push a file's or a folder's bytes to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Push all files below a folder to the disk."""
    for path in folder.rglob("*"):
        _sync(path)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it, and only then give it the name `path`.

    Raises `SmaltiError` if writing fails (full, read-only, no permission); what was at `path` before is untouched.
    """
    with refusals_explained(path), temporary_file(path) as temporary:
        write(temporary)
        _sync(temporary)
        temporary.chmod(0o666 & ~_umask())  # a temporary file is private; this is the user's ordinary one
        temporary.replace(path)
        _sync(path.parent)


def remove_written(path: Path) -> None:
    """Remove a file that `write_atomically` wrote, and what a killed process has left of writing it."""
    for name in (path, temporary_name(path)):
        name.unlink(missing_ok=True)


@contextmanager
def folder_written_atomically(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success it is synced and renamed to `path`, else removed.

    `path` must not exist yet.
    """
    with refusals_explained(path), temporary_folder(path) as temporary:
        yield temporary
        sync_folder(temporary)
        temporary.chmod(0o777 & ~_umask())
        temporary.rename(path)
        _sync(path.parent)


@contextmanager
def refusals_explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write (also when PyTorch or safetensors wraps it) into one sentence."""
    try:
        yield
    except SmaltiError:
        raise
    except OSError as error:
        raise SmaltiError(f"cannot write {path}: {error.strerror or error}; nothing written before is lost") from error
    except Exception as error:  # torch.save and safetensors report a full disk as RuntimeError or SafetensorError
        if "No space left" in str(error) or "PytorchStreamWriter" in str(error) or "I/O error" in str(error):
            raise SmaltiError(
                f"cannot write {path}: the disk refused ({error}); nothing written before is lost"
            ) from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


_SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def normalized(name: str) -> str:
    """A name -> the same in Unicode's form NFC. macOS gives accents in file names characters of their own (NFD)."""
    return unicodedata.normalize("NFC", name)


def check_file(path: Path) -> None:
    """Raise `OSError` for a value that is not an ordinary file: opening a pipe waits for a writer, a device may never
    end."""
    special = _SPECIAL.get(stat.S_IFMT(path.stat().st_mode))
    if special is not None:
        raise OSError(f"it is {special}, not a file")


def open_file(path: Path) -> BinaryIO:
    """An ordinary file, or a link to one -> its bytes. Raises `OSError` as `check_file`."""
    check_file(path)
    return path.open("rb")


def decoded(content: bytes) -> str:
    """Text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark, as Windows writes it -> the text without the mark.

    Raises `UnicodeDecodeError`.
    """
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8-sig")
    return content.decode(encoding)


def read_text(path: Path) -> str:
    """A text file of any system -> its text, see `decoded`. Raises `OSError` and `UnicodeDecodeError`."""
    with open_file(path) as file:
        return decoded(file.read())


def parse_json(text: str | bytes) -> Any:
    """JSON -> its value. Raises `ValueError` for invalid JSON, and for brackets nested too deep to be read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deep") from error


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or damaged one is a `SmaltiError` naming it."""
    try:
        return parse_json(read_text(path))
    except FileNotFoundError as error:
        raise SmaltiError(f"there is no file {path}") from error
    except (OSError, ValueError) as error:
        raise SmaltiError(f"cannot read {path}: {error}") from error
