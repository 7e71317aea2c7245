"""What the experiment `quantizers` found, as the values of its page: bars, a table, curves, and images side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from smalti.experiments.base import ExperimentRequest, StepResult
from smalti.experiments.page_parts import hero, not_measured, protocol, remarks, side_by_side, whole_experiment
from smalti.experiments.tokenizer_comparison import HEADS, LPIPS, Compared, measured_on
from smalti.reports.charts import Bars, Line, LinePlot
from smalti.reports.report import Card, Table
from smalti.training.run_folder import read_metrics


class _Entry(NamedTuple):
    """One quantizer."""

    measured: Compared
    pace: Mapping[str, Any]
    validation: Sequence[Mapping[str, Any]]
    """What its training saw on held-out images, oldest first."""

    @property
    def name(self) -> str:
        return self.measured.name

    @property
    def scores(self) -> Mapping[str, float]:
        return self.measured.scores

    @property
    def speed(self) -> float:
        """Images per second of training."""
        return 1 / float(self.pace["seconds_per_image"])


def findings(settings: Any, request: ExperimentRequest, done: Mapping[str, StepResult]) -> dict[str, Any]:
    """The finished steps of the experiment -> the values of its page."""
    found = [_one(each.name, done) for each in settings.quantizers]
    best = max(found, key=lambda one: one.scores["psnr"])
    with_lpips = [one for one in found if LPIPS in one.scores]
    return {
        "found": found,
        "best": best,
        "least": min(found, key=lambda one: one.scores["psnr"]),
        "slow": min(found, key=lambda one: one.speed),
        "fast": max(found, key=lambda one: one.speed),
        "lpips": LPIPS,
        "nearest": min(with_lpips, key=lambda one: one.scores[LPIPS]) if len(with_lpips) == len(found) else None,
        "images": measured_on(best.measured),
        "not_measured": not_measured(best.measured),
        "cards": _cards(found, best, done),
        "hero": hero(best.measured),
        "side_by_side": side_by_side([(one.name, one.measured) for one in found]),
        "bars": _bars(found),
        "table": _table(found),
        "remarks": remarks([one.measured for one in found]),
        "curves": _curves(found),
        "protocol": protocol(best.measured),
    }


def _one(name: str, done: Mapping[str, StepResult]) -> _Entry:
    measured, run = done[f"measure-{name}"], done[f"tokenizer-{name}"]
    validation = [line for line in read_metrics(run.folder) if line["part"] == "validation"]
    return _Entry(Compared(name, measured.folder, measured.outcome), done[f"pace-{name}"].outcome, validation)


def _cards(found: Sequence[_Entry], best: _Entry, done: Mapping[str, StepResult]) -> list[Card]:
    fullest = max(found, key=lambda one: one.scores["perplexity"])
    fastest = max(found, key=lambda one: one.speed)
    return [
        Card(f"Most is kept by {best.name}", f"{best.scores['psnr']:.2f}", unit="dB PSNR"),
        Card(
            f"The evenest use: {fullest.name}",
            f"{fullest.scores['perplexity']:.0f}",
            unit=f"perplexity of {fullest.measured.outcome['codes']:,} codes",
        ),
        Card(f"The fastest: {fastest.name}", f"{fastest.speed:.1f}", unit="images per second of training"),
        whole_experiment(done),
    ]


def _bars(found: Sequence[_Entry]) -> list[Bars]:
    scores = [name for name in ("psnr", LPIPS) if all(name in one.scores for one in found)]
    return [
        *(Bars(HEADS[name], [(one.name, one.scores[name]) for one in found]) for name in scores),
        Bars("Codes in use", [(one.name, 100 * one.scores["codes_in_use"]) for one in found], unit="%"),
        Bars("Perplexity of codes", [(one.name, one.scores["perplexity"]) for one in found]),
        Bars("Training, images per second", [(one.name, one.speed) for one in found]),
    ]


def _table(found: Sequence[_Entry]) -> Table:
    scores = [name for name in HEADS if any(name in one.scores for one in found)]
    head = ["quantizer", "K", *(HEADS[name] for name in scores), "loss", "in use", "perplexity", "images/s", "weights"]
    rows: list[list[str | int | float]] = [
        [
            one.name,
            one.measured.outcome["codes"],
            *(one.scores.get(name, math.nan) for name in scores),
            one.validation[-1]["reconstruction"],
            f"{one.scores['codes_in_use']:.1%}",
            one.scores["perplexity"],
            one.speed,
            one.measured.outcome["parameters"],
        ]
        for one in found
    ]
    return Table(head, rows)


def _curves(found: Sequence[_Entry]) -> list[LinePlot]:
    return [
        LinePlot(
            title,
            [Line(one.name, [(line["seen"], line[name]) for line in one.validation]) for one in found],
            x_label="images seen",
            y_label=unit,
        )
        for title, name, unit in (
            ("PSNR of held-out images", "psnr", "dB"),
            ("Perplexity of codes", "perplexity", "codes"),
        )
    ]
