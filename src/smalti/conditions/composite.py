"""Several conditions at once: a class and a segmentation, say. The codes of one stand after those of the other.

Letters: B batch, P prefix codes, C condition codes, n parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.conditions.base import Condition, Grid, WindowPrefix
from smalti.core.errors import SmaltiError, suggestion
from smalti.core.settings import as_mapping, settings
from smalti.images.io import Array, to_array, to_tensor
from smalti.prior.window import Window

_SIDE = 128  # pixels of a part's preview


@settings
class CompositeConditionSettings:
    """`parts`: the plain values of each condition; what does not fit into them lies in the folders part-0, part-1, ..."""

    name: Literal["composite"] = "composite"
    parts: tuple[dict[str, Any], ...]


@final
class CompositeCondition(Condition):
    """Values by the keys of the parts, `{"label": "dusk", "segmentation": map}` -> (B,P), part after part.

    Each part has a range of codes of its own, and one code more, which stands in place of all of its codes where nothing is said
    of it. So an image can be told one part alone.
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
        self.optional = any(part.optional for part in parts)
        self.middle = self.parts[0].middle
        self.networks = tuple(network for part in parts for network in part.networks)

    def read(self, text: str) -> Any:
        keys = ", ".join(part.key for part in self.parts)
        raise SmaltiError(f"this model takes several conditions, {keys}; give {text!r} by the name of one of them")

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
        said = [self._given_values(part, values) for part in self.parts]
        laying = [
            part.encode_windows([value for _, value in given], grid=grid)
            for part, given in zip(self.parts, said, strict=True)
        ]

        def prefix_at(window: Window) -> Tensor:
            codes = (
                self._with_empty_code(place, [row for row, _ in given], laid(window), count=len(values))
                for place, (given, laid) in enumerate(zip(said, laying, strict=True))
            )
            return torch.cat(list(codes), dim=1)  # (B,P)

        return prefix_at

    def _given_values(self, part: Condition, values: Sequence[Any]) -> list[tuple[int, Any]]:
        """The rows of the batch of which something is said of this part, and what."""
        rows_and_values = [(row, self._as_mapping(value).get(part.key)) for row, value in enumerate(values)]
        return [(row, value) for row, value in rows_and_values if value is not None or part.optional]

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
        """A part's codes (b,p) of some rows of the batch -> in the part's range, its code for nothing elsewhere: (B,p).

        There are as many as it has, and where a prior sees more than its trained grid, as many as it has there.
        """
        part, start = self.parts[index], self.starts[index]
        placed = torch.full((count, codes.shape[1]), start + part.size)
        placed[list(rows)] = codes + start
        return placed

    def split(self, codes: Tensor) -> tuple[Tensor, ...]:
        """Codes (...,P) -> those of each part, in its own range; its size stands for nothing."""
        parts = torch.split(codes, list(self.lengths), dim=-1)
        return tuple(part - start for part, start in zip(parts, self.starts, strict=True))

    def drop_parts(self, prefix: Tensor, dropped: Tensor) -> Tensor:
        """Codes (B,P) and which parts are to be left open (B,n) bool -> codes that say nothing of those."""
        ends = [start + part.size for start, part in zip(self.starts, self.parts, strict=True)]
        empty = torch.cat([prefix.new_full((length,), end) for length, end in zip(self.lengths, ends, strict=True)])
        lengths = torch.tensor(self.lengths, device=prefix.device)
        return torch.where(dropped.repeat_interleave(lengths, dim=1), empty, prefix)

    def preview(self, codes: Tensor) -> Array:
        """The previews of the parts beside one another; black where nothing is said."""
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
    """The folder of a prior, and a part's place among several -> where that part writes what does not fit into settings."""
    return folder / f"part-{index}"
