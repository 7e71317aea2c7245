"""Inspection of a data set before training: sizes, classes, damaged and duplicate files.

H W pixels, N images.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeAlias

from smalti.core.errors import SmaltiError
from smalti.core.evenly_spaced import evenly_spaced
from smalti.core.files import check_file
from smalti.core.settings import Natural, Positive, settings
from smalti.data.image_entries import ImageEntry
from smalti.data.sources import Source, too_many_damaged
from smalti.images.io import DamagedImage

Size: TypeAlias = tuple[int, int]
"""(H, W) in pixels."""

MAX_DECODED = 5000
"""The most images that are decoded, evenly spread, to find their sizes and damaged files."""
MAX_LISTED = 5
"""The most names of damaged and of duplicate files that are kept."""


@settings
class Inspection:
    """A data set in numbers."""

    images: Positive
    decoded: Natural
    """How many of them were decoded; all but in large data sets."""
    classes: dict[str, Positive]
    """Images per subfolder."""
    without_class: Natural
    """Images in no subfolder."""
    smallest: tuple[Positive, Positive]
    """(H, W) of the image with the shortest side ..."""
    median: tuple[Positive, Positive]
    """... of the middle one ..."""
    largest: tuple[Positive, Positive]
    """... and of the one whose shorter side is longest."""
    unusable: Natural
    """Images that must be enlarged more than twice, and are left out."""
    enlarged: Natural
    """Images that are enlarged."""
    outside: float
    """Mean share of an image outside of the largest crop of the training's shape."""
    damaged: Natural
    damaged_files: tuple[str, ...]
    """The first of them, each with the reason."""
    duplicates: Natural
    """Files with the same bytes as another one, without the first of each group."""
    duplicate_files: tuple[tuple[str, str], ...]
    """The first pairs."""


class _Decoded(NamedTuple):
    sizes: list[Size]
    damaged: list[str]


def inspect_images(source: Source, *, size: Size, channels: int, progress: Callable[[int, int], object]) -> Inspection:
    """Images, the (H, W) that they are cropped to and the channels of the tokenizer -> the properties of the data set.

    `progress` is called with the number of images decoded and their total. Raises `SmaltiError` for a single image, and
    where too many are damaged to train on.
    """
    if len(source.images) == 1:
        raise SmaltiError(
            f"{source.path} holds a single image, {source.images[0].key}; training needs two or more, and several "
            "hundred to be of use"
        )
    chosen = [source.images[index] for index in evenly_spaced(len(source.images), MAX_DECODED)]
    decoded = _decode(source, chosen, channels, progress)
    damaged = decoded.damaged
    if too_many_damaged(len(damaged), of=len(chosen)):
        raise SmaltiError(
            f"{len(damaged):,} of {len(chosen):,} images in {source.path} are damaged, first {damaged[0]}; remove or "
            "repair them"
        )
    duplicates = list(_duplicates(source))
    ordered = sorted(decoded.sizes, key=lambda each: (min(each), max(each)))
    zooms = [max(size[0] / height, size[1] / width) for height, width in ordered]
    counts = Counter(image.label for image in source.images)
    return Inspection(
        images=len(source.images),
        decoded=len(chosen),
        classes={label: counts[label] for label in source.labels},
        without_class=counts[None],
        smallest=ordered[0],
        median=ordered[len(ordered) // 2],
        largest=ordered[-1],
        unusable=sum(zoom > 2 for zoom in zooms),
        enlarged=sum(1 < zoom <= 2 for zoom in zooms),
        outside=round(statistics.fmean(_outside(full, size) for full in ordered), 4),
        damaged=len(damaged),
        damaged_files=tuple(damaged[:MAX_LISTED]),
        duplicates=len(duplicates),
        duplicate_files=tuple(duplicates[:MAX_LISTED]),
    )


def _decode(
    source: Source, images: Sequence[ImageEntry], channels: int, progress: Callable[[int, int], object]
) -> _Decoded:
    """Images -> the sizes of those that can be read, and a sentence for each damaged one."""
    found = _Decoded([], [])
    for done, image in enumerate(images, 1):
        try:
            height, width = source.read(image, channels).shape[:2]
        except DamagedImage as error:
            found.damaged.append(str(error))
        else:
            found.sizes.append((height, width))
        progress(done, len(images))
    return found


def _outside(full: Size, size: Size) -> float:
    """The (H, W) of an image and of a crop -> the share of the image outside of the largest crop of that shape."""
    scale = max(size[0] / full[0], size[1] / full[1])
    return max(0.0, 1 - math.prod(size) / (math.prod(full) * scale**2))


def _duplicates(source: Source) -> Iterator[tuple[str, str]]:
    """The keys of images whose files have the same bytes: (the first of them, each other)."""
    by_length: dict[int, list[ImageEntry]] = defaultdict(list)
    for image in source.images:
        by_length[source.length(image)].append(image)
    for length, images in by_length.items():
        first: dict[bytes, str] = {}
        for image in images if len(images) > 1 and length >= 0 else ():
            with suppress(OSError, DamagedImage):
                digest = _digest(source, image)
                if digest in first:
                    yield first[digest], image.key
                first.setdefault(digest, image.key)


def _digest(source: Source, image: ImageEntry) -> bytes:
    stream = source.stream(image)
    if isinstance(stream, Path):
        check_file(stream)
        return hashlib.sha256(stream.read_bytes()).digest()
    return hashlib.sha256(stream.read()).digest()
