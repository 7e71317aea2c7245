"""The schedule of generation: waves of codes that do not depend on one another.

Under the sliding window a code depends only on the earlier codes in its window. Of the row above, these are the
codes up to half a window ahead. So a row can start before the row above ends, and codes of several rows are
generated together. docs/high-resolution.md draws the waves and counts them.

Notation: H W grid, h w window, P prefix codes, B sequences per position.
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
    """A code to generate: its row and column in the grid, the window over it, and the number of codes before it in
    that window."""

    row: int
    column: int
    window: Window
    offset: int


def wavefront_schedule(missing: Tensor, *, window: tuple[int, int], middle: Middle) -> list[list[CodePosition]]:
    """Missing codes in raster order, (H, W) bool -> the positions of each wave, row by row.

    A wave is generated after the waves before it. No code of a wave is an earlier code in the `window` (h, w), no
    larger than the grid, of another code of the same wave. Each code is in the first possible wave, so no schedule
    is shorter. Known codes take no part.
    """
    height, width = missing.shape
    tops = [row - placement(row, height, window[0], middle=middle) for row in range(height)]
    lefts = [column - placement(column, width, window[1], middle=middle) for column in range(width)]
    latest = torch.zeros(
        height, width, dtype=torch.int64
    )  # the wave of each code, counted from 1; 0 for one that is known
    schedule: list[list[CodePosition]] = []
    for row, top in enumerate(tops):
        # The last wave of each column above, and of each w columns side by side, the first of
        # which is the window's left.
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
    """Positions of one wave -> the positions of each call of the prior, which reads `copies` sequences per
    position.

    A position whose window is in `cached_windows` gets a call of its own, since it has a cache. The others are
    batched by length. With `few_calls`, where the cost of a call exceeds that of its codes, all positions share
    calls if that takes fewer.
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
    """Independent positions -> the positions that share one call.

    Near the border fewer codes precede a position, and its sequence is padded to the longest of the call. Its
    length is at least `min_share` of the longest, including the prefix of P codes. A call with several positions
    reads at most `max_codes` codes.
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
    """Waves -> the number of waves after which `width` codes are generated, twice `width`, and so on; last, the
    number of waves."""
    count = list(accumulate((len(wave) for wave in schedule), initial=0))
    return [*(bisect_left(count, target) for target in range(width, count[-1], width)), len(schedule)]
