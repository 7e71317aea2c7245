"""Codes that are running means: each moves to the mean of the features that take it, without a gradient.

Notation: B batch, D dimension of a code, h w code grid, K size of the codebook, N = B h w vectors. Sources: van den
Oord et al. 2017 (VQ-VAE, arXiv 1711.00937), appendix A.1; Razavi et al. 2019 (VQ-VAE-2, arXiv 1906.00446), section 2.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, final

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from smalti.core.distributed import broadcast
from smalti.core.settings import Natural, Positive, ProperFraction, settings
from smalti.tokenizer.quantizers.base import Quantized, Quantizer, grid_of, precision, rows_of
from smalti.tokenizer.quantizers.gradient_estimators import GRADIENTS, GradientName
from smalti.tokenizer.quantizers.search import nearest
from smalti.tokenizer.quantizers.vq import VECTORS_A_CODE, code_counts, kmeans, restarted

SMOOTHING = 1e-5
"""Added to each count before codes are divided by it, as a fraction of the mean count (Laplace smoothing)."""


@settings
class EMASettings:
    """Nearest-code quantization whose codes are running means of the features that took them."""

    name: Literal["ema"] = "ema"
    codebook_size: Annotated[int, Field(ge=2)] = 1024
    """K."""
    codebook_dim: Positive = 8
    """D."""
    l2_normalize: bool = True
    """Compare directions only: features and codes are scaled to length 1."""
    commitment: Annotated[float, Field(ge=0)] = 0.25
    """Weight beta of the distance of features from their codes, the only term: the codes need none."""
    gradient: GradientName = "straight-through"
    """How the decoder's gradient reaches the features: "straight-through" as it is; "rotation" turned back from code to
    feature."""
    kmeans_iterations: Natural = 10
    """k-means rounds that place the codes on the first images' features; 0 starts from normal noise."""
    decay: ProperFraction = 0.99
    """gamma: how much of a code's running count and sum remains after a step."""
    dead_code_threshold: ProperFraction = 0.1
    """A code used less than this fraction of the mean use is dead and restarts on a feature of the batch; 0 never."""

    @property
    def size(self) -> int:
        """How many codes the quantizer has outside."""
        return self.codebook_size


def smoothed(use: Tensor) -> Tensor:
    """Running counts (K,) with the mean 1 -> counts (K,) none of which is zero; their sum stays."""
    return (use + SMOOTHING) * (use.sum() / (use.sum() + len(use) * SMOOTHING))


@final
class EMA(Quantizer):
    """The nearest code, of a codebook that `update_codebook` moves (appendix A.1 there, with N and m in units of the
    mean count).

    The running sums m are not kept: they are `codebook` times the smoothed counts, and so always match the codes, also
    after k-means and restarts. Where codes are normalized `codebook` holds the means as they are, and `vectors` their
    directions.
    """

    codebook: Tensor
    use: Tensor

    def __init__(self, settings: EMASettings) -> None:
        super().__init__()
        self.settings = settings
        self.size = settings.codebook_size
        self.register_buffer("codebook", torch.randn(settings.codebook_size, settings.codebook_dim))
        self.register_buffer("use", torch.ones(settings.codebook_size))  # running count of uses, 1 = the mean

    @property
    def identity(self) -> str:
        return "ema normalized" if self.settings.l2_normalize else "ema"

    def vectors(self) -> Tensor:
        """The codes' vectors (K,D), of length 1 where codes are normalized."""
        return F.normalize(self.codebook, dim=1) if self.settings.l2_normalize else self.codebook

    def forward(self, features: Tensor) -> Quantized:
        B, _, h, w = features.shape
        with torch.autocast(features.device.type, enabled=False):
            flat, vectors = self._flat(features), self.vectors()  # (N,D), (K,D)
            codes = nearest(flat.detach(), vectors)  # (N,)
            chosen = F.embedding(codes, vectors)  # (N,D)
            loss = self.settings.commitment * F.mse_loss(flat, chosen)
            latents = GRADIENTS[self.settings.gradient](flat, chosen)  # (N,D)
            return Quantized(grid_of(latents, features), codes.view(B, h, w), loss)

    def schedule(self, seen: int, *, length: int) -> Callable[[Tensor], Quantized]:
        """The quantizer itself: it is the same in training and evaluation, early and late."""
        return self

    def bypass(self, features: Tensor) -> Quantized:
        B, _, h, w = features.shape
        flat = self._flat(features)  # (N,D)
        codes = nearest(flat.detach(), self.vectors())  # (N,)
        return Quantized(grid_of(flat, features), codes.view(B, h, w), flat.new_zeros(()))

    def likeliest_codes(self, features: Tensor) -> Tensor:
        return self.bypass(features).codes

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.vectors()).permute(0, 3, 1, 2)

    @property
    def init_features(self) -> int:
        return VECTORS_A_CODE * self.size if self.settings.kmeans_iterations else 0

    @torch.no_grad()
    def init_codebook(self, features: Tensor, *, generator: torch.Generator) -> None:
        rounds, normalized = self.settings.kmeans_iterations, self.settings.l2_normalize
        flat = self._flat(features)
        self.codebook.copy_(kmeans(flat, self.size, rounds=rounds, normalized=normalized, generator=generator))
        self.use.fill_(1.0)

    @torch.no_grad()
    def update_codebook(self, features: Tensor, codes: Tensor, *, generator: torch.Generator) -> int:
        flat, codes, fresh = self._flat(features), codes.flatten(), 1 - self.settings.decay
        a_mean = self.size / len(codes)  # 1 in units of the mean count
        sums = self.codebook * smoothed(self.use).unsqueeze(1)  # m of A.1
        added = torch.zeros_like(sums).index_add_(0, codes, flat.to(sums.dtype))
        self.use.lerp_(code_counts(codes, self.size).to(self.use.dtype) * a_mean, fresh)
        self.codebook.copy_(sums.lerp_(added * a_mean, fresh) / smoothed(self.use).unsqueeze(1))
        broadcast(self.codebook)  # a GPU adds in any order: the last bits differ between processes
        everywhere = torch.arange(self.size, device=codes.device)
        below = self.settings.dead_code_threshold
        dead, places = restarted(self.use, everywhere, below=below, among=len(flat), generator=generator)
        self.codebook[dead] = flat[places].to(self.codebook.dtype)
        return len(dead)

    def _flat(self, features: Tensor) -> Tensor:
        """(B,D,h,w) -> (N,D) in raster order, in float32 at least, of length 1 where codes are normalized."""
        flat = rows_of(features, dtype=precision(features, self.codebook))
        return F.normalize(flat, dim=1) if self.settings.l2_normalize else flat
