"""What a neighborhood transformer sees of a grid, as FlexAttention (Dong et al., arXiv 2412.05496) is told of it.

Letters: B batch, h w grid, T = h w places row by row, N heads, d width of a head, r reach, b blocks of places.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK_SIZE = 128
"""Places side by side in the sequence that are looked at, or left out, together: the size that FlexAttention is made for."""

MIN_HEAD_DIM = 16
"""The smallest width of a head that its kernel takes."""


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: BlockMask) -> Tensor:
    """Queries, keys and values of all places of a grid (B, N, T, d) each -> what each sees (B, N, T, d).

    One kernel where it is compiled. Where it is not, the scores of all pairs of places are held at once, and on a CPU it has no
    gradients.
    """
    # Of strided maps, some made in the same compiled code and some views, PyTorch 2.13 makes wrong numbers on a CPU.
    queries, keys, values = (one.contiguous() for one in (queries, keys, values))
    output: Tensor = flex_attention(queries, keys, values, block_mask=mask)
    return output


@lru_cache(maxsize=16)
def block_mask(grid: tuple[int, int], radius: int, device: torch.device) -> BlockMask:
    """A grid (h, w) -> which places each of its places sees: `neighborhood.visible` of the whole grid, never written out.

    Two blocks are compared place by place only where the rectangles around them are within reach of one another, so that memory
    grows with b x b, and time with the blocks in reach.
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
