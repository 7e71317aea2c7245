"""Code tables: the codes of a codebook <-> the codes that a quantizer shows to the world.

Where a codebook is used in part, a table of the codes in use gives the prior a dense vocabulary. Notation: K size of
the codebook, U codes in the table. Source: the table of used codes in the code of arXiv 2012.09841.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, final

import torch
from pydantic import ValidationInfo, field_validator
from torch import Tensor, nn

from smalti.core.settings import Natural, settings


@settings
class RemapSettings:
    """Which codes of the codebook are shown outside, and what becomes of the others."""

    used: Natural = 0
    """U, the codes in the table; which ones is a weight of the model (`table.used`). 0: no table, all codes are
    shown."""
    unknown: Literal["random", "extra"] | int = "random"
    """The outside code of a feature whose code is not in the table: any one at random, one more code U, or this
    code."""

    @field_validator("unknown", mode="before")
    @classmethod
    def _unknown_has_a_code(cls, unknown: Any, info: ValidationInfo) -> Any:
        used = info.data.get("used", 0)
        if unknown in ("random", "extra") or (isinstance(unknown, int) and 0 <= unknown < used):
            return unknown
        raise ValueError(f'it is "random", "extra" or one of the codes of the table, of which there are {used}')

    def outside(self, size: int) -> int:
        """Codes of the codebook -> how many codes there are outside."""
        return self.used + (self.unknown == "extra") if self.used else size


def check_table_fits(remap: RemapSettings, size: int) -> None:
    """Raise `ValueError` for a table with more codes than the codebook has."""
    if remap.used > size:
        raise ValueError(f"remap.used = {remap.used}, but the codebook has {size} codes (size)")


class CodeTable(nn.Module, ABC):
    """Codes of the codebook, int64 in [0,K) <-> codes outside, int64 in [0,size). Tensors of any shape; none is
    changed."""

    size: int
    """How many codes there are outside."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What the table adds to the `identity` of its quantizer, forever."""

    @abstractmethod
    def outside(self, codes: Tensor) -> Tensor:
        """Codes of the codebook -> codes outside."""

    @abstractmethod
    def inside(self, codes: Tensor) -> Tensor:
        """Codes outside -> codes of the codebook."""

    @abstractmethod
    def select_used(self, values: Tensor, *, dim: int) -> Tensor:
        """One value for each code of the codebook along `dim` (K long) -> those of the codes in the table (U long)."""


@final
class AllCodes(CodeTable):
    """No table: a code outside is the code of the codebook."""

    identity = ""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def outside(self, codes: Tensor) -> Tensor:
        return codes

    def inside(self, codes: Tensor) -> Tensor:
        return codes

    def select_used(self, values: Tensor, *, dim: int) -> Tensor:
        return values


@final
class UsedCodes(CodeTable):
    """A code outside is an index into the table `used` (U,), which holds codes of the codebook.

    Until weights are loaded the table holds the first U codes. With `unknown` "random" the code of a feature may differ
    in each call: it is drawn from torch's default generator.
    """

    used: Tensor

    def __init__(self, settings: RemapSettings, *, codebook_size: int) -> None:
        super().__init__()
        self.settings = settings
        self.codebook_size = codebook_size
        self.size = settings.outside(codebook_size)
        self.register_buffer("used", torch.arange(settings.used))

    @property
    def identity(self) -> str:
        return f" remapped unknown {self.settings.unknown}"

    def outside(self, codes: Tensor) -> Tensor:
        last, device = self.settings.used, codes.device
        # (K,): the index in the table of each code, the first if it is there twice; U where it has none.
        first_uses = torch.full((self.codebook_size,), last, device=device)
        first_uses = first_uses.scatter_reduce(0, self.used, torch.arange(last, device=device), "amin")
        index = first_uses[codes]
        return torch.where(index < last, index, self._unknown(index))

    def inside(self, codes: Tensor) -> Tensor:
        # The original reads its extra code, which stands for many, as the first of the table.
        return torch.cat([self.used, self.used[:1]])[: self.size][codes]

    def select_used(self, values: Tensor, *, dim: int) -> Tensor:
        return values.index_select(dim, self.used)

    def _unknown(self, index: Tensor) -> Tensor:
        """What stands outside for codes that are not in the table, for each of `index`."""
        if self.settings.unknown == "random":
            return torch.randint_like(index, self.size)
        return torch.full_like(index, self.settings.used if self.settings.unknown == "extra" else self.settings.unknown)


def code_table(settings: RemapSettings, *, codebook_size: int) -> CodeTable:
    """The code table of the settings, for a codebook of this many codes."""
    return UsedCodes(settings, codebook_size=codebook_size) if settings.used else AllCodes(codebook_size)
