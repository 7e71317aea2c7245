"""How long a generation will take, from the pace of those before it.

h w grid of codes.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, final

Region: TypeAlias = Literal["window", "strip", "field"]
"""A grid inside the prior's window; one that exceeds it in one direction; and in both."""

ASSUMED: dict[Region, float] = {"window": 1.0, "strip": 2.5, "field": 5.0}
"""Time of a code relative to one inside the window, until it is measured."""
BATCH_SHARE = 0.15
"""Time of each additional sequence of a batch, relative to the first one."""
NEWEST_SHARE = 0.5
"""Weight of the newest measurement in the running average."""


@final
class Pace:
    """Running averages of the seconds per code."""

    def __init__(self, window: tuple[int, int]) -> None:
        """`window`: that of the prior (h,w)."""
        self._window = window
        self._seconds: dict[Region, float] = {}

    def region(self, grid: tuple[int, int]) -> Region:
        """The region of a grid (h,w)."""
        beyond = (grid[0] > self._window[0]) + (grid[1] > self._window[1])
        return ("window", "strip", "field")[beyond]

    def record(self, seconds: float, grid: tuple[int, int], *, codes: int, count: int, guided: bool) -> None:
        """A finished generation of `count` images, with `codes` new ones in each, took `seconds`."""
        if codes:
            region, found = self.region(grid), seconds / (codes * _batch_cost(count, guided))
            before = self._seconds.get(region, found)
            self._seconds[region] = before + NEWEST_SHARE * (found - before)

    def per_code(self) -> dict[str, float]:
        """Region -> the seconds of a code of one image without guidance; empty before the first measurement."""
        if not self._seconds:
            return {}
        base = sum(self._seconds[region] / ASSUMED[region] for region in self._seconds) / len(self._seconds)
        return {region: self._seconds.get(region, base * ASSUMED[region]) for region in ASSUMED}

    def estimate(self, grid: tuple[int, int], *, codes: int, count: int, guided: bool) -> float:
        """The seconds of a generation; 0 before the first measurement."""
        return self.per_code().get(self.region(grid), 0.0) * codes * _batch_cost(count, guided)


def _batch_cost(count: int, guided: bool) -> float:
    """The time of a batch relative to one sequence. Guidance reads each image twice."""
    return 1 + BATCH_SHARE * (count * (2 if guided else 1) - 1)
