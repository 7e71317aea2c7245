"""When each code of a grid is laid: in waves, of codes that do not need one another.

Under the sliding window a code needs only the codes that its window shows before it. Of the row above, those are the ones up to
half a window ahead. So a row may begin before the one above has ended, and the codes of several rows are laid at once.
docs/high-resolution.md draws it and counts the waves.

Letters: H W grid, h w window, P prefix codes, B sequences of one place.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence, Set
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from smalti.prior.window import Middle, Window, placement, window_at


class CodePosition(NamedTuple):
    """A code that is laid: its row and column in the grid, the window over it, and how many codes come before it there."""

    row: int
    column: int
    window: Window
    offset: int


def wavefront_schedule(missing: Tensor, *, window: tuple[int, int], middle: Middle) -> list[list[CodePosition]]:
    """Where codes are to be laid in raster order, (H, W) bool -> the places of each wave, row by row.

    A wave is laid when the waves before it are: none of its codes is shown before another of it by the `window` (h, w), no
    larger than the grid, that stands over that other. Each code is in the first wave that it can be in, so that no schedule has
    fewer. Codes that are not missing wait for nothing, and nothing waits for them.
    """
    height, width = missing.shape
    tops = [row - placement(row, height, window[0], middle=middle) for row in range(height)]
    lefts = [column - placement(column, width, window[1], middle=middle) for column in range(width)]
    latest = torch.zeros(
        height, width, dtype=torch.int64
    )  # the wave of each code, counted from 1; 0 for one that is known
    schedule: list[list[CodePosition]] = []
    for row, top in enumerate(tops):
        # The last wave of each column above, and of each w columns side by side, the first of which is the window's left.
        above = latest[top:row].amax(dim=0) if row > top else torch.zeros(width, dtype=torch.int64)
        window_latest = above.unfold(0, window[1], 1).amax(dim=1).tolist()
        row_waves: list[int] = []
        for column, (left, is_missing) in enumerate(zip(lefts, missing[row].tolist(), strict=True)):
            wave = 1 + max(window_latest[left], *row_waves[left:], 0) if is_missing else 0
            row_waves.append(wave)
            if is_missing:
                if wave > len(schedule):
                    schedule.append([])
                window_here = window_at(row, column, grid=(height, width), window=window, middle=middle)
                schedule[wave - 1].append(
                    CodePosition(
                        row, column, window_here, (row - window_here.top) * window[1] + column - window_here.left
                    )
                )
        latest[row] = torch.tensor(row_waves)
    return schedule


def batch_wave(
    wave: Sequence[CodePosition],
    *,
    cached_windows: Set[Window],
    prefix_length: int,
    copies: int,
    max_codes: int,
    few_calls: bool,
) -> list[list[CodePosition]]:
    """Places of one wave -> those that are laid in one call of the prior, which is told `copies` sequences for each.

    A place whose window is `cached_windows` is laid alone, since it has a cache, and others `batch_by_length` when their sequences are about
    as long. Where a call costs more than what it reads, and so there should be `few_calls`, all are laid together if that makes fewer.
    """
    uncached = [position for position in wave if position.window not in cached_windows]
    single = [[position] for position in wave if position.window in cached_windows]
    batches = (
        batch_by_length(uncached, prefix_length=prefix_length, copies=copies, max_codes=max_codes, min_share=0.5)
        + single
    )
    if not few_calls:
        return batches
    return min(
        batches,
        batch_by_length(wave, prefix_length=prefix_length, copies=copies, max_codes=max_codes, min_share=0),
        key=len,
    )


def batch_by_length(
    positions: Iterable[CodePosition], *, prefix_length: int, copies: int, max_codes: int, min_share: float
) -> list[list[CodePosition]]:
    """Places that do not need one another -> those whose sequences are read in one call.

    Near the border fewer codes come before a place than elsewhere, and its sequence is filled up to the longest of the call. It is
    at least this `min_share` of it, prefix of P codes included. A call reads no more than `max_codes` codes, if it has several places.
    """
    batches: list[list[CodePosition]] = []
    longest = 0
    for position in sorted(positions, key=lambda position: -position.offset):
        if (
            batches
            and prefix_length + position.offset >= min_share * longest
            and (len(batches[-1]) + 1) * copies * longest <= max_codes
        ):
            batches[-1].append(position)
        else:
            batches.append([position])
            longest = prefix_length + position.offset
    return batches


def row_ends(schedule: Sequence[Sequence[CodePosition]], *, width: int) -> list[int]:
    """Waves -> after how many of them `width` codes are laid, twice as many, and so on; last, after how many all are."""
    count = list(accumulate((len(wave) for wave in schedule), initial=0))
    return [*(bisect_left(count, target) for target in range(width, count[-1], width)), len(schedule)]
