"""The sliding window of priors that know any order: each code is conditioned on all that its window holds.

Shapes: B batch, P prefix codes, h w grid, K image codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor

from smalti.generation.request import GenerationRequest
from smalti.generation.sliding_window import DecodingStrategy, prefix_of
from smalti.generation.wavefront import CodePosition
from smalti.prior.base import Prior
from smalti.prior.cache import StaticCache
from smalti.prior.window import window_at


@final
class AnyOrderWindowDecoding(DecodingStrategy):
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
        self.schedule = []
        for place in request.missing_positions.flatten().nonzero().flatten().tolist():
            row, column = divmod(place, width)
            window = window_at(row, column, grid=request.grid, window=(rows, columns), middle=request.middle)
            offset = (row - window.top) * columns + column - window.left
            self.schedule.append([CodePosition(row, column, window, offset)])
        self.prefix = null_prefix  # (B or 2 B, P), of the window of the last code
        self.cache: StaticCache | None = None

    def logits(self, codes: Tensor, wave: int) -> Iterator[tuple[Sequence[CodePosition], Tensor]]:
        (position,) = self.schedule[wave]
        window, target = position.window, codes.new_tensor([position.offset])
        inside = codes[:, window.top : window.top + window.rows, window.left : window.left + window.columns].flatten(1)
        stands_still = wave > 0 and window == self.schedule[wave - 1][0].window
        if self.cache is None or self.cache.order is None or not stands_still:
            read_order = (inside[0] >= 0).nonzero().flatten()  # all images know the same places
            self.prefix = torch.cat((prefix_of(self.prior, self.request, window), self.null_prefix))
            self.cache = self.prior.empty_cache(
                window=(window.rows, window.columns), order=torch.cat((read_order, target))
            )
        else:
            read_order = self.cache.order  # it ends with the last code, which is generated now
            self.cache.order = torch.cat((read_order, target))
        read = inside[:, read_order].repeat(len(self.prefix) // len(codes), 1)
        sequence = self.prior.join(self.prefix, read)[:, self.cache.length :]
        last = torch.full((len(sequence), 1), sequence.shape[1] - 1, device=codes.device)
        scored = self.prior(sequence, cache=self.cache, query_index=last)[:, 0, : self.prior.size]
        yield self.schedule[wave], scored.float().view(-1, 1, len(codes), self.prior.size)
