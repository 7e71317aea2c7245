"""What the experiment `modern-vs-reference` found, as the values of its page: images of both, their scores over time,
and what each single change costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from smalti.experiments.base import ExperimentRequest, StepResult
from smalti.experiments.page_parts import (
    SideBySide,
    hero,
    not_measured,
    protocol,
    remarks,
    side_by_side,
    whole_experiment,
)
from smalti.experiments.tokenizer_comparison import FEATURES, LPIPS, SCORE_HEADERS, MeasuredTokenizer, measured_on
from smalti.reports.charts import Bars, Line, LinePlot, Reference
from smalti.reports.number_format import minutes
from smalti.reports.report import Card, Table

MODERN, REFERENCE = "modern", "reference"
FAR = 0.15
"""Relative deviation of a training time above which the page reports it."""

Rows = Mapping[str, Mapping[str, Any]]


class _Set(NamedTuple):
    """All that the page shows of one set of images."""

    name: str
    metric: str
    reference: Mapping[str, Any]
    modern: Mapping[str, Any]
    alike: bool
    """Whether the two do not differ by more than two standard errors."""
    images: int
    side_by_side: SideBySide
    curves: Sequence[LinePlot]
    table: Table
    ablations: Table | None
    bars: Bars
    remarks: Table


def findings(settings: Any, request: ExperimentRequest, done: Mapping[str, StepResult]) -> dict[str, Any]:
    """The finished steps of the experiment -> the values of its page."""
    names = [REFERENCE, MODERN, *(each.name for each in settings.without)]
    first = _measured(done, settings.sets[0].name, MODERN)
    return {
        "sets": [_set(each.name, names, done) for each in settings.sets],
        "heads": SCORE_HEADERS,
        "lower_is_better": LPIPS,
        "deviating": _deviating(settings, done),
        "images": measured_on(first),
        "not_measured": not_measured(first),
        "cards": _cards(settings.sets[0].name, done),
        "hero": hero(first),
        "protocol": protocol(first),
    }


def _measured(done: Mapping[str, StepResult], given: str, name: str) -> MeasuredTokenizer:
    step = done[f"measure-{given}-{name}"]
    return MeasuredTokenizer(name, step.folder, step.outcome)


def _cards(given: str, done: Mapping[str, StepResult]) -> list[Card]:
    outcome = done[f"compare-{given}"].outcome
    rows, metric = outcome["rows"], outcome["metric"]
    share = rows[MODERN]["share"]
    return [
        Card(f"{SCORE_HEADERS[metric]}, reference", f"{rows[REFERENCE][metric]:.4g}"),
        Card(f"{SCORE_HEADERS[metric]}, modern", f"{rows[MODERN][metric]:.4g}"),
        Card(
            f"Modern reaches the reference's last {SCORE_HEADERS[metric]} after",
            "never" if share is None else f"{share:.0%}",
            unit="" if share is None else "of its time",
        ),
        whole_experiment(done),
    ]


def _deviating(settings: Any, done: Mapping[str, StepResult]) -> list[tuple[str, str, float]]:
    """The trainings that lasted far longer or shorter than set: (training, set of images, seconds)."""
    return [
        (name, each.name, row["seconds"])
        for each in settings.sets
        for name, row in done[f"compare-{each.name}"].outcome["rows"].items()
        if abs(row["seconds"] / (60 * settings.minutes) - 1) > FAR
    ]


def _set(given: str, names: Sequence[str], done: Mapping[str, StepResult]) -> _Set:
    outcome = done[f"compare-{given}"].outcome
    rows, metric = outcome["rows"], outcome["metric"]
    both = [_measured(done, given, name) for name in (REFERENCE, MODERN)]
    over = rows[REFERENCE]["over_modern"].get(metric)
    changed = {name: row for name, row in rows.items() if name != MODERN}
    return _Set(
        name=given,
        metric=metric,
        reference=rows[REFERENCE],
        modern=rows[MODERN],
        alike=over is not None and abs(over[0]) < 2 * over[1],
        images=measured_on(both[0]),
        side_by_side=side_by_side([(one.name, one) for one in both]),
        curves=_curves(given, names, done, metric),
        table=_table(rows),
        ablations=_ablations(changed, rows[MODERN]) if len(names) > 2 else None,
        bars=Bars(
            f"{SCORE_HEADERS[metric]}, less modern's",
            [(name, row[metric] - rows[MODERN][metric]) for name, row in changed.items()],
        ),
        remarks=remarks([_measured(done, given, name) for name in names]),
    )


def _curves(given: str, names: Sequence[str], done: Mapping[str, StepResult], metric: str) -> list[LinePlot]:
    plots = []
    for score in dict.fromkeys((metric, "psnr")):
        for chosen, title in ((names[:2], ""), (names[1:], ", single changes")):
            if len(chosen) < 2:
                continue
            lines = [Line(name, _points(done, given, name, score)) for name in chosen]
            target = _points(done, given, REFERENCE, score)[-1][1]
            plots.append(
                LinePlot(
                    f"{SCORE_HEADERS[score]} of held-out images{title}",
                    lines,
                    x_label="minutes of training",
                    y_label=SCORE_HEADERS[score],
                    references=[Reference(target, "the reference at its end")],
                )
            )
    return plots


def _points(done: Mapping[str, StepResult], given: str, name: str, score: str) -> list[tuple[float, float]]:
    curve = done[f"tokenizer-{given}-{name}"].outcome["curve"]
    return [(point["seconds"] / 60, point[score]) for point in curve]


def _table(rows: Rows) -> Table:
    scores = [score for score in SCORE_HEADERS if any(score in row for row in rows.values())]
    head = ["training", "parameters", "discriminator", "minutes", "images", *(SCORE_HEADERS[score] for score in scores)]
    body: list[list[str | int | float]] = [
        [
            name,
            row["parameters"],
            row["discriminator_parameters"],
            minutes(row["seconds"]),
            row["images"],
            *(row.get(score, math.nan) for score in scores),
            f"{row['codes_in_use']:.1%}",
            "never" if row["share"] is None else f"{row['share']:.0%}",
        ]
        for name, row in rows.items()
    ]
    return Table([*head, "in use", "as good as the reference after"], body)


def _ablations(changed: Rows, modern: Mapping[str, Any]) -> Table:
    scores = [score for score in SCORE_HEADERS if score != FEATURES and score in modern]
    body: list[list[str | int | float]] = [
        [
            name,
            *(_with_error(row["over_modern"].get(score)) for score in scores),
            f"{100 * (row['codes_in_use'] - modern['codes_in_use']):+.1f} %".replace("-", "\u2212"),
            f"{row['images'] / modern['images']:.2f} times",
        ]
        for name, row in changed.items()
    ]
    return Table(["without", *(SCORE_HEADERS[score] for score in scores), "codes in use", "images seen"], body)


def _with_error(values: Sequence[float] | None) -> str:
    """A mean and its standard error -> as a cell."""
    if values is None:
        return "\u2013"
    return f"{values[0]:+.3f} ± {values[1]:.3f}".replace("-", "\u2212")
