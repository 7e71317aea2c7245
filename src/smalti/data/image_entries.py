"""The names and labels of images in their source: by the folders that they are in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from smalti.core.files import normalized


class ImageEntry(NamedTuple):
    """An image's name within its source (with forward slashes) and its label, if it has one."""

    key: str
    label: str | None
    below_root: str = ""
    """Its path below the root of its source, where the key is another one that changes when all is moved; else ""."""

    @property
    def portable_name(self) -> str:
        """What it is called wherever its source lies."""
        return self.below_root or self.key


def key_below(folder: Path, name: str) -> str:
    """A path as it is in a list -> the key: relative to the list's folder where that is possible."""
    normal = Path(os.path.normpath(name))
    if normal.is_absolute() and normal.is_relative_to(folder.absolute()):
        normal = normal.relative_to(folder.absolute())
    return normal.as_posix()


def listed_entries(folder: Path, keys: Sequence[str]) -> list[ImageEntry]:
    """The keys of a list in `folder`, an absolute path -> its images."""
    paths = [Path(os.path.normpath(folder / key)) for key in keys]
    names = [path.as_posix() for path in paths]
    start = len(common_root(names))
    inside = all(path.is_relative_to(folder) for path in paths)
    return [
        ImageEntry(key, by_path.label, "" if inside else PurePosixPath(*PurePosixPath(name).parts[start:]).as_posix())
        for key, name, by_path in zip(keys, names, labeled_entries(names), strict=True)
    ]


def common_root(keys: Sequence[str]) -> tuple[str, ...]:
    """Keys, one at least -> the parts of the path of the deepest folder that holds them all."""
    first, *others = (PurePosixPath(key).parent.parts for key in keys)
    shared = len(first)
    for parts in others:
        shared = next((i for i in range(min(shared, len(parts))) if parts[i] != first[i]), min(shared, len(parts)))
    return first[:shared]


def labeled_entries(keys: Sequence[str]) -> list[ImageEntry]:
    """Keys -> images, labeled by the first folder below the deepest folder that holds them all."""
    root = common_root(keys)
    return [ImageEntry(key, label_of(key, root=root)) for key in keys]


def label_of(key: str, root: tuple[str, ...]) -> str | None:
    """A key -> the name of the first folder below `root`, the parts of a path; None without one."""
    below = PurePosixPath(key).parent.parts[len(root) :]
    return normalized(below[0]) if below else None
