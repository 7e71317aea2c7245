"""How likely codes are on a grid of any size: as the sliding window would have laid them.

Shapes: B batch, P prefix codes, h w grid.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from smalti.core.arguments import check_finite
from smalti.prior.base import Prior, nats
from smalti.prior.window import Middle, Window, after_middle, window_over


def window_nats(
    prior: Prior, prefix_at: Callable[[Window], Tensor], codes: Tensor, *, middle: Middle = after_middle
) -> Tensor:
    """Image codes (B, h, w) and a prefix (B, P) for each place of the window -> nats of each code (B, h, w).

    Each code is told what `sampling.sample_windows` would tell it: the prefix and the codes before it within the window that
    stands over it. A grid that fits the window is `nats`; a larger one costs a pass for each place where the window stands.

    Raises `SmaltiError` for another grid than the prior's window where its order is not raster, and where weights are not finite.
    """
    _, height, width = codes.shape
    prior.places((height, width), device=codes.device)  # the check
    shape = (min(prior.limit[0], height), min(prior.limit[1], width))
    standing: dict[Window, list[tuple[int, int]]] = {}
    for row in range(height):
        for column in range(width):
            window = window_over(row, column, grid=(height, width), window=shape, middle=middle)
            standing.setdefault(window, []).append((row, column))
    found = torch.empty(codes.shape, device=codes.device)
    for window, places in standing.items():
        top, left, rows, columns = window
        within = nats(prior, prefix_at(window), codes[:, top : top + rows, left : left + columns])  # (B, rows, columns)
        at = torch.tensor(places, device=codes.device)  # (n, 2)
        found[:, at[:, 0], at[:, 1]] = within[:, at[:, 0] - top, at[:, 1] - left].to(found)
    check_finite(found, what="the likelihoods that the prior gives")
    return found
