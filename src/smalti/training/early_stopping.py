"""The best validation of a run so far: which model is exported, when to stop, and when to warn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

from smalti.training.diagnostics import Diagnoses

RISEN = 0.01
"""Share by which the value must exceed its best at two validations in a row before overfitting is reported:
one may be chance."""


@final
class Best:
    """The smallest of the validated values of one name, how much had been seen then, and how many validations there
    were since."""

    def __init__(self, name: str, notes: Mapping[str, Any]) -> None:
        """`name`: of the value, "" where there is none. `notes`: what `notes()` gave, empty at the beginning."""
        self.name = name
        self.seen: int = notes.get("seen", 0)
        """How much had been seen at the best; 0 before there is one."""
        self.value: float = notes.get("value", math.inf)
        self.since: int = notes.get("since", 0)
        """Validations since the best."""

    def take(self, values: Mapping[str, float], *, seen: int) -> bool:
        """Validated numbers after `seen` -> whether they are the best so far. What is not a number never is."""
        value = values.get(self.name, math.nan)
        better = value < self.value
        if better:
            self.seen, self.value, self.since = seen, value, 0
        elif self.seen:
            self.since += 1
        return better

    def exhausted(self, patience: int) -> bool:
        """Whether `patience` validations in a row were no better; with 0 never."""
        return 0 < patience <= self.since

    def diagnose(self, values: Mapping[str, float]) -> Diagnoses:
        """Validated numbers that were taken -> "overfitting", where there is a best."""
        if not self.seen:
            return {}
        risen = values.get(self.name, math.nan) / self.value - 1
        if not (self.since > 1 and risen > RISEN):
            return {"overfitting": ""}
        return {
            "overfitting": f"{self.name} on held-out data are {risen:.1%} above their best ({self.value:.4g}, after "
            f"{self.seen:,}): the training now memorizes its data. The best model is kept. Give it more "
            "data or copies (encode.copies), more dropout (network.dropout), keep_probability below 1, a smaller "
            "network, or run.patience"
        }

    def described(self) -> dict[str, float]:
        """The best, as numbers that are written with the validation metrics; empty before the first."""
        return {f"best_{self.name}": self.value, "best_seen": self.seen} if self.seen else {}

    def notes(self) -> dict[str, Any]:
        """All of it, as plain values."""
        return {"seen": self.seen, "value": self.value, "since": self.since} if self.seen else {}
