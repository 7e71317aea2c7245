"""Laying codes: from a prior's logits to grids of any size, wave by wave.

Shapes: B batch, K image codes, P prefix codes, h w grid, m places laid in one call of the prior, T codes before the last of them.

`sample` has one program for all cases. Codes that do not need one another are a wave (`prior.wavefront`) and are laid at once. A
grid that fits the prior's window is the case of waves of one code and a window that never moves, so that its cache lasts for
the whole picture; completion is the case that some codes are known already.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, zip_longest
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from smalti.errors import SmaltiError
from smalti.noise import gumbel
from smalti.prior.base import Cache, NoCache, Prior
from smalti.prior.wavefront import Place, calls, rows_complete, waves
from smalti.prior.window import Middle, Window, after_middle
from smalti.settings import parse, settings

MOST = 2**14
"""Codes that one call of the prior reads at most, where it reads sequences of several places: enough to keep a device busy. A
wave over a very wide picture takes several calls, so that the memory of a call does not grow with the picture."""

Schedule = Literal["constant", "linear", "cosine"]

SCHEDULES: dict[Schedule, Callable[[float], float]] = {
    "constant": lambda place: 1.0,
    "linear": lambda place: place,  # Muse (Chang et al., arXiv 2301.00704, section 2.7)
    "cosine": lambda place: (1 - math.cos(math.pi * place)) / 2,  # MDT (Gao et al., arXiv 2303.14389), with power 1
}
"""Place in the sequence, 0 for the first code to 1 for the last -> the share of the guidance that is in force there. With little
guidance at the beginning pictures are more various, with much at the end they follow the condition."""


def guidance_at(turn: int, *, count: int, sampler: Sampler) -> float:
    """The scale of the guidance for code `turn` of `count`, 0 the first: from 1, none, on to the sampler's."""
    return 1 + (sampler.guidance - 1) * SCHEDULES[sampler.guidance_schedule](turn / max(count - 1, 1))


@settings
class Sampler:
    """How the next code is chosen from its logits.

    `temperature` divides the logits, 0 takes the likeliest code. `top_k` keeps the k likeliest codes, 0 all. `top_p`
    keeps the smallest set of likeliest codes whose probabilities exceed p, 1 all. `min_p` keeps the codes that are at least
    this share as likely as the likeliest, 0 all. `guidance` is the scale of classifier-free guidance, 1 for none, and
    `guidance_schedule` how it is reached from the first code to the last: a name in `SCHEDULES`.
    """

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    guidance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    guidance_schedule: Schedule = "constant"


def sampler_of(**options: float | str) -> Sampler:
    """Options by name, those left out as by default -> the sampler. Raises `SmaltiError` for a name or a value that is none."""
    return parse(Sampler, options, where="sampling")


