"""The attention of a neighborhood transformer over a whole grid by FlexAttention (Dong et al., arXiv 2412.05496).

Letters: B batch, h w grid, T = h w positions row by row, N heads, d head dimension, r radius, b blocks of
positions.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK_SIZE = 128
"""Adjacent positions in the sequence that are computed or skipped together: FlexAttention's default."""

MIN_HEAD_DIM = 16
"""The smallest head dimension that its kernel supports."""


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: BlockMask) -> Tensor:
    """Queries, keys and values of all positions of a grid (B, N, T, d) each -> attention output (B, N, T, d).

    One kernel if compiled. Otherwise the scores of all pairs are held at once, and there are no gradients on a CPU.
    """
    # Of strided maps, some made in the same compiled code and some views, PyTorch 2.13 makes wrong numbers on a CPU.
    queries, keys, values = (tensor.contiguous() for tensor in (queries, keys, values))
    output: Tensor = flex_attention(queries, keys, values, block_mask=mask)
    return output


@lru_cache(maxsize=16)
def block_mask(grid: tuple[int, int], radius: int, device: torch.device) -> BlockMask:
    """A grid (h, w) -> the block mask of `neighborhood.neighborhood_mask` for the whole grid, without the full
    mask.

    Two blocks are compared position by position only if their bounding rectangles are within the radius of one
    another, so memory grows with b x b, and time with the blocks within the radius.
    """
    height, width = grid

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        up, right = query // width - key // width, key % width - query % width
        return (up >= 0) & (up <= radius) & (right.abs() <= radius) & ((up > 0) | (right <= 0))

    with torch.inference_mode(False):  # kept, and so perhaps used for a gradient later
        first = torch.arange(0, height * width, BLOCK_SIZE, device=device)  # (b,)
        last = (first + BLOCK_SIZE - 1).clamp(max=height * width - 1)
        top, bottom = first // width, last // width
        left, right = (first % width).where(top == bottom, 0), (last % width).where(top == bottom, width - 1)
        rows_overlap = (top <= bottom[:, None]) & (bottom >= top[:, None] - radius)  # (b, b), who asks and who is seen
        columns_overlap = (
            (left <= right[:, None] + radius) & (right >= left[:, None] - radius) & (first <= first[:, None])
        )
        overlap = (rows_overlap & columns_overlap).int()
        count, order = overlap.sum(1, dtype=torch.int32), overlap.argsort(dim=1, descending=True, stable=True).int()
        return BlockMask.from_kv_blocks(
            count[None, None],
            order[None, None],
            BLOCK_SIZE=BLOCK_SIZE,
            mask_mod=mask_mod,
            seq_lengths=(height * width,) * 2,
        )
