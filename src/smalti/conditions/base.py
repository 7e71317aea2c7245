"""The one signature of all conditions: a value a person gives -> prefix codes a prior reads.

Letters: B batch, P prefix codes, C number of condition codes, h w grid of codes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from smalti.core.errors import SmaltiError
from smalti.images.io import Array
from smalti.prior.window import Middle, Window, after_middle

Grid: TypeAlias = tuple[int, int]
"""(h, w): rows and columns of codes."""
WindowPrefix: TypeAlias = Callable[[Window], Tensor]
"""A place of the prior's window on a grid of codes -> the prefix (B,P) that is true there."""


class Condition(ABC):
    """Values -> prefix codes (B,P) int64 in [0,C), on the CPU, and back to something that can be looked at."""

    key: str
    """The option it is given by: `--label`, `pipeline.sample(label=...)`."""
    size: int
    """C; a prior may have one more code, C itself, for "nothing"."""
    length: int
    """P."""
    optional: bool = False
    """Whether None is a value like others: that of an image of which nothing needs to be said."""
    maps: tuple[int, ...] = ()
    """Where in the prefix a map begins that has a code for each code of the window, row by row."""
    parts: tuple[Condition, ...] = ()
    """The conditions that it is made of, each with a key of its own; its values are then mappings of those keys."""
    middle: Middle = staticmethod(after_middle)
    """Where in the prior's window the code is that is laid, while the window may stand freely."""
    networks: tuple[nn.Module, ...] = ()
    """What must be moved to another device together with the prior. None of them is trained."""

    @abstractmethod
    def read(self, text: str) -> Any:
        """What a person types behind the option, a name or the path of a file -> a value for `encode`.

        Raises `SmaltiError` for files that are missing or damaged. Whether the value fits is seen when it is encoded.
        """

    @abstractmethod
    def encode(self, values: Sequence[Any]) -> Tensor:
        """B values, each for an image of the prior's window -> (B,P) int64.

        Raises `SmaltiError` naming a value that is not one of this condition.
        """

    @abstractmethod
    def encode_windows(self, values: Sequence[Any], *, grid: Grid) -> WindowPrefix:
        """B values, each for an image of `grid` (h,w) codes -> the prefix for each place of the window.

        It is what `prior.sampling.sample_windows` takes. Raises as `encode`, and for grids smaller than the window where
        the condition has places.
        """

    @abstractmethod
    def preview(self, codes: Tensor) -> Array:
        """Codes (P,) -> a small image (H,W,3) uint8 that shows them."""

    @abstractmethod
    def save(self, folder: Path) -> dict[str, Any]:
        """Write what does not fit into settings below `folder`, and return the plain values it is made from again.

        `conditions.build.build_condition` is the inverse.
        """


def condition_keys(condition: Condition) -> tuple[str, ...]:
    """The options that a condition is given by; none for one that takes no value."""
    return tuple(part.key for part in condition.parts or (condition,) if part.key)


def condition_value(condition: Condition, named: Mapping[str, Any]) -> Any:
    """Values by their keys, all of them keys of the condition -> its value, None for "nothing"."""
    if condition.parts:
        return dict(named) or None
    return named.get(condition.key)


def check_count(values: Sequence[Any], known: Tensor) -> None:
    """Raise `SmaltiError` unless there is a value of the condition for each grid of known codes (B,h,w)."""
    if known.dim() != 3 or len(values) != len(known):
        raise SmaltiError(
            f"{len(values)} values of the condition and codes of shape {tuple(known.shape)} were given; the shape is (B, h, w), "
            "with as many values, None for nothing"
        )


def as_prefix(codes: Sequence[int]) -> Tensor:
    """B codes -> (B,1) int64."""
    return torch.tensor(list(codes), dtype=torch.int64).reshape(-1, 1)


def constant_prefix(prefix: Tensor) -> WindowPrefix:
    """A prefix (B,P) -> the same for every place of the window."""
    return lambda window: prefix


def code_crops(codes: Tensor) -> WindowPrefix:
    """Condition codes (B,h,w), one for each code of the image -> those under the window, row by row.

    The condition of the whole image is encoded once, and its codes are cut: so does the original's sampling of images
    larger than the window.
    """

    def prefix_at(window: Window) -> Tensor:
        top, left, rows, columns = window
        assert 0 <= top <= codes.shape[1] - rows, f"rows {top}..{top + rows} of {codes.shape[1]}"
        assert 0 <= left <= codes.shape[2] - columns, f"columns {left}..{left + columns} of {codes.shape[2]}"
        return codes[:, top : top + rows, left : left + columns].flatten(1)

    return prefix_at


def check_grid(grid: Grid, *, window: Grid, key: str) -> None:
    """Refuse a grid in which the window does not fit: a prior reads the condition codes of a whole window, no fewer."""
    if grid[0] < window[0] or grid[1] < window[1]:
        raise SmaltiError(
            f"a prior with the condition {key!r} lays {window[0]} x {window[1]} codes (height x width) or more, "
            f"{grid[0]} x {grid[1]} were asked for; ask for at least {max(grid[0], window[0])} x {max(grid[1], window[1])}"
        )
