"""The first images of a data set that is too large to download, copied into a folder.

A training draws images at random and resumes exactly, so it needs files that stay. A stream has neither; therefore its
first images are stored as they are, with their classes as subfolders and their captions as text files next to them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smalti.core.errors import SmaltiError
from smalti.core.files import read_json, write_atomically, write_json
from smalti.data.image_tables import Columns, caption_lines, open_stream

STATE = ".stream.json"
"""The file in the folder that holds the name of the data set and the number of rows that have been read."""
SAVE_EVERY = 100
"""Rows after which that number is written; a resumed copy repeats fewer than that."""

_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp"}
"""The first bytes of a file -> its suffix. Others are taken for TIFF."""


def copy_stream(path: Path, folder: Path, *, count: int, progress: Callable[[int, int], None]) -> None:
    """`hf:NAME`, or a folder of tables -> its first `count` rows as image files in `folder`, or all if it has fewer.

    A copy that was stopped continues with the same call. `progress(done, count)` is called after each row. Raises
    `SmaltiError` as `open_stream`, for a folder that holds the images of another data set, and if writing fails.
    """
    state = folder / STATE
    before: dict[str, Any] = read_json(state) if state.is_file() else {"name": str(path), "rows": 0, "complete": False}
    if before["name"] != str(path):
        raise SmaltiError(f"{folder} holds images of {before['name']}; name another folder for those of {path}")
    done: int = before["rows"]
    if before["complete"] or done >= count:
        return
    columns, rows = open_stream(path)
    for row in rows.skip(done).take(count - done):
        _write_row(row, columns, folder, number=done)
        done += 1
        progress(done, count)
        if done % SAVE_EVERY == 0:
            write_json(state, {"name": str(path), "rows": done, "complete": False})
    write_json(state, {"name": str(path), "rows": done, "complete": done < count})


def _write_row(row: dict[str, Any], columns: Columns, folder: Path, *, number: int) -> None:
    """One row -> an image file, and a text file with its captions. A row without an image is skipped."""
    stored = row[columns.image] or {}
    content: bytes | None = stored.get("bytes")
    if not content:
        return
    label = None if columns.label is None else columns.label_name(row[columns.label])
    suffix = next((suffix for start, suffix in _SUFFIXES.items() if content.startswith(start)), ".tif")
    name = folder / (_folder_name(label) if label is not None else "") / f"{number:09d}{suffix}"
    write_atomically(name, lambda file: file.write_bytes(content))
    if columns.caption is not None and (text := caption_lines(row[columns.caption])):
        write_atomically(name.with_suffix(".txt"), lambda file: file.write_bytes(text))


def _folder_name(label: str) -> str:
    """The name of a class -> a name for its folder: no separators, no control characters, not hidden."""
    return re.sub(r"[/\\:\x00-\x1f]", "-", label).strip(" .") or "unnamed"
