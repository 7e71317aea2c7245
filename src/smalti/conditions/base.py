"""The common interface of all conditions: a value -> prefix codes for the prior.

Notation: B batch, P prefix codes, C number of condition codes, h w grid of codes.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, nn

from smalti.core.errors import SmaltiError
from smalti.images.io import Array
from smalti.prior.window import Middle, Window, after_middle

Grid: TypeAlias = tuple[int, int]
"""(h, w): rows and columns of codes."""
WindowPrefix: TypeAlias = Callable[[Window], Tensor]
"""A position of the prior's window on a grid of codes -> the prefix (B,P) for that position."""
ValueType: TypeAlias = Literal["label", "segmentation", "image", "json", "text"]
"""How a value is written: the name of a label, a label map, an image file, a JSON file, or other text."""


class Condition(ABC):
    """Values -> prefix codes (B,P) int64 in [0,C), on the CPU, and back to a preview image."""

    key: str
    """The name of the option and the argument: `--label`, `pipeline.sample(label=...)`."""
    size: int
    """C. A prior may have one more code, C itself, for unconditional generation."""
    length: int
    """P."""
    value_type: ValueType = "text"
    names: tuple[str, ...] = ()
    """The names of the labels in the order of their numbers, if a value is a label or a label map."""
    unlabeled: int | None = None
    """The number of unlabeled pixels in a label map, None if there is none. It has no name."""
    smallest_grid: Grid = (1, 1)
    """The smallest image (h,w) in codes that the condition supports: the prior's window if it has a code per
    position."""
    from_labels: bool = False
    """Whether its code is the label number of an image. Code shards store the labels, and no such prefix."""
    optional: bool = False
    """Whether None is a valid value, for an image without the condition."""
    blank_is_none: bool = False
    """Whether a blank string means no value, as None does."""
    maps: tuple[int, ...] = ()
    """Start indices in the prefix of maps with one code per code of the window, row by row."""
    parts: tuple[Condition, ...] = ()
    """The parts of a composite condition, each with its own key. Its values are mappings of these keys."""
    middle: Middle = staticmethod(after_middle)
    """The index in the prior's window of the code to generate, if the window is placed freely."""
    networks: tuple[nn.Module, ...] = ()
    """Networks to move to another device together with the prior. None of them is trained."""

    @abstractmethod
    def read(self, text: str) -> Any:
        """The text of the option, a name or a file path -> a value for `encode`.

        Raises `SmaltiError` for missing or damaged files. `encode` checks the value itself.
        """

    @abstractmethod
    def resize_to_grid(self, value: Any, *, grid: Grid | None) -> tuple[Any, Grid | None]:
        """A value of any size, and the grid (h,w) of the image, None for the value's own -> the value for that
        grid, and the grid, None if neither is given.

        Raises `SmaltiError` for grids that the condition does not support.
        """

    @abstractmethod
    def encode(self, values: Sequence[Any]) -> Tensor:
        """B values, each for an image of the prior's window -> (B,P) int64.

        Raises `SmaltiError` that names an invalid value.
        """

    @abstractmethod
    def encode_windows(self, values: Sequence[Any], *, grid: Grid) -> WindowPrefix:
        """B values, each for an image of `grid` (h,w) codes -> the prefix per window position.

        A `GenerationRequest` holds the result. Raises as `encode`, and for grids smaller than the window if the
        condition depends on the position.
        """

    @abstractmethod
    def preview(self, codes: Tensor) -> Array:
        """Codes (P,) -> a small image (H,W,3) uint8 of them."""

    @abstractmethod
    def save(self, folder: Path) -> dict[str, Any]:
        """Write everything that does not fit into settings below `folder`, and return the settings.

        `condition_registry.build_condition` is the inverse.
        """

    @final
    @property
    def members(self) -> tuple[Condition, ...]:
        """The parts of a composite condition, or the condition itself."""
        return self.parts or (self,)

    @final
    @property
    def is_stored(self) -> bool:
        """Whether code shards hold the condition's codes before those of an image."""
        return self.size > 0 and not self.from_labels

    @final
    def example_prefix(self, labels: Tensor, prefix: Tensor) -> Tensor:
        """Labels (B,) and stored prefixes (B,P) of examples in code shards -> their condition codes (B,P)."""
        return labels.reshape(-1, 1) if self.from_labels else prefix

    @final
    def drop_parts(self, prefix: Tensor, dropped: Tensor) -> Tensor:
        """Codes (B,P) and the parts to drop (B,n) bool -> codes with the empty code for these parts.

        The empty code of a part follows its own codes. Nothing changes without parts.
        """
        if not self.parts:
            return prefix
        ends = itertools.accumulate(part.size + 1 for part in self.parts)
        empty = [prefix.new_full((part.length,), end - 1) for part, end in zip(self.parts, ends, strict=True)]
        lengths = torch.tensor([part.length for part in self.parts], device=prefix.device)
        return torch.where(dropped.repeat_interleave(lengths, dim=1), torch.cat(empty), prefix)


