"""Code generation: a prior's logits -> grids of codes of any size, wave by wave.

Shapes: B batch, K image codes, P prefix codes, h w grid, m positions evaluated in one call of the prior.

`generate` is the only generation loop. Codes that do not depend on one another form a wave (`generation.wavefront`)
and are generated together. A `DecodingStrategy` computes their logits. A grid that fits the prior's window has
waves of one code and a window that never moves, so one cache serves the whole image. Completion is the case in
which some codes are known beforehand.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from smalti.core.arguments import check_finite, whole_number
from smalti.core.capacity import check_memory
from smalti.core.errors import SmaltiError
from smalti.core.rng import gumbel
from smalti.core.settings import Natural, Share, parse, settings
from smalti.generation.neighborhood_decoding import NeighborhoodDecoding
from smalti.generation.sliding_window import DecodingStrategy, SlidingWindowDecoding
from smalti.generation.speculative import with_speculation
from smalti.generation.wavefront import CodePosition, row_ends
from smalti.kernels.prepacked import prepacked
from smalti.prior.base import Prior
from smalti.prior.neighborhood import Neighborhood
from smalti.prior.window import Middle, Window, after_middle

_CODE_BYTES, _POSITION_BYTES = 4 * 8, 300
"""Memory of a code: the known ones, those so far and copies of them, int64; and of its place in the schedule, for all images."""

Schedule = Literal["constant", "linear", "cosine"]

SCHEDULES: dict[Schedule, Callable[[float], float]] = {
    "constant": lambda place: 1.0,
    "linear": lambda place: place,  # Muse (Chang et al., arXiv 2301.00704, section 2.7)
    "cosine": lambda place: (1 - math.cos(math.pi * place)) / 2,  # MDT (Gao et al., arXiv 2303.14389), with power 1
}
"""Relative position in the sequence, 0 for the first code and 1 for the last -> the share of the guidance to apply
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
    probabilities sum to more than p, 1 keeps all. `min_p` keeps the codes that are at least this share as likely as
    the most likely one, 0 keeps all. `guidance` is the scale of classifier-free guidance, 1 for none.
    `guidance_schedule` is the name in `SCHEDULES` of its schedule over the sequence.
    """

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_k: Natural = 0
    top_p: Share = 1.0
    min_p: Share = 0.0
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] = 1.0
    guidance_schedule: Schedule = "constant"


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


def unknown_codes(batch: int, grid: tuple[int, int]) -> Tensor:
    """A grid (h, w) for a `batch` of images with no known code: (batch, h, w) int64, all -1.

    Raises `SmaltiError` for fewer than one image, and for grids that exceed the memory of this machine.
    """
    check_generation_memory(whole_number(batch, "the number of images", least=1), grid)
    return torch.full((batch, *grid), -1)


def center_on_canvas(codes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Codes (B,h,w) -> the same in the center of a larger `grid`, with -1 around them, where codes are to be
    generated.

    If the margins cannot be equal, the one below or to the right is larger by one. Raises `SmaltiError` for a
    smaller grid.
    """
    height, width = codes.shape[1:]
    if grid[0] < height or grid[1] < width:
        raise SmaltiError(
            f"an image of {height} x {width} codes (height x width) has no place on a canvas of {grid[0]} x {grid[1]}; make the "
            "canvas larger or the image smaller"
        )
    top, left = (grid[0] - height) // 2, (grid[1] - width) // 2
    canvas = codes.new_full((len(codes), *grid), -1)
    canvas[:, top : top + height, left : left + width] = codes
    return canvas


def seed_range(seed: int, count: int) -> Tensor:
    """seed, seed + 1, ... (count,) int64. Raises `SmaltiError` for seeds outside [0, 2^63), and for a count below
    one."""
    seed, count = whole_number(seed, "seed"), whole_number(count, "count", least=1)
    if seed < 0 or seed + count >= 2**63:
        raise SmaltiError(f"the seed {seed} is not from 0 to {2**63 - 1 - count}; choose a smaller one, not negative")
    check_memory(8 * count, f"seeds of {count:,} images")
    return torch.arange(seed, seed + count)


def check_generation_memory(batch: int, grid: tuple[int, int]) -> None:
    """Raise `SmaltiError` if generating a `batch` of images of a grid (h, w) takes more memory than this machine
    has."""
    codes = grid[0] * grid[1]
    check_memory(
        batch * codes * _CODE_BYTES + codes * _POSITION_BYTES,
        f"generating {batch:,} image{'s' * (batch != 1)} of {grid[0]:,} x {grid[1]:,} codes (height x width)",
    )


