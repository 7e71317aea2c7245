"""Condition codes that are computed elsewhere and passed to the prior unchanged.

Notation: B batch, P prefix codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from smalti.conditions.base import Grid, UnsizedCondition, WindowPrefix, constant_prefix
from smalti.conditions.previews import render_text
from smalti.core.errors import SmaltiError
from smalti.core.settings import Positive, as_mapping, settings
from smalti.images.io import Array


@settings
class PrecomputedCodesSettings:
    """`codebook_size`: the number of different codes. `length`: codes per image. `key`: the name of the option."""

    name: Literal["precomputed"] = "precomputed"
    key: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] = "codes"
    codebook_size: Positive
    length: Positive


@final
class PrecomputedCodes(UnsizedCondition):
    """Rows of P codes -> (B,P), checked and unchanged. They are the same for every window position."""

    def __init__(self, settings: PrecomputedCodesSettings) -> None:
        self.settings = settings
        self.key, self.size, self.length = settings.key, settings.codebook_size, settings.length

    def read(self, text: str) -> tuple[int, ...]:
        try:
            return tuple(int(word) for word in text.replace(",", " ").split())
        except ValueError as error:
            raise SmaltiError(
                f"{text!r} is not a list of codes; give {self.length} whole numbers: 4,0,7 ..."
            ) from error

    def encode(self, values: Sequence[Any]) -> Tensor:
        """B rows of P integers -> (B,P). Raises `SmaltiError` for another length, and for codes outside
        [0,codebook_size)."""
        rows = [self._row(value) for value in values]
        return torch.stack(rows) if rows else torch.empty(0, self.length, dtype=torch.int64)

    def _row(self, value: Any) -> Tensor:
        try:
            row = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise SmaltiError(f"{value!r} is not a row of codes; give {self.length} whole numbers") from error
        if row.shape != (self.length,):
            raise SmaltiError(
                f"the condition {self.key!r} has {self.length} codes per image, and a row of the shape "
                f"{tuple(row.shape)} was given; give ({self.length},)"
            )
        if row.is_floating_point() or row.is_complex() or row.dtype == torch.bool:
            raise SmaltiError(f"condition codes are whole numbers, {value!r} holds {row.dtype}; round them first")
        invalid = row[(row < 0) | (row >= self.size)]
        if len(invalid):
            raise SmaltiError(f"there is no condition code {int(invalid[0])}; the codes are 0 to {self.size - 1}")
        return row.to("cpu", torch.int64)

    def encode_windows(self, values: Sequence[Any], *, grid: Grid) -> WindowPrefix:
        return constant_prefix(self.encode(values))

    def preview(self, codes: Tensor) -> Array:
        return render_text(" ".join(str(code) for code in codes.tolist()))

    def save(self, folder: Path) -> dict[str, Any]:
        return as_mapping(self.settings)
