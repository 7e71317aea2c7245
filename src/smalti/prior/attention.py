"""Causal attention with or without a cache, shared by the priors.

Notation: B batch, N heads, T codes of one call, t of them that are queries, S codes so far (cache and call), d head
dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.kernels import causal_attention, decode_block
from smalti.prior.cache import Cache


def select(x: Tensor, query_index: Tensor | None) -> Tensor:
    """(B, T, ...), and the indices of some of the T in each sequence (B, t), or None for all -> (B, t, ...)."""
    if query_index is None:
        return x
    return x[torch.arange(len(x), device=x.device)[:, None], query_index]


def attend_with_cache(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    cache: Cache,
    name: str,
    query_index: Tensor | None = None,
    dropout: float = 0.0,
    unmasked: int = 0,
) -> Tensor:
    """Queries (B, N, t, d), keys and values (B, N, T, d) of a call -> attention output over all codes so far (B, N,
    t, d).

    The cache stores the keys and values under `name`. `query_index` (B, t): which of the T codes the queries are,
    none before the last of the `unmasked`; None for all. `dropout` and `unmasked` as in `attend`.
    """
    count = keys.shape[2]
    keys = cache.append(f"{name}.keys", keys)  # (B, N, S, d)
    values = cache.append(f"{name}.values", values)  # (B, N, S, d)
    if query_index is None or count == 1:  # the only code
        return attend(queries, keys, values, dropout=dropout, unmasked=unmasked)
    index = torch.arange(keys.shape[2], device=keys.device)  # (S,)
    mask = index <= (len(index) - count + query_index)[:, :, None]  # (B, t, S)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask[:, None], dropout_p=dropout)


def attend(queries: Tensor, keys: Tensor, values: Tensor, *, dropout: float, unmasked: int = 0) -> Tensor:
    """Queries of the last T of S codes (B, N, T, d), keys and values of all (B, N, S, d) -> attention output (B, N,
    T, d).

    A code attends to itself and to the codes before it. Those of the first `unmasked` codes of a sequence that are
    in its first call also attend to one another. `dropout` is a probability, 0 outside of training.
    """
    query_count, key_count = queries.shape[2], keys.shape[2]
    is_first_call = query_count == key_count
    if is_first_call and unmasked < 2:
        if dropout == 0 and causal_attention.is_supported(queries, keys, values):
            return causal_attention.attend(queries, keys, values)
        # is_causal instead of a mask, since kernels then skip the masked half
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True, dropout_p=dropout)
    if query_count == 1:  # the last code sees everything
        if dropout == 0 and decode_block.attention_is_supported(queries, keys, values):
            return decode_block.attend(queries, keys, values)
        return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout)
    mask = torch.ones(query_count, key_count, dtype=torch.bool, device=queries.device).tril(key_count - query_count)
    if is_first_call:
        mask[:unmasked, :unmasked] = True
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
