"""What the experiment `transformer-vs-pixelsnail` found, as the values of its page: a table, curves over codes and over
seconds, samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from smalti.experiments.base import ExperimentRequest, StepResult
from smalti.experiments.page_parts import learning, pixels, whole_experiment
from smalti.reports.charts import Bars
from smalti.reports.number_format import minutes, signed
from smalti.reports.report import Card, EmbeddedImage, Table

PIXELSNAIL, SAME_STEPS, SAME_TIME = "pixelsnail", "transformer-steps", "transformer-time"
CONTENDERS = (SAME_STEPS, SAME_TIME, PIXELSNAIL)
"""In the order of the paper's columns."""
CALLED = {
    PIXELSNAIL: "PixelSNAIL",
    SAME_STEPS: "transformer, as many codes",
    SAME_TIME: "transformer, as long",
}
FAR = 0.15
"""Relative difference of training times above which the page reports it."""

Row = Mapping[str, Any]


class _Verdict(NamedTuple):
    """A transformer beside PixelSNAIL."""

    trained: str
    """Beginning of a sentence: for how long both have learned."""
    row: Row
    gain: float
    """Nats per code by which the transformer is better."""
    alike: bool
    """Whether that is within two standard errors."""


def findings(settings: Any, request: ExperimentRequest, done: Mapping[str, StepResult]) -> dict[str, Any]:
    """The finished steps of the experiment -> the values of its page."""
    outcome = done["compare"].outcome
    rows = outcome["rows"]
    curves = {CALLED[name]: done[f"prior-{name}"].outcome["curve"] for name in CONTENDERS}
    return {
        "outcome": outcome,
        "transformer": rows[SAME_STEPS],
        "transformer_time": rows[SAME_TIME],
        "pixelsnail": rows[PIXELSNAIL],
        "verdicts": [
            _verdict("After as many codes", rows[SAME_STEPS]),
            _verdict("After as long a time", rows[SAME_TIME]),
        ],
        "pace_changed": abs(rows[SAME_TIME]["seconds"] / rows[PIXELSNAIL]["seconds"] - 1) > FAR,
        "cards": _cards(rows, done),
        "bars": [
            Bars(
                "Held-out codes, lower is better",
                [(CALLED[name], float(rows[name]["nats"])) for name in CONTENDERS],
                unit="nats",
            )
        ],
        "table": _table(outcome),
        "curves": learning(
            curves,
            entropy=outcome["code_entropy_nats"],
            over={"codes": "Held-out codes over codes", "seconds": "Held-out codes over time"},
        ),
        "samples": _samples(done),
    }


def _verdict(trained: str, row: Row) -> _Verdict:
    gain = -row["over_pixelsnail"]
    return _Verdict(trained, row, gain, row["error"] is not None and abs(gain) < 2 * row["error"])


def _cards(rows: Mapping[str, Row], done: Mapping[str, StepResult]) -> list[Card]:
    found = [Card(CALLED[name], f"{rows[name]['nats']:.3f}", unit="nats per code") for name in CONTENDERS]
    slower = seconds_per_code(rows[PIXELSNAIL]) / seconds_per_code(rows[SAME_STEPS])
    return [
        *found,
        Card("A code of training costs PixelSNAIL", f"{slower:.2f}", unit="times what it costs the transformer"),
        whole_experiment(done),
    ]


def seconds_per_code(row: Row) -> float:
    """Seconds of training a code."""
    return float(row["seconds"]) / float(row["codes"])


def _table(outcome: Mapping[str, Any]) -> Table:
    head = ["prior", "parameters", "codes seen", "minutes", "nats per code", "less PixelSNAIL's", "of entropy"]
    body: list[list[str | int | float]] = [
        [
            CALLED[name],
            row["parameters"],
            row["codes"],
            minutes(row["seconds"]),
            row["nats"],
            signed(row["over_pixelsnail"], row["error"]),
            f"{row['nats'] / max(outcome['code_entropy_nats'], 1e-9):.1%}",
            row["last_nats"],
        ]
        for name, row in ((name, outcome["rows"][name]) for name in CONTENDERS)
    ]
    return Table([*head, "at the end"], body)


def _samples(done: Mapping[str, StepResult]) -> list[EmbeddedImage]:
    found = []
    for name in CONTENDERS:
        file = sorted((done[f"prior-{name}"].folder / "images").glob("*.png"))[-1]
        found.append(EmbeddedImage(pixels(file), f"samples of the {CALLED[name]}", caption=CALLED[name]))
    return found
