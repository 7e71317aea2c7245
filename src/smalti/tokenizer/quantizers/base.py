"""What a quantizer is: features -> codes and latents, and codes -> latents.

Letters: B batch, D dimension of a code, h w code grid, K size of the codebook.
Source: arXiv 2012.09841, section 3.1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What a quantizer makes of features."""

    latents: Tensor
    """(B,D,h,w): the chosen codes' vectors; gradients pass straight through to the features."""
    codes: Tensor
    """(B,h,w) int64 in [0,size)."""
    loss: Tensor
    """(): what the quantizer asks of encoder and codebook, to be added to the objective."""


class Quantizer(nn.Module, ABC):
    """Features (B,D,h,w) -> `Quantized`.

    `forward` is what evaluation and encoding use. Training uses `at`, and also asks the quantizer to `start` from data and to
    `observe` what was used.
    """

    size: int
    """Codes are integers in [0,size): K of them, or those of a code table."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What besides the weights decides which code a feature takes; a part of the tokenizer's fingerprint, for ever."""

    @abstractmethod
    def forward(self, features: Tensor) -> Quantized:
        """(B,D,h,w) -> latents (B,D,h,w), codes (B,h,w), loss ()."""

    @abstractmethod
    def at(self, seen: int, *, length: int) -> Callable[[Tensor], Quantized]:
        """The quantizer as training uses it after `seen` of `length` images: a function with the shapes of `forward`."""

    @abstractmethod
    def relaxed(self, features: Tensor) -> Quantized:
        """As `forward`, with the latents that an endless codebook would give, and no loss: before the codes are placed."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """(B,h,w) int64 in [0,size) -> latents (B,D,h,w)."""

    @property
    @abstractmethod
    def start_features(self) -> int:
        """How many feature vectors `start` wants to see, of all processes together; 0: it is not called."""

    @abstractmethod
    def start(self, features: Tensor, *, generator: torch.Generator) -> None:
        """Place the codes where features (B,D,h,w) of some images, everyone's, are, before they are first used."""

    @abstractmethod
    def observe(self, features: Tensor, codes: Tensor, *, generator: torch.Generator) -> int:
        """After a step: note the codes (B,h,w) that features (B,D,h,w) took, everyone's, and mend the codebook.

        `generator` is the same in all processes, so that all mend alike. Returns how many codes moved.
        """


def precision(*tensors: Tensor) -> torch.dtype:
    """The type in which a quantizer computes with `tensors`: the widest of theirs, and float32 at least."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def rows_of(features: Tensor, *, dtype: torch.dtype) -> Tensor:
    """(B,D,h,w) -> (N,D) of the given type: one vector for each position, in raster order."""
    return features.to(dtype).permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def grid_of(rows: Tensor, features: Tensor) -> Tensor:
    """(N,D) in the order of `rows_of` -> (B,D,h,w), the shape of `features`."""
    B, D, h, w = features.shape
    return rows.view(B, h, w, D).permute(0, 3, 1, 2)
