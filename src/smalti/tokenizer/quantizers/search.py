"""The search for the nearest code, in pieces: the N x K distances are never held whole.

Letters: N vectors, D their dimension, K codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smalti.tokenizer.quantizers.base import precision

SEARCH_ELEMENTS = 2**22
"""Largest piece of the N x K distance matrix held at a time, in numbers (16 MiB of float32)."""


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """vectors (N,D), codebook (K,D) -> index (N,) of the closest row in squared distance, the first on ties.

    |z - e|^2 = |z|^2 + |e|^2 - 2 z e, of which |z|^2 does not change the choice. Always in float32 at least; the N x K matrix
    is made in pieces of `SEARCH_ELEMENTS` and never held whole.
    """
    with torch.autocast(vectors.device.type, enabled=False), torch.no_grad():
        dtype = precision(vectors, codebook)
        codebook = codebook.to(dtype)
        squares = codebook.square().sum(1)  # (K,)
        rows = max(1, SEARCH_ELEMENTS // len(codebook))
        return torch.cat(
            [
                torch.addmm(squares, piece.to(dtype), codebook.T, alpha=-2).argmin(1)
                for piece in torch.split(vectors, rows)
            ]
        )
