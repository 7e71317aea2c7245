"""Sampling of codes: a prior's logits and the position's noise -> codes.

Notation: B batch, K image codes, h w grid, m positions evaluated in one call of the prior.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from smalti.core.rng import gumbel
from smalti.core.settings import Fraction, Natural, parse, settings
from smalti.generation.wavefront import CodePosition

GuidanceScheduleName = Literal["constant", "linear", "cosine"]

SCHEDULES: dict[GuidanceScheduleName, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: progress,  # Muse (Chang et al., arXiv 2301.00704, section 2.7)
    "cosine": lambda progress: (
        (1 - math.cos(math.pi * progress)) / 2
    ),  # MDT (Gao et al., arXiv 2303.14389), with power 1
}
"""Relative position in the sequence, 0 for the first code and 1 for the last -> the fraction of the guidance to apply
there. Weak guidance at the beginning gives more diverse images. Strong guidance at the end makes them follow the
condition."""


GREEDY_TEMPERATURE = 1e-30
"""Temperatures below this value are treated as 0: dividing by them could overflow float32, and the noise no longer
matters."""

MAX_GUIDANCE = 1e6
"""Far beyond any useful scale. Larger values could overflow float32 logits."""


def guidance_scale(index: int, *, count: int, sampler: Sampler) -> float:
    """The guidance scale for code `index` (from 0) of `count`: from 1, which is no guidance, to the sampler's
    scale."""
    return 1 + (sampler.guidance - 1) * SCHEDULES[sampler.guidance_schedule](index / max(count - 1, 1))


@settings
class Sampler:
    """How the next code is sampled from its logits.

    `temperature` divides the logits; 0 (and any value below `GREEDY_TEMPERATURE`) takes the most likely code.
    `top_k` keeps the k most likely codes, 0 keeps all. `top_p` keeps the smallest set of most likely codes whose
    probabilities sum to more than p, 1 keeps all. `min_p` keeps the codes that are at least this fraction as likely as
    the most likely one, 0 keeps all. `guidance` is the scale of classifier-free guidance, 1 for none.
    `guidance_schedule` is the name in `SCHEDULES` of its schedule over the sequence.
    """

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_k: Natural = 0
    top_p: Fraction = 1.0
    min_p: Fraction = 0.0
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] = 1.0
    guidance_schedule: GuidanceScheduleName = "constant"


def make_sampler(**options: float | str) -> Sampler:
    """Options by name -> the sampler, with defaults for options that are left out. Raises `SmaltiError` for an
    unknown name or an invalid value."""
    return parse(Sampler, options, where="sampling")


def filter_logits(logits: Tensor, *, temperature: float, top_k: int, top_p: float, min_p: float = 0.0) -> Tensor:
    """Logits (B, K) -> logits (B, K) to draw from: divided by `temperature`, then top-k, top-p, min-p; out is -inf.

    Codes tied with the k-th likeliest are kept. Top-p (nucleus sampling, Holtzman et al., arXiv 1904.09751) keeps the
    smallest set of the likeliest codes left by top-k whose probabilities sum to more than p, and always one code.
    Min-p (Nguyen et al., arXiv 2407.01082) keeps the codes whose probability is at least `min_p` times the largest: few
    where one code is clear, many where many are possible. `top_k` 0, or K and more, `top_p` 1 and `min_p` 0 are off.
    Temperature 0 keeps the likeliest code alone, the first of equals, and so does one below `GREEDY_TEMPERATURE`.
    """
    if temperature < GREEDY_TEMPERATURE:
        likeliest = logits.argmax(dim=1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(1, likeliest, logits.gather(1, likeliest))
    logits = logits / temperature
    if 0 < top_k < logits.shape[1]:
        threshold = logits.topk(top_k, dim=1).values[:, -1:]
        logits = logits.where(logits >= threshold, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=1, descending=True, stable=True)
        cumulative = ordered.softmax(dim=1).cumsum(dim=1)
        dropped = torch.zeros_like(logits, dtype=torch.bool)
        # "More than p", as the original's sampler has it, where Holtzman et al. say "at least p".
        dropped[:, 1:] = cumulative[:, :-1] > top_p
        logits = logits.masked_fill(torch.zeros_like(dropped).scatter(1, order, dropped), -torch.inf)
    if min_p > 0:  # a share of probabilities is a difference of logits, whatever the filters before have left
        logits = logits.where(logits >= logits.amax(dim=1, keepdim=True) + math.log(min_p), -torch.inf)
    return logits


def apply_guidance(conditional: Tensor, unconditional: Tensor, *, scale: float) -> Tensor:
    """Conditional and unconditional logits -> guided logits, all of the same shape.

    Classifier-free guidance (Ho and Salimans, arXiv 2207.12598). A scale of 1 gives the conditional logits.
    """
    return unconditional + scale * (conditional - unconditional)


def gumbel_argmax(logits: Tensor, noise: Tensor) -> Tensor:
    """Logits and standard Gumbel noise (B, K) -> codes (B,) int64, sampled from softmax(logits): the Gumbel-max
    trick."""
    return (logits + noise).argmax(dim=1)


@final
class CodeSampler:
    """Logits -> codes. The code at a position is a function of its logits, of the position's own noise, and of the
    known codes."""

    def __init__(
        self,
        schedule: Sequence[Sequence[CodePosition]],
        *,
        sampler: Sampler,
        seeds: Tensor,
        known: Tensor,
        order: Tensor,
        size: int,
    ) -> None:
        """`schedule` has the positions of each wave, `known` is (B, h, w), `order` the grid's positions in generation
        order (h w,), and `size` the codebook size K."""
        positions = [position for wave in schedule for position in wave]
        self.sampler, self.known, self.order_index = sampler, known, order.argsort().tolist()
        self.upcoming = zip(positions, _noise(seeds, [position[:2] for position in positions], size=size), strict=True)
        self.noise: dict[CodePosition, Tensor] = {}  # (B, K) each

    def sample(self, positions: Sequence[CodePosition], logits: Tensor) -> Tensor:
        """m positions and their logits, (1, m, B, K) or guided (2, m, B, K) -> their codes (m, B)."""
        for position in positions:
            while position not in self.noise:
                self.noise.update([next(self.upcoming)])
        noise = torch.stack([self.noise[position] for position in positions])  # (m, B, K)
        width, count = self.known.shape[2], len(self.order_index)
        indices = [self.order_index[position.row * width + position.column] for position in positions]
        scales = [guidance_scale(index, count=count, sampler=self.sampler) for index in indices]
        known = torch.stack([self.known[:, position.row, position.column] for position in positions])  # (m, B)
        return known.where(known >= 0, _sample_codes(logits, noise, scales, sampler=self.sampler))

    def forget(self, positions: Sequence[CodePosition]) -> None:
        """Release the noise of positions that are generated."""
        for position in positions:
            del self.noise[position]


def _sample_codes(logits: Tensor, noise: Tensor, scales: Sequence[float], *, sampler: Sampler) -> Tensor:
    """Logits (1 or 2, m, B, K), noise (m, B, K) and the guidance scale of each of m positions -> codes (m, B)."""
    if len(logits) == 1:
        guided = logits[0]
    else:
        guided = torch.stack(
            [apply_guidance(*pair, scale=scale) for pair, scale in zip(logits.unbind(1), scales, strict=True)]
        )
    filtered = filter_logits(
        guided.flatten(0, 1),
        temperature=sampler.temperature,
        top_k=sampler.top_k,
        top_p=sampler.top_p,
        min_p=sampler.min_p,
    )
    return gumbel_argmax(filtered, noise.flatten(0, 1)).view(noise.shape[:2])


def _noise(seeds: Tensor, positions: Sequence[tuple[int, int]], *, size: int) -> Iterator[Tensor]:
    """Rows and columns of `positions` -> the noise (B, size) of each. It is computed for sixteen positions at a
    time, since small tensors are slow."""
    for first in range(0, len(positions), 16):
        chunk = torch.tensor(positions[first : first + 16], device=seeds.device)
        rows, columns = chunk.repeat_interleave(len(seeds), dim=0).unbind(1)
        noise = gumbel(seeds.repeat(len(chunk)), size, rows=rows, columns=columns)
        yield from noise.view(len(chunk), len(seeds), size)