class UnsizedCondition(Condition, ABC):
    """A condition whose values have no size in pixels: they fit images of any size."""

    @final
    def resize_to_grid(self, value: Any, *, grid: Grid | None) -> tuple[Any, Grid | None]:
        return value, grid


def condition_keys(condition: Condition) -> tuple[str, ...]:
    """The keys of a condition; empty for one without a value."""
    return tuple(part.key for part in condition.members if part.key)


def condition_value(condition: Condition, values: Mapping[str, Any]) -> Any:
    """Values by key, all of them keys of the condition -> its value, None for unconditional."""
    parts = {part.key: part for part in condition.members}
    given = {key: value for key, value in values.items() if key not in parts or is_given(parts[key], value)}
    if condition.parts:
        return given or None
    return given.get(condition.key)


def is_given(condition: Condition, value: Any) -> bool:
    """Whether a value is given: not None, and not blank where that means none."""
    return value is not None and not (condition.blank_is_none and isinstance(value, str) and not value.strip())


def check_value_count(values: Sequence[Any], known: Tensor) -> None:
    """Raise `SmaltiError` unless there is one condition value per grid of known codes (B,h,w)."""
    if known.dim() != 3 or len(values) != len(known):
        raise SmaltiError(
            f"{len(values)} values of the condition and codes of shape {tuple(known.shape)} were given; the shape is "
            "(B, h, w), with one value per image, None for unconditional"
        )


def as_prefix(codes: Sequence[int]) -> Tensor:
    """B codes -> (B,1) int64."""
    return torch.tensor(list(codes), dtype=torch.int64).reshape(-1, 1)


def constant_prefix(prefix: Tensor) -> WindowPrefix:
    """A prefix (B,P) -> the same for every window position."""
    return lambda window: prefix


def code_crops(codes: Tensor) -> WindowPrefix:
    """Condition codes (B,h,w), one per code of the image -> those under the window, row by row.

    The condition of the whole image is encoded once and its codes are cropped, as in the original's sampling of
    images larger than the window.
    """

    def prefix_at(window: Window) -> Tensor:
        top, left, rows, columns = window
        assert 0 <= top <= codes.shape[1] - rows, f"rows {top}..{top + rows} of {codes.shape[1]}"
        assert 0 <= left <= codes.shape[2] - columns, f"columns {left}..{left + columns} of {codes.shape[2]}"
        return codes[:, top : top + rows, left : left + columns].flatten(1)

    return prefix_at


def check_grid(grid: Grid, *, window: Grid, key: str) -> None:
    """Raise `SmaltiError` for a grid smaller than the window: a prior reads the condition codes of a whole window."""
    if grid[0] < window[0] or grid[1] < window[1]:
        raise SmaltiError(
            f"a prior with the condition {key!r} generates {window[0]} x {window[1]} codes (height x width) or more, "
            f"{grid[0]} x {grid[1]} were requested; request at least {max(grid[0], window[0])} x "
            f"{max(grid[1], window[1])}"
        )


def grid_text(grid: Grid) -> str:
    """A grid (h,w) as `--grid` takes it: height x width.

    >>> grid_text((6, 10))
    '6x10'
    """
    return f"{grid[0]}x{grid[1]}"
