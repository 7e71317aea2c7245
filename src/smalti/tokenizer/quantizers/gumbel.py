"""Codes at random: features -> one logit for each code -> a relaxed draw from the categorical distribution they make.

Notation: B batch, D dimension of a code, h w code grid, K size of the codebook, U codes in the code table (K without
one). Sources: Jang, Gu, Poole 2017, "Categorical reparameterization with Gumbel-softmax" (arXiv 1611.01144); Ramesh et
al. 2021, "Zero-shot text-to-image generation" (DALL-E, arXiv 2102.12092), section 2.1 and appendix A.2; the Gumbel
model in the code of arXiv 2012.09841.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, final

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.core.distributed import broadcast
from smalti.core.settings import Amount, Natural, Positive, amount, settings
from smalti.tokenizer.quantizers.base import Quantized, Quantizer, precision, rows_of
from smalti.tokenizer.quantizers.code_table import RemapSettings, check_table_fits, code_table
from smalti.tokenizer.quantizers.search import nearest
from smalti.tokenizer.quantizers.vq import VECTORS_A_CODE, kmeans

Temperature = Annotated[float, Field(gt=0)]
"""The logits and their noise are divided by it before the softmax: near 0 a draw is one code, at 1 a mixture of
several."""


@settings
class TemperatureSettings:
    """How the temperature moves over a training: in a line from `init_codebook` to `peak`, then along half a cosine
    down to `end`.

    The defaults are DALL-E's 1 and 1/16, with a decay over half of the training.
    """

    start: Temperature = 1.0
    peak: Temperature = 1.0
    end: Temperature = 1 / 16
    warmup: Amount = 0.0
    """When `peak` is reached, as a fraction of the training or in images."""
    decay: Amount = 0.5
    """When `end` is reached, likewise; counted from the beginning of the training, as `warmup` is."""


def warmup_cosine(seen: float, *, start: float, peak: float, end: float, warmup: float, decay: float) -> float:
    """The value after `seen`: from `init_codebook` in a line to `peak` at `warmup`, then along half a cosine to `end`
    at `decay`.

    All three counts in one unit. With `decay` at or before `warmup` the value falls from `peak` to `end` at once.
    """
    if seen < warmup:
        return start + (peak - start) * seen / warmup
    progress = min((seen - warmup) / (decay - warmup), 1.0) if decay > warmup else 1.0
    return end + 0.5 * (peak - end) * (1 + math.cos(math.pi * progress))


@settings
class GumbelSettings:
    """Codes drawn from logits by the Gumbel-softmax."""

    name: Literal["gumbel"] = "gumbel"
    codebook_size: Annotated[int, Field(ge=2)] = 1024
    """K."""
    codebook_dim: Positive = 8
    """D, of the features that the logits are made of, and of the codes' vectors; 256 is the original's."""
    kmeans_iterations: Natural = 10
    """k-means rounds that place the codes on the first images' features, where the nearest code is then the likeliest;
    0 starts logits and codes at random, as the original does, and leaves most codes unused for long."""
    kl_weight: Annotated[float, Field(ge=0)] = 5e-4
    """Weight of the distance (in nats per position) of each position's distribution from the uniform one."""
    straight_through: bool = True
    """In training the decoder sees the vector of one code, with the gradients of the mixture; False shows it the
    mixture."""
    noisy: bool = False
    """False: evaluation and encoding take the likeliest code. True: they draw one, another each time, as the original
    does."""
    temperature: TemperatureSettings = TemperatureSettings()
    """Of training; evaluation takes one code whatever the temperature."""
    remap: RemapSettings = RemapSettings()
    """A table of the codes that are shown outside; the others are never chosen."""

    @model_validator(mode="after")
    def _table_fits(self) -> GumbelSettings:
        check_table_fits(self.remap, self.codebook_size)
        return self

    @property
    def size(self) -> int:
        """How many codes the quantizer has outside."""
        return self.remap.outside(self.codebook_size)


