"""Rejection sampling: generate several candidates per image and keep the best, by likelihood or by a score of images.

As in VQ-VAE-2 (Razavi et al., arXiv 1906.00446, section 3.3) and in table 4 of Esser et al., arXiv
2012.09841, but for each image on its own: of its N candidates one is kept, where they keep the best share of all
samples of a class. So an image stays a function of its seed.

Notation: B batch, C channels, H W pixels, h w code grid, N candidates of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.progress_callback import Progress, no_progress
from smalti.core.rng import philox
from smalti.generation.generation_loop import generation_states
from smalti.generation.request import GenerationRequest
from smalti.generation.sliding_window import sequence_order
from smalti.pipeline import Pipeline
from smalti.prior import Prior, Window, nll
from smalti.prior.code_likelihood import window_nll

ImageScore: TypeAlias = Callable[[Tensor], Tensor]
"""Codes (B,h,w), one candidate for each of B images -> how good each is (B,), more is better."""

_WORD = 0xFFFFFFFF
_HIGH = 0x3FFFFFFF  # the upper word of a seed: seeds that count on from a candidate's stay below 2^63


class BestCandidates(NamedTuple):
    """The best candidate of each image."""

    codes: Tensor
    """(B,h,w)"""
    seeds: Tensor
    """(B,) int64: this seed alone reproduces the image."""
    candidates: Tensor
    """(B,) int64: which of the N they are; 0 is the one of the image's own seed."""
    scores: Tensor
    """(B,N) float64: those of all candidates."""


def candidate_seeds(seeds: Tensor, candidate: int) -> Tensor:
    """The seeds of images (B,) int64, and the number of a candidate -> the seed of that candidate of each (B,) int64.

    Candidate 0 has the image's own seed. The others have random ones, which depend only on the image's seed and their
    number.
    """
    if candidate == 0:
        return seeds
    counter = torch.zeros(4, len(seeds), dtype=torch.int64, device=seeds.device)
    # The noise of codes leaves the last word at 0.
    counter[0], counter[3] = candidate, 1
    words = philox(counter, torch.stack((seeds & _WORD, seeds >> 32)))
    return (words[0] & _HIGH) << 32 | words[1]


def rejection_sample(
    pipeline: Pipeline,
    request: GenerationRequest,
    *,
    num_candidates: int,
    score: ImageScore,
    progress: Progress = no_progress,
) -> BestCandidates:
    """A request, and the number of candidates per image -> the candidate of each with the highest score; ties go to
    the first.

    The first candidates are the images of the request itself. `progress` receives the number of generated codes and
    the total.

    Raises `SmaltiError` as `generate`, for fewer candidates than one, and for a score that is not one number for
    each image.
    """
    if num_candidates < 1:
        raise SmaltiError(f"num_candidates is {num_candidates}; use 1 or more")
    codes, scores = [], []
    every = [candidate_seeds(request.seeds, candidate) for candidate in range(num_candidates)]
    for candidate, seeds in enumerate(every):
        for state in generation_states(pipeline.prior, replace(request, seeds=seeds)):
            progress(candidate * state.total + state.generated, num_candidates * state.total)
        codes.append(state.codes)
        scores.append(_checked(score(codes[-1]), count=request.batch))
    scored = torch.stack(scores, dim=1)  # (B,N)
    best = scored.argmax(1)
    index = torch.arange(len(best))
    candidates = torch.stack(codes, dim=1)  # (B,N,h,w)
    return BestCandidates(
        candidates[index, best.to(candidates.device)], torch.stack(every, dim=1)[index, best], best, scored
    )


def _checked(scores: Tensor, *, count: int) -> Tensor:
    if scores.shape != (count,) or scores.isnan().any():
        raise SmaltiError(
            f"a score gives one number for each of the {count} images, not {scores.tolist()!r:.60}; "
            f"return a tensor of the shape ({count},) without NaN"
        )
    return scores.detach().double().cpu()


def zero_score(codes: Tensor) -> Tensor:
    """Codes (B,h,w) -> zeros (B,): the score without a preference, as with one candidate."""
    return torch.zeros(len(codes))


def by_images(pipeline: Pipeline, score: Callable[[Tensor], Tensor]) -> ImageScore:
    """A score of images (B,C,H,W) in [-1,1] on the CPU -> the score of their codes."""
    return lambda codes: score(pipeline.decode(codes))


def request_nll(prior: Prior, request: GenerationRequest, codes: Tensor) -> Tensor:
    """A request and codes (B,h,w) that answer it -> the nats of each, in the order in which they were generated."""
    grid = request.grid
    if prior.knows_any_order and prior.covers(grid):
        return nll(prior, request.prefix_at(Window(0, 0, *grid)), codes, order=sequence_order(prior, request, grid))
    return window_nll(prior, request.prefix_at, codes, middle=request.middle)


def by_likelihood(pipeline: Pipeline, request: GenerationRequest) -> ImageScore:
    """The request of B images -> the score of their codes: minus the nats per code (B,).

    The mean is over `scored_positions`. Temperature, top-k, top-p and guidance are not applied.
    """
    counted = scored_positions(pipeline.prior, request.known)  # (B,h,w)

    def score(codes: Tensor) -> Tensor:
        with torch.no_grad():
            nats = request_nll(pipeline.prior, request, codes).cpu()
        return -(nats * counted).sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)

    return score


def scored_positions(prior: Prior, known: Tensor) -> Tensor:
    """Known codes (B,h,w), -1 where generated -> the positions whose likelihood is scored: (B,h,w) bool on the CPU.

    They are the known codes that come after the first generated one in the prior's order: they did not guide it, and
    tell whether it fits. That is the weight of importance sampling: candidates are drawn as likely as the prior finds
    the generated codes, and what is left of the likelihood of the whole is that of these. Where no known code comes
    later, they are the generated codes themselves.
    """
    known = known.cpu()
    if prior.knows_any_order:  # every known code comes first
        return known < 0
    order = prior.sequence_order((known.shape[1], known.shape[2]), device=known.device)
    begun = (known.flatten(1)[:, order] < 0).cumsum(1) > 0  # (B,n), in the prior's order
    later = begun[:, order.argsort()].view_as(known) & (known >= 0)
    return torch.where(later.any(2, keepdim=True).any(1, keepdim=True), later, known < 0)
