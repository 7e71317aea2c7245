"""A codebook that moves as a whole: random vectors that stay, times a matrix that learns.

Notation: B batch, D dimension of a code, h w code grid, K size of the codebook, N = B h w vectors. Source: Zhu et al.
2024, "Addressing representation collapse in vector quantized models with one linear layer" (SimVQ, arXiv 2411.02038).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.core.distributed import broadcast
from smalti.core.settings import Positive, settings
from smalti.core.spectra import spectrum
from smalti.tokenizer.quantizers.base import Quantized, Quantizer, grid_of, precision, rows_of
from smalti.tokenizer.quantizers.gradient_estimators import GRADIENTS, GradientName
from smalti.tokenizer.quantizers.search import nearest

VECTORS_A_NUMBER = 256
"""Features for each number of a code, by which their mean and covariance are known well enough."""


@settings
class SimVQSettings:
    """Nearest-code quantization with a frozen codebook under a learned linear layer."""

    name: Literal["simvq"] = "simvq"
    codebook_size: Annotated[int, Field(ge=2)] = 1024
    """K."""
    codebook_dim: Positive = 8
    """D."""
    commitment: Annotated[float, Field(ge=0)] = 0.25
    """Weight beta of the term that moves features toward codes, as in VQ."""
    gradient: GradientName = "straight-through"
    """How the decoder's gradient reaches the features: "straight-through" as it is; "rotation" turned back from code to
    feature."""
    fitted: bool = True
    """The layer starts so that the codes have the first images' features' mean and covariance; False starts it at
    random."""

    @property
    def size(self) -> int:
        """How many codes the quantizer has outside."""
        return self.codebook_size


@final
class SimVQ(Quantizer):
    """The nearest of the vectors C W + b, of which C is random and frozen. Each feature's gradient moves all codes
    together."""

    frozen: Tensor

    def __init__(self, settings: SimVQSettings) -> None:
        super().__init__()
        self.settings = settings
        self.size = settings.codebook_size
        D = settings.codebook_dim
        self.register_buffer("frozen", torch.randn(settings.codebook_size, D) * D**-0.5)  # C, of length 1 on average
        self.linear = nn.Linear(D, D)

    @property
    def identity(self) -> str:
        return "simvq"

    def vectors(self) -> Tensor:
        """The codes' vectors (K,D)."""
        with torch.autocast(self.frozen.device.type, enabled=False):
            return self.linear(self.frozen)  # type: ignore[no-any-return]

    def forward(self, features: Tensor) -> Quantized:
        B, _, h, w = features.shape
        with torch.autocast(features.device.type, enabled=False):
            flat, vectors = self._flat(features), self.vectors()  # (N,D), (K,D)
            codes = nearest(flat.detach(), vectors.detach())  # (N,)
            chosen = F.embedding(codes, vectors)  # (N,D)
            commitment = F.mse_loss(flat, chosen.detach())
            loss = F.mse_loss(chosen, flat.detach()) + self.settings.commitment * commitment
            latents = GRADIENTS[self.settings.gradient](flat, chosen)  # (N,D)
            return Quantized(grid_of(latents, features), codes.view(B, h, w), loss)

    def schedule(self, seen: int, *, length: int) -> Callable[[Tensor], Quantized]:
        """The quantizer itself: it is the same in training and evaluation, early and late."""
        return self

    def bypass(self, features: Tensor) -> Quantized:
        B, _, h, w = features.shape
        flat, vectors = self._flat(features), self.vectors()  # (N,D), (K,D)
        codes = nearest(flat.detach(), vectors.detach())  # (N,)
        nothing = 0.0 * (
            self.linear.weight.sum() + self.linear.bias.sum()
        )  # so that all have a gradient on all devices
        return Quantized(grid_of(flat, features), codes.view(B, h, w), nothing)

    def likeliest_codes(self, features: Tensor) -> Tensor:
        return self.bypass(features).codes

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.vectors()).permute(0, 3, 1, 2)

    @property
    def init_features(self) -> int:
        return VECTORS_A_NUMBER * self.settings.codebook_dim if self.settings.fitted else 0

    @torch.no_grad()
    def init_codebook(self, features: Tensor, *, generator: torch.Generator) -> None:
        flat, D = self._flat(features), self.settings.codebook_dim
        mean = flat.mean(0)
        values, directions = spectrum(
            (flat - mean).T @ (flat - mean) / len(flat), what="the covariance of the features"
        )
        # The symmetric root of the covariance; C has the covariance 1/D.
        root = directions * values.clamp(min=0).sqrt() @ directions.T * D**0.5
        self.linear.weight.copy_(root)
        self.linear.bias.copy_(mean)
        for parameter in self.linear.parameters():
            broadcast(parameter)  # a GPU adds in any order: the last bits differ between processes

    def update_codebook(self, features: Tensor, codes: Tensor, *, generator: torch.Generator) -> int:
        """Nothing to do: an unused code moves with all others. Returns 0."""
        return 0

    def _flat(self, features: Tensor) -> Tensor:
        """(B,D,h,w) -> (N,D) in raster order, in float32 at least."""
        return rows_of(features, dtype=precision(features, self.frozen))
