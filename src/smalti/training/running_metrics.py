"""Metrics since the last report and the duration of training; both survive a stop and a resume."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

Numbers = dict[str, Tensor]


@final
class RunningMetrics:
    """Sums of the metrics of the steps since the last report, counts of skipped steps, and the seconds of training so far."""

    def __init__(self, notes: Mapping[str, Any]) -> None:
        """`notes`: what `notes()` gave when the state was saved; empty at the beginning, and for states of smalti 0.1."""
        self._sums: dict[str, float] = dict(notes.get("sums", {}))
        self._counts: dict[str, int] = dict(notes.get("counts", {}))
        self._gathered: list[Numbers] = []
        self.steps: int = notes.get("steps", 0)
        self.skipped: int = notes.get("skipped", 0)
        """Steps since the last report that were skipped because metrics of them are not finite."""
        self.consecutive: int = notes.get("consecutive", 0)
        """Number of the last steps in a row that were skipped."""
        self.broken: list[str] = list(notes.get("broken", []))
        """The names of those metrics."""
        self._elapsed: float = notes.get("elapsed", 0.0)
        self._began = time.monotonic()

    def add(self, values: Numbers) -> None:
        """Add the metrics of a step. They stay on their device, so that nothing waits for a GPU."""
        self._gathered.append(values)
        self.steps, self.consecutive = self.steps + 1, 0

    def skip(self, names: list[str]) -> None:
        """Count a skipped step."""
        self.steps, self.skipped, self.consecutive = self.steps + 1, self.skipped + 1, self.consecutive + 1
        self.broken = list(dict.fromkeys([*self.broken, *names]))

    def report(self) -> dict[str, float]:
        """The mean of each metric over the steps that have it, and `skipped`; then reset all of them."""
        self._add_up()
        means = {name: self._sums[name] / self._counts[name] for name in self._sums}
        # Rounded to single precision, in which a sum in two parts is the sum in one.
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
        """The whole state as plain values."""
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
        for name in dict.fromkeys(name for values in self._gathered for name in values):
            numbers = torch.stack([values[name] for values in self._gathered if name in values]).double().tolist()
            self._sums[name] = math.fsum([self._sums.get(name, 0.0), *numbers])
            self._counts[name] = self._counts.get(name, 0) + len(numbers)
        self._gathered = []
