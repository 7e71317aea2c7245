"""Where images come from: a folder, a `.txt` list of paths, a `.zip` file, `.tar` shards or a table of the library
`datasets` -> named, labeled images.

The label of an image is the name of the first folder below the root. The root of a folder is that folder. Lists,
zip files and shards have no root of their own (most zip files hold one folder that holds all else), so their root is
the deepest folder that holds all their images: if all are in one folder, there are no labels. In shards a label may
also be beside the image.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, final

from smalti.core.errors import SmaltiError
from smalti.core.files import check_file, normalized, read_text
from smalti.data.file_types import COLOR, FileType
from smalti.data.folders import (
    PathFinder,
    file_content,
    file_length,
    files_below,
    no_images,
    smalti_output_kind,
    warn_of_generated,
)
from smalti.data.image_entries import ImageEntry, key_below, label_of, labeled_entries, listed_entries
from smalti.data.image_tables import ImageTable, download_table, holds_tables, is_hub_name, open_table
from smalti.data.tar_shards import Extent, Shards, expanded, is_hidden, read_index
from smalti.data.zip_files import read_member, read_members
from smalti.images.io import Array, Covering, DamagedImage

logger = logging.getLogger("smalti")

ARCHIVES = (".txt", ".zip", ".tar")
"""Suffixes of files that hold or name many images."""
COMPRESSED = (".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst")
"""Endings of shards that must be unpacked first, which is then said."""
OF_SCENES = {"labels": "segmentations", "depth": "depths"}
"""Kind -> where its files are in a folder that `smalti scenes` wrote; those of all others lie in `images`."""
TAKEN = (
    "a folder, a .txt list of paths, a .zip file, .tar shards (one, a folder of them, or shards-{000..009}.tar), or "
    "a data set of Hugging Face (a folder of .parquet or .arrow files, or hf:NAME)"
)


class Source(ABC):
    """The images that `path` holds, and their kind. An instance can be handed to other processes."""

    def __init__(self, path: Path, images: Sequence[ImageEntry], file_type: FileType = COLOR) -> None:
        self.path, self.file_type = path, file_type
        self.images = tuple(images)
        self.labels = tuple(sorted({image.label for image in images if image.label is not None}))

    @abstractmethod
    def stream(self, image: ImageEntry) -> Path | BinaryIO:
        """Where the bytes of one image are. Raises `DamagedImage` if they cannot be read."""

    @abstractmethod
    def length(self, image: ImageEntry) -> int:
        """How many bytes one image has in its file or archive, -1 where it is missing."""

    @abstractmethod
    def files(self, images: Sequence[ImageEntry]) -> Sequence[Path]:
        """The files on disk that some of its images are in."""

    @abstractmethod
    def file_content(self, name: str) -> bytes | None:
        """Another file, such as a caption, by its path as keys are written -> its bytes, None where there is none."""

    @final
    def read(self, image: ImageEntry, channels: int) -> Array:
        """One image -> (H, W, C), as its kind is read for a tokenizer of this many channels. Raises `DamagedImage`."""
        return self.file_type.read(self.stream(image), channels=channels, name=image.key)

    @final
    def covering(
        self, image: ImageEntry, size: tuple[int, int], *, channels: int, window: tuple[int, int] = (1, 1)
    ) -> Covering:
        """One image -> scaled until it covers `size` (height, width), for a `window` that is cut out of it.

        Raises `DamagedImage`, also for an image that is too small for the window or too thin.
        """
        return self.file_type.covering(self.stream(image), size, channels=channels, name=image.key, window=window)


@final
class FolderSource(Source):
    """Those of the `files` in and below a folder that are images, sorted by name."""

    def __init__(self, path: Path, files: Sequence[str], file_type: FileType) -> None:
        keys = sorted(name for name in files if _is_image(name, file_type))
        if not keys:
            raise no_images(path, files, file_type)
        super().__init__(path, [ImageEntry(key, label_of(key, root=())) for key in keys], file_type)

    def stream(self, image: ImageEntry) -> Path:
        return self.path / image.key

    def length(self, image: ImageEntry) -> int:
        return file_length(self.stream(image))

    def files(self, images: Sequence[ImageEntry]) -> Sequence[Path]:
        return [self.stream(image) for image in images]

    def file_content(self, name: str) -> bytes | None:
        return file_content(self.path / name)


@final
class ListSource(Source):
    """The images whose paths are in a text file, one a line, absolute or relative to the folder of the list.

    Their order is kept; an image that is named twice counts once; blank lines are skipped. Lines that name nothing, up
    to a tenth of all, are left out with a warning. Where a path leads out of the folder of the list, all are known by
    their paths below the deepest folder that holds them, so that list and images can be moved.
    """

    def __init__(self, path: Path, file_type: FileType) -> None:
        try:
            lines = re.split(r"\r\n|\r|\n", read_text(path))
        except (OSError, UnicodeDecodeError) as error:
            raise SmaltiError(f"cannot read {path} as a list of paths: {error}") from error
        keys: dict[str, None] = {}
        missing: list[str] = []
        finder = PathFinder(path.parent)
        for number, line in enumerate(lines, start=1):
            name = line.strip()
            if not name:
                continue
            found = finder.find(name)
            if found is None or PurePosixPath(key_below(path.parent, found)).name in ("", ".."):  # no file
                missing.append(f"{name} (line {number})")
            else:
                keys[key_below(path.parent, found)] = None
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            message = (
                f"{path} names files that do not exist: {', '.join(missing[:3])}{more}; "
                f"paths are absolute or relative to {path.parent}"
            )
            if too_many_damaged(len(missing), of=len(missing) + len(keys)):
                raise SmaltiError(message)
            logger.warning("left out: %s", message)
        if not keys:
            raise SmaltiError(f"{path} names no images; it should hold one path a line")
        super().__init__(path, listed_entries(path.parent.absolute(), list(keys)), file_type)

    def stream(self, image: ImageEntry) -> Path:
        return self.path.parent / image.key

    def length(self, image: ImageEntry) -> int:
        return file_length(self.stream(image))

    def files(self, images: Sequence[ImageEntry]) -> Sequence[Path]:
        return [self.stream(image) for image in images]

    def file_content(self, name: str) -> bytes | None:
        return file_content(self.path.parent / name)


@final
class ZipSource(Source):
    """The images in a zip file, sorted by name, read without unpacking it."""

    def __init__(self, path: Path, file_type: FileType) -> None:
        members = {name: member for name, member in read_members(path).items() if _is_visible(name)}
        found = {name: member for name, member in members.items() if _is_image(name, file_type)}
        if not found:
            raise no_images(path, list(members), file_type)
        if any(member.flag_bits & 1 for member in found.values()):
            raise SmaltiError(f"{path} is locked with a password; unpack it and give the folder")
        super().__init__(path, labeled_entries(sorted(found)), file_type)
        self._members = members
        self._archive: zipfile.ZipFile | None = None
        self._process = 0

    def stream(self, image: ImageEntry) -> BinaryIO:
        return BytesIO(self._content(image.key))

    def _content(self, name: str) -> bytes:
        try:
            if self._archive is None or self._process != os.getpid():
                # Each process opens the file for itself: a forked one would share the reading position with its parent.
                check_file(self.path)
                self._archive, self._process = zipfile.ZipFile(self.path), os.getpid()
            return read_member(self._archive, self._members[name])
        except Exception as error:  # a bad checksum, a cut or unknown compression: zipfile has an exception for each
            raise DamagedImage(name, f"cannot be read from {self.path} ({error})") from error

    def length(self, image: ImageEntry) -> int:
        return self._members[image.key].file_size

    def files(self, images: Sequence[ImageEntry]) -> Sequence[Path]:
        return [self.path]

    def file_content(self, name: str) -> bytes | None:
        return self._content(name) if name in self._members else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}


@final
class ShardSource(Source):
    """The images of tar files, in their order; see `smalti.data.tar_shards` for what is a sample, and what its label.

    The key of an image is the name of its shard (below `path`, where that is a folder), without `.tar`,
    then its path there.
    """

    def __init__(self, path: Path, shards: Sequence[Path], file_type: FileType) -> None:
        self._shards = Shards(shards)
        self._extents: dict[str, Extent] = {}
        self._captions: dict[str, Extent] = {}
        keys: list[str] = []
        paths: list[str] = []
        labels: list[str | None] = []
        others: list[str] = []
        names = _different(path, shards)
        for number, shard in enumerate(shards):
            index = read_index(shard, number, file_type.suffixes)
            others += index.others
            for sample in index.samples:
                keys.append(f"{names[number]}/{sample.path}")
                paths.append(sample.path)
                labels.append(sample.label)
                self._extents[keys[-1]] = sample.extent
                if sample.caption is not None:
                    self._captions[PurePosixPath(keys[-1]).with_suffix(".txt").as_posix()] = sample.caption
        if not keys:
            raise no_images(path, others, file_type)
        found = labeled_entries(paths)
        images = [
            ImageEntry(key, message if message is not None else by_folder.label)
            for key, message, by_folder in zip(keys, labels, found, strict=True)
        ]
        super().__init__(path, images, file_type)

    def stream(self, image: ImageEntry) -> BinaryIO:
        return BytesIO(self._content(image.key, self._extents[image.key]))

    def _content(self, name: str, extent: Extent) -> bytes:
        try:
            return self._shards.read(extent)
        except (OSError, EOFError) as error:
            raise DamagedImage(name, f"cannot be read from {self._shards.paths[extent.shard]} ({error})") from error

    def length(self, image: ImageEntry) -> int:
        return self._extents[image.key].size

    def files(self, images: Sequence[ImageEntry]) -> Sequence[Path]:
        return self._shards.paths

    def file_content(self, name: str) -> bytes | None:
        return self._content(name, self._captions[name]) if name in self._captions else None


def _different(path: Path, shards: Sequence[Path]) -> list[str]:
    """The names of shards, below `path` or, where that is not a folder, below the deepest folder that holds all of
    them."""
    root = path if path.is_dir() else Path(os.path.commonpath([shard.parent for shard in shards]))
    return [shard.relative_to(root).with_suffix("").as_posix() for shard in shards]


@final
class TableSource(Source):
    """The rows of a data set of the library `datasets` that hold an image, in their order."""

    def __init__(self, path: Path, table: ImageTable, file_type: FileType) -> None:
        self._table = table
        super().__init__(path, [ImageEntry(key, label) for key, label in table.entries()], file_type)

    def stream(self, image: ImageEntry) -> BinaryIO:
        try:
            return BytesIO(self._table.content(image.key))
        except OSError as error:
            raise DamagedImage(image.key, f"cannot be read from {self.path} ({error})") from error

    def length(self, image: ImageEntry) -> int:
        return self._table.length(image.key)

    def files(self, images: Sequence[ImageEntry]) -> Sequence[Path]:
        return [self.path]

    def file_content(self, name: str) -> bytes | None:
        return self._table.captions(name)


def open_source(path: Path, *, file_type: FileType = COLOR) -> Source:
    """A folder, a `.txt` list of paths, a `.zip` file or `.tar` shards -> the images, or other files, of a `file_type`.

    All that is in and below a folder counts, but hidden files and folders, and what smalti wrote; links are followed.
    A folder without images, but with `.tar` files, is one of shards. Shards may also be named as
    `shards-{000..009}.tar`. A folder with `.parquet` or `.arrow` files, such as a saved data set of the library
    `datasets`, and `hf:NAME`, a data set on the Hugging Face Hub, need that library.

    Raises `SmaltiError` when there is no such path, when it is of another kind, when it holds no images, for the
    folder of scenes, in which label maps and depths are beside the images, and for runs, models and codes of smalti.
    """
    if path.is_dir():
        if (path / "scenes.json").is_file():
            raise SmaltiError(
                f"{path} holds scenes, whose label maps, depths and edges are not images; for their {file_type.files} "
                f"give {path / OF_SCENES.get(file_type.name, 'images')}"
            )
        kind = smalti_output_kind(path)
        if kind:
            raise SmaltiError(
                f"{path} is {kind} of smalti, and no folder of {file_type.files}; give the folder they are in"
            )
        files = files_below(path, scenes=OF_SCENES.get(file_type.name, "images"))
        tars = sorted(name for name in files if name.lower().endswith(".tar"))
        if tars and not any(_is_image(name, file_type) for name in files):
            return ShardSource(path, [path / name for name in tars], file_type)
        if holds_tables(files) and not any(_is_image(name, file_type) for name in files):
            return TableSource(path, open_table(path, files), file_type)
        source = FolderSource(path, files, file_type)
        warn_of_generated(path, [image.key for image in source.images])
        return source
    if not path.exists():
        if is_pattern(path):
            return ShardSource(path, _named(path), file_type)
        if is_hub_name(path):
            return TableSource(path, download_table(path), file_type)
        raise SmaltiError(f"there is no {path}; images come from {TAKEN}")
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return ListSource(path, file_type)
    if suffix == ".zip":
        return ZipSource(path, file_type)
    if suffix == ".tar" or path.name.lower().endswith(COMPRESSED):
        return ShardSource(path, [path], file_type)
    raise SmaltiError(
        f"{path} is neither a folder, a .txt list of paths, a .zip file nor a .tar shard; give the folder it is in"
    )


def is_pattern(path: Path) -> bool:
    """Whether a path that does not exist names shards, as `shards-{000..009}.tar` does."""
    return "{" in str(path) and path.suffix.lower() == ".tar" and not path.exists()


def holds_many(path: Path) -> bool:
    """Whether a path stands for many images, as `open_source` takes them, and not for a single one."""
    return path.is_dir() or path.name.lower().endswith((*ARCHIVES, *COMPRESSED)) or is_hub_name(path)


def _named(pattern: Path) -> list[Path]:
    shards = [Path(name) for name in expanded(str(pattern))]
    missing = [str(shard) for shard in shards if not shard.is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise SmaltiError(f"{pattern} names {len(shards)} shards, and there is no {', '.join(missing[:3])}{more}")
    return shards


def split(images: Iterable[ImageEntry], *, validation: float) -> tuple[tuple[ImageEntry, ...], tuple[ImageEntry, ...]]:
    """Images -> (those to train on, those to validate on), about the fraction `validation` of them in the latter.

    An image's side depends on the hash of its portable name alone, so adding images moves none that are there already.
    The one exception: of two or more images each side gets at least one, so in a tiny set the image with the lowest
    (highest) hash is used for an otherwise empty validation (training) side. A single image is for training.

    Raises `SmaltiError` unless 0 < validation < 1.
    """
    if not 0 < validation < 1:
        raise SmaltiError(f"the fraction for validation must be above 0 and below 1, not {validation}")
    given = tuple(images)
    chosen = {image.key for image in given if _place(image.portable_name) < validation}
    if len(given) > 1:
        first, *_, last = held_out_order(given)
        chosen.add(given[first].key)
        chosen.discard(given[last].key)
    else:
        chosen.clear()
    return (
        tuple(image for image in given if image.key not in chosen),
        tuple(image for image in given if image.key in chosen),
    )


def held_out_order(images: Sequence[ImageEntry]) -> list[int]:
    """The numbers of images in the order in which `split` would hold them out, were the fraction to grow from 0."""
    names = [image.portable_name for image in images]
    return sorted(range(len(names)), key=lambda number: (_place(names[number]), names[number]))


def _place(key: str) -> float:
    """A key -> a number in [0, 1). File systems differ in how they spell accents, so the key is normalized first."""
    digest = hashlib.sha256(normalized(key).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def identity(source: Source, images: Sequence[ImageEntry] | None = None) -> str:
    """16 hexadecimal digits for the names of images, all of a source by default, and the sizes of their files.

    Copies of a data set have the same; an image that is changed without changing the length of its file is not
    noticed.
    """
    digest = hashlib.sha256()
    for image in source.images if images is None else images:
        digest.update(normalized(image.portable_name).encode("utf-8", "surrogateescape"))
        digest.update(f"\0{source.length(image)}\0".encode())
    return digest.hexdigest()[:16]


def too_many_damaged(damaged: int, *, of: int) -> bool:
    """Whether so many images are damaged that something is wrong with the data: all, or 3 and above a tenth."""
    return damaged == of or (damaged >= 3 and damaged > of / 10)


def _is_image(name: str, file_type: FileType) -> bool:
    return name.lower().endswith(file_type.suffixes)


def _is_visible(name: str) -> bool:
    """Whether a zip member is neither hidden nor the shadow of a file that macOS adds."""
    return not any(is_hidden(part) for part in PurePosixPath(name).parts)
