"""Randomness that belongs to a position: a counter-based generator, keyed by seed, row, column and code.

An image generated with this noise depends on its seed alone: not on the batch it was in, the device, the order in which
its codes were generated, or caching. The generator is Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy
as 1, 2, 3" (SC 2011), written with 64-bit integer tensor operations, so that it gives the same words on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Counters and keys -> random words, by Philox4x32-10.

    `counter` is (4, ...) and `key` (2, ...), int64 holding 32-bit unsigned words, and their trailing shapes broadcast.
    The result is (4, ...), int64 in [0, 2^32).
    """
    column = (2, *([1] * (counter.ndim - 1)))
    channel_multipliers = torch.tensor(_MULTIPLIERS, device=counter.device).view(column)
    steps = torch.tensor(_KEY_STEPS, device=counter.device).view(column)
    even, odd = counter[0::2], counter[1::2]
    for index in range(_ROUNDS):
        # The product of two 32-bit words wraps in a signed 64-bit integer, and its bits are still right.
        product = even * channel_multipliers
        high, low = (product >> 32) & _MASK, product & _MASK
        even, odd = high.flip(0) ^ odd ^ ((key + index * steps) & _MASK), low.flip(0)
    return torch.stack((even, odd), dim=1).flatten(0, 1)


def gumbel(seeds: Tensor, size: int, *, rows: Tensor, columns: Tensor) -> Tensor:
    """Seeds and places -> standard Gumbel noise for each of `size` codes.

    `seeds`, `rows`, `columns` are (B,) int64, seeds in [0, 2^63), rows and columns in [0, 2^32): each item of the batch
    may stand at a position of its own. The result is (B, size) float32; number k of an item depends on its seed, row
    and column and on k, and on nothing else. argmax(logits + noise) is a draw from softmax(logits) (the Gumbel-max
    trick).
    """
    assert seeds.shape == rows.shape == columns.shape
    blocks = torch.arange((size + 3) // 4, device=seeds.device)
    places = torch.stack((rows, columns, torch.zeros_like(rows)))
    shape = (len(seeds), len(blocks))
    counter = torch.cat((blocks.expand(1, *shape), places[:, :, None].expand(3, *shape)))
    key = torch.stack((seeds & _MASK, seeds >> 32))[:, :, None]
    return standard_gumbel(philox(counter, key).permute(1, 2, 0).flatten(1)[:, :size])


def standard_gumbel(words: Tensor) -> Tensor:
    """Random 32-bit words, int64 -> standard Gumbel numbers of the same shape, float32, all finite."""
    # The complement of the uniform number, so that the long tail of the noise, up to 22.9, has the fine end of the
    # floats. Near one the floats are coarse, and the bound keeps the number below one.
    complement = ((words.float() + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24)
    return -torch.log(-torch.log1p(-complement))
