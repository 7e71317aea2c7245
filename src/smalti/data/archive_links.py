"""Symbolic links in zip and tar files, to files and to folders: which files of the archive they stand for."""

from __future__ import annotations

import posixpath
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Generic, TypeVar, final

from smalti.core.errors import SmaltiError

T = TypeVar("T")

_MAX_LINKS = 40
"""Links that lead to links; more are a circle."""
_MAX_FILES = 5_000_000
"""Files that the links of an archive may stand for: thousands of links to a folder of thousands are billions."""


def plain(name: str) -> str:
    """The name of a member -> its path below the root of the archive, with forward slashes."""
    return posixpath.normpath(name.replace("\\", "/")).lstrip("/")


def target_of(name: str, text: str) -> str:
    """The name of a link and the path that is in it, relative to its folder -> the path below the root."""
    return plain(posixpath.join(posixpath.dirname(name.replace("\\", "/")), text.replace("\\", "/")))


@final
class Links(Generic[T]):
    """The files and the links of an archive, both by `plain` paths; the values of `targets` are such paths too."""

    def __init__(self, files: Mapping[str, T], targets: Mapping[str, str]) -> None:
        self._files, self._targets = files, targets
        self._names = sorted({*files, *targets})
        self._followed_files = 0

    def end(self, path: str) -> str:
        """A path -> the same without links, also in place of its folders; "" where they lead in a circle."""
        for _ in range(_MAX_LINKS):
            parents = accumulate(path.split("/"), lambda above, part: f"{above}/{part}")
            link = next((above for above in parents if above in self._targets), None)
            if link is None:
                return path
            path = posixpath.normpath(self._targets[link] + path[len(link) :])
        return ""

    def followed(self, path: str) -> Iterator[tuple[str, T]]:
        """A link -> the files it stands for, each with what follows the path of the link: "" for that of a file,
        "/1.png" for one in a folder. Nothing for a link to nothing, and for one to a folder that it is in.

        Raises `SmaltiError` where all links together stand for more than `_MAX_FILES`.
        """
        for found in self._followed(path, entered=set()):
            self._followed_files += 1
            if self._followed_files > _MAX_FILES:
                raise SmaltiError(
                    f"its links stand for more than {_MAX_FILES:,} files; write the archive without links"
                )
            yield found

    def _followed(self, path: str, entered: set[str]) -> Iterator[tuple[str, T]]:
        """`entered`: the folders that are not entered again, so that circles end."""
        end = self.end(path)
        if end in self._files:
            yield "", self._files[end]
            return
        if end in ("", ".", *entered) or path.startswith(f"{end}/"):
            return
        entered.add(end)
        for index in range(bisect_left(self._names, f"{end}/"), len(self._names)):
            name = self._names[index]
            if not name.startswith(f"{end}/"):
                return
            rest = name[len(end) :]
            if name in self._files:
                yield rest, self._files[name]
            else:
                yield from ((rest + image_progress, file) for image_progress, file in self._followed(name, entered))
