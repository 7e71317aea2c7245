"""Next-code logits by a call with fixed shapes, which a CUDA graph can capture and replay.

An ordinary call reads a growing cache and launches hundreds of small kernels. Here shapes never change: the call
reads the whole cache buffer and masks what is not generated yet, and the position is a number on the device. The
call is captured once and replayed for each code. (Not run on a GPU. On a CPU the same call runs without a graph.)

Letters: B sequences, N heads, S codes that fit into the cache, D width, K image codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, final

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.prior.attention import QuerySelection
from smalti.prior.base import Cache, StaticCache
from smalti.prior.gpt import GPT
from smalti.prior.transformer import Transformer

GraphablePrior: TypeAlias = GPT | Transformer
"""Priors whose `decode_step` reads no number from the device."""

WARMUP_CALLS = 3
"""Calls before the captured one, in which libraries select their kernels and allocate memory."""


@final
class FixedShapeCache(Cache):
    """The buffers of a `StaticCache`, returned whole after the new code's part is written at `position` (1,) int64."""

    def __init__(self, cache: StaticCache, *, device: torch.device) -> None:
        self.columns, self.buffers = cache.columns, cache.buffers
        for buffer in self.buffers.values():
            buffer[..., cache.length :, :] = 0  # what lay there may be no number, and 0 times that is none either
        self.position = torch.empty(1, dtype=torch.int64, device=device)
        self.set_length(cache.length)

    def set_length(self, length: int) -> None:
        """Set how many codes precede the next one."""
        self.length = length
        self.position.fill_(length)

    def append(self, name: str, new: Tensor) -> Tensor:
        return self.buffers[name].index_copy_(-2, self.position, new)  # (B, ..., S, D)

    def advance(self, count: int) -> None:
        self.set_length(self.length + count)


@final
class MaskedQuery(QuerySelection):
    """The one query of a call, which attends to those of the S codes that the mask (S,) selects."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def select(self, x: Tensor) -> Tensor:
        return x

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, *, dropout: float, unmasked: int = 0) -> Tensor:
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=self.mask[None], dropout_p=dropout)


@final
class GraphDecoder:
    """Image codes one after another, (B,) int64 each -> logits of the next, (B, K) float32, as of
    `Prior.next_logits`.

    It continues from a cache that holds the prefix at least, and writes into it and advances it, so ordinary calls
    are possible in between. Logits equal theirs up to rounding.
    """

    @torch.no_grad()
    def __init__(self, prior: GraphablePrior, cache: StaticCache) -> None:
        """Raises `SmaltiError` under autocast with a weight cache, since a graph would outlive the converted
        weights."""
        assert cache.length >= prior.prefix_length, (
            f"{cache.length} codes are kept, and the prefix alone has {prior.prefix_length}"
        )
        device = next(prior.parameters()).device
        if device.type == "cuda" and torch.is_autocast_enabled(device.type) and torch.is_autocast_cache_enabled():
            raise SmaltiError("a CUDA graph cannot be captured under this autocast; give it cache_enabled=False")
        self.prior, self.cache, self.fixed_cache = prior, cache, FixedShapeCache(cache, device=device)
        self.position_tables = prior.position_tables(
            cache.capacity - 1, columns=cache.columns
        )  # the last code is never read
        self.positions = torch.arange(cache.capacity, device=device)
        sequences = len(next(iter(cache.buffers.values())))
        self.codes = torch.zeros(sequences, 1, dtype=torch.int64, device=device)
        self.call = capture_graph(self._call, device=device) if device.type == "cuda" else self._call

    @torch.no_grad()
    def logits(self, codes: Tensor) -> Tensor:
        """The codes (B,) that follow those of the cache -> logits (B, K) of the next code."""
        assert self.cache.length < self.cache.capacity - 1, f"nothing follows code {self.cache.length} of this cache"
        self.fixed_cache.set_length(self.cache.length)
        self.codes.copy_(codes[:, None])
        logits = self.call().clone()  # a graph writes into the same memory again
        self.cache.advance(1)
        return logits

    def _call(self) -> Tensor:
        position_rows = [table.index_select(0, self.fixed_cache.position) for table in self.position_tables]
        features = self.prior.decode_step(
            self.codes, position_rows, self.fixed_cache, MaskedQuery(self.positions <= self.fixed_cache.position)
        )  # (B, 1, D)
        logits: Tensor = self.prior.head(features)[:, 0, : self.prior.size].float()  # (B, K)
        return logits


def capture_graph(call: Callable[[], Tensor], *, device: torch.device) -> Callable[[], Tensor]:
    """A call that reads and writes the same GPU memory each time -> a function that replays its kernels.

    As in PyTorch's notes on CUDA graphs, warm-up calls on a stream of their own come first.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_CALLS):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = call()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
