"""Attention of a causal network with or without a cache, as the priors share it.

Shapes: B batch, N heads, T codes of one call, S codes so far (cache and call), d width of a head.
"""

from __future__ import annotations

import abc
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.kernels import causal_attention, decode_block


def attended(queries: Tensor, keys: Tensor, values: Tensor, *, dropout: float, unmasked: int = 0) -> Tensor:
    """Queries of the last T of S codes (B, N, T, d), keys and values of all (B, N, S, d) -> what each sees (B, N, T, d).

    A code sees itself and those before it. Of the first `unmasked` codes of a sequence, those that come in its first
    call see one another as well. `dropout` is a probability, 0 outside of training.
    """
    new, all_codes = queries.shape[2], keys.shape[2]
    first = new == all_codes
    if first and unmasked < 2:
        if dropout == 0 and causal_attention.suits(queries, keys, values):
            return causal_attention.attended(queries, keys, values)
        # said as a word, because kernels then skip the masked half
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True, dropout_p=dropout)
    if new == 1:  # the last code sees everything
        if dropout == 0 and decode_block.attends(queries, keys, values):
            return decode_block.attended(queries, keys, values)
        return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout)
    visible = torch.ones(new, all_codes, dtype=torch.bool, device=queries.device).tril(all_codes - new)
    if first:
        visible[:unmasked, :unmasked] = True
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible, dropout_p=dropout)


class Asked(abc.ABC):
    """Which of the T codes of a call the last block is asked for; of the others only keys and values are needed there."""

    @abc.abstractmethod
    def of(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, t, D), those asked for."""

    @abc.abstractmethod
    def attended(self, queries: Tensor, keys: Tensor, values: Tensor, *, dropout: float, unmasked: int = 0) -> Tensor:
        """As the function, with queries (B, N, t, d) of those asked for -> (B, N, t, d)."""


@final
class Every(Asked):
    """All codes of the call."""

    def of(self, x: Tensor) -> Tensor:
        return x

    def attended(self, queries: Tensor, keys: Tensor, values: Tensor, *, dropout: float, unmasked: int = 0) -> Tensor:
        return attended(queries, keys, values, dropout=dropout, unmasked=unmasked)


EVERY = Every()


@final
class One(Asked):
    """One code of each sequence of a call of `new` codes: number `index` (B,) int64. None before the last of the `unmasked`."""

    def __init__(self, index: Tensor, *, new: int) -> None:
        self.index, self.new = index, new

    def of(self, x: Tensor) -> Tensor:
        return x[torch.arange(len(x), device=x.device), self.index][:, None]

    def attended(self, queries: Tensor, keys: Tensor, values: Tensor, *, dropout: float, unmasked: int = 0) -> Tensor:
        count = keys.shape[2]
        if self.new == 1:  # there is no other to be asked for
            return attended(queries, keys, values, dropout=dropout, unmasked=unmasked)
        before = torch.arange(count, device=keys.device) <= (count - self.new + self.index)[:, None]  # (B, S)
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=before[:, None, None], dropout_p=dropout)
