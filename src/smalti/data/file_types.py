"""What the files of a data set are, and what a tokenizer is given of them: images, label maps, depths.

A file becomes an array, which is scaled, cut and kept; a cut becomes what an example holds; and a batch of examples
becomes, on its device, what the tokenizer is given. A label map stays one number per pixel until then.

B batch, C channels, H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, final

import numpy as np
import torch
from torch import Tensor

from smalti.core.errors import SmaltiError, suggestion
from smalti.images.edge_maps import edges
from smalti.images.io import (
    IMAGE_SUFFIXES,
    Array,
    Covering,
    DamagedImage,
    check_covering,
    read_covering,
    read_image,
    to_tensor,
)
from smalti.images.label_maps import DEPTH_SUFFIXES, LABEL_SUFFIXES, depth_levels, read_depth, read_labels
from smalti.images.resizing import Filter, resize_to_cover

Size: TypeAlias = tuple[int, int]
"""(height, width) in pixels."""


class FileType(ABC):
    """One kind of files. Its settings are plain values, and can be handed to other processes."""

    name: str
    """As in the settings."""
    files: str
    """What many of them are called."""
    suffixes: tuple[str, ...]
    filter: Filter
    """How it is scaled."""

    @abstractmethod
    def check(self, channels: int) -> None:
        """Raise `SmaltiError` if a tokenizer of this many channels cannot be given this kind."""

    @abstractmethod
    def width(self, channels: int) -> int:
        """Bytes that a pixel of an array takes, in most files."""

    @abstractmethod
    def read(self, source: Path | BinaryIO, *, channels: int, name: str) -> Array:
        """A file -> its whole array. Raises `DamagedImage`."""

    @abstractmethod
    def covering(
        self, source: Path | BinaryIO, size: Size, *, channels: int, name: str, window: Size = (1, 1)
    ) -> Covering:
        """A file -> its array, scaled until it covers `size` (height, width). Raises `DamagedImage`, also as
        `images.check_covering` for the `window` that is to be cut out of it."""

    @abstractmethod
    def compact(self, array: Array, channels: int) -> Tensor:
        """A cut of an array -> what an example holds of it."""

    @abstractmethod
    def to_images(self, compact: Tensor, channels: int) -> Tensor:
        """What examples hold, one or a batch of them -> what the tokenizer is given, (C,H,W) or (B,C,H,W) float32."""

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """What a model folder and a code folder say about it, as plain values; `file_type_of` reads them back."""


class BrightnessLevels(FileType):
    """Kinds whose arrays are levels of brightness: examples hold what the tokenizer is given, and need no further
    interpretation."""

    def compact(self, array: Array, channels: int) -> Tensor:
        return to_tensor(array)

    def to_images(self, compact: Tensor, channels: int) -> Tensor:
        return compact

    def described(self) -> dict[str, Any]:
        return {"kind": self.name}


@final
@dataclass(frozen=True)
class Color(BrightnessLevels):
    """Images of 1, 3 or 4 channels -> arrays (H,W,C) uint8 or uint16, and (C,H,W) float32 in [-1,1]."""

    name = "color"
    files = "images"
    suffixes = IMAGE_SUFFIXES
    filter = "lanczos"

    def check(self, channels: int) -> None:
        if channels not in (1, 3, 4):
            raise SmaltiError(
                f"a tokenizer of {channels} channels is given no images, which have 1 (grayscale), 3 (color) or 4 "
                "(color and opacity); set model.autoencoder.channels to one of them, or images.file_type=labels for "
                "label maps"
            )

    def width(self, channels: int) -> int:
        return channels

    def read(self, source: Path | BinaryIO, *, channels: int, name: str) -> Array:
        return read_image(source, channels=channels, name=name)

    def covering(
        self, source: Path | BinaryIO, size: Size, *, channels: int, name: str, window: Size = (1, 1)
    ) -> Covering:
        return read_covering(source, size, channels=channels, name=name, window=window)


@final
@dataclass(frozen=True)
class Labels(FileType):
    """Maps of the labels 0 to C-1 -> arrays (H,W,1) uint8 or uint16, (H,W) whole numbers, and (C,H,W) float32: 1 in the
    label's channel and 0 in the others.

    `unlabeled`: the number that is in the files for what has no label (255, say). It is given the last channel, so that
    the labels then end at C-2; the original gives it a channel too. None where there is no such number.
    """

    unlabeled: int | None = None

    name = "labels"
    files = "label maps"
    suffixes = LABEL_SUFFIXES
    filter = "nearest"

    def check(self, channels: int) -> None:
        if channels < 2:
            raise SmaltiError(
                f"label maps have a channel for each label, and a tokenizer of {channels} channel can be given none; "
                "set model.autoencoder.channels to the number of labels"
            )
        if self.unlabeled is not None and self.unlabeled < channels:
            raise SmaltiError(
                f"images.unlabeled = {self.unlabeled} is one of the {channels} labels from 0 to {channels - 1}, and "
                "has a channel of its own; leave it out, or give the number that stands for no label"
            )

    def width(self, channels: int) -> int:
        return 1 if channels <= 256 else 2

    def read(self, source: Path | BinaryIO, *, channels: int, name: str) -> Array:
        labels = read_labels(source, name=name)
        count = channels if self.unlabeled is None else channels - 1
        missing = labels == self.unlabeled  # all False for None
        worst = int(labels.max(where=~missing, initial=0))
        if worst >= count:
            raise DamagedImage(name, self._beyond(worst, count))
        narrow = np.where(missing, channels - 1, labels)
        return narrow.astype(np.uint8) if channels <= 256 else narrow.astype(np.uint16)

    def _beyond(self, worst: int, count: int) -> str:
        extra = 1 if self.unlabeled is None else 2
        sentence = (
            f"holds the label {worst}, and there are the labels 0 to {count - 1}; "
            f"set model.autoencoder.channels={worst + extra}"
        )
        if self.unlabeled is not None:
            return f"{sentence}, of which the last is for what has no label (here {self.unlabeled})"
        return f"{sentence}, or, if {worst} stands for no label, images.unlabeled={worst}, which takes the last channel"

    def covering(
        self, source: Path | BinaryIO, size: Size, *, channels: int, name: str, window: Size = (1, 1)
    ) -> Covering:
        array = self.read(source, channels=channels, name=name)
        return _covered(array, size, self.filter, window=window, name=name)

    def compact(self, array: Array, channels: int) -> Tensor:
        return torch.from_numpy(array[:, :, 0].astype(np.uint8 if channels <= 256 else np.int32))

    def to_images(self, compact: Tensor, channels: int) -> Tensor:
        labels = torch.arange(channels, dtype=compact.dtype, device=compact.device)
        return (compact.unsqueeze(-1) == labels).movedim(-1, -3).float()

    def described(self) -> dict[str, Any]:
        return {"kind": self.name, "unlabeled": self.unlabeled}


@final
@dataclass(frozen=True)
class Depth(BrightnessLevels):
    """Depth maps -> arrays (H,W,1) uint16, each from its least depth to its greatest, and (1,H,W) float32 in [-1,1]."""

    name = "depth"
    files = "depth maps"
    suffixes = DEPTH_SUFFIXES
    filter = "lanczos"

    def check(self, channels: int) -> None:
        if channels != 1:
            raise SmaltiError(
                f"a depth map has 1 channel, and the tokenizer takes {channels}; set model.autoencoder.channels=1"
            )

    def width(self, channels: int) -> int:
        return 2

    def read(self, source: Path | BinaryIO, *, channels: int, name: str) -> Array:
        return depth_levels(read_depth(source, name=name))

    def covering(
        self, source: Path | BinaryIO, size: Size, *, channels: int, name: str, window: Size = (1, 1)
    ) -> Covering:
        array = self.read(source, channels=channels, name=name)
        return _covered(array, size, self.filter, window=window, name=name)


@final
@dataclass(frozen=True)
class Edges(BrightnessLevels):
    """Images -> their edges, found as they are read: arrays (H,W,1) uint8, and (1,H,W) float32 in [-1,1]."""

    name = "edges"
    files = "images"
    suffixes = IMAGE_SUFFIXES
    filter = "lanczos"

    def check(self, channels: int) -> None:
        if channels != 1:
            raise SmaltiError(
                f"edges have 1 channel, and the tokenizer takes {channels}; set model.autoencoder.channels=1"
            )

    def width(self, channels: int) -> int:
        return 1

    def read(self, source: Path | BinaryIO, *, channels: int, name: str) -> Array:
        return edges(read_image(source, channels=3, name=name))

    def covering(
        self, source: Path | BinaryIO, size: Size, *, channels: int, name: str, window: Size = (1, 1)
    ) -> Covering:
        """The edges of the image when it is scaled: how fine they are, its size decides."""
        scaled = read_covering(source, size, channels=3, name=name, window=window)
        return Covering(edges(scaled.pixels), scaled.full)


COLOR = Color()

FILE_TYPES: dict[str, Callable[[int | None], FileType]] = {  # of the number that stands for no label
    "color": lambda unlabeled: COLOR,
    "labels": Labels,
    "depth": lambda unlabeled: Depth(),
    "edges": lambda unlabeled: Edges(),
}


def file_type_of(described: Mapping[str, Any], *, channels: int) -> FileType:
    """What a model folder says about its tokenizer -> the kind of files it is for.

    Where it says nothing (it was made elsewhere, or before there were kinds) 1, 3 and 4 channels are for images, others
    for label maps. Raises `SmaltiError` for an unknown kind.
    """
    name = described.get("kind", "color" if channels in (1, 3, 4) else "labels")
    if name not in FILE_TYPES:
        raise SmaltiError(
            f"this tokenizer is for an unknown kind of files, {name!r}; {suggestion(str(name), FILE_TYPES)}"
        )
    return FILE_TYPES[name](described.get("unlabeled"))


def _covered(array: Array, size: Size, filter: Filter, *, window: Size, name: str) -> Covering:
    full = (array.shape[0], array.shape[1])
    check_covering(full, size, window=window, name=name)
    return Covering(resize_to_cover(array, size, filter=filter), full)
