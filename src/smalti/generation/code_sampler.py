"""Laying codes: from a prior's logits to grids of any size, wave by wave.

Shapes: B batch, K image codes, P prefix codes, h w grid, m places laid in one call of the prior.

`sample` has one program for all cases. Codes that do not need one another are a wave (`prior.wavefront`) and are laid at once; how
the prior is asked for them is `prior.laying`'s. A grid that fits the prior's window is the case of waves of one code and a window
that never moves, so that its cache lasts for the whole image; completion is the case that some codes are known already.
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
from smalti.core.settings import parse, settings
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
"""Place in the sequence, 0 for the first code to 1 for the last -> the share of the guidance that is in force there. With little
guidance at the beginning images are more various, with much at the end they follow the condition."""


GREEDY_TEMPERATURE = 1e-30
"""Temperatures below it are 0: logits divided by it may be too large for float32, and noise has long ceased to count."""

MAX_GUIDANCE = 1e6
"""Far beyond what changes an image; much more would carry logits beyond float32."""


def guidance_scale(index: int, *, count: int, sampler: Sampler) -> float:
    """The scale of the guidance for code `index` of `count`, 0 the first: from 1, none, on to the sampler's."""
    return 1 + (sampler.guidance - 1) * SCHEDULES[sampler.guidance_schedule](index / max(count - 1, 1))


@settings
class Sampler:
    """How the next code is chosen from its logits.

    `temperature` divides the logits, 0 (and what is below `GREEDY_TEMPERATURE`) takes the likeliest code. `top_k` keeps the k likeliest
    codes, 0 all. `top_p` keeps the smallest set of likeliest codes whose probabilities exceed p, 1 all. `min_p` keeps the codes
    that are at least this share as likely as the likeliest, 0 all. `guidance` is the scale of classifier-free guidance, 1 for none,
    and `guidance_schedule` how it is reached from the first code to the last: a name in `SCHEDULES`.
    """

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] = 1.0
    guidance_schedule: Schedule = "constant"


def make_sampler(**options: float | str) -> Sampler:
    """Options by name, those left out as by default -> the sampler. Raises `SmaltiError` for a name or a value that is none."""
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
    """Logits with the condition and with the empty one -> guided logits, all of the same shape.

    Classifier-free guidance (Ho and Salimans, arXiv 2207.12598), with the scale counted so that 1 is the condition
    alone.
    """
    return unconditional + scale * (conditional - unconditional)


def gumbel_argmax(logits: Tensor, noise: Tensor) -> Tensor:
    """Logits and standard Gumbel noise (B, K) -> codes (B,) int64, drawn from softmax(logits): the Gumbel-max trick."""
    return (logits + noise).argmax(dim=1)


def unknown_codes(batch: int, grid: tuple[int, int]) -> Tensor:
    """The grid (h, w) of a `batch` of images of which nothing is known: (batch, h, w) int64, all -1.

    Raises `SmaltiError` for fewer images than one, and for what is beyond the memory of this machine.
    """
    check_generation_memory(whole_number(batch, "the number of images", least=1), grid)
    return torch.full((batch, *grid), -1)


def seed_range(seed: int, count: int) -> Tensor:
    """seed, seed + 1, ... (count,) int64. Raises `SmaltiError` for seeds outside [0, 2^63), and for fewer than one."""
    seed, count = whole_number(seed, "seed"), whole_number(count, "count", least=1)
    if seed < 0 or seed + count >= 2**63:
        raise SmaltiError(f"the seed {seed} is not from 0 to {2**63 - 1 - count}; choose a smaller one, not negative")
    check_memory(8 * count, f"seeds of {count:,} images")
    return torch.arange(seed, seed + count)


def check_generation_memory(batch: int, grid: tuple[int, int]) -> None:
    """Raise `SmaltiError` where laying a `batch` of images of a grid (h, w) takes more memory than this machine has."""
    codes = grid[0] * grid[1]
    check_memory(
        batch * codes * _CODE_BYTES + codes * _POSITION_BYTES,
        f"laying {batch:,} image{'s' * (batch != 1)} of {grid[0]:,} x {grid[1]:,} codes (height x width)",
    )


