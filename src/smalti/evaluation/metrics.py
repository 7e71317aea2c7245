"""Numbers that say how good pictures and codes are.

Letters: B batch, C channels, H W pixels, K size of the codebook.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Two batches of pictures (B,C,H,W) in [-1,1] -> peak signal-to-noise ratio (B,) in dB, on values rounded to 8 bits.

    Equal pictures give 100 dB, the value for an error of 0.0025 of one level.
    """
    a, b = (((each.clamp(-1, 1) + 1) * 127.5).round() for each in (images, others))
    error = (a - b).square().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / error.clamp(min=255**2 * 1e-10))


@final
class CodeUse:
    """Counts codes as they come by, and says how much of the codebook they use."""

    def __init__(self, size: int) -> None:
        self.counts = torch.zeros(size, dtype=torch.int64)

    def add(self, codes: Tensor) -> None:
        """Codes of any shape, int64 in [0,K)."""
        self.counts += torch.bincount(codes.detach().flatten().cpu(), minlength=len(self.counts))

    @property
    def in_use(self) -> float:
        """Share of the K codes that came by at least once."""
        return float((self.counts > 0).float().mean())

    @property
    def entropy(self) -> float:
        """Entropy of single codes in nats: what a prior that knows only their frequencies needs for one code."""
        shares = self.counts / self.counts.sum().clamp(min=1)
        return float(-torch.special.xlogy(shares, shares).sum())

    @property
    def perplexity(self) -> float:
        """exp(entropy): the number of equally frequent codes that would be as hard to guess."""
        return float(torch.tensor(self.entropy).exp())
