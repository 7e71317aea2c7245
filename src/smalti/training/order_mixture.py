"""The orders in which an any-order prior reads its training images: one per image, drawn from a mixture.

Notation: B batch, h w grid, n = h w.
"""

from __future__ import annotations

import torch
from pydantic import model_validator
from torch import Tensor

from smalti.core.settings import Fraction, settings
from smalti.prior.order import known_first


@settings
class OrderMixture:
    """Shares of the training images.

    `raster`: row by row. `random`: a random permutation. The rest begins with codes that a user would keep, and goes on
    with a hole: a rectangle (a box, a half, or what a border surrounds), all that is outside of one, or random codes.
    The kept codes are in raster order; the hole's are in raster order in half of these images, and shuffled in the
    others.
    """

    raster: Fraction = 0.5
    random: Fraction = 0.25

    @model_validator(mode="after")
    def _shares_fit(self) -> OrderMixture:
        if self.raster + self.random > 1 + 1e-9:
            raise ValueError(
                f"raster = {self.raster:g} and random = {self.random:g} are shares of all images; their sum is at most "
                "1"
            )
        return self

    def draw(self, batch: int, grid: tuple[int, int], *, device: torch.device) -> Tensor:
        """Raster positions in sequence order, for each image: (batch, n) int64.

        Draws from torch's default generator of the CPU.
        """
        count = grid[0] * grid[1]
        kind = torch.rand(batch, 1)
        shuffled = torch.rand(batch, count)
        hole_priority = shuffled.where(torch.rand(batch, 1) < 0.5, torch.arange(count) / count)
        completion = known_first(~random_holes(batch, grid).flatten(1), priority=hole_priority)
        order = completion.where(kind >= self.raster + self.random, shuffled.argsort(dim=1))
        return order.where(kind >= self.raster, torch.arange(count)).to(device)


def random_holes(batch: int, grid: tuple[int, int]) -> Tensor:
    """Holes as users make them, (batch, h, w) bool, drawn from torch's default generator of the CPU.

    In half of the images a rectangle that is 1/4 to 1 of each side long, at a random position, so that some touch a
    border or two; in a quarter all that is outside of such a rectangle; in a quarter each code by itself, with a
    probability of its image.
    """
    height, width = grid
    sides = 0.25 + 0.75 * torch.rand(batch, 2)  # shares of height and width
    starts = (1 + 0.5 - sides) * torch.rand(batch, 2) - 0.25  # a quarter may lie outside on either side
    rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    in_rows = (rows >= starts[:, :1]) & (rows < starts[:, :1] + sides[:, :1])  # (batch, h)
    in_columns = (columns >= starts[:, 1:]) & (columns < starts[:, 1:] + sides[:, 1:])  # (batch, w)
    inside = in_rows[:, :, None] & in_columns[:, None, :]
    scattered = torch.rand(batch, height, width) < torch.rand(batch, 1, 1)
    kind = torch.rand(batch, 1, 1)
    return torch.where(kind < 0.5, inside, torch.where(kind < 0.75, ~inside, scattered))
