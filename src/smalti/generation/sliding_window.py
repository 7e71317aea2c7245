"""The sliding window: the logits of each wave, computed in few calls and with cached keys and values.

Notation: B batch, K image codes, P prefix codes, h w grid, m positions per call of the prior, T codes before the
last of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.generation.decoding_strategy import PriorDecoding
from smalti.generation.request import GenerationRequest
from smalti.generation.wavefront import CodePosition, batch_wave, wavefront_schedule
from smalti.prior.base import Prior
from smalti.prior.cache import NoCache, StaticCache
from smalti.prior.order import known_first
from smalti.prior.window import Window

MAX_CALL_CODES = 2**14
"""Maximum number of codes in one call of the prior with several positions: enough to keep a device busy. A wave
over a very wide image takes several calls, so the memory of a call does not grow with the image."""

MAX_CACHE_BYTES = 2**30
"""Maximum size in bytes of the cached keys and values of windows that are used again."""


class _WindowState(NamedTuple):
    """One window, or several in one call: their prefixes, with guidance the unconditional ones below, and the
    prior's cache."""

    prefix: Tensor
    cache: NoCache | StaticCache


@final
class SlidingWindowDecoding(PriorDecoding):
    """Decoding with a prior that reads one window at a time: a whole sequence per code, or its end if the window
    has a cache.

    Keys and values depend on the positions of codes in their window. So the cache is kept for a window that later
    codes share: the next code of the row or, at the upper and lower border, where a row uses the windows of the row
    above, codes of the next row.
    """

    def __init__(self, prior: Prior, request: GenerationRequest, *, null_prefix: Tensor) -> None:
        """`null_prefix` (B, P) is the unconditional prefix, or has no rows without guidance."""
        self.prior, self.request, self.null_prefix = prior, request, null_prefix
        device, (height, width) = request.known.device, request.grid
        self.window = (min(prior.max_grid[0], height), min(prior.max_grid[1], width))
        self.window_order = sequence_order(prior, request, self.window)  # the window's own positions, in order
        self.cache_order = self.window_order if prior.knows_any_order else None
        self.few_calls = _prefers_few_calls(device)
        self.schedule = self._schedule()
        self.remaining_uses = Counter(position.window for wave in self.schedule for position in wave)
        self.states: dict[Window, _WindowState] = {}

    @staticmethod
    def decodes(prior: Prior, request: GenerationRequest) -> bool:
        return True

    def _schedule(self) -> list[list[CodePosition]]:
        missing = self.request.missing_positions
        if self.prior.order == "raster" or self.window != self.request.grid:
            return wavefront_schedule(missing, window=self.window, middle=self.request.middle)
        is_missing, whole_window = missing.flatten().tolist(), Window(0, 0, *self.window)
        positions = (
            (*divmod(index, self.window[1]), offset)
            for offset, index in enumerate(self.window_order.tolist())
            if is_missing[index]
        )
        return [[CodePosition(row, column, whole_window, offset)] for row, column, offset in positions]

    def logits(self, codes: Tensor, wave: int) -> Iterator[tuple[Sequence[CodePosition], Tensor]]:
        positions = self.schedule[wave]
        self.remaining_uses.subtract(position.window for position in positions)
        next_wave = self.schedule[wave + 1] if wave + 1 < len(self.schedule) else []
        cached_windows = (
            {position.window for position in next_wave} | self.states.keys() | self._reused_windows(positions)
        )
        copies = len(codes) + len(self.null_prefix)
        for batch in batch_wave(
            positions,
            cached_windows=cached_windows,
            prefix_length=self.prior.prefix_length,
            copies=copies,
            max_codes=MAX_CALL_CODES,
            few_calls=self.few_calls,
        ):
            yield batch, self._logits(codes, batch, use_cache=len(batch) == 1 and batch[0].window in cached_windows)
        self.states = {window: state for window, state in self.states.items() if self.remaining_uses[window]}

    def _reused_windows(self, positions: Sequence[CodePosition]) -> set[Window]:
        """Windows over these positions that are used again, as far as there is memory for their caches."""
        if not self.states:
            return {position.window for position in positions if self.remaining_uses[position.window]}
        largest = max(_cache_bytes(state.cache) for state in self.states.values())
        room = MAX_CACHE_BYTES // max(largest, 1) - len(self.states)
        reused = [
            position.window
            for position in positions
            if self.remaining_uses[position.window] and position.window not in self.states
        ]
        return set(reused[: max(room, 0)])

    def _logits(self, codes: Tensor, positions: Sequence[CodePosition], *, use_cache: bool) -> Tensor:
        """Codes so far and m positions -> logits (1, m, B, K), guided (2, m, B, K).

        Cached codes are not read again. Known codes, which were never queries, are read now. Shorter sequences are
        padded with later codes or filler, which a causal prior ignores.
        """
        prior, window = self.prior, positions[0].window
        state = self.states.get(window) if len(positions) == 1 else None
        if state is None:
            caches = use_cache and self.remaining_uses[window] > 0
            prefixes = [prefix_of(prior, self.request, position.window) for position in positions]
            cache = (
                prior.empty_cache(window=self.window, order=self.cache_order)
                if caches
                else NoCache(columns=self.window[1], order=self.cache_order)
            )
            state = _WindowState(torch.cat((*prefixes, self.null_prefix.repeat(len(positions), 1))), cache)
            if caches:
                self.states[window] = state
        longest, start = max(position.offset for position in positions), state.cache.length
        previous = [_window_codes(codes, position.window)[:, self.window_order[:longest]] for position in positions]
        inputs = torch.cat(previous).clamp(min=0)  # (m B, T)
        inputs = inputs.repeat(len(state.prefix) // len(inputs), 1)
        offsets = torch.tensor([position.offset for position in positions], device=codes.device).repeat_interleave(
            len(codes)
        )
        query_index = (prior.prefix_length - 1 - start + offsets).repeat(len(inputs) // len(offsets))
        sequence = prior.join(state.prefix, inputs)[:, start:]  # (m B or 2 m B, T)
        scored = prior(sequence, cache=state.cache, query_index=query_index[:, None])  # (m B or 2 m B, 1, V)
        logits: Tensor = scored[:, 0, : prior.size].float()
        return logits.view(-1, len(positions), len(codes), prior.size)


def prefix_of(prior: Prior, request: GenerationRequest, window: Window) -> Tensor:
    """The conditional prefix (B, P) of a window. Raises `SmaltiError` for one of another shape."""
    prefix = request.prefix_at(window)
    if prefix.shape != (request.batch, prior.prefix_length):
        raise SmaltiError(
            f"the prefix of {request.batch} images has the shape {tuple(prefix.shape)}, and this prior reads "
            f"(batch, {prior.prefix_length})"
        )
    return prefix


def sequence_order(prior: Prior, request: GenerationRequest, window: tuple[int, int]) -> Tensor:
    """A prior, a request and the window (h, w) over its grid -> the raster positions of the window in sequence order.

    An any-order prior reads the known codes first if the window covers the grid, and then generates the
    others in the request's order: each is conditioned on all that is known. Raises `SmaltiError` for a prior with an
    order that it has not learned for this window.
    """
    own_order = prior.sequence_order(window, device=request.known.device)
    if not prior.knows_any_order or window != request.grid:
        return own_order
    rank = (own_order if request.order is None else request.order).argsort() / len(own_order)
    return known_first(request.known_positions.flatten().to(rank.device), priority=rank)


def _prefers_few_calls(device: torch.device) -> bool:
    """Whether a call with a few hundred codes takes about as long as a call with one code: not on a CPU."""
    return device.type != "cpu"


def _cache_bytes(cache: NoCache | StaticCache) -> int:
    return sum(buffer.nbytes for buffer in cache.buffers.values()) if isinstance(cache, StaticCache) else 0


def _window_codes(codes: Tensor, window: Window) -> Tensor:
    """Codes (B, h, w) -> those of the window in raster order (B, n)."""
    top, left, rows, columns = window
    return codes[:, top : top + rows, left : left + columns].flatten(1)
