"""Codes without a codebook: each number of a feature is bounded and rounded to one of a few levels.

Notation: B batch, D numbers of a feature, h w code grid, L levels of a number, K = product of all L.
Source: Mentzer et al. 2023, "Finite scalar quantization: VQ-VAE made simple" (arXiv 2309.15505), section 3
and appendix A.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal, final

import torch
from pydantic import Field, model_validator
from torch import Tensor

from smalti.core.settings import settings
from smalti.tokenizer.quantizers.base import Quantized, Quantizer, precision
from smalti.tokenizer.quantizers.gradient_estimators import straight_through

MARGIN = 1e-3
"""How much the bound stays below the outermost levels, as a fraction, so that nothing rounds beyond them (epsilon in
A.1)."""

MAX_CODEBOOK_SIZE = 2**30
"""Codes there may be at most."""


@settings
class FSQSettings:
    """Finite scalar quantization: rounding."""

    name: Literal["fsq"] = "fsq"
    levels: Annotated[tuple[Annotated[int, Field(ge=3)], ...], Field(min_length=1)] = (8, 5, 5, 5)
    """L of each number. The paper's for K about 2^8: (8, 6, 5); 2^10: (8, 5, 5, 5); 2^12: (7, 5, 5, 5, 5);
    2^14: (8, 8, 8, 6, 5); 2^16: (8, 8, 8, 5, 5, 5)."""

    @model_validator(mode="after")
    def _countable(self) -> FSQSettings:
        if self.codebook_size > MAX_CODEBOOK_SIZE:
            raise ValueError(
                f"levels {list(self.levels)} make {self.codebook_size:,} codes; there may be "
                f"{MAX_CODEBOOK_SIZE:,} at most"
            )
        return self

    @property
    def codebook_size(self) -> int:
        """K."""
        return math.prod(self.levels)

    @property
    def codebook_dim(self) -> int:
        """D."""
        return len(self.levels)

    @property
    def size(self) -> int:
        """How many codes the quantizer has outside."""
        return self.codebook_size


@final
class FSQ(Quantizer):
    """A code is the row of levels that the bounded features round to, read as the digits of a number, the lowest
    first."""

    levels: Tensor
    place_values: Tensor

    def __init__(self, settings: FSQSettings) -> None:
        super().__init__()
        self.settings = settings
        self.size = settings.codebook_size
        levels = torch.tensor(settings.levels)
        # Float, so that latents have the model's dtype; integers, so that none is rounded. Settings, not weights.
        self.register_buffer("levels", levels.float().view(-1, 1, 1), persistent=False)
        self.register_buffer("place_values", (levels.cumprod(0) // levels).view(-1, 1, 1), persistent=False)

    @property
    def identity(self) -> str:
        return f"fsq {' '.join(map(str, self.settings.levels))}"

    def forward(self, features: Tensor) -> Quantized:
        with torch.autocast(features.device.type, enabled=False):
            bounded, half = self._bounded(features), self._half()  # (B,D,h,w), (D,1,1)
            rounded = bounded.detach().round()  # (B,D,h,w), whole numbers from -half on
            codes = ((rounded + half).long() * self.place_values).sum(1)  # (B,h,w)
            return Quantized(straight_through(bounded, rounded) / half, codes, bounded.new_zeros(()))

    def schedule(self, seen: int, *, length: int) -> Callable[[Tensor], Quantized]:
        """The quantizer itself: it is the same in training and evaluation, early and late."""
        return self

    def bypass(self, features: Tensor) -> Quantized:
        """As `Quantizer.bypass`: the features bounded, but not rounded."""
        with torch.autocast(features.device.type, enabled=False):
            return self.forward(features)._replace(latents=self._bounded(features) / self._half())

    def likeliest_codes(self, features: Tensor) -> Tensor:
        return self.bypass(features).codes

    def lookup(self, codes: Tensor) -> Tensor:
        digits = codes.unsqueeze(1) // self.place_values % self.levels.long()  # (B,D,h,w)
        return (digits - self._half()) / self._half()

    @property
    def init_features(self) -> int:
        return 0

    def init_codebook(self, features: Tensor, *, generator: torch.Generator) -> None:
        """Does nothing: the levels are constant."""

    def update_codebook(self, features: Tensor, codes: Tensor, *, generator: torch.Generator) -> int:
        """Nothing to do: a code is only a name for a point that the encoder can always reach. Returns 0."""
        return 0

    def _half(self) -> Tensor:
        """(D,1,1): the levels below zero, by which latents are scaled into [-1,1]."""
        return self.levels // 2

    def _bounded(self, features: Tensor) -> Tensor:
        """(B,D,h,w) -> (B,D,h,w) in float32 at least, between the outermost levels (`bound` in A.1).

        An even number of levels has one more below zero than above: the bound is moved down by half a level, and the
        features by as much as brings zero back to zero (nearly: the tangent is the paper's, where the inverse of tanh
        were exact).
        """
        values = features.to(precision(features))
        levels = self.levels.to(values.dtype)
        reach = (levels - 1) * (1 - MARGIN) / 2
        offset = 0.5 * (1 - levels % 2)
        return torch.tanh(values + torch.tan(offset / reach)) * reach - offset
