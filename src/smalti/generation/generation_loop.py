"""The generation loop: a prior and a request -> grids of codes of any size, wave by wave.

Notation: B batch, K image codes, P prefix codes, h w grid.

`generate` is the only generation loop. Codes that do not depend on one another form a wave (`generation.wavefront`)
and are generated together. A `DecodingStrategy` computes their logits, and a `CodeSampler` samples them. A grid that
fits the prior's window has waves of one code and a window that never moves, so one cache serves the whole image.
Completion is the case in which some codes are known beforehand.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from smalti.core.arguments import check_finite
from smalti.core.errors import SmaltiError
from smalti.generation.any_order_windows import AnyOrderWindowDecoding
from smalti.generation.code_sampler import CodeSampler
from smalti.generation.decoding_strategy import DecodingStrategy, PriorDecoding
from smalti.generation.neighborhood_decoding import NeighborhoodDecoding
from smalti.generation.parallel_decoding import ParallelDecoding
from smalti.generation.request import GenerationRequest
from smalti.generation.sliding_window import SlidingWindowDecoding, sequence_order
from smalti.generation.speculative import with_speculation
from smalti.generation.wavefront import row_ends
from smalti.kernels.prepacked import prepacked
from smalti.prior.base import Prior

STRATEGIES: tuple[type[PriorDecoding], ...] = (
    NeighborhoodDecoding,
    ParallelDecoding,
    AnyOrderWindowDecoding,
    SlidingWindowDecoding,
)
"""The first that decodes a request is used."""


class GenerationState(NamedTuple):
    """How far a generation is, after a row's worth of codes."""

    codes: Tensor
    """(B, h, w), -1 where a code is not generated yet."""
    generated: int
    """The number of codes that this call has generated, of all images."""
    total: int
    """The number of codes that this call generates."""
    seconds: float
    """The time since the call began."""

    @property
    def share(self) -> float:
        """The generated fraction of the codes to generate, from 0 to 1."""
        return self.generated / self.total if self.total else 1.0

    @property
    def is_complete(self) -> bool:
        """Whether all codes are there."""
        return self.generated == self.total

    @property
    def seconds_left(self) -> float:
        """The estimated time to the end, infinite before the first code."""
        return self.seconds * (1 / self.share - 1) if self.share else math.inf


def generate(prior: Prior, request: GenerationRequest) -> Iterator[Tensor]:
    """A request for B images -> their codes (B, h, w) on the prior's device, of a grid of any size.

    Codes are generated in the prior's order. The codes so far are yielded after every w new codes, with -1 where a
    code is not generated yet; the last yield is complete. In raster order w codes are a row, unless the grid is
    wider than the prior's window: then several rows advance together, each a little behind the row above. If the
    grid is larger than the window, the window slides (arXiv 2012.09841, section 3.2). A neighborhood transformer
    needs no window.

    Raises `SmaltiError` for a grid other than the prior's window if its order is not raster, for known codes outside
    the codebook, for guidance if the prior has no unconditional prefix, for speculation if the grid is larger than
    the window or the prior has no window, and for a prior in training mode.
    """
    _check(prior, request)
    request = request.to(next(prior.parameters()).device)
    strategy = decoding_strategy(prior, request)
    code_sampler = CodeSampler(
        strategy.schedule,
        sampler=request.sampler,
        seeds=request.seeds,
        known=request.codes,
        order=sequence_order(prior, request, request.grid),
        size=prior.size,
    )
    strategy = with_speculation(strategy, code_sampler.sample, grid=request.grid, count=request.speculate)
    return _generate(strategy, code_sampler, request.codes)


def final_codes(steps: Iterator[Tensor]) -> Tensor:
    """The iterator of `generate` -> its last item, the complete codes (B, h, w)."""
    return deque(steps, maxlen=1).pop()


def generation_states(prior: Prior, request: GenerationRequest) -> Iterator[GenerationState]:
    """As `generate`, with progress and time in addition to the codes."""
    began, total = time.monotonic(), request.num_missing
    for codes in generate(prior, request):
        yield GenerationState(codes, total - int((codes < 0).sum()), total, time.monotonic() - began)


def decoding_strategy(prior: Prior, request: GenerationRequest) -> DecodingStrategy:
    """A prior and a request on its device -> the decoding strategy without speculation."""
    guided = request.sampler.guidance != 1
    null_prefix = prior.null_prefix(request.batch) if guided else request.known.new_empty(0, prior.prefix_length)
    strategy = next(strategy for strategy in STRATEGIES if strategy.decodes(prior, request))
    return strategy(prepacked(prior), request, null_prefix=null_prefix)


@torch.no_grad()
def _generate(strategy: DecodingStrategy, code_sampler: CodeSampler, known: Tensor) -> Iterator[Tensor]:
    """The loop of `generate`: logits of each wave, sampled codes, and the codes so far after each row."""
    ends = row_ends(strategy.schedule, width=known.shape[2])
    codes = known.clone()
    yield from (codes.clone() for _ in range(ends.count(0)))
    finite = torch.zeros((), device=known.device)
    for number, wave in enumerate(strategy.schedule):
        for positions, logits in strategy.logits(codes, number):
            finite = finite + logits.sum()  # NaN and infinity stay: one number to look at for many codes
            for position, new in zip(positions, code_sampler.sample(positions, logits), strict=True):
                codes[:, position.row, position.column] = new
        code_sampler.forget(wave)
        if rows := ends.count(number + 1):
            check_finite(finite, what="the logits that the prior gives")
            yield from (codes.clone() for _ in range(rows))


def _check(prior: Prior, request: GenerationRequest) -> None:
    """Raise `SmaltiError` unless the prior can generate: it is in evaluation mode, and knows all known codes."""
    if prior.training:
        raise SmaltiError(
            "the prior is in training mode, and its dropout would disturb the sampling; call prior.eval() first"
        )
    known = request.codes
    if known.min() < -1 or known.max() >= prior.size:
        invalid = int(known.max()) if known.max() >= prior.size else int(known.min())
        raise SmaltiError(
            f"the known code {invalid} is not one of this prior's {prior.size} codes; "
            f"give 0 to {prior.size - 1}, or -1 for codes to generate"
        )
    if not prior.knows_any_order:
        if request.order is not None:
            raise SmaltiError(f"this prior generates in the order {prior.order!r} alone; leave the order out")
        if request.parallel:
            raise SmaltiError(
                f"parallel = {request.parallel} needs an any-order prior, and this one generates in the order "
                f"{prior.order!r} alone; leave it at 0"
            )
    elif ((known >= 0) != (known[:1] >= 0)).any():
        raise SmaltiError(
            "an any-order prior reads the known codes first, so all images of a request must have the same "
            "known positions; make a request for each"
        )