def sample(
    prior: Prior, prefix: Tensor, grid: tuple[int, int], *, sampler: Sampler, seeds: Tensor, known: Tensor
) -> Iterator[Tensor]:
    """Prefix codes (B, P) -> image codes (B, h, w) of a `grid` (h, w) of any size.

    Codes are generated in the prior's order. The codes so far are yielded after every w new codes, with -1 where a
    code is not generated yet; the last yield is complete. In raster order w codes are a row, unless the grid is
    wider than the prior's window: then several rows advance together, each a little behind the row above.

    `seeds` is (B,) int64, not negative. The noise of a code depends only on the image's seed and the code's
    position, not on the batch; resuming from some of an image's own codes gives the same image. `known` is (B, h,
    w): codes to keep, and -1 where a code is to be generated; `unknown_codes` makes one without known codes. If the
    grid is larger than the prior's window, the window slides (arXiv 2012.09841, section 3.2). A neighborhood
    transformer needs no window.

    Raises `SmaltiError` for an empty grid, for a grid other than the prior's window if its order is not raster, for
    mismatched shapes, for a negative seed, for known codes outside the codebook, for guidance if the prior has no
    unconditional prefix, and for a prior in training mode.
    """
    batch = len(prefix)
    if prefix.shape != (batch, prior.prefix_length):
        raise SmaltiError(
            f"the prefix has the shape {tuple(prefix.shape)}, and this prior reads (batch, {prior.prefix_length})"
        )
    if seeds.shape != (batch,) or known.shape != (batch, *grid):
        raise SmaltiError(
            f"for {batch} prefixes and a grid of {grid[0]} x {grid[1]} codes, seeds must have the shape ({batch},) and "
            f"known ({batch}, {grid[0]}, {grid[1]}); they have {tuple(seeds.shape)} and {tuple(known.shape)}"
        )
    return generate(prior, lambda window: prefix, sampler=sampler, seeds=seeds, known=known.to(prefix.device))


def final_codes(steps: Iterator[Tensor]) -> Tensor:
    """The iterator of `sample` or `generate` -> its last item, the complete codes (B, h, w)."""
    return deque(steps, maxlen=1).pop()


def generate(
    prior: Prior,
    prefix_at: Callable[[Window], Tensor],
    *,
    sampler: Sampler,
    seeds: Tensor,
    known: Tensor,
    middle: Middle = after_middle,
    speculate: int = 0,
) -> Iterator[Tensor]:
    """As `sample`, with a prefix (B, P) per window position, for conditions that depend on the position.

    `middle` gives the index in a freely placed window of the code that is generated. Prefixes must be on the device
    of `known` and have the right shape. A neighborhood transformer has one window, the whole image, and one prefix
    for it. `speculate` is the number of draft codes per call (`generation.speculative`): the generated codes are
    the same, with fewer calls of the prior. Raises `SmaltiError` as `sample`, for a negative `speculate`, and for
    speculation if the grid is larger than the window or the prior has no window.
    """
    _check(prior, seeds=seeds, known=known)
    batch, height, width = known.shape
    order = prior.sequence_order((height, width), device=known.device)
    null_prefix = prior.null_prefix(batch) if sampler.guidance != 1 else known.new_empty(0, prior.prefix_length)
    strategy = decoding_strategy(prior, prefix_at, null_prefix, known=known, middle=middle)
    code_sampler = CodeSampler(
        strategy, sampler=sampler, seeds=seeds.to(known.device), known=known, order=order, size=prior.size
    )
    return _generate(
        with_speculation(strategy, code_sampler.sample, grid=(height, width), count=speculate), code_sampler, known
    )


def decoding_strategy(
    prior: Prior, prefix_at: Callable[[Window], Tensor], null_prefix: Tensor, *, known: Tensor, middle: Middle
) -> DecodingStrategy:
    """A prior, its prefixes and codes (B, h, w) with -1 where a code is to be generated -> the decoding strategy."""
    missing = (known < 0).any(dim=0).cpu()
    if isinstance(prior, Neighborhood):
        return NeighborhoodDecoding(prepacked(prior), prefix_at, null_prefix, missing=missing)
    return SlidingWindowDecoding(
        prepacked(prior), prefix_at, null_prefix, missing=missing, middle=middle, device=known.device
    )


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


@final
class CodeSampler:
    """Logits -> codes. The code at a position is a function of its logits, of the position's own noise, and of the
    known codes."""

    def __init__(
        self, strategy: DecodingStrategy, *, sampler: Sampler, seeds: Tensor, known: Tensor, order: Tensor, size: int
    ) -> None:
        """`known` is (B, h, w), `order` the grid's positions in generation order (h w,), and `size` the codebook
        size K."""
        positions = [position for wave in strategy.schedule for position in wave]
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


def _check(prior: Prior, *, seeds: Tensor, known: Tensor) -> None:
    if known.dim() != 3 or known.is_floating_point() or known.dtype == torch.bool:
        raise SmaltiError(
            f"known codes are integers of the shape (batch, height, width), -1 where a code is to be "
            f"generated, not {known.dtype} of shape {tuple(known.shape)}"
        )
    batch, height, width = known.shape
    if not batch:
        raise SmaltiError("there is no image to generate; request one or more")
    if prior.training:
        raise SmaltiError(
            "the prior is in training mode, and its dropout would disturb the sampling; call prior.eval() first"
        )
    if min(height, width) < 1:
        raise SmaltiError(f"a grid of {height} x {width} codes is empty; request at least 1 x 1")
    if seeds.shape != (batch,):
        raise SmaltiError(f"for {batch} images seeds must have the shape ({batch},); they have {tuple(seeds.shape)}")
    if seeds.is_floating_point() or seeds.dtype == torch.bool:
        raise SmaltiError(f"seeds are whole numbers from 0 on, not {seeds.dtype}; give int64")
    if seeds.numel() and seeds.min() < 0:
        raise SmaltiError(f"the seed {int(seeds.min())} is negative; seeds are whole numbers from 0 on")
    if known.numel() and (known.min() < -1 or known.max() >= prior.size):
        invalid = int(known.max()) if known.max() >= prior.size else int(known.min())
        raise SmaltiError(
            f"the known code {invalid} is not one of this prior's {prior.size} codes; "
            f"give 0 to {prior.size - 1}, or -1 where a code is to be generated"
        )
