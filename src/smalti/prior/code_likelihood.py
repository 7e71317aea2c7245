"""The likelihood of codes on a grid of any size, under the sliding window.

Notation: B batch, P prefix codes, h w grid.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from smalti.core.arguments import check_finite
from smalti.prior.base import Prior, nll
from smalti.prior.window import Middle, Window, after_middle, window_at


def window_nll(
    prior: Prior, prefix_at: Callable[[Window], Tensor], codes: Tensor, *, middle: Middle = after_middle
) -> Tensor:
    """Image codes (B, h, w) and a prefix (B, P) per window position -> negative log-likelihood of each code in nats
    (B, h, w).

    Each code is conditioned as in `generation.generation_loop.generate`: on the prefix and the codes before it in the
    window over it. For a grid that fits the window this is `nll`; a larger grid costs a pass per window position.

    Raises `SmaltiError` for a grid other than the prior's window if its order is not raster, and for weights that
    are not finite.
    """
    _, height, width = codes.shape
    prior.sequence_order((height, width), device=codes.device)  # the check
    shape = (min(prior.max_grid[0], height), min(prior.max_grid[1], width))
    codes_by_window: dict[Window, list[tuple[int, int]]] = {}
    for row in range(height):
        for column in range(width):
            window = window_at(row, column, grid=(height, width), window=shape, middle=middle)
            codes_by_window.setdefault(window, []).append((row, column))
    result = torch.empty(codes.shape, device=codes.device)
    for window, positions in codes_by_window.items():
        top, left, rows, columns = window
        window_result = nll(
            prior, prefix_at(window), codes[:, top : top + rows, left : left + columns]
        )  # (B, rows, columns)
        index = torch.tensor(positions, device=codes.device)  # (n, 2)
        result[:, index[:, 0], index[:, 1]] = window_result[:, index[:, 0] - top, index[:, 1] - left].to(result)
    check_finite(result, what="the likelihoods that the prior gives")
    return result
