"""Codes without a codebook: the signs of the features, one bit for each number.

Notation: B batch, D bits, h w code grid, K = 2^D codes, N = B h w vectors, G bits of a group. Sources: Yu et al. 2023
(MAGVIT-v2, arXiv 2310.05737), section 3.1; Zhao et al. 2024 (BSQ, arXiv 2406.07548).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, final

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from smalti.core.distributed import all_reduce_mean
from smalti.core.settings import settings
from smalti.tokenizer.quantizers.base import Quantized, Quantizer, grid_of, precision, rows_of
from smalti.tokenizer.quantizers.gradient_estimators import straight_through


@settings
class LFQSettings:
    """Lookup-free quantization: signs."""

    name: Literal["lfq"] = "lfq"
    codebook_dim: Annotated[int, Field(ge=1, le=30)] = 10
    """D: a feature has as many numbers as a code has bits."""
    spherical: bool = False
    """Features and codes have length 1 (BSQ); False leaves features as they are, and codes are rows of -1 and +1."""
    commitment: Annotated[float, Field(ge=0)] = 0.25
    """Weight of the squared distance of features from their codes."""
    entropy: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the entropy (nats) of single features' codes, which is to fall, less that of all the batch's,
    which is to rise."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the softmax that makes probabilities of squared distances, in units of the square of a code's numbers."""
    group: Annotated[int, Field(ge=1, le=20)] = 18
    """G: the batch's entropy is exact for this many bits together; more bits are taken in groups, and their entropies
    added."""

    @property
    def codebook_size(self) -> int:
        """K."""
        return int(2**self.codebook_dim)

    @property
    def size(self) -> int:
        """How many codes the quantizer has outside."""
        return self.codebook_size


def entropy_of_bits(logits: Tensor) -> Tensor:
    """(N,D), log(p / (1 - p)) of each bit's being 1 -> (): the entropy of a vector's code in nats, the mean over
    vectors.

    The bits of one vector are independent, so that their entropies add up: exact for any D.
    """
    size = logits.abs()  # log(1 + e^-s) + s / (1 + e^s): nothing cancels however sure a bit is
    return (torch.log1p(torch.exp(-size)) + size * torch.sigmoid(-size)).sum(1).mean()


def code_probabilities(logits: Tensor) -> Tensor:
    """(N,D) as `entropy_of_bits` -> (N,2^D): the probability of each code, whose lowest bit is the first."""
    probabilities = logits.new_ones(len(logits), 1)
    for bit in logits.unbind(1):
        both = torch.stack([torch.sigmoid(-bit), torch.sigmoid(bit)], dim=1)  # (N,2)
        probabilities = (both.unsqueeze(2) * probabilities.unsqueeze(1)).flatten(1)
    return probabilities


