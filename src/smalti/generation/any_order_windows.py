"""The sliding window of any-order priors: each code is conditioned on all that its window holds.

Notation: B batch, P prefix codes, h w grid, K image codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import final

import torch
from torch import Tensor

from smalti.generation.decoding_strategy import PriorDecoding
from smalti.generation.request import GenerationRequest
from smalti.generation.sliding_window import prefix_of
from smalti.generation.wavefront import CodePosition
from smalti.prior.base import Prior
from smalti.prior.window import window_at


@final
class AnyOrderWindowDecoding(PriorDecoding):
    """Completion of grids larger than the window: outpainting, and holes in large images.

    Missing codes are generated row by row. The window over a code is placed as for raster order; its known and
    generated codes are read first, also those below and to the right, and then the code itself. While the window
    stands still, the cache of what it has read is kept.
    """

    def __init__(self, prior: Prior, request: GenerationRequest, *, null_prefix: Tensor) -> None:
        """`null_prefix` (B, P) is the unconditional prefix, or has no rows without guidance."""
        self.prior, self.request, self.null_prefix = prior, request, null_prefix
        height, width = request.grid
        rows, columns = min(prior.max_grid[0], height), min(prior.max_grid[1], width)
        every = [  # of the request, those that are generated already included
            self._position(*divmod(index, width), window=(rows, columns))
            for index in (~request.known_positions).flatten().nonzero().flatten().tolist()
        ]
        missing = request.missing_positions
        self.schedule = [[position] for position in every if missing[position.row, position.column]]
        self.generated_before: dict[CodePosition, list[int]] = {}
        """Offsets in the window of the codes before a position that were generated while its window stood still, in
        order."""
        for _, group in groupby(every, key=lambda position: position.window):
            offsets: list[int] = []
            for position in group:
                self.generated_before[position] = offsets.copy()
                offsets.append(position.offset)
        self.prefix, self.read_first = null_prefix, request.known.new_empty(0)  # (B or 2 B, P), offsets; of this window
        self.cache = prior.empty_cache(window=(rows, columns))

    @staticmethod
    def decodes(prior: Prior, request: GenerationRequest) -> bool:
        is_larger = not prior.covers(request.grid)
        return prior.knows_any_order and is_larger and bool(request.known_positions.any())

    def _position(self, row: int, column: int, *, window: tuple[int, int]) -> CodePosition:
        at = window_at(row, column, grid=self.request.grid, window=window, middle=self.request.middle)
        return CodePosition(row, column, at, (row - at.top) * window[1] + column - at.left)

    def logits(self, codes: Tensor, wave: int) -> Iterator[tuple[Sequence[CodePosition], Tensor]]:
        (position,) = self.schedule[wave]
        window, target = position.window, codes.new_tensor([position.offset])
        inside = codes[:, window.top : window.top + window.rows, window.left : window.left + window.columns].flatten(1)
        generated = codes.new_tensor(self.generated_before[position])
        is_new_window = wave == 0 or not len(generated)
        if is_new_window:
            first = inside[0] >= 0  # all images know the same positions
            first[generated] = False
            self.read_first = first.nonzero().flatten()
            self.prefix = torch.cat((prefix_of(self.prior, self.request, window), self.null_prefix))
            self.cache = self.prior.empty_cache(window=(window.rows, window.columns))
        read_order = torch.cat((self.read_first, generated))
        self.cache.order = torch.cat((read_order, target))
        read = inside[:, read_order].repeat(len(self.prefix) // len(codes), 1)
        sequence = self.prior.join(self.prefix, read)[:, self.cache.length :]
        last = torch.full((len(sequence), 1), sequence.shape[1] - 1, device=codes.device)
        scored = self.prior(sequence, cache=self.cache, query_index=last)[:, 0, : self.prior.size]
        yield self.schedule[wave], scored.float().view(-1, 1, len(codes), self.prior.size)
