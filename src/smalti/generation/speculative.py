"""Speculative decoding: draft codes for several positions, verified by one call of the prior.

The noise of a position is fixed before its code is sampled, so each code is a deterministic function of the codes
before it. The prior's output for draft codes gives better drafts: Jacobi decoding (Santilli et al., arXiv
2305.10427), here for sampled codes. A position keeps its noise from iteration to iteration, so drafts converge
early: the Gumbel coupling of So et al., arXiv 2510.24211. All randomness is in the noise and none in the
acceptance, so the result equals one-by-one generation.

Notation: B batch, K image codes, T codes before the last query, n draft codes per call, m queries per call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, final

import torch
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.generation.decoding_strategy import DecodingStrategy
from smalti.generation.sliding_window import SlidingWindowDecoding, prefix_of
from smalti.generation.wavefront import CodePosition
from smalti.prior.window import Window

SampleCodes: TypeAlias = Callable[[Sequence[CodePosition], Tensor], Tensor]
"""m positions and their logits, (1, m, B, K) or guided (2, m, B, K) -> the codes sampled with the positions' noise
(m, B)."""


@final
class SpeculativeDecoding(DecodingStrategy):
    """One window over the whole image: each call reads n draft codes and returns logits for n + 1 positions.

    Logits are accepted if all draft codes before them were right; the first always are. The next call continues
    from there, and the remaining logits give its drafts. In a batch, the image with the fewest accepted codes
    decides.
    """

    def __init__(self, windows: SlidingWindowDecoding, sample: SampleCodes, *, count: int) -> None:
        """The strategy without speculation, the sampler of codes, and the number n of draft codes per call."""
        self.prior, self.sample, self.count = windows.prior, sample, count
        self.schedule, self.order = windows.schedule, windows.window_order
        self.offsets = [position.offset for (position,) in windows.schedule]
        self.prefix = torch.cat(
            (prefix_of(windows.prior, windows.request, Window(0, 0, *windows.window)), windows.null_prefix)
        )
        self.cache = self.prior.empty_cache(window=windows.window, order=windows.cache_order)
        self.inputs = self.prefix[:, :0]  # (B, T), the codes that the last call read
        self.results: tuple[Tensor, ...] = ()  # m x (1 or 2, B, K), its logits
        self.first_wave = 0  # the wave that the first of them belongs to

    def logits(self, codes: Tensor, wave: int) -> Iterator[tuple[Sequence[CodePosition], Tensor]]:
        codes_in_order, offset = codes.flatten(1)[:, self.order], self.offsets[wave]
        has_result = wave < self.first_wave + len(self.results)
        if not has_result or not torch.equal(self.inputs[:, :offset], codes_in_order[:, :offset]):
            self._evaluate(codes_in_order, wave)
        yield self.schedule[wave], self.results[wave - self.first_wave][:, None]

    def _evaluate(self, codes_in_order: Tensor, wave: int) -> None:
        """Codes in the prior's order (B, h w), -1 where not generated -> the logits of a wave and of the draft
        positions after it."""
        prior, cache = self.prior, self.cache
        offsets = self.offsets[wave : wave + 1 + (self.count if self.results else 0)]
        self.inputs = codes_in_order[:, : offsets[-1]].clone()  # (B, T)
        previous = self.results[wave - self.first_wave : wave - self.first_wave + len(offsets) - 1]
        if previous:
            positions = [position for (position,) in self.schedule[wave : wave + len(previous)]]
            self.inputs[:, offsets[: len(previous)]] = self.sample(positions, torch.stack(previous, dim=1)).T
        for offset in offsets[len(previous) : -1]:
            # A position without an answer yet: the code before it. The one above, or what the last answer makes with
            # the noise of this position, is right about as often (docs/high-resolution.md).
            self.inputs[:, offset] = self.inputs[:, offset - 1]
        # The cache is valid up to the code before the last generated one, which is read now instead of its draft.
        cache.length = start = prior.prefix_length + self.offsets[wave - 1] if wave else 0
        copies = len(self.prefix) // len(codes_in_order)
        sequence = prior.join(self.prefix, self.inputs.repeat(copies, 1))[:, start:]
        query_index = torch.tensor(offsets, device=codes_in_order.device) + (prior.prefix_length - 1 - start)
        logits = prior(sequence, cache=cache)[:, query_index, : prior.size].float()  # (B or 2 B, m, K)
        self.results = logits.view(copies, len(codes_in_order), len(offsets), -1).unbind(2)
        self.first_wave = wave


def with_speculation(
    strategy: DecodingStrategy, sample: SampleCodes, *, grid: tuple[int, int], count: int
) -> DecodingStrategy:
    """The strategy for a grid (h, w) -> the same with `count` draft codes per call; 0 returns it unchanged.

    Raises `SmaltiError` if no window covers the whole grid.
    """
    if count == 0:
        return strategy
    if not isinstance(strategy, SlidingWindowDecoding):
        raise SmaltiError(f"speculate = {count} needs a window, and a neighborhood transformer has none; leave it at 0")
    if strategy.window != grid:
        raise SmaltiError(
            f"speculate = {count} needs a window that covers the grid, and a window of {strategy.window[0]} x "
            f"{strategy.window[1]} codes moves over a grid of {grid[0]} x {grid[1]}; leave it at 0, or generate a "
            "smaller image"
        )
    return SpeculativeDecoding(strategy, sample, count=count)
