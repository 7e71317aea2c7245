"""The one signature of all conditions: a value a person gives -> prefix codes a prior reads.

Letters: B batch, P prefix codes, C number of condition codes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from smalti.images import Array


class Condition(ABC):
    """Values -> prefix codes (B,P) int64 in [0,C), and back to something that can be looked at."""

    key: str
    """The option it is given by: `--label`, `pipeline.sample(label=...)`."""
    size: int
    """C; the prior has one more code, C itself, for "nothing"."""
    length: int
    """P."""

    @abstractmethod
    def encode(self, values: Sequence[Any]) -> Tensor:
        """B values -> (B,P) int64. Raises `SmaltiError` naming a value that is not one of this condition."""

    @abstractmethod
    def preview(self, codes: Tensor) -> Array:
        """Codes (P,) -> a small picture (H,W,3) uint8 that shows them."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Plain values from which `conditions.labels.build_condition` makes it again."""


def as_prefix(codes: Sequence[int]) -> Tensor:
    """B codes -> (B,1) int64."""
    return torch.tensor(list(codes), dtype=torch.int64).reshape(-1, 1)
