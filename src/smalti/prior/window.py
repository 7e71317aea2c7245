"""Where the window stands while a grid larger than it is laid: the placement rule of the paper.

Esser et al., arXiv 2012.09841, section 3.2 and figure 3: a window slides over the grid and keeps the code being laid at
its centre, as far as the grid reaches.
"""

from __future__ import annotations

from typing import NamedTuple


class Window(NamedTuple):
    """A part of a grid of codes: its first row and column, and how many rows and columns it has."""

    top: int
    left: int
    rows: int
    columns: int


def placement(index: int, length: int, window: int) -> int:
    """Index i of a code along one axis of `length` codes -> its index in the `window` that stands over it.

    The code is at the window's middle, n // 2, except near the two ends, where the window stops at the border. For even
    n it is the rule of the original code: i where i <= n/2, n - (N - i) where N - i < n/2, and n/2 elsewhere.
    """
    assert 0 <= index < length
    assert window <= length
    start = min(max(index - window // 2, 0), length - window)
    return index - start


def window_over(row: int, column: int, *, grid: tuple[int, int], window: tuple[int, int]) -> Window:
    """A place in a grid (H, W) -> the part of it under a window (h, w), no larger, while that place is laid."""
    top = row - placement(row, grid[0], window[0])
    left = column - placement(column, grid[1], window[1])
    return Window(top, left, window[0], window[1])
