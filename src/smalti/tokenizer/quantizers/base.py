"""The base class of quantizers: features -> codes and latents, and codes -> latents.

Notation: B batch, D dimension of a code, h w code grid, K size of the codebook. Source: arXiv 2012.09841, section 3.1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Quantized(NamedTuple):
    """The result of a quantizer."""

    latents: Tensor
    """(B,D,h,w): the chosen codes' vectors; gradients pass straight through to the features."""
    codes: Tensor
    """(B,h,w) int64 in [0,size)."""
    loss: Tensor
    """(): codebook and commitment loss, to be added to the objective."""


class Quantizer(nn.Module, ABC):
    """Features (B,D,h,w) -> `Quantized`.

    Evaluation and encoding use `forward`. Training uses what `schedule` returns, places the codes with `init_codebook`,
    and calls `update_codebook` after each step.
    """

    size: int
    """Codes are integers in [0,size): K of them, or those of a code table."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What besides the weights decides the code of a feature. It is part of the tokenizer's fingerprint:
        never change it."""

    @abstractmethod
    def forward(self, features: Tensor) -> Quantized:
        """(B,D,h,w) -> latents (B,D,h,w), codes (B,h,w), loss ()."""

    @abstractmethod
    def schedule(self, seen: int, *, length: int) -> Callable[[Tensor], Quantized]:
        """The quantizer after `seen` of `length` training images: a function with the shapes of `forward`."""

    @abstractmethod
    def bypass(self, features: Tensor) -> Quantized:
        """As `forward`, with latents that are not quantized and no loss: used before the codebook is initialized."""

    @abstractmethod
    def likeliest_codes(self, features: Tensor) -> Tensor:
        """(B,D,h,w) -> the codes (B,h,w) of `forward`, or the likeliest ones if it draws; without a loss."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """(B,h,w) int64 in [0,size) -> latents (B,D,h,w)."""

    @property
    @abstractmethod
    def init_features(self) -> int:
        """The number of feature vectors that `init_codebook` needs, of all processes together; 0: it is not called."""

    @abstractmethod
    def init_codebook(self, features: Tensor, *, generator: torch.Generator) -> None:
        """Initialize the codebook from features (B,D,h,w) of some images, of all processes, before its first use."""

    @abstractmethod
    def update_codebook(self, features: Tensor, codes: Tensor, *, generator: torch.Generator) -> int:
        """After a step: count the codes (B,h,w) of features (B,D,h,w), of all processes, and update the codebook.

        `generator` is the same in all processes, so that all updates agree. Returns the number of replaced codes.
        """


def precision(*tensors: Tensor) -> torch.dtype:
    """The type in which a quantizer computes with `tensors`: the widest of their dtypes, and float32 at least."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def rows_of(features: Tensor, *, dtype: torch.dtype) -> Tensor:
    """(B,D,h,w) -> (N,D) of the given type: one vector for each position, in raster order."""
    return features.to(dtype).permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def grid_of(rows: Tensor, features: Tensor) -> Tensor:
    """(N,D) in the order of `rows_of` -> (B,D,h,w), the shape of `features`."""
    B, D, h, w = features.shape
    return rows.view(B, h, w, D).permute(0, 3, 1, 2)
