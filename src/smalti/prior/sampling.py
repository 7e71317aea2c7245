"""Laying codes: from a prior's logits to grids of any size, one code after the other.

Shapes: B batch, K image codes, P prefix codes, h w grid.

`sample` has one program for all cases. A grid that fits the prior's window is the case of a window that never moves, so
that its cache lasts for the whole picture; completion is the case that some codes are known already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from smalti.errors import SmaltiError
from smalti.noise import gumbel
from smalti.prior.base import Cache, Prior
from smalti.prior.window import Window, window_over
from smalti.settings import settings


@settings
class Sampler:
    """How the next code is chosen from its logits.

    `temperature` divides the logits, 0 takes the likeliest code. `top_k` keeps the k likeliest codes, 0 all. `top_p`
    keeps the smallest set of likeliest codes whose probabilities exceed p, 1 all. `guidance` is the scale of
    classifier-free guidance, 1 for none.
    """

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    guidance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0


def filter_logits(logits: Tensor, *, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Logits (B, K) -> logits (B, K) to draw from: divided by `temperature`, then top-k, then top-p; out is -inf.

    Codes tied with the k-th likeliest are kept. Top-p (nucleus sampling, Holtzman et al., arXiv 1904.09751) keeps the
    smallest set of the likeliest codes left by top-k whose probabilities sum to more than p, and always one code.
    `top_k` 0, or K and more, and `top_p` 1 are off. Temperature 0 keeps the likeliest code alone, the first of equals.
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

    They are yielded after every row, -1 where a code is not laid yet; the last is complete.

    `seeds` is (B,) int64, not negative. A picture's chance hangs on its own seed and the place of each code alone, not on
    the batch it is in; laid on from some of its own codes, it becomes the same picture. `known` is (B, h, w): codes to
    keep, and -1 where one is to be laid; `unknown` makes one without any. Where the grid is larger than the prior's
    window, the window slides (arXiv 2012.09841, section 3.2).

    Raises `SmaltiError` for a grid without codes, for shapes that do not belong together, for a negative seed, for
    known codes that the prior does not have, and for a prior in training mode.
    """
    _check(prior, prefix, grid, seeds=seeds, known=known)
    seeds, known = seeds.to(prefix.device), known.to(prefix.device)
    return sample_windows(prior, lambda window: prefix, sampler=sampler, seeds=seeds, known=known)


def finished(laying: Iterator[Tensor]) -> Tensor:
    """What `sample` yields -> the last of it, the complete codes (B, h, w)."""
    return deque(laying, maxlen=1).pop()


class _Stand(NamedTuple):
    """A window while it stands still: its prefix, guided with the empty one below, and what the prior keeps of it."""

    window: Window
    prefix: Tensor
    cache: Cache


@torch.no_grad()
def sample_windows(
    prior: Prior, prefix_at: Callable[[Window], Tensor], *, sampler: Sampler, seeds: Tensor, known: Tensor
) -> Iterator[Tensor]:
    """As `sample`, with a prefix (B, P) for each place of the window, for a condition that has places itself.

    The caller sees to it that shapes and devices agree and that the prior is in evaluation mode.
    """
    batch, height, width = known.shape
    shape = (min(prior.grid[0], height), min(prior.grid[1], width))
    guided = sampler.guidance != 1
    codes, stand = known.clone(), None
    for row in range(height):
        columns = (known[:, row] < 0).any(dim=0).nonzero().flatten().tolist()
        for column, noise in zip(columns, _noise(seeds, row, columns, size=prior.size), strict=True):
            window = window_over(row, column, grid=(height, width), window=shape)
            if stand is None or stand.window != window:
                prefix = prefix_at(window)
                prefix = torch.cat((prefix, prior.null_prefix(batch))) if guided else prefix
                stand = _Stand(window, prefix, prior.empty_cache(window=shape))
            logits = _next(prior, stand, _before(codes, row, column, window))
            logits = guide(logits[:batch], logits[batch:], scale=sampler.guidance) if guided else logits
            logits = filter_logits(logits, temperature=sampler.temperature, top_k=sampler.top_k, top_p=sampler.top_p)
            codes[:, row, column] = known[:, row, column].where(known[:, row, column] >= 0, choose(logits, noise))
        yield codes.clone()


def _before(codes: Tensor, row: int, column: int, window: Window) -> Tensor:
    """Codes (B, h, w) -> those of the window that come before its place (row, column) in raster order, (B, n)."""
    top, left, rows, columns = window
    inside = codes[:, top : top + rows, left : left + columns].flatten(1)
    return inside[:, : (row - top) * columns + column - left]


def _next(prior: Prior, stand: _Stand, before: Tensor) -> Tensor:
    """The codes (B, n) before a place of a standing window -> logits of its code, float32: (B, K), guided (2 B, K).

    What the cache holds already is not read again. Codes that were known, and so never asked for, are read now.
    """
    before = before.repeat(len(stand.prefix) // len(before), 1)
    sequence = prior.join(stand.prefix, before)
    return prior.next_logits(sequence[:, stand.cache.length :], cache=stand.cache).float()


def _noise(seeds: Tensor, row: int, columns: Sequence[int], *, size: int) -> Iterator[Tensor]:
    """The `columns` of a row -> the noise (B, size) of each. Sixteen are made at once, for small tensors are slow."""
    for first in range(0, len(columns), 16):
        stretch = torch.tensor(columns[first : first + 16], device=seeds.device)
        places = stretch.repeat_interleave(len(seeds))
        noise = gumbel(seeds.repeat(len(stretch)), size, rows=torch.full_like(places, row), columns=places)
        yield from noise.view(len(stretch), len(seeds), size)


def _check(prior: Prior, prefix: Tensor, grid: tuple[int, int], *, seeds: Tensor, known: Tensor) -> None:
    batch = len(prefix)
    if prior.training:
        raise SmaltiError(
            "the prior is in training mode, and its dropout would disturb the sampling; call prior.eval() first"
        )
    if min(grid) < 1:
        raise SmaltiError(f"a grid of {grid[0]} x {grid[1]} codes has no place for a code; ask for at least 1 x 1")
    if prefix.shape != (batch, prior.prefix):
        raise SmaltiError(
            f"the prefix has the shape {tuple(prefix.shape)}, and this prior reads (batch, {prior.prefix})"
        )
    if seeds.shape != (batch,) or known.shape != (batch, *grid):
        raise SmaltiError(
            f"for {batch} prefixes and a grid of {grid[0]} x {grid[1]} codes, seeds must have the shape ({batch},) and "
            f"known ({batch}, {grid[0]}, {grid[1]}); they have {tuple(seeds.shape)} and {tuple(known.shape)}"
        )
    if seeds.numel() and seeds.min() < 0:
        raise SmaltiError(f"the seed {int(seeds.min())} is negative; seeds are whole numbers from 0 on")
    if known.numel() and (known.min() < -1 or known.max() >= prior.size):
        wrong = int(known.max()) if known.max() >= prior.size else int(known.min())
        raise SmaltiError(
            f"the known code {wrong} is none of this prior's {prior.size} codes; "
            f"give 0 to {prior.size - 1}, or -1 where a code is to be laid"
        )
