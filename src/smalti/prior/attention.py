"""Attention of a causal network with or without a cache, as the priors share it.

Shapes: B batch, N heads, T codes of one call, S codes so far (cache and call), d width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attended(queries: Tensor, keys: Tensor, values: Tensor, *, dropout: float, unmasked: int = 0) -> Tensor:
    """Queries of the last T of S codes (B, N, T, d), keys and values of all (B, N, S, d) -> what each sees (B, N, T, d).

    A code sees itself and those before it. Of the first `unmasked` codes of a sequence, those that come in its first
    call see one another as well. `dropout` is a probability, 0 outside of training.
    """
    new, all_codes = queries.shape[2], keys.shape[2]
    first = new == all_codes
    if first and unmasked < 2:  # said as a word, because kernels then skip the masked half
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True, dropout_p=dropout)
    if new == 1:  # the last code sees everything
        return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout)
    visible = torch.ones(new, all_codes, dtype=torch.bool, device=queries.device).tril(all_codes - new)
    if first:
        visible[:unmasked, :unmasked] = True
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible, dropout_p=dropout)
