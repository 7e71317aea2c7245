"""What the experiment `quantizers` found, as the values of its page: bars, a table, curves, and images side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from smalti.experiments.base import ExperimentRequest, StepResult
from smalti.experiments.page_parts import hero, not_measured, protocol, remarks, side_by_side, whole_experiment
from smalti.experiments.tokenizer_comparison import LPIPS, SCORE_HEADERS, MeasuredTokenizer, measured_on
from smalti.reports.charts import Bars, Line, LinePlot
from smalti.reports.report import Card, Table
from smalti.training.run_folder import read_metrics


class _Entry(NamedTuple):
    """One quantizer."""

    measured: MeasuredTokenizer
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
    entries = [_entry(each.name, done) for each in settings.quantizers]
    best = max(entries, key=lambda entry: entry.scores["psnr"])
    with_lpips = [entry for entry in entries if LPIPS in entry.scores]
    return {
        "entries": entries,
        "best": best,
        "least": min(entries, key=lambda entry: entry.scores["psnr"]),
        "slow": min(entries, key=lambda entry: entry.speed),
        "fast": max(entries, key=lambda entry: entry.speed),
        "lpips": LPIPS,
        "nearest": min(with_lpips, key=lambda entry: entry.scores[LPIPS]) if len(with_lpips) == len(entries) else None,
        "images": measured_on(best.measured),
        "not_measured": not_measured(best.measured),
        "cards": _cards(entries, best, done),
        "hero": hero(best.measured),
        "side_by_side": side_by_side([(entry.name, entry.measured) for entry in entries]),
        "bars": _bars(entries),
        "table": _table(entries),
        "remarks": remarks([entry.measured for entry in entries]),
        "curves": _curves(entries),
        "protocol": protocol(best.measured),
    }


def _entry(name: str, done: Mapping[str, StepResult]) -> _Entry:
    measured, run = done[f"measure-{name}"], done[f"tokenizer-{name}"]
    validation = [line for line in read_metrics(run.folder) if line["part"] == "validation"]
    return _Entry(MeasuredTokenizer(name, measured.folder, measured.outcome), done[f"pace-{name}"].outcome, validation)


def _cards(entries: Sequence[_Entry], best: _Entry, done: Mapping[str, StepResult]) -> list[Card]:
    fullest = max(entries, key=lambda entry: entry.scores["perplexity"])
    fastest = max(entries, key=lambda entry: entry.speed)
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


def _bars(entries: Sequence[_Entry]) -> list[Bars]:
    scores = [name for name in ("psnr", LPIPS) if all(name in entry.scores for entry in entries)]
    return [
        *(Bars(SCORE_HEADERS[name], [(entry.name, entry.scores[name]) for entry in entries]) for name in scores),
        Bars("Codes in use", [(entry.name, 100 * entry.scores["codes_in_use"]) for entry in entries], unit="%"),
        Bars("Perplexity of codes", [(entry.name, entry.scores["perplexity"]) for entry in entries]),
        Bars("Training, images per second", [(entry.name, entry.speed) for entry in entries]),
    ]


def _table(entries: Sequence[_Entry]) -> Table:
    scores = [name for name in SCORE_HEADERS if any(name in entry.scores for entry in entries)]
    head = [
        "quantizer",
        "K",
        *(SCORE_HEADERS[name] for name in scores),
        "loss",
        "in use",
        "perplexity",
        "images/s",
        "weights",
    ]
    rows: list[list[str | int | float]] = [
        [
            entry.name,
            entry.measured.outcome["codes"],
            *(entry.scores.get(name, math.nan) for name in scores),
            entry.validation[-1]["reconstruction"],
            f"{entry.scores['codes_in_use']:.1%}",
            entry.scores["perplexity"],
            entry.speed,
            entry.measured.outcome["parameters"],
        ]
        for entry in entries
    ]
    return Table(head, rows)


def _curves(entries: Sequence[_Entry]) -> list[LinePlot]:
    return [
        LinePlot(
            title,
            [Line(entry.name, [(line["seen"], line[name]) for line in entry.validation]) for entry in entries],
            x_label="images seen",
            y_label=unit,
        )
        for title, name, unit in (
            ("PSNR of held-out images", "psnr", "dB"),
            ("Perplexity of codes", "perplexity", "codes"),
        )
    ]