@final
class Gumbel(Quantizer):
    """A code is drawn from softmax(logits); training draws a mixture of codes that becomes one code as the temperature
    falls.

    The noise of training (and of `noisy` evaluation) comes from torch's default generator of the features' device.
    """

    def __init__(self, settings: GumbelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.projection = nn.Conv2d(settings.codebook_dim, settings.codebook_size, 1)
        self.codebook = nn.Parameter(torch.randn(settings.codebook_size, settings.codebook_dim))
        self.table = code_table(settings.remap, codebook_size=settings.codebook_size)
        self.size = self.table.size

    @property
    def identity(self) -> str:
        # Not `noisy`: it changes how often a code is taken, not what a code stands for, and one prior serves both.
        return "gumbel" + self.table.identity

    def logits(self, features: Tensor) -> Tensor:
        """(B,D,h,w) -> (B,U,h,w) in float32 at least: unnormalized log-probabilities of the codes in the table."""
        with torch.autocast(features.device.type, enabled=False):
            logits = self.projection(features.to(self.projection.weight.dtype))  # (B,K,h,w)
            return self.table.select_used(logits.to(precision(logits)), dim=1)

    def sample(self, features: Tensor, noise: Tensor, *, temperature: float, hard: bool) -> Quantized:
        """Features (B,D,h,w) and Gumbel noise (B,U,h,w), or () for the same everywhere -> `Quantized`.

        The weights of the mixture are softmax((logits + noise) / temperature) (Jang et al., Eq. 2), its code the
        heaviest one, which does not depend on the temperature. `hard`: the latents are that code's vector alone, with
        the gradients of the mixture (section 2.2 there). The loss is `kl_weight` times the distance of the distribution
        from the uniform one, the mean over positions, whatever the noise and the temperature.
        """
        logits = self.logits(features)  # (B,U,h,w)
        with torch.autocast(features.device.type, enabled=False):
            scores = logits + noise
            places = scores.argmax(1)  # (B,h,w), in the table's order
            weights = F.softmax(scores / temperature, dim=1)  # (B,U,h,w)
            if hard:
                one = torch.zeros_like(weights).scatter_(1, places.unsqueeze(1), 1.0)
                weights = one + (weights - weights.detach())
            vectors = self.table.select_used(self.codebook, dim=0)  # (U,D)
            latents = torch.einsum("buhw,ud->bdhw", weights, vectors.to(weights.dtype))
            return Quantized(latents, places, self.settings.kl_weight * self._distance(logits))

    def forward(self, features: Tensor) -> Quantized:
        noise = self._noise(features) if self.settings.noisy else features.new_zeros(())
        return self.sample(features, noise, temperature=1.0, hard=True)

    def schedule(self, seen: int, *, length: int) -> Callable[[Tensor], Quantized]:
        plan = self.settings.temperature
        warmup, decay = amount(plan.warmup, length=length), amount(plan.decay, length=length)
        value = warmup_cosine(seen, start=plan.start, peak=plan.peak, end=plan.end, warmup=warmup, decay=decay)
        return partial(self._drawn, temperature=value)

    def bypass(self, features: Tensor) -> Quantized:
        """(B,D,h,w) -> the features themselves, where they will place the codes; else as training at its first
        temperature.

        Without a loss. Where codes are not placed it is not the mean of the codes without noise: an encoder that has
        learned to speak in mixtures has to unlearn it (1.2 dB less after 300 steps on the embedded scenes, one run
        each).
        """
        if not self.settings.kmeans_iterations:
            drawn = self._drawn(features, temperature=self.settings.temperature.start)
            return drawn._replace(loss=torch.zeros_like(drawn.loss))
        codes = self.logits(features.detach()).argmax(1)  # (B,h,w)
        latents = features.to(precision(features, self.codebook))
        nothing = 0.0 * sum(
            parameter.sum() for parameter in self.parameters()
        )  # so that all have a gradient on all devices
        return Quantized(latents, codes, torch.as_tensor(nothing))

    def likeliest_codes(self, features: Tensor) -> Tensor:
        return self.logits(features).argmax(1)

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(self.table.inside(codes), self.codebook).permute(0, 3, 1, 2)

    @property
    def init_features(self) -> int:
        return VECTORS_A_CODE * self.settings.codebook_size if self.settings.kmeans_iterations else 0

    @torch.no_grad()
    def init_codebook(self, features: Tensor, *, generator: torch.Generator) -> None:
        """As `Quantizer.init_codebook`. The logits become -|feature - code|^2 / 2 s^2 (plus a number that all codes
        share).

        s^2 is the mean squared distance of a feature from its code, so that a draw is of a code nearby. Left to chance,
        logits are even at first and every code is drawn for everything, until a few codes that began to mean something
        take all.
        """
        if not self.settings.kmeans_iterations:
            return
        flat = rows_of(features, dtype=precision(features, self.codebook))
        size, rounds = self.settings.codebook_size, self.settings.kmeans_iterations
        codes = kmeans(flat, size, rounds=rounds, normalized=False, generator=generator)
        squared = (flat - codes[nearest(flat, codes)]).square().sum(1).mean()
        least = 1e-4 * flat.var(0, correction=0).sum() + torch.finfo(flat.dtype).tiny  # with fewer features than codes
        sharpness = 1 / torch.maximum(squared, least)
        assert self.projection.bias is not None
        self.codebook.copy_(codes)
        self.projection.weight.copy_((sharpness * codes)[:, :, None, None])
        self.projection.bias.copy_(-0.5 * sharpness * codes.square().sum(1))
        for parameter in self.parameters():
            broadcast(parameter)

    def update_codebook(self, features: Tensor, codes: Tensor, *, generator: torch.Generator) -> int:
        """Nothing to do: the noise and the term for the uniform distribution keep codes in use. Returns 0."""
        return 0

    def _drawn(self, features: Tensor, *, temperature: float) -> Quantized:
        return self.sample(
            features, self._noise(features), temperature=temperature, hard=self.settings.straight_through
        )

    def _noise(self, features: Tensor) -> Tensor:
        """Gumbel noise (B,U,h,w) for features (B,D,h,w): -log of the standard exponential distribution."""
        B, _, h, w = features.shape
        shape = (B, self.settings.remap.used or self.settings.codebook_size, h, w)
        dtype = precision(features, self.codebook)
        return -torch.empty(shape, dtype=dtype, device=features.device).exponential_().log()

    def _distance(self, logits: Tensor) -> Tensor:
        """(B,U,h,w) -> (): KL(softmax(logits) | uniform over all K codes) in nats, the mean over positions.

        As in the original: K counts the whole codebook where a table leaves codes out, and 1e-10 guards the logarithm.
        """
        probabilities = F.softmax(logits, dim=1)
        return (probabilities * torch.log(probabilities * self.settings.codebook_size + 1e-10)).sum(1).mean()
