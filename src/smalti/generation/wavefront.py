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


class Place(NamedTuple):
    """A code that is laid: its row and column in the grid, the window over it, and how many codes come before it there."""

    row: int
    column: int
    window: Window
    turn: int


def waves(missing: Tensor, *, window: tuple[int, int], middle: Middle) -> list[list[Place]]:
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
    laid: list[list[Place]] = []
    for row, top in enumerate(tops):
        # The last wave of each column above, and of each w columns side by side, the first of which is the window's left.
        above = latest[top:row].amax(dim=0) if row > top else torch.zeros(width, dtype=torch.int64)
        shown = above.unfold(0, window[1], 1).amax(dim=1).tolist()
        here: list[int] = []
        for column, (left, asked) in enumerate(zip(lefts, missing[row].tolist(), strict=True)):
            wave = 1 + max(shown[left], *here[left:], 0) if asked else 0
            here.append(wave)
            if asked:
                if wave > len(laid):
                    laid.append([])
                over = window_at(row, column, grid=(height, width), window=window, middle=middle)
                laid[wave - 1].append(Place(row, column, over, (row - over.top) * window[1] + column - over.left))
        latest[row] = torch.tensor(here)
    return laid


def calls(
    wave: Sequence[Place], *, standing: Set[Window], prefix: int, copies: int, most: int, few: bool
) -> list[list[Place]]:
    """Places of one wave -> those that are laid in one call of the prior, which is told `copies` sequences for each.

    A place whose window is `standing` is laid alone, since it has a cache, and others `together` when their sequences are about
    as long. Where a call costs more than what it reads, and so there should be `few`, all are laid together if that makes fewer.
    """
    moving = [place for place in wave if place.window not in standing]
    alone = [[place] for place in wave if place.window in standing]
    frugal = together(moving, prefix=prefix, copies=copies, most=most, share=0.5) + alone
    if not few:
        return frugal
    return min(frugal, together(wave, prefix=prefix, copies=copies, most=most, share=0), key=len)


def together(places: Iterable[Place], *, prefix: int, copies: int, most: int, share: float) -> list[list[Place]]:
    """Places that do not need one another -> those whose sequences are read in one call.

    Near the border fewer codes come before a place than elsewhere, and its sequence is filled up to the longest of the call. It is
    at least this `share` of it, prefix of P codes included. A call reads no more than `most` codes, if it has several places.
    """
    found: list[list[Place]] = []
    longest = 0
    for place in sorted(places, key=lambda place: -place.turn):
        if found and prefix + place.turn >= share * longest and (len(found[-1]) + 1) * copies * longest <= most:
            found[-1].append(place)
        else:
            found.append([place])
            longest = prefix + place.turn
    return found


def stretches(laid: Sequence[Sequence[Place]], *, width: int) -> list[int]:
    """Waves -> after how many of them `width` codes are laid, twice as many, and so on; last, after how many all are."""
    count = list(accumulate((len(wave) for wave in laid), initial=0))
    return [*(bisect_left(count, some) for some in range(width, count[-1], width)), len(laid)]
