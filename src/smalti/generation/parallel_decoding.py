"""Parallel decoding: several codes at once in a few steps, for any-order priors. It is approximate.

Codes of one step do not see one another, so their joint distribution is that of independent codes. Steps are short at
first, while little is known, and long at the end: the cosine schedule of MaskGIT (Chang et al., arXiv 2202.04200,
section 3.3). Without an order in the request, codes come in the order "subsample", in which the codes of a step are
not neighbors.

Notation: B batch, P prefix codes, h w grid, K image codes, m codes of one step, T codes before them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import final

import torch
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.generation.decoding_strategy import PriorDecoding
from smalti.generation.request import GenerationRequest
from smalti.generation.sliding_window import prefix_of, sequence_order
from smalti.generation.wavefront import CodePosition
from smalti.prior.base import Prior
from smalti.prior.cache import BranchCache
from smalti.prior.order import ORDERS
from smalti.prior.window import Window


def step_sizes(count: int, steps: int) -> list[int]:
    """The number of codes in each step, at least 1: `count` codes in at most `steps` steps, on a cosine schedule."""
    ends = [round(count * (1 - math.cos(math.pi / 2 * step / steps))) for step in range(steps + 1)]
    for step in range(1, steps + 1):
        ends[step] = min(max(ends[step], ends[step - 1] + 1), count)
    return [end - start for start, end in pairwise(ends) if end > start]


@final
class ParallelDecoding(PriorDecoding):
    """One window over the whole image: the last code before a step is read once for each code of the step, with its
    position as the target.

    The codes of earlier steps are cached. Raises `SmaltiError` for a grid larger than the window.
    """

    def __init__(self, prior: Prior, request: GenerationRequest, *, null_prefix: Tensor) -> None:
        """`null_prefix` (B, P) is the unconditional prefix, or has no rows without guidance."""
        if not prior.covers(request.grid):
            raise SmaltiError(
                f"parallel = {request.parallel} needs a window that covers the grid, and a window of {prior.grid[0]} x "
                f"{prior.grid[1]} codes moves over a grid of {request.grid[0]} x {request.grid[1]}; leave it at 0"
            )
        self.prior = prior
        window = Window(0, 0, *request.grid)
        if request.order is None:
            request = replace(request, order=ORDERS["subsample"](*request.grid).to(request.known.device))
        self.order = sequence_order(prior, request, request.grid)
        self.prefix = torch.cat((prefix_of(prior, request, window), null_prefix))
        self.cache = prior.empty_cache(window=request.grid, order=self.order)
        columns, num_known = request.grid[1], int(request.known_positions.sum())
        sizes = step_sizes(len(self.order) - num_known, request.parallel)
        ends = list(accumulate(sizes, initial=num_known))  # image codes before each step, and after the last
        positions = [CodePosition(index // columns, index % columns, window, index) for index in self.order.tolist()]
        num_done = request.grid[0] * columns - int(request.missing_positions.sum())
        steps = [(start, end) for start, end in pairwise(ends) if end > num_done]  # a resumed one omits whole steps
        self.schedule = [positions[start:end] for start, end in steps]
        self.lengths = [start for start, _ in steps]

    @staticmethod
    def decodes(prior: Prior, request: GenerationRequest) -> bool:
        return request.parallel > 0

    def logits(self, codes: Tensor, wave: int) -> Iterator[tuple[Sequence[CodePosition], Tensor]]:
        prior, positions, length = self.prior, self.schedule[wave], self.lengths[wave]
        copies = len(self.prefix) // len(codes)
        read = codes.flatten(1)[:, self.order[:length]].repeat(copies, 1)
        sequence = prior.join(self.prefix, read)  # (B or 2 B, P + T)
        before = sequence[:, self.cache.length : -1]
        if before.shape[1]:
            last = torch.full((len(before), 1), before.shape[1] - 1, device=codes.device)
            prior(before, cache=self.cache, query_index=last)
        targets = codes.new_tensor([position.offset for position in positions])[:, None]  # (m, 1)
        orders = torch.cat((self.order[:length].expand(len(positions), -1), targets), dim=1)  # (m, T + 1)
        branches = BranchCache(self.cache, len(positions), order=orders.repeat_interleave(len(sequence), dim=0))
        scored = prior(sequence[:, -1:].repeat(len(positions), 1), cache=branches)[:, 0, : prior.size]
        yield positions, scored.float().view(len(positions), copies, len(codes), prior.size).transpose(0, 1)
