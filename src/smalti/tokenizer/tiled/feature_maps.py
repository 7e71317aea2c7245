"""Maps of features that are written and read strip by strip, in memory or in a file, and know the moments
of their channels.

Notation: B batch, C channels, H W height and width of the map, r rows of a strip, G groups of a GroupNorm.
"""

from __future__ import annotations

import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from smalti.core.errors import SmaltiError

Rows = Callable[[int, int], Tensor]
"""(first, last) -> rows first to last - 1 of a map: (B,C,last-first,W)."""

PIECE = 2**18
"""Numbers of which moments are taken at a time: 2 MiB in float64, which a processor's cache holds."""


class ChannelMoments(NamedTuple):
    """Mean and spread of each channel over the rows seen so far, in float64."""

    positions: int
    """Of one channel."""
    mean: Tensor
    """(B,C)."""
    squares: Tensor
    """(B,C): the sum of squared distances from the mean."""

    def affine(self, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        """`norm` of the map is `scale * x + shift`: both (B,C,1,1) in float64."""
        B, C = self.mean.shape
        grouped = self.mean.view(B, norm.num_groups, -1)  # (B,G,C/G)
        mean = grouped.mean(2, keepdim=True)  # (B,G,1)
        squares = self.squares.view_as(grouped) + self.positions * (grouped - mean).square()
        variance = squares.mean(2, keepdim=True) / self.positions  # (B,G,1)
        scale = norm.weight.double() * (variance + norm.eps).rsqrt().expand_as(grouped).reshape(B, C)
        shift = norm.bias.double() - mean.expand_as(grouped).reshape(B, C) * scale
        return scale[..., None, None], shift[..., None, None]


def moments_of(strip: Tensor) -> ChannelMoments:
    """(B,C,r,W) -> the moments of its channels."""
    parts = []
    for piece in torch.split(strip, max(1, PIECE // strip[:, :, :1].numel()), 2):
        wide = piece.double()
        mean = wide.mean((2, 3), keepdim=True)
        parts.append(ChannelMoments(wide[0, 0].numel(), mean[..., 0, 0], (wide - mean).square_().sum((2, 3))))
    return joined_moments(parts)


def joined_moments(parts: Iterable[ChannelMoments]) -> ChannelMoments:
    """The moments of some rows, and of others -> those of all (Chan, Golub, LeVeque 1979, equation 2.1)."""
    rest = iter(parts)
    positions, mean, squares = next(rest)
    for other in rest:
        total, distance = positions + other.positions, other.mean - mean
        mean = mean + distance * (other.positions / total)
        squares = squares + other.squares + distance.square() * (positions * other.positions / total)
        positions = total
    return ChannelMoments(positions, mean, squares)


@dataclass(frozen=True)
class MapStorageSettings:
    """Where maps are kept."""

    memory_limit: int
    """A map of at most this many bytes is kept in memory, a larger one in a file."""
    folder: Path
    """For the files; they have no names and vanish with the process."""


class MapStorage(ABC):
    """The numbers of a map (B,C,H,W). In memory and in a file they are stored channels-last, so that a strip is one
    piece."""

    @abstractmethod
    def write(self, first: int, strip: Tensor) -> None:
        """Put a strip (B,C,r,W) into the rows from `first` on."""

    @abstractmethod
    def read(self, first: int, last: int) -> Tensor:
        """Rows first to last - 1, (B,C,last-first,W), channels last; not the caller's own."""


@final
class InMemory(MapStorage):
    """In memory, on the device of the strips."""

    def __init__(self, strip: Tensor, height: int) -> None:
        B, C, _, W = strip.shape
        self._values = strip.new_empty(B, height, W, C)

    def write(self, first: int, strip: Tensor) -> None:
        self._values[:, first : first + strip.shape[2]] = strip.permute(0, 2, 3, 1)

    def read(self, first: int, last: int) -> Tensor:
        return self._values[:, first:last].permute(0, 3, 1, 2)


@final
class OnDisk(MapStorage):
    """In a file without a name. Raises `SmaltiError` if the folder has no room for it.

    It is read and written, not mapped: the pages of a mapped file would count as memory of the process.
    """

    def __init__(self, strip: Tensor, height: int, *, folder: Path) -> None:
        B, C, _, W = strip.shape
        self._folder, self._height = folder, height
        self._batch, self._row = B, (W, C)
        self._dtype, self._device = strip.dtype, strip.device
        self._row_bytes = W * C * strip.element_size()
        with self._write_errors_explained():
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # open while the map is there
        weakref.finalize(self, self._file.close)

    def write(self, first: int, strip: Tensor) -> None:
        values = strip.permute(0, 2, 3, 1).to("cpu", self._dtype).contiguous()  # (B,r,W,C)
        for item in range(self._batch):
            rest = _bytes(values[item])
            with self._write_errors_explained():
                self._file.seek((item * self._height + first) * self._row_bytes)
                while rest:  # a system may take less than it is given
                    rest = rest[self._file.write(rest) :]

    def read(self, first: int, last: int) -> Tensor:
        values = torch.empty(self._batch, last - first, *self._row, dtype=self._dtype)  # (B,r,W,C)
        for item in range(self._batch):
            rest = _bytes(values[item])
            with self._write_errors_explained():
                self._file.seek((item * self._height + first) * self._row_bytes)
                while rest:
                    got = self._file.readinto(rest)
                    assert got, "only rows that were written are read"
                    rest = rest[got:]
        return values.to(self._device).permute(0, 3, 1, 2)

    @contextmanager
    def _write_errors_explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SmaltiError(
                f"a map of {self._batch * self._height * self._row_bytes} bytes cannot be kept in {self._folder} "
                f"({error.strerror}); give another folder for temporary files, or let more be kept in memory"
            ) from error


def _bytes(values: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, of any type."""
    return values.view(-1).view(torch.uint8).numpy().data


@final
class FeatureMap:
    """A map (B,C,H,W) that was written from top to bottom; its moments were gathered on the way."""

    def __init__(self, storage: MapStorage, strips: Iterable[Tensor], height: int) -> None:
        self.height = height
        self._storage = storage
        self.moments = joined_moments(self._written(strips))

    @property
    def read(self) -> Rows:
        """Rows of the map, not the caller's own."""
        return self._storage.read

    def overwritten(self, strips: Iterable[Tensor]) -> FeatureMap:
        """A map of the same shape in place of this one, which is gone. Each strip is computed before its rows are
        written."""
        return FeatureMap(self._storage, strips, self.height)

    def _written(self, strips: Iterable[Tensor]) -> Iterator[ChannelMoments]:
        first = 0
        for strip in strips:
            self._storage.write(first, strip)
            yield moments_of(strip)
            first += strip.shape[2]
        assert first == self.height


def gathered(strips: Iterable[Tensor], height: int, settings: MapStorageSettings) -> FeatureMap:
    """Strips (B,C,r,W) from top to bottom, `height` rows together -> the map they make up."""
    rest = iter(strips)
    strip = next(rest)
    size = strip[:, :, :1].numel() * height * strip.element_size()
    storage = (
        InMemory(strip, height) if size <= settings.memory_limit else OnDisk(strip, height, folder=settings.folder)
    )
    return FeatureMap(storage, chain([strip], rest), height)
