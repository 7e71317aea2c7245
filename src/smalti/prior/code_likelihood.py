"""How likely codes are on a grid of any size: as the sliding window would have laid them.

Shapes: B batch, P prefix codes, h w grid.
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
    """Image codes (B, h, w) and a prefix (B, P) for each place of the window -> nats of each code (B, h, w).

    Each code is told what `sampling.sample_windows` would tell it: the prefix and the codes before it within the window that
    stands over it. A grid that fits the window is `nll`; a larger one costs a pass for each place where the window stands.

    Raises `SmaltiError` for another grid than the prior's window where its order is not raster, and where weights are not finite.
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
