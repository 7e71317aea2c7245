"""Rejection sampling: generate several candidates per image and keep the best, by likelihood or by a score of images.

As in VQ-VAE-2 (Razavi et al., arXiv 1906.00446, section 3.3) and in table 4 of Esser et al., arXiv
2012.09841, but for each image on its own: of its N candidates one is kept, where they keep the best share of all
samples of a class. So an image stays a function of its seed.

Letters: B batch, C channels, H W pixels, h w code grid, N candidates of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.rng import philox
from smalti.evaluation.measurement import Progress, no_progress
from smalti.generation.code_sampler import Sampler, final_codes
from smalti.pipeline import Pipeline
from smalti.prior import Prior

Score: TypeAlias = Callable[[Tensor], Tensor]
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
    values: Sequence[Any],
    known: Tensor,
    *,
    sampler: Sampler,
    seeds: Tensor,
    num_candidates: int,
    score: Score,
    speculate: int = 0,
    progress: Progress = no_progress,
) -> BestCandidates:
    """As `Pipeline.lay`, with `num_candidates` candidates per image -> the candidate of each with the highest score;
    ties go to the first.

    One candidate equals `Pipeline.lay`. `speculate` is as there. `progress` receives the number of generated codes and
    the total.

    Raises `SmaltiError` as `Pipeline.lay`, for fewer candidates than one, and for a score that is not one number for
    each image.
    """
    if num_candidates < 1:
        raise SmaltiError(f"num_candidates is {num_candidates}; use 1 or more")
    codes, scores, every = [], [], [candidate_seeds(seeds, candidate) for candidate in range(num_candidates)]
    missing = int((known < 0).sum())
    for candidate, some in enumerate(every):
        generated = pipeline.generate_codes(values, known, sampler=sampler, seeds=some, speculate=speculate)
        codes.append(
            final_codes(_counted(generated, progress, until=(candidate + 1) * missing, total=num_candidates * missing))
        )
        scores.append(_checked(score(codes[-1]), count=len(seeds)))
    scored = torch.stack(scores, dim=1)  # (B,N)
    best = scored.argmax(1)
    place = torch.arange(len(best))
    candidates = torch.stack(codes, dim=1)  # (B,N,h,w)
    return BestCandidates(
        candidates[place, best.to(candidates.device)], torch.stack(every, dim=1)[place, best], best, scored
    )


def _counted(generated: Iterator[Tensor], progress: Progress, *, until: int, total: int) -> Iterator[Tensor]:
    for codes in generated:
        progress(until - int((codes < 0).sum()), total)
        yield codes


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


def by_images(pipeline: Pipeline, score: Callable[[Tensor], Tensor]) -> Score:
    """A score of images (B,C,H,W) in [-1,1] on the CPU -> the score of their codes."""
    return lambda codes: score(pipeline.decode(codes))


def by_likelihood(pipeline: Pipeline, values: Sequence[Any], *, known: Tensor) -> Score:
    """Condition values of B images and their known codes (B,h,w), -1 where generated -> minus the nats per code (B,).

    The mean is over `scored_positions`. Temperature, top-k, top-p and guidance are not applied.
    """
    counted = scored_positions(pipeline.prior, known)  # (B,h,w)

    def score(codes: Tensor) -> Tensor:
        nats = pipeline.nll(codes, values=values).cpu()
        return -(nats * counted).sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)

    return score


def scored_positions(prior: Prior, known: Tensor) -> Tensor:
    """Known codes (B,h,w), -1 where generated -> the positions whose likelihood is scored: (B,h,w) bool on the CPU.

    They are the known codes that come after the first generated one in the prior's order: they did not guide it, and
    tell whether it fits. That is the weight of importance sampling: candidates are drawn as likely as the prior finds
    the generated codes, and what is left of the likelihood of the whole is that of these. Where no known code comes later,
    they are the generated codes themselves.
    """
    known = known.cpu()
    order = prior.sequence_order((known.shape[1], known.shape[2]), device=known.device)
    begun = (known.flatten(1)[:, order] < 0).cumsum(1) > 0  # (B,n), in the prior's order
    later = begun[:, order.argsort()].view_as(known) & (known >= 0)
    return torch.where(later.any(2, keepdim=True).any(1, keepdim=True), later, known < 0)
