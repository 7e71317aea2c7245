"""Causal attention with or without a cache, shared by the priors.

Shapes: B batch, N heads, T codes of one call, S codes so far (cache and call), d head dimension.
"""

from __future__ import annotations

import abc
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.kernels import causal_attention, decode_block


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


class QuerySelection(abc.ABC):
    """The codes of a call that are queries in the last block; of the others it needs only keys and values."""

    @abc.abstractmethod
    def select(self, x: Tensor) -> Tensor:
        """(B, T, D) -> the selected codes (B, t, D)."""

    @abc.abstractmethod
    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, *, dropout: float, unmasked: int = 0) -> Tensor:
        """As the function, with queries (B, N, t, d) of the selected codes -> (B, N, t, d)."""


@final
class AllQueries(QuerySelection):
    """All codes of the call."""

    def select(self, x: Tensor) -> Tensor:
        return x

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, *, dropout: float, unmasked: int = 0) -> Tensor:
        return attend(queries, keys, values, dropout=dropout, unmasked=unmasked)


ALL_QUERIES = AllQueries()


@final
class SingleQuery(QuerySelection):
    """One code of each sequence of a call of `new` codes: number `index` (B,) int64, not before the last of the
    `unmasked`."""

    def __init__(self, index: Tensor, *, new: int) -> None:
        self.index, self.new = index, new

    def select(self, x: Tensor) -> Tensor:
        return x[torch.arange(len(x), device=x.device), self.index][:, None]

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, *, dropout: float, unmasked: int = 0) -> Tensor:
        key_count = keys.shape[2]
        if self.new == 1:  # the only code
            return attend(queries, keys, values, dropout=dropout, unmasked=unmasked)
        mask = torch.arange(key_count, device=keys.device) <= (key_count - self.new + self.index)[:, None]  # (B, S)
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask[:, None, None], dropout_p=dropout)
