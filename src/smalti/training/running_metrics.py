"""What was measured since the last report, and how long training has taken: it goes through a stop and a resume unharmed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

Numbers = dict[str, Tensor]


@final
class Record:
    """The steps since the last report: their numbers, those that were skipped, and the seconds of training so far."""

    def __init__(self, notes: Mapping[str, Any]) -> None:
        """`notes`: what `notes()` gave when the state was saved; empty at the beginning, and for states of smalti 0.1."""
        self._sums: dict[str, float] = dict(notes.get("sums", {}))
        self._counts: dict[str, int] = dict(notes.get("counts", {}))
        self._gathered: list[Numbers] = []
        self.steps: int = notes.get("steps", 0)
        self.skipped: int = notes.get("skipped", 0)
        """Steps since the last report that were left out because numbers of them are not finite."""
        self.in_a_row: int = notes.get("in_a_row", 0)
        """How many of the last steps were left out, without one between them that was not."""
        self.broken: list[str] = list(notes.get("broken", []))
        """The names of those numbers."""
        self._elapsed: float = notes.get("elapsed", 0.0)
        self._began = time.monotonic()

    def add(self, values: Numbers) -> None:
        """A step was made. The numbers stay where they are: nothing waits for a GPU."""
        self._gathered.append(values)
        self.steps, self.in_a_row = self.steps + 1, 0

    def skip(self, names: list[str]) -> None:
        """A step was left out."""
        self.steps, self.skipped, self.in_a_row = self.steps + 1, self.skipped + 1, self.in_a_row + 1
        self.broken = list(dict.fromkeys([*self.broken, *names]))

    def report(self) -> dict[str, float]:
        """The mean of each number over the steps that have it, and `skipped`; the next steps begin anew."""
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
        """All of it, as plain values."""
        self._add_up()
        return {
            "sums": self._sums,
            "counts": self._counts,
            "steps": self.steps,
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "broken": self.broken,
            "elapsed": self.elapsed,
        }

    def _add_up(self) -> None:
        for name in dict.fromkeys(name for values in self._gathered for name in values):
            numbers = torch.stack([values[name] for values in self._gathered if name in values]).double().tolist()
            self._sums[name] = math.fsum([self._sums.get(name, 0.0), *numbers])
            self._counts[name] = self._counts.get(name, 0) + len(numbers)
        self._gathered = []