def mean_probabilities(logits: Tensor) -> Tensor:
    """(N,G) as `entropy_of_bits` -> (2^G,): how likely each code is, the mean over vectors.

    A code's probability is that of its lower half of bits times that of its upper half, so that the mean over all
    vectors is one product of two matrices, of which neither has more than 2^ceil(G/2) columns: N x 2^G numbers are
    never held.
    """
    low, high = logits.tensor_split([logits.shape[1] // 2], dim=1)
    return (code_probabilities(high).T @ code_probabilities(low)).flatten() / len(logits)


def entropy_of_all(logits: Tensor, *, group: int, mean: Callable[[Tensor], Tensor]) -> Tensor:
    """(N,D) as `entropy_of_bits` -> (): the entropy of the mean distribution of codes in nats.

    `mean` takes this process's mean over vectors to that over everyone's. Exact where `group` bits are all there are.
    Otherwise each group's entropy is exact and their sum stands for the whole, as in BSQ, where a group is one bit: it
    is never less, and equal where the groups are independent of one another.
    """
    total = logits.new_zeros(())
    for bits in logits.split(group, dim=1):  # type: ignore[no-untyped-call]
        likely = mean(mean_probabilities(bits))
        total = total - (likely * likely.clamp(min=1e-12).log()).sum()  # the clamp keeps the gradient finite at 0
    return total


@final
class LFQ(Quantizer):
    """A code's bits are the signs of the features, the first number the lowest bit (MAGVIT-v2, Eq. 4)."""

    ends: Tensor
    bit_positions: Tensor

    def __init__(self, settings: LFQSettings) -> None:
        super().__init__()
        self.settings = settings
        self.size = settings.codebook_size
        self.unit = settings.codebook_dim**-0.5 if settings.spherical else 1.0
        # Float, so that latents have the model's dtype. Not weights: they follow from the settings.
        self.register_buffer("ends", torch.tensor([-1.0, 1.0]), persistent=False)
        self.register_buffer("bit_positions", torch.arange(settings.codebook_dim), persistent=False)

    @property
    def identity(self) -> str:
        return "lfq spherical" if self.settings.spherical else "lfq"

    def forward(self, features: Tensor) -> Quantized:
        """As `Quantizer.forward`; the batch whose entropy counts is this one alone, whatever other processes do."""
        return self._quantized(features, mean=lambda tensor: tensor)

    def schedule(self, seen: int, *, length: int) -> Callable[[Tensor], Quantized]:
        """As `forward`, with the entropy of everyone's batch."""
        return partial(self._quantized, mean=all_reduce_mean)

    def bypass(self, features: Tensor) -> Quantized:
        """As `Quantizer.bypass`: the features themselves, of length 1 where codes are spherical."""
        flat = self._flat(features)  # (N,D)
        return Quantized(grid_of(flat, features), self._codes(flat, features), flat.new_zeros(()))

    def likeliest_codes(self, features: Tensor) -> Tensor:
        return self.bypass(features).codes

    def lookup(self, codes: Tensor) -> Tensor:
        bits = codes.unsqueeze(1) >> self.bit_positions.view(-1, 1, 1) & 1  # (B,D,h,w)
        return self.ends[bits] * self.unit

    @property
    def init_features(self) -> int:
        return 0

    def init_codebook(self, features: Tensor, *, generator: torch.Generator) -> None:
        """Does nothing: codes are the corners of a cube, and constant."""

    def update_codebook(self, features: Tensor, codes: Tensor, *, generator: torch.Generator) -> int:
        """Nothing to do: the entropy term keeps codes in use. Returns 0."""
        return 0

    def _quantized(self, features: Tensor, *, mean: Callable[[Tensor], Tensor]) -> Quantized:
        settings = self.settings
        with torch.autocast(features.device.type, enabled=False):
            flat = self._flat(features)  # (N,D)
            chosen = (flat.detach() > 0).to(flat.dtype) * (2 * self.unit) - self.unit  # (N,D)
            loss = settings.commitment * F.mse_loss(flat, chosen)
            if settings.entropy:
                # softmax(-|feature - code|^2 / t): for one bit the two distances differ by 4 feature unit,
                # and t is in units^2.
                logits = flat * (4 / (self.unit * settings.temperature))  # (N,D)
                spread = entropy_of_all(logits, group=settings.group, mean=mean)
                loss = loss + settings.entropy * (entropy_of_bits(logits) - spread)
            return Quantized(grid_of(straight_through(flat, chosen), features), self._codes(flat, features), loss)

    def _codes(self, flat: Tensor, features: Tensor) -> Tensor:
        """(N,D) -> codes (B,h,w)."""
        B, _, h, w = features.shape
        return ((flat > 0).long() << self.bit_positions).sum(1).view(B, h, w)

    def _flat(self, features: Tensor) -> Tensor:
        """(B,D,h,w) -> (N,D) in raster order, in float32 at least, of length 1 where codes are spherical."""
        flat = rows_of(features, dtype=precision(features))
        return F.normalize(flat, dim=1) if self.settings.spherical else flat
