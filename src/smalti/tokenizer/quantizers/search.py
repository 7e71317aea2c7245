"""The search for the nearest code, in pieces: the N x K distances are never held whole.

Notation: N vectors, D their dimension, K codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smalti.tokenizer.quantizers.base import precision

SEARCH_ELEMENTS = 2**22
"""Largest piece of the N x K distance matrix held at a time, in numbers (16 MiB of float32)."""
SEARCH_CODES = 2**10
"""Codes in a piece: few, so that a piece has many vectors, and its product the shape that matrix units like."""


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """vectors (N,D), codebook (K,D) -> index (N,) of the closest row in squared distance, the first on ties.

    |z - e|^2 = |z|^2 + |e|^2 - 2 z e, of which |z|^2 does not change the choice. Always in float32 at least.
    """
    with torch.autocast(vectors.device.type, enabled=False), torch.no_grad():
        dtype = precision(vectors, codebook)
        codebook = codebook.to(dtype)
        squares = codebook.square().sum(1)  # (K,)
        rows = max(1, SEARCH_ELEMENTS // min(len(codebook), SEARCH_CODES))
        # A graph of any number of vectors has no loop over pieces: how often it runs would be fixed.
        pieces = (vectors,) if torch.compiler.is_compiling() else torch.split(vectors, rows)
        return torch.cat([_nearest(piece.to(dtype), codebook, squares) for piece in pieces])


def _nearest(vectors: Tensor, codebook: Tensor, squares: Tensor) -> Tensor:
    """Some vectors -> their codes, over the codebook piece by piece."""
    pieces = torch.split(codebook, SEARCH_CODES), torch.split(squares, SEARCH_CODES)
    distances, codes = torch.addmm(pieces[1][0], vectors, pieces[0][0].T, alpha=-2).min(1)  # (n,), (n,)
    for number, (some, their_squares) in enumerate(zip(*pieces, strict=True)):
        if number:
            others, places = torch.addmm(their_squares, vectors, some.T, alpha=-2).min(1)
            closer = others < distances  # not as close: the first stays
            distances = torch.where(closer, others, distances)
            codes = torch.where(closer, places + number * SEARCH_CODES, codes)
    return codes
