"""Where the results for images are written: below one folder, a file for each, and never over a file of the user."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from smalti.core.errors import SmaltiError
from smalti.core.files import normalized
from smalti.data.image_entries import ImageEntry
from smalti.data.sources import Source
from smalti.images.png_stream import read_head


def without_results(source: Source, out: Path, *, command: str) -> tuple[ImageEntry, ...]:
    """The images of a source without those that the same command wrote into `out` before, if it is among them."""
    root = os.path.realpath(source.path)
    if not source.path.is_dir() or not Path(os.path.realpath(out)).is_relative_to(root):
        return source.images
    results = Path(os.path.realpath(out)).relative_to(root)
    return tuple(
        image
        for image in source.images
        if not (
            PurePosixPath(image.key).is_relative_to(results.as_posix()) and _command(source.path / image.key) == command
        )
    )


def _command(path: Path) -> str:
    """The command that generated an image, "" for other files."""
    head = read_head(path)
    return "" if head is None or head.settings is None else str(head.settings.get("command", ""))


def output_paths(images: Sequence[ImageEntry], out: Path) -> tuple[Path, ...]:
    """Images of one source -> for each a PNG file of its own below `out`.

    The path is that of the image, without what leads out of the folder: roots, drives, `..`. Images that differ only in
    their suffix, in capitals or in how accents are spelled keep their suffix: `one.jpg.png`. Where even these names are
    taken, a number follows.
    """
    names = [_inside(image.key) for image in images]
    counts = Counter(_folded(name.with_suffix(".png")) for name in names)
    alone = [counts[_folded(name.with_suffix(".png"))] == 1 for name in names]
    taken = set() if all(alone) else {_folded(name.with_suffix(".png")) for name in names}
    return tuple(
        out / (name.with_suffix(".png") if single else _free(name, taken))
        for name, single in zip(names, alone, strict=True)
    )


def _inside(key: str) -> PurePosixPath:
    parts = [
        re.sub(r"^([A-Za-z]):$", r"\1", part) for part in PurePosixPath(key).parts if part not in ("/", "//", "..")
    ]
    return PurePosixPath(*parts) if parts else PurePosixPath("image")


def _free(name: PurePosixPath, taken: set[str]) -> PurePosixPath:
    """A name that is not taken yet, which it then is."""
    wanted, number = name.with_name(f"{name.name}.png"), 1
    while _folded(wanted) in taken:
        number += 1
        wanted = name.with_name(f"{name.name}-{number}.png")
    taken.add(_folded(wanted))
    return wanted


def _folded(name: PurePosixPath) -> str:
    """What names have in common that are one file on macOS or Windows."""
    return normalized(normalized(str(name)).casefold())


def check_outputs(outputs: Iterable[Path], out: Path, *, inputs: Iterable[Path]) -> None:
    """Raise `SmaltiError` if an output would replace an input or another file that smalti did not write, or where a
    link leads out of `out`."""
    given = {found for path in inputs for found in (_identity(path), _identity(_real(path))) if found is not None}
    root = Path(os.path.realpath(out))
    for path in outputs:
        if not Path(os.path.realpath(path.parent)).is_relative_to(root):
            raise SmaltiError(f"{path.parent} is a link that leads out of {out}; remove it, or choose another --out")
        found = _identity(path)
        if found is None:
            continue
        if found in given:
            raise SmaltiError(f"the result {path} would replace an input; choose another --out")
        head = read_head(path)
        if head is None or head.settings is None:
            raise SmaltiError(
                f"the result {path} would replace a file that smalti did not write; choose another --out, or remove "
                "the file"
            )


def _real(path: Path) -> Path:
    """Where a path leads, through all links."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):  # as in `_identity`
        return path


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file, or a link itself, from all others; None where there is none."""
    try:
        found = os.lstat(path)
    except (OSError, ValueError):  # a text that is not a path
        return None
    return found.st_dev, found.st_ino
