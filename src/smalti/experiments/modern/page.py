"""The page of the experiment `modern-vs-reference`: images of both, their scores over time, and what each single change
costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from smalti.core.version import __version__
from smalti.experiments.base import ExperimentRequest, StepResult
from smalti.experiments.page_parts import counted, hero, made, minutes, not_measured, remarks, side_by_side
from smalti.experiments.tokenizer_comparison import FEATURES, HEADS, LPIPS, Compared, measured_on
from smalti.reports.charts import Bars, Line, LinePlot, Plot, Reference
from smalti.reports.report import Block, Card, Cards, Plots, Report, Section, Table, Text

MODERN, REFERENCE = "modern", "reference"
FAR = 0.15
"""Relative deviation of a training time above which the page reports it."""


def page(settings: Any, request: ExperimentRequest, done: Mapping[str, StepResult]) -> Report:
    """The finished steps of the experiment -> its page."""
    names = [REFERENCE, MODERN, *(each.name for each in settings.without)]
    first = settings.sets[0].name
    ours = _measured(done, first, MODERN)
    lead = (
        f"The original's way of training and the modern one, each for {settings.minutes:g} minutes on the "
        "same machine, with about "
        f"as many parameters, evaluated on the same held-out images."
    )
    sections = [
        Section("Findings and limitations", [Text(_findings(settings, done)), Text(_limitations(settings, done))])
    ]
    for each in settings.sets:
        sections += _sections(each.name, names, done)
    protocol = ours.outcome["result"]["protocol"]
    return Report(
        title="Modern against reference",
        lead=lead,
        blocks=[_cards(first, done)],
        hero=hero(ours),
        sections=[*sections, made("modern-vs-reference", settings, request, protocol=protocol)],
        colophon=f"Made by smalti {__version__}. All figures stand in result.json beside this page.",
    )


def _measured(done: Mapping[str, StepResult], given: str, name: str) -> Compared:
    step = done[f"measure-{given}-{name}"]
    return Compared(name, step.folder, step.outcome)


def _cards(given: str, done: Mapping[str, StepResult]) -> Cards:
    outcome = done[f"compare-{given}"].outcome
    rows, metric = outcome["rows"], outcome["metric"]
    share = rows[MODERN]["share"]
    seconds = sum(each.seconds for each in done.values())
    return Cards(
        [
            Card(f"{HEADS[metric]}, reference", f"{rows[REFERENCE][metric]:.4g}"),
            Card(f"{HEADS[metric]}, modern", f"{rows[MODERN][metric]:.4g}"),
            Card(
                f"Modern reaches the reference's last {HEADS[metric]} after",
                "never" if share is None else f"{share:.0%}",
                unit="" if share is None else "of its time",
            ),
            Card("Whole experiment", minutes(seconds), unit="minutes of work"),
        ]
    )


def _findings(settings: Any, done: Mapping[str, StepResult]) -> str:
    sentences = []
    for each in settings.sets:
        outcome = done[f"compare-{each.name}"].outcome
        rows, metric = outcome["rows"], outcome["metric"]
        better = "lower is better" if metric == LPIPS else "higher is better"
        sentences.append(
            f"On `{each.name}` the reference ends at {HEADS[metric]} {rows[REFERENCE][metric]:.4g} and the "
            "modern way at "
            f"{rows[MODERN][metric]:.4g} ({better}), with {rows[REFERENCE]['codes_in_use']:.0%} and "
            f"{rows[MODERN]['codes_in_use']:.0%} of their codes in use, after {rows[REFERENCE]['images']:,} and "
            f"{rows[MODERN]['images']:,} images."
        )
        over = rows[REFERENCE]["over_modern"].get(metric)
        if over is not None and abs(over[0]) < 2 * over[1]:
            sentences.append(
                "Image by image that is within two standard errors: the two do not differ significantly here."
            )
    return " ".join(sentences)


def _limitations(settings: Any, done: Mapping[str, StepResult]) -> str:
    sentences = [
        "Each was trained once, with one seed. Another seed moves the scores, by how much is not measured "
        "here: standard errors "
        "below are over images alone.",
        "What is better after so many minutes need not be better after days: the reference's learning "
        "rate is made for long runs.",
        "Equal are the time on this machine and the number of parameters, not the work an image takes; on "
        "a GPU both paces "
        "are others.",
    ]
    far = []
    for each in settings.sets:
        for name, row in done[f"compare-{each.name}"].outcome["rows"].items():
            if abs(row["seconds"] / (60 * settings.minutes) - 1) > FAR:
                far.append(f"{name} on `{each.name}` {minutes(row['seconds'])} minutes")
    if far:
        sentences.append(
            f"The speed of some trainings changed, so their durations deviate from the setting: {', '.join(far)}."
        )
    first = _measured(done, settings.sets[0].name, MODERN)
    if measured_on(first) < 2048:
        sentences.append(
            f"A Frechet distance over {counted(measured_on(first), 'image')} is biased and noisy; it ranks, at best."
        )
    return " ".join([*sentences, *not_measured(first)])


def _sections(given: str, names: Sequence[str], done: Mapping[str, StepResult]) -> list[Section]:
    """All that is shown of one set of images."""
    outcome = done[f"compare-{given}"].outcome
    rows, metric = outcome["rows"], outcome["metric"]
    both = [_measured(done, given, name) for name in (REFERENCE, MODERN)]
    found = [
        Section(f"Side by side: {given}", side_by_side([(one.name, one) for one in both])),
        Section(f"Over time: {given}", [_curves(given, names, done, metric), _table(rows, measured_on(both[0]))]),
    ]
    if len(names) > 2:
        found.append(Section(f"What single changes cost: {given}", _ablations(rows, metric)))
    notes = remarks([_measured(done, given, name) for name in names])
    return [*found, *([Section(f"Remarks: {given}", notes)] if notes else [])]


def _curves(given: str, names: Sequence[str], done: Mapping[str, StepResult], metric: str) -> Plots:
    plots: list[Plot] = []
    for score in dict.fromkeys((metric, "psnr")):
        for chosen, title in ((names[:2], ""), (names[1:], ", single changes")):
            if len(chosen) < 2:
                continue
            lines = [Line(name, _points(done, given, name, score)) for name in chosen]
            target = _points(done, given, REFERENCE, score)[-1][1]
            plots.append(
                LinePlot(
                    f"{HEADS[score]} of held-out images{title}",
                    lines,
                    x_label="minutes of training",
                    y_label=HEADS[score],
                    references=[Reference(target, "the reference at its end")],
                )
            )
    return Plots(
        plots, caption="LPIPS: lower is better; PSNR: higher is better. Time is that of the steps of training alone."
    )


def _points(done: Mapping[str, StepResult], given: str, name: str, score: str) -> list[tuple[float, float]]:
    curve = done[f"tokenizer-{given}-{name}"].outcome["curve"]
    return [(point["seconds"] / 60, point[score]) for point in curve]


def _table(rows: Mapping[str, Mapping[str, Any]], images: int) -> Table:
    scores = [score for score in HEADS if any(score in row for row in rows.values())]
    head = ["training", "parameters", "discriminator", "minutes", "images", *(HEADS[score] for score in scores)]
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
    return Table(
        [*head, "in use", "as good as the reference after"],
        body,
        caption=f"Means over {counted(images, 'held-out image')}. Minutes of training, as measured, and the images "
        "seen in "
        "them. Frechet: distance in SqueezeNet's features between the images and what returns. The last "
        "column is a share of the "
        "reference's time.",
    )


def _ablations(rows: Mapping[str, Mapping[str, Any]], metric: str) -> list[Block]:
    changed = {name: row for name, row in rows.items() if name != MODERN}
    scores = [score for score in HEADS if score != FEATURES and score in rows[MODERN]]
    body: list[list[str | int | float]] = [
        [
            name,
            *(_spread(row["over_modern"].get(score)) for score in scores),
            f"{100 * (row['codes_in_use'] - rows[MODERN]['codes_in_use']):+.1f} %".replace("-", "\u2212"),
            f"{row['images'] / rows[MODERN]['images']:.2f} times",
        ]
        for name, row in changed.items()
    ]
    table = Table(
        ["without", *(HEADS[score] for score in scores), "codes in use", "images seen"],
        body,
        caption="What is measured less what modern reaches in the same time: mean difference over the same images "
        "and its "
        "standard error. Each row is modern with one change back to the original's choice; the first is "
        "the reference itself.",
    )
    bars = [(name, row[metric] - rows[MODERN][metric]) for name, row in changed.items()]
    return [table, Plots([Bars(f"{HEADS[metric]}, less modern's", bars)])]


def _spread(values: Sequence[float] | None) -> str:
    """A mean and its standard error -> as a cell."""
    if values is None:
        return "\u2013"
    return f"{values[0]:+.3f} ± {values[1]:.3f}".replace("-", "\u2212")