def sample(
    prior: Prior, prefix: Tensor, grid: tuple[int, int], *, sampler: Sampler, seeds: Tensor, known: Tensor
) -> Iterator[Tensor]:
    """Prefix codes (B, P) -> image codes (B, h, w) of a `grid` (h, w) of any size.

    They are laid in the prior's order and yielded whenever w codes more are laid, with -1 where one is not yet; the last is
    complete. In raster order w codes are a row, but where the grid is wider than the prior's window: there several rows are laid
    side by side, each a little behind the one above it.

    `seeds` is (B,) int64, not negative. An image's chance hangs on its own seed and the place of each code alone, not on
    the batch it is in; laid on from some of its own codes, it becomes the same image. `known` is (B, h, w): codes to
    keep, and -1 where one is to be laid; `unknown_codes` makes one without any. Where the grid is larger than the prior's
    window, the window slides (arXiv 2012.09841, section 3.2); a neighborhood transformer needs none.

    Raises `SmaltiError` for a grid without codes, for another grid than the prior's window where its order is not
    raster, for shapes that do not belong together, for a negative seed, for known codes that the prior does not have,
    for guidance where the prior has no empty condition, and for a prior in training mode.
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
    """What `sample` yields -> the last of it, the complete codes (B, h, w)."""
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
    """As `sample`, with a prefix (B, P) for each place of the window, for a condition that has places itself.

    `middle` says where in a window that stands freely the code is that is laid. The prefixes are on the device of `known`,
    and the caller sees to it that their shape is right. A neighborhood transformer has one window, the image, of whatever size,
    and its prefix is that of the image. `speculate` codes are guessed at once (`prior.speculation`): the codes that are laid are
    the same, in fewer calls of the prior. Raises `SmaltiError` as `sample` does, for fewer guesses than none, and for guesses
    where the grid is larger than the window or there is no window.
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
    """A prior, what it is told and codes (B, h, w), -1 where one is to be laid -> how it is asked for them."""
    missing = (known < 0).any(dim=0).cpu()
    if isinstance(prior, Neighborhood):
        return NeighborhoodDecoding(prepacked(prior), prefix_at, null_prefix, missing=missing)
    return SlidingWindowDecoding(
        prepacked(prior), prefix_at, null_prefix, missing=missing, middle=middle, device=known.device
    )


@torch.no_grad()
def _generate(strategy: DecodingStrategy, code_sampler: CodeSampler, known: Tensor) -> Iterator[Tensor]:
    """`generate`, given how the prior is asked and how codes are drawn."""
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
    """Logits -> codes: what is laid at a place is a function of its logits, for its chance, and what is known, are its own."""

    def __init__(
        self, strategy: DecodingStrategy, *, sampler: Sampler, seeds: Tensor, known: Tensor, order: Tensor, size: int
    ) -> None:
        """Known codes (B, h, w), the grid's places in order (h w,), and how many codes K there are."""
        positions = [position for wave in strategy.schedule for position in wave]
        self.sampler, self.known, self.order_index = sampler, known, order.argsort().tolist()
        self.upcoming = zip(positions, _noise(seeds, [position[:2] for position in positions], size=size), strict=True)
        self.noise: dict[CodePosition, Tensor] = {}  # (B, K) each

    def sample(self, positions: Sequence[CodePosition], logits: Tensor) -> Tensor:
        """m places and their logits, (1, m, B, K) or guided (2, m, B, K) -> their codes (m, B)."""
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
        """Let go of the noise of places that are laid."""
        for position in positions:
            del self.noise[position]


def _sample_codes(logits: Tensor, noise: Tensor, scales: Sequence[float], *, sampler: Sampler) -> Tensor:
    """Logits (1 or 2, m, B, K), noise (m, B, K), the guidance of each of m places -> codes (m, B)."""
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
    """Rows and columns of `positions` -> the noise (B, size) of each. Sixteen are made at once, for small tensors are slow."""
    for first in range(0, len(positions), 16):
        chunk = torch.tensor(positions[first : first + 16], device=seeds.device)
        rows, columns = chunk.repeat_interleave(len(seeds), dim=0).unbind(1)
        noise = gumbel(seeds.repeat(len(chunk)), size, rows=rows, columns=columns)
        yield from noise.view(len(chunk), len(seeds), size)


def _check(prior: Prior, *, seeds: Tensor, known: Tensor) -> None:
    if known.dim() != 3 or known.is_floating_point() or known.dtype == torch.bool:
        raise SmaltiError(
            f"known codes are whole numbers of the shape (batch, height, width), -1 where one is to be laid, not {known.dtype} of "
            f"shape {tuple(known.shape)}"
        )
    batch, height, width = known.shape
    if not batch:
        raise SmaltiError("there is no image to lay; ask for one or more")
    if prior.training:
        raise SmaltiError(
            "the prior is in training mode, and its dropout would disturb the sampling; call prior.eval() first"
        )
    if min(height, width) < 1:
        raise SmaltiError(f"a grid of {height} x {width} codes has no place for a code; ask for at least 1 x 1")
    if seeds.shape != (batch,):
        raise SmaltiError(f"for {batch} images seeds must have the shape ({batch},); they have {tuple(seeds.shape)}")
    if seeds.is_floating_point() or seeds.dtype == torch.bool:
        raise SmaltiError(f"seeds are whole numbers from 0 on, not {seeds.dtype}; give int64")
    if seeds.numel() and seeds.min() < 0:
        raise SmaltiError(f"the seed {int(seeds.min())} is negative; seeds are whole numbers from 0 on")
    if known.numel() and (known.min() < -1 or known.max() >= prior.size):
        invalid = int(known.max()) if known.max() >= prior.size else int(known.min())
        raise SmaltiError(
            f"the known code {invalid} is none of this prior's {prior.size} codes; "
            f"give 0 to {prior.size - 1}, or -1 where a code is to be laid"
        )
