"""The holes of the experiment `inpainting`, as functions of a grid's size: of codes, for likelihoods, or of pixels.

True is a hole. All are the same each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _rectangle(top: float, bottom: float, left: float, right: float) -> Callable[[int, int], Tensor]:
    """Shares of height and width, from the top left corner -> the hole."""

    def hole(height: int, width: int) -> Tensor:
        rows, columns = _middles(height), _middles(width)
        return ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))[None]

    return hole


def _middles(count: int) -> Tensor:
    """The centers of `count` cells side by side, as fractions of the whole: (count,)."""
    return (torch.arange(count) + 0.5) / count


def _border(height: int, width: int) -> Tensor:
    """A quarter of a side all around."""
    return ~_rectangle(0.25, 0.75, 0.25, 0.75)(height, width)


def _scattered(height: int, width: int) -> Tensor:
    """Half of the positions, drawn by a seed."""
    return torch.rand(height, width, generator=torch.Generator().manual_seed(0)) < 0.5


def _brush(height: int, width: int) -> Tensor:
    """A wavy stroke from left to right, a fifth of the height wide."""
    rows, columns = _middles(height), _middles(width)
    stroke = 0.5 + 0.25 * torch.sin(2 * math.pi * columns)  # (w,)
    return (rows[:, None] - stroke[None]).abs() < 0.1


HOLES: dict[str, Callable[[int, int], Tensor]] = {
    "left half": _rectangle(0, 1, 0, 0.5),
    "right half": _rectangle(0, 1, 0.5, 1),
    "upper half": _rectangle(0, 0.5, 0, 1),
    "lower half": _rectangle(0.5, 1, 0, 1),
    "center": _rectangle(0.25, 0.75, 0.25, 0.75),
    "border": _border,
    "random half": _scattered,
    "brush": _brush,
}
"""Name -> (rows, columns) -> the hole (rows, columns) bool."""

SHOWN = ("center", "right half", "upper half", "border", "brush")
"""Those of which completed images are shown."""
