"""Image and codebook metrics, and accumulators over many images.

Notation: B batch, C channels, H W pixels, K size of the codebook.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor


def levels(images: Tensor) -> Tensor:
    """Images in [-1,1], of any float type -> their 8-bit levels 0 to 255, float32, as a saved file has them; NaN is
    black."""
    return ((images.float().nan_to_num(nan=-1.0).clamp(-1, 1) + 1) * 127.5).round()


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Two batches of images (B,C,H,W) in [-1,1] -> peak signal-to-noise ratio (B,) in dB, on values rounded to 8 bits.

    Equal images give 100 dB, the value for an error of 0.0025 of one level.
    """
    error = (levels(images) - levels(others)).square().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / error.clamp(min=255**2 * 1e-10))


class Accumulator(abc.ABC):
    """Counts over images in batches of any size, in any order, on any number of processes.

    Each image is counted once: a sampler that repeats images, to make all processes' shares equal, changes the result.
    """

    @abc.abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All that was counted so far; the shapes depend on the settings alone, so that the tensors can be
        all-gathered."""

    @abc.abstractmethod
    def merge_state(self, state: Mapping[str, Tensor]) -> None:
        """Count also what another one of the same settings has counted; `state` is the other's."""

    def merge(self, other: Accumulator) -> None:
        """Count also what `other`, of the same kind and settings, has counted."""
        self.merge_state(other.state())

    def merge_gathered(self, states: Mapping[str, Tensor]) -> None:
        """Count also what many have counted: their states stacked along a new first dimension, as all-gather gives
        them.

        The states include this process's own, so this is called on a fresh accumulator.
        """
        for process in range(len(next(iter(states.values())))):
            self.merge_state({name: tensor[process] for name, tensor in states.items()})


@final
class CodeUse(Accumulator):
    """Accumulates code counts -> codebook usage, entropy and perplexity."""

    def __init__(self, size: int) -> None:
        self.counts = torch.zeros(size, dtype=torch.int64)

    def add(self, codes: Tensor) -> None:
        """Count codes of any shape, int64 in [0,K)."""
        self.counts += torch.bincount(codes.detach().flatten().cpu(), minlength=len(self.counts))

    def state(self) -> dict[str, Tensor]:
        return {"counts": self.counts.clone()}

    def merge_state(self, state: Mapping[str, Tensor]) -> None:
        self.counts += state["counts"].cpu()

    @property
    def in_use(self) -> float:
        """Fraction of the K codes that occurred at least once."""
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