def filter_logits(logits: Tensor, *, temperature: float, top_k: int, top_p: float, min_p: float = 0.0) -> Tensor:
    """Logits (B, K) -> logits (B, K) to draw from: divided by `temperature`, then top-k, top-p, min-p; out is -inf.

    Codes tied with the k-th likeliest are kept. Top-p (nucleus sampling, Holtzman et al., arXiv 1904.09751) keeps the
    smallest set of the likeliest codes left by top-k whose probabilities sum to more than p, and always one code.
    Min-p (Nguyen et al., arXiv 2407.01082) keeps the codes whose probability is at least `min_p` times the largest: few
    where one code is clear, many where many are possible. `top_k` 0, or K and more, `top_p` 1 and `min_p` 0 are off.
    Temperature 0 keeps the likeliest code alone, the first of equals.
    """
    if temperature == 0:
        best = logits.argmax(dim=1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(1, best, logits.gather(1, best))
    logits = logits / temperature
    if 0 < top_k < logits.shape[1]:
        threshold = logits.topk(top_k, dim=1).values[:, -1:]
        logits = logits.where(logits >= threshold, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=1, descending=True, stable=True)
        through = ordered.softmax(dim=1).cumsum(dim=1)
        dropped = torch.zeros_like(logits, dtype=torch.bool)
        # "More than p", as the original's sampler has it, where Holtzman et al. say "at least p".
        dropped[:, 1:] = through[:, :-1] > top_p
        logits = logits.masked_fill(torch.zeros_like(dropped).scatter(1, order, dropped), -torch.inf)
    if min_p > 0:  # a share of probabilities is a difference of logits, whatever the filters before have left
        logits = logits.where(logits >= logits.amax(dim=1, keepdim=True) + math.log(min_p), -torch.inf)
    return logits


def guide(conditional: Tensor, empty: Tensor, *, scale: float) -> Tensor:
    """Logits with the condition and with the empty one -> guided logits, all of the same shape.

    Classifier-free guidance (Ho and Salimans, arXiv 2207.12598), with the scale counted so that 1 is the condition
    alone.
    """
    return empty + scale * (conditional - empty)


def choose(logits: Tensor, noise: Tensor) -> Tensor:
    """Logits and standard Gumbel noise (B, K) -> codes (B,) int64, drawn from softmax(logits): the Gumbel-max trick."""
    return (logits + noise).argmax(dim=1)


def unknown(batch: int, grid: tuple[int, int]) -> Tensor:
    """The grid (h, w) of a `batch` of pictures of which nothing is known: (batch, h, w) int64, all -1."""
    return torch.full((batch, *grid), -1)


def sample(
    prior: Prior, prefix: Tensor, grid: tuple[int, int], *, sampler: Sampler, seeds: Tensor, known: Tensor
) -> Iterator[Tensor]:
    """Prefix codes (B, P) -> image codes (B, h, w) of a `grid` (h, w) of any size.

    They are laid in the prior's order and yielded after every w codes, which in raster order are a row, with -1 where a
    code is not laid yet; the last is complete. Where the grid is wider than the prior's window, rows are laid side by side: when
    a row is complete, the rows below it already show what they have so far.

    `seeds` is (B,) int64, not negative. A picture's chance hangs on its own seed and the place of each code alone, not on
    the batch it is in; laid on from some of its own codes, it becomes the same picture. `known` is (B, h, w): codes to
    keep, and -1 where one is to be laid; `unknown` makes one without any. Where the grid is larger than the prior's
    window, the window slides (arXiv 2012.09841, section 3.2).

    Raises `SmaltiError` for a grid without codes, for another grid than the prior's window where its order is not
    raster, for shapes that do not belong together, for a negative seed, for known codes that the prior does not have,
    for guidance where the prior has no empty condition, and for a prior in training mode.
    """
    batch = len(prefix)
    if prefix.shape != (batch, prior.prefix):
        raise SmaltiError(
            f"the prefix has the shape {tuple(prefix.shape)}, and this prior reads (batch, {prior.prefix})"
        )
    if seeds.shape != (batch,) or known.shape != (batch, *grid):
        raise SmaltiError(
            f"for {batch} prefixes and a grid of {grid[0]} x {grid[1]} codes, seeds must have the shape ({batch},) and "
            f"known ({batch}, {grid[0]}, {grid[1]}); they have {tuple(seeds.shape)} and {tuple(known.shape)}"
        )
    return sample_windows(prior, lambda window: prefix, sampler=sampler, seeds=seeds, known=known.to(prefix.device))


def finished(laying: Iterator[Tensor]) -> Tensor:
    """What `sample` yields -> the last of it, the complete codes (B, h, w)."""
    return deque(laying, maxlen=1).pop()


class _Stand(NamedTuple):
    """One window, or several side by side: their prefixes, guided with the empty ones below, and what the prior keeps of them."""

    prefix: Tensor
    cache: Cache


def sample_windows(
    prior: Prior,
    prefix_at: Callable[[Window], Tensor],
    *,
    sampler: Sampler,
    seeds: Tensor,
    known: Tensor,
    middle: Middle = after_middle,
) -> Iterator[Tensor]:
    """As `sample`, with a prefix (B, P) for each place of the window, for a condition that has places itself.

    `middle` says where in a window that stands freely the code is that is laid. The prefixes are on the device of `known`,
    and the caller sees to it that their shape is right. Raises `SmaltiError` as `sample` does.
    """
    _check(prior, seeds=seeds, known=known)
    batch, height, width = known.shape
    order = prior.places((height, width), device=known.device)
    empty = prior.null_prefix(batch) if sampler.guidance != 1 else known.new_empty(0, prior.prefix)
    return _lay(
        prior, prefix_at, empty, sampler=sampler, seeds=seeds.to(known.device), known=known, order=order, middle=middle
    )


@torch.no_grad()
def _lay(
    prior: Prior,
    prefix_at: Callable[[Window], Tensor],
    empty: Tensor,
    *,
    sampler: Sampler,
    seeds: Tensor,
    known: Tensor,
    order: Tensor,
    middle: Middle,
) -> Iterator[Tensor]:
    """`sample_windows`, given the prefix that says nothing, of B or of no pictures, and the grid's places in order (n,)."""
    batch, height, width = known.shape
    shape = (min(prior.grid[0], height), min(prior.grid[1], width))
    inside = prior.places(shape, device=known.device)  # the window's own places, in order
    whole_turns = order.argsort().tolist()
    schedule = _schedule(prior, (known < 0).any(dim=0).cpu(), order.tolist(), window=shape, middle=middle)
    ends = rows_complete(schedule, order, grid=(height, width))
    noise = _noise(seeds, [place[:2] for wave in schedule for place in wave], size=prior.size)
    copies, few = batch + len(empty), _wants_few_calls(known.device)
    codes, stands = known.clone(), dict[Window, _Stand]()
    yield from (codes.clone() for _ in range(ends.count(0)))
    for count, (wave, following) in enumerate(zip_longest(schedule, schedule[1:], fillvalue=list[Place]()), start=1):
        noise_of = dict(zip(wave, islice(noise, len(wave)), strict=True))
        # A window that stands over a code of the next wave too stands still. For others a cache would be filled and thrown away.
        ahead = {place.window for place in following}
        for places in calls(
            wave, standing=ahead | stands.keys(), prefix=prior.prefix, copies=copies, most=MOST, few=few
        ):
            window, alone = places[0].window, len(places) == 1
            stand = stands.get(window) if alone else None
            if stand is None:
                prefixes = [prefix_at(place.window) for place in places]
                cache = prior.empty_cache(window=shape) if alone and window in ahead else NoCache(columns=shape[1])
                stand = _Stand(torch.cat((*prefixes, empty.repeat(len(places), 1))), cache)
            logits = _next(prior, stand, codes, places, inside=inside)
            scales = [
                guidance_at(whole_turns[place.row * width + place.column], count=len(order), sampler=sampler)
                for place in places
            ]
            drawn = _drawn(logits, torch.stack([noise_of[place] for place in places]), scales, sampler=sampler)
            for place, new in zip(places, drawn, strict=True):
                own = known[:, place.row, place.column]
                codes[:, place.row, place.column] = own.where(own >= 0, new)
            if alone and window in ahead:
                stands[window] = stand
        stands = {window: stand for window, stand in stands.items() if window in ahead}
        yield from (codes.clone() for _ in range(ends.count(count)))


def _schedule(
    prior: Prior, missing: Tensor, order: Sequence[int], *, window: tuple[int, int], middle: Middle
) -> list[list[Place]]:
    """Where codes are to be laid, (H, W) bool, and the grid's places in the prior's order -> the places of each wave."""
    if prior.order == "raster":
        return waves(missing, window=window, middle=middle)
    asked, whole = missing.flatten().tolist(), Window(0, 0, *window)
    return [[Place(*divmod(place, window[1]), whole, turn)] for turn, place in enumerate(order) if asked[place]]


def _wants_few_calls(device: torch.device) -> bool:
    """Whether a call that reads a few hundred codes takes about as long as one that reads a single code: not on a CPU."""
    return device.type != "cpu"


def _within(codes: Tensor, window: Window) -> Tensor:
    """Codes (B, h, w) -> those of the window in raster order (B, n)."""
    top, left, rows, columns = window
    return codes[:, top : top + rows, left : left + columns].flatten(1)


def _next(prior: Prior, stand: _Stand, codes: Tensor, places: Sequence[Place], *, inside: Tensor) -> Tensor:
    """Codes so far (B, h, w) and m places -> logits of their codes, float32: (1, m, B, K), guided (2, m, B, K).

    What the cache holds already is not read again. Codes that were known, and so never asked for, are read now. Places that
    have fewer codes before them than others are followed by codes that come later or by filler, which a causal prior does not see.
    """
    longest, start = max(place.turn for place in places), stand.cache.length
    before = torch.cat([_within(codes, place.window)[:, inside[:longest]] for place in places]).clamp(min=0)  # (m B, T)
    before = before.repeat(len(stand.prefix) // len(before), 1)
    features = prior.features(prior.join(stand.prefix, before)[:, start:], stand.cache)
    features = features.reshape(-1, len(places), len(codes), *features.shape[1:])  # (1 or 2, m, B, T, D)
    asked = [features[:, item, :, prior.prefix - 1 + place.turn - start] for item, place in enumerate(places)]
    logits: Tensor = prior.head(torch.stack(asked, dim=1))[..., : prior.size]
    return logits.float()


def _drawn(logits: Tensor, noise: Tensor, scales: Sequence[float], *, sampler: Sampler) -> Tensor:
    """Logits (1 or 2, m, B, K), noise (m, B, K), the guidance of each of m places -> codes (m, B)."""
    if len(logits) == 1:
        guided = logits[0]
    else:
        guided = torch.stack([guide(*own, scale=scale) for own, scale in zip(logits.unbind(1), scales, strict=True)])
    filtered = filter_logits(
        guided.flatten(0, 1),
        temperature=sampler.temperature,
        top_k=sampler.top_k,
        top_p=sampler.top_p,
        min_p=sampler.min_p,
    )
    return choose(filtered, noise.flatten(0, 1)).view(noise.shape[:2])


def _noise(seeds: Tensor, places: Sequence[tuple[int, int]], *, size: int) -> Iterator[Tensor]:
    """Rows and columns of `places` -> the noise (B, size) of each. Sixteen are made at once, for small tensors are slow."""
    for first in range(0, len(places), 16):
        stretch = torch.tensor(places[first : first + 16], device=seeds.device)
        rows, columns = stretch.repeat_interleave(len(seeds), dim=0).unbind(1)
        noise = gumbel(seeds.repeat(len(stretch)), size, rows=rows, columns=columns)
        yield from noise.view(len(stretch), len(seeds), size)


def _check(prior: Prior, *, seeds: Tensor, known: Tensor) -> None:
    batch, height, width = known.shape
    if prior.training:
        raise SmaltiError(
            "the prior is in training mode, and its dropout would disturb the sampling; call prior.eval() first"
        )
    if min(height, width) < 1:
        raise SmaltiError(f"a grid of {height} x {width} codes has no place for a code; ask for at least 1 x 1")
    if seeds.shape != (batch,):
        raise SmaltiError(f"for {batch} pictures seeds must have the shape ({batch},); they have {tuple(seeds.shape)}")
    if seeds.numel() and seeds.min() < 0:
        raise SmaltiError(f"the seed {int(seeds.min())} is negative; seeds are whole numbers from 0 on")
    if known.numel() and (known.min() < -1 or known.max() >= prior.size):
        wrong = int(known.max()) if known.max() >= prior.size else int(known.min())
        raise SmaltiError(
            f"the known code {wrong} is none of this prior's {prior.size} codes; "
            f"give 0 to {prior.size - 1}, or -1 where a code is to be laid"
        )
