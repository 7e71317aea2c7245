"""Orders in which the codes of a grid are read and generated: raster, and those that the paper compares.

Esser et al., arXiv 2012.09841, in the appendix on the ordering of image representations. For the shapes that the
original code supports, the orders here are equal to its own; the definitions hold for every other shape as well.

Notation: h w grid, n = h w codes. The raster index of row i and column j is i w + j.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Order = Literal["raster", "subsample", "z_curve", "spiral_out", "spiral_in", "random", "alternate"]
AnyOrder = Literal[Order, "any"]
"""The order of a prior: one of `ORDERS`, or "any": the order is a value of each call."""


def raster(rows: int, columns: int) -> Tensor:
    """A grid (h, w) -> its raster places (n,) int64 row by row, each from left to right."""
    return torch.arange(rows * columns)


def subsample(rows: int, columns: int) -> Tensor:
    """A grid (h, w) -> its raster places (n,) int64, a coarse grid first.

    All places of even row and even column come first, then those of even row and odd column, of odd row and even
    column, and the rest; each of the four is a grid again, and is taken in the same way.
    """

    def coarse_first(places: Tensor) -> Tensor:
        if places.numel() <= 1:
            return places.flatten()
        return torch.cat([coarse_first(places[down::2, right::2]) for down in (0, 1) for right in (0, 1)])

    return coarse_first(raster(rows, columns).view(rows, columns))


def z_curve(rows: int, columns: int) -> Tensor:
    """A grid (h, w) -> its raster places (n,) int64 along a Z-curve: by Morton's number, whose bits are in turn those
    of the row and of the column, the row's above the column's."""
    places = raster(rows, columns)
    number = torch.zeros_like(places)
    for bit in range(max(rows, columns).bit_length()):
        number |= (places % columns >> bit & 1) << 2 * bit | (places // columns >> bit & 1) << 2 * bit + 1
    return number.argsort()


def spiral_out(rows: int, columns: int) -> Tensor:
    """A grid (h, w) -> its raster places (n,) int64 on a spiral around the middle: up, right, down, left.

    It starts below and left of the middle point, at row h // 2 and column (w - 1) // 2. Its runs are 1, 1, 2, 2, 3, 3
    ... places long, and what lies outside of the grid is left out.
    """
    row, column = rows // 2, (columns - 1) // 2
    places = [row * columns + column]
    for run in itertools.count():
        down, right = ((-1, 0), (0, 1), (1, 0), (0, -1))[run % 4]
        for _ in range(run // 2 + 1):
            row, column = row + down, column + right
            if 0 <= row < rows and 0 <= column < columns:
                places.append(row * columns + column)
        if len(places) == rows * columns:
            break
    return torch.tensor(places)


def spiral_in(rows: int, columns: int) -> Tensor:
    """A grid (h, w) -> its raster places (n,) int64: `spiral_out` backwards."""
    return spiral_out(rows, columns).flip(0)


def random(rows: int, columns: int) -> Tensor:
    """A grid (h, w) -> its raster places (n,) int64, shuffled: for each number of codes always the same shuffle."""
    # NumPy keeps the numbers of this generator the same for ever, and the original took the seed 1.
    return torch.from_numpy(np.random.RandomState(1).permutation(rows * columns)).long()


def alternate(rows: int, columns: int) -> Tensor:
    """A grid (h, w) -> its raster places (n,) int64 as an ox plows: odd rows from right to left."""
    places = raster(rows, columns).view(rows, columns)
    places[1::2] = places[1::2].flip(1)
    return places.flatten()


ORDERS: dict[Order, Callable[[int, int], Tensor]] = {
    "raster": raster,
    "subsample": subsample,
    "z_curve": z_curve,
    "spiral_out": spiral_out,
    "spiral_in": spiral_in,
    "random": random,
    "alternate": alternate,
}


def known_first(known: Tensor, *, priority: Tensor | None = None) -> Tensor:
    """Which codes are known (..., n) bool, in raster order -> raster places (..., n) int64: the known ones first.

    Known places are in raster order. The others follow in raster order as well, or by rising `priority` (..., n),
    numbers in [0, 1).
    """
    count = known.shape[-1]
    raster_rank = torch.arange(count, device=known.device) / count
    rank = raster_rank if priority is None else priority
    return torch.where(known, raster_rank, 1 + rank).argsort(dim=-1)
