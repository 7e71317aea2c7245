"""The position of the window on a larger grid: the placement rule of the paper.

Esser et al., arXiv 2012.09841, section 3.2 and figure 3: a window slides over the grid with the code to generate at
its center, as far as the grid's border permits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias


class Window(NamedTuple):
    """A part of a grid of codes: its first row and column, and how many rows and columns it has."""

    top: int
    left: int
    rows: int
    columns: int


Middle: TypeAlias = Callable[[int], int]
"""The number n of codes along a window -> the index in it of the code to generate, if the window is placed freely."""


def after_middle(window: int) -> int:
    """n -> n // 2: the rule of the original's sampling with a spatial condition."""
    return window // 2


def before_middle(window: int) -> int:
    """n -> n // 2 - 1, 0 at least: the rule of the original's sampling of scene layouts."""
    return max(window // 2 - 1, 0)


def placement(index: int, length: int, window: int, *, middle: Middle = after_middle) -> int:
    """Index i of a code along one axis of `length` codes -> its index in the `window` that stands over it.

    The code is at the window's middle, except near the two ends, where the window stops at the border. With
    `after_middle` and even n it is the rule of the original code: i where i <= n/2, n - (N - i) where N - i < n/2, and
    n/2 elsewhere.
    """
    assert 0 <= index < length
    assert window <= length
    start = min(max(index - middle(window), 0), length - window)
    return index - start


def window_at(row: int, column: int, *, grid: tuple[int, int], window: tuple[int, int], middle: Middle) -> Window:
    """A position in a grid (H, W) -> the window (h, w), no larger than the grid, that is used to generate it."""
    top = row - placement(row, grid[0], window[0], middle=middle)
    left = column - placement(column, grid[1], window[1], middle=middle)
    return Window(top, left, window[0], window[1])
