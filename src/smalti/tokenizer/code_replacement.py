"""Codes that are not quite right: some are replaced by codes near them, as codes that a prior samples may be.

Notation: B batch, D dimension of a code, h w code grid, K number of codes, k near codes of each. Source: Qiu et al.
2025, "Robust latent matters: boosting image generation with sampling error synthesis" (RobustTok, arXiv 2503.08354).
"""

from __future__ import annotations

import torch
from torch import Tensor

from smalti.tokenizer.quantizers import Quantizer

PIECE_ROWS, PIECE_COLUMNS = 2**9, 2**10
"""Distances that are held at a time, of the K x K: few enough for a CPU's cache, in which the search is three times as
fast."""
MAX_TABLE_SIZE = 2**22
"""Near codes of all codes together, at most: 32 MiB. 2^18 codes have 16 each."""
FARTHEST = torch.iinfo(torch.int64).max


@torch.no_grad()
def neighbor_codes(quantizer: Quantizer, count: int) -> Tensor:
    """A quantizer -> (K,k) int64: the `count` codes nearest to each code, itself not among them, the nearest first.

    Near is what has near latents (those of `lookup`); of two that are equally far the smaller code comes first. `count`
    is less than K. All pairs are compared, in pieces: about 4 s of one CPU core for 16,384 codes, and four times that
    for twice as many.
    """
    assert 0 < count < quantizer.size, "settings are checked before"
    vectors = _latents(quantizer)  # (K,D)
    pieces = range(0, len(vectors), PIECE_ROWS)
    return torch.cat([_neighbors(vectors, first, count) for first in pieces])


def _latents(quantizer: Quantizer) -> Tensor:
    """The latents of all codes, (K,D)."""
    device = next(tensor.device for tensor in (*quantizer.parameters(), *quantizer.buffers()))
    codes = torch.arange(quantizer.size, device=device)
    return quantizer.lookup(codes.view(1, 1, -1))[0, :, 0].T.contiguous()


def _neighbors(vectors: Tensor, first: int, count: int) -> Tensor:
    """The rows of `neighbor_codes` for the codes from `first` on, as many as fit into a piece."""
    rows = vectors[first : first + PIECE_ROWS]  # (n,D)
    own = torch.arange(first, first + len(rows), device=vectors.device).unsqueeze(1)  # (n,1)
    best = vectors.new_empty(len(rows), 0, dtype=torch.int64)
    for begin in range(0, len(vectors), PIECE_COLUMNS):
        columns = vectors[begin : begin + PIECE_COLUMNS]
        codes = torch.arange(begin, begin + len(columns), device=vectors.device)
        keys = torch.where(codes == own, FARTHEST, _keys(rows, columns, codes))  # (n,m)
        both = torch.cat([best, keys], 1)
        best = both.topk(min(count, both.shape[1]), dim=1, largest=False, sorted=True).values
    return best & 0xFFFFFFFF


def _keys(rows: Tensor, columns: Tensor, codes: Tensor) -> Tensor:
    """Vectors (n,D) and (m,D) of `codes` (m,) -> (n,m) int64 whose order is that of distances and then of codes.

    The bits of a float32 that is not negative are ordered as it is; the code is in the 32 bits below them. So no two
    keys are equal, and which come first does not depend on how they are searched.
    """
    # Differences, not |a|^2 + |b|^2 - 2ab, which loses the distance of codes that are close together and far from zero.
    distances = torch.cdist(rows.float(), columns.float(), compute_mode="donot_use_mm_for_euclid_dist")
    return (distances.view(torch.int32).long() << 32) | codes


def draw_random_numbers(codes: tuple[int, int, int], *, generator: torch.Generator) -> Tensor:
    """The shape (B,h,w) of codes -> (B,h,w,2), uniform in [0,1), on the CPU: what `replace_codes` decides by.

    Examples are drawn one after another: parts of a batch that are drawn in turn have the numbers of the whole batch.
    """
    return torch.rand(*codes, 2, generator=generator)


def replace_codes(codes: Tensor, neighbors: Tensor, random_numbers: Tensor, *, probability: float) -> Tensor:
    """Codes (B,h,w) -> the same, each replaced with `probability` by one of its near codes, all equally likely.

    `neighbors` (K,k) are those of `neighbor_codes`, `random_numbers` (B,h,w,2) those of `draw_random_numbers`, which
    decide whether a code is replaced and by which.
    """
    count = neighbors.shape[1]
    choices = (random_numbers[..., 1] * count).long()  # below `count`: the product is rounded to a number below it
    others = neighbors[codes, choices]  # (B,h,w)
    return torch.where(random_numbers[..., 0] < probability, others, codes)
