"""Composite conditions, such as a class and a segmentation. The codes of the parts are concatenated.

Notation: B batch, P prefix codes, C condition codes, n parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.conditions.base import Condition, Grid, WindowPrefix, is_given
from smalti.core.errors import SmaltiError, suggestion
from smalti.core.settings import as_mapping, settings
from smalti.images.io import Array, to_array, to_tensor
from smalti.prior.window import Window

_SIDE = 128  # pixels of a part's preview


@settings
class CompositeConditionSettings:
    """`parts`: the settings of each part; other files of a part are in the folders part-0, part-1, ..."""

    name: Literal["composite"] = "composite"
    parts: tuple[dict[str, Any], ...]


@final
class CompositeCondition(Condition):
    """Values by the keys of the parts, `{"label": "dusk", "segmentation": map}` -> (B,P), part after part.

    Each part has its own range of codes, plus one code that replaces all of its codes if the part has no value. So
    an image can be conditioned on some parts only.
    """

    key = ""

    def __init__(self, parts: Sequence[Condition]) -> None:
        self.parts = tuple(parts)
        duplicates = [
            part.key for index, part in enumerate(parts) if part.key in [other.key for other in parts[:index]]
        ]
        if len(parts) < 2 or duplicates or not all(part.key for part in parts):
            keys = ", ".join(repr(part.key) for part in parts)
            raise SmaltiError(
                f"several conditions are two or more that have a name each, and no name twice; not {keys}"
            )
        self.starts = tuple(sum(part.size + 1 for part in parts[:index]) for index in range(len(parts)))
        self.lengths = tuple(part.length for part in parts)
        self.size, self.length = sum(part.size + 1 for part in parts), sum(self.lengths)
        self.maps = tuple(sum(self.lengths[:index]) + begin for index, part in enumerate(parts) for begin in part.maps)
        self.smallest_grid = (
            max(part.smallest_grid[0] for part in self.parts),
            max(part.smallest_grid[1] for part in self.parts),
        )
        self.optional = any(part.optional for part in parts)
        self.middle = self.parts[0].middle
        self.networks = tuple(network for part in parts for network in part.networks)

    def read(self, text: str) -> Any:
        keys = ", ".join(part.key for part in self.parts)
        raise SmaltiError(f"this model takes several conditions, {keys}; give {text!r} by the name of one of them")

    def resize_to_grid(self, value: Any, *, grid: Grid | None) -> tuple[Any, Grid | None]:
        """As in the base class, part after part: the first with a size determines the grid of the others."""
        resized = dict(self._as_mapping(value))
        for part in self.parts:
            if part.key in resized:
                resized[part.key], grid = part.resize_to_grid(resized[part.key], grid=grid)
        return resized or None, grid

    def encode(self, values: Sequence[Any]) -> Tensor:
        codes = []
        for index, part in enumerate(self.parts):
            rows_and_values = self._given_values(part, values)
            part_codes = part.encode([value for _, value in rows_and_values])
            codes.append(
                self._with_empty_code(index, [row for row, _ in rows_and_values], part_codes, count=len(values))
            )
        return torch.cat(codes, dim=1)

    def join(self, codes: Sequence[Tensor]) -> Tensor:
        """Codes (B,p) of each part, in its own range -> (B,P)."""
        return torch.cat([part_codes + start for part_codes, start in zip(codes, self.starts, strict=True)], dim=1)

    def encode_windows(self, values: Sequence[Any], *, grid: Grid) -> WindowPrefix:
        values_of_parts = [self._given_values(part, values) for part in self.parts]
        encoded = [
            part.encode_windows([value for _, value in rows_and_values], grid=grid)
            for part, rows_and_values in zip(self.parts, values_of_parts, strict=True)
        ]

        def prefix_at(window: Window) -> Tensor:
            codes = (
                self._with_empty_code(
                    index, [row for row, _ in rows_and_values], part_prefix(window), count=len(values)
                )
                for index, (rows_and_values, part_prefix) in enumerate(zip(values_of_parts, encoded, strict=True))
            )
            return torch.cat(list(codes), dim=1)  # (B,P)

        return prefix_at

    def _given_values(self, part: Condition, values: Sequence[Any]) -> list[tuple[int, Any]]:
        """The rows of the batch that have a value for this part, and these values."""
        rows_and_values = [(row, self._as_mapping(value).get(part.key)) for row, value in enumerate(values)]
        return [(row, value) for row, value in rows_and_values if is_given(part, value) or part.optional]

    def _as_mapping(self, value: Any) -> Mapping[str, Any]:
        if value is None:
            return {}
        keys = tuple(part.key for part in self.parts)
        if not isinstance(value, Mapping):
            raise SmaltiError(
                f"this model takes several conditions, by their names {', '.join(keys)}; not {value!r:.60}"
            )
        for key in value:
            if key not in keys:
                raise SmaltiError(f"this model takes no {key!r}; {suggestion(str(key), keys)}")
        return value

    def _with_empty_code(self, index: int, rows: Sequence[int], codes: Tensor, *, count: int) -> Tensor:
        """A part's codes (b,p) of some rows of the batch -> codes in the part's range, and its empty code in other
        rows: (B,p).

        p may exceed the part's length if a prior sees more than its trained grid.
        """
        part, start = self.parts[index], self.starts[index]
        placed = torch.full((count, codes.shape[1]), start + part.size)
        placed[list(rows)] = codes + start
        return placed

    def split(self, codes: Tensor) -> tuple[Tensor, ...]:
        """Codes (...,P) -> those of each part, in its own range; the part's size is its empty code."""
        parts = torch.split(codes, list(self.lengths), dim=-1)
        return tuple(part - start for part, start in zip(parts, self.starts, strict=True))

    def preview(self, codes: Tensor) -> Array:
        """The previews of the parts side by side; black for parts without a value."""
        previews = []
        for part, part_codes in zip(self.parts, self.split(codes), strict=True):
            is_given = bool((part_codes < part.size).all())
            image = to_tensor(part.preview(part_codes)) if is_given else torch.full((3, _SIDE, _SIDE), -1.0)
            previews.append(F.interpolate(image[None], size=(_SIDE, _SIDE), mode="nearest-exact")[0])
        return np.asarray(to_array(torch.cat(previews, dim=2)))

    def save(self, folder: Path) -> dict[str, Any]:
        parts = []
        for index, part in enumerate(self.parts):
            part_path = part_folder(folder, index)
            part_path.mkdir(parents=True, exist_ok=True)
            parts.append(part.save(part_path))
        return as_mapping(CompositeConditionSettings(parts=tuple(parts)))


def part_folder(folder: Path, index: int) -> Path:
    """The folder of a prior, and the index of a part -> the folder for that part's files."""
    return folder / f"part-{index}"
