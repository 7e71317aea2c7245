"""Metrics since the last report, and the duration of training. Both are part of the saved state."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

Metrics = dict[str, Tensor]
"""Metrics () by name."""


@final
class RunningMetrics:
    """Sums of the metrics since the last report, counts of skipped steps, and seconds of training."""

    def __init__(self, notes: Mapping[str, Any]) -> None:
        """`notes`: the result of `notes()` when the state was saved; empty in a new run."""
        self._sums: dict[str, float] = dict(notes.get("sums", {}))
        self._counts: dict[str, int] = dict(notes.get("counts", {}))
        self._pending: list[Metrics] = []
        self.steps: int = notes.get("steps", 0)
        self.skipped: int = notes.get("skipped", 0)
        """Number of steps since the last report that were skipped because a metric was not finite."""
        self.consecutive: int = notes.get("consecutive", 0)
        """Number of skipped steps in a row, up to the last step."""
        self.broken: list[str] = list(notes.get("broken", []))
        """The names of the metrics that were not finite since the last report."""
        self._elapsed: float = notes.get("elapsed", 0.0)
        self._began = time.monotonic()

    def add(self, values: Metrics) -> None:
        """Add the metrics of a step. They stay on their device, so this does not wait for a GPU."""
        self._pending.append(values)
        self.steps, self.consecutive = self.steps + 1, 0

    def skip(self, names: list[str]) -> None:
        """Count a skipped step."""
        self.steps, self.skipped, self.consecutive = self.steps + 1, self.skipped + 1, self.consecutive + 1
        self.broken = list(dict.fromkeys([*self.broken, *names]))

    def report(self) -> dict[str, float]:
        """The mean of each metric over the steps that have it, and `skipped`; then reset them."""
        self._add_up()
        means = {name: self._sums[name] / self._counts[name] for name in self._sums}
        # Rounded to float32, so that a sum interrupted by a resume gives the same mean.
        values = {name: float(torch.tensor(mean, dtype=torch.float32)) for name, mean in means.items()}
        values["skipped"] = float(self.skipped)
        self._sums, self._counts = {}, {}
        self.steps, self.skipped, self.broken = 0, 0, []
        return values

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, without the time between a stop and a resume."""
        return self._elapsed + time.monotonic() - self._began

    def notes(self) -> dict[str, Any]:
        """The state as plain values; the constructor takes it."""
        self._add_up()
        return {
            "sums": self._sums,
            "counts": self._counts,
            "steps": self.steps,
            "skipped": self.skipped,
            "consecutive": self.consecutive,
            "broken": self.broken,
            "elapsed": self.elapsed,
        }

    def _add_up(self) -> None:
        for name in dict.fromkeys(name for values in self._pending for name in values):
            numbers = torch.stack([values[name] for values in self._pending if name in values]).double().tolist()
            self._sums[name] = math.fsum([self._sums.get(name, 0.0), *numbers])
            self._counts[name] = self._counts.get(name, 0) + len(numbers)
        self._pending = []
