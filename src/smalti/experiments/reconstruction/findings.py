"""What the experiment `reconstruction` found, as the values of its page: side by side, in details, in a table, and as
bits against distortion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from smalti.experiments.base import ExperimentRequest, StepResult
from smalti.experiments.page_parts import hero, not_measured, protocol, remarks, side_by_side, whole_experiment
from smalti.experiments.tokenizer_comparison import (
    FEATURES,
    LPIPS,
    SCORE_HEADERS,
    Difference,
    MeasuredTokenizer,
    difference,
    measured_on,
    with_error,
)
from smalti.experiments.tokenizer_measurement import TIMED
from smalti.reports.charts import Bars, Line, LinePlot, Plot
from smalti.reports.report import Card, Table
from smalti.training.run_folder import read_metrics

F_AND_K = {
    "model.autoencoder.patch_size",
    "model.autoencoder.channel_multipliers",
    "model.autoencoder.attention_levels",
    "model.quantizer.codebook_size",
}
"""Tokenizers that differ in these settings alone differ in f and K alone."""


def findings(settings: Any, request: ExperimentRequest, done: Mapping[str, StepResult]) -> dict[str, Any]:
    """The finished steps of the experiment -> the values of its page."""
    named = [(step.removeprefix("measure-"), each) for step, each in done.items() if step.startswith("measure-")]
    tokenizers = sorted(
        (MeasuredTokenizer(name, each.folder, each.outcome) for name, each in named),
        key=lambda tokenizer: tokenizer.outcome["bits_per_image"],
    )
    best = max(tokenizers, key=lambda tokenizer: tokenizer.scores["psnr"])
    trained = not request.models
    changes = [change.partition("=")[0] for each in settings.tokenizers for change in each.changes]
    grid = trained and set(changes) <= F_AND_K
    with_lpips = [tokenizer for tokenizer in tokenizers if LPIPS in tokenizer.scores]
    return {
        "tokenizers": tokenizers,
        "best": best,
        "least": tokenizers[0],
        "rival": _rival(tokenizers, best),
        "lpips": LPIPS,
        "nearest": min(with_lpips, key=lambda tokenizer: tokenizer.scores[LPIPS]) if len(with_lpips) > 1 else None,
        "steps_up": _steps_up(tokenizers) if grid else [],
        "trained": trained,
        "grid": grid,
        "images": measured_on(best),
        "timed": TIMED,
        "not_measured": not_measured(best),
        "cards": _cards(tokenizers, best, done),
        "hero": hero(best),
        "side_by_side": side_by_side(
            [
                (tokenizer.name if trained else f"{tokenizer.name}: {tokenizer.kind}", tokenizer)
                for tokenizer in reversed(tokenizers)
            ]
        ),
        "distortion": _distortion(tokenizers, grid=grid),
        "table": _table(tokenizers),
        "pairs": _pairs(tokenizers),
        "remarks": remarks(tokenizers),
        "training": _training(tokenizers, done) if trained else [],
        "protocol": protocol(tokenizers[0]),
    }


class _Rival(NamedTuple):
    """The tokenizer that is next to the best by PSNR."""

    name: str
    gain: Difference
    """By how much the best is above it."""
    spread: str
    alike: bool
    """Whether that is within two standard errors."""


def _rival(tokenizers: Sequence[MeasuredTokenizer], best: MeasuredTokenizer) -> _Rival | None:
    rivals = [tokenizer for tokenizer in tokenizers if tokenizer is not best]
    if not rivals:
        return None
    next_best = max(rivals, key=lambda tokenizer: tokenizer.scores["psnr"])
    gain = difference(best.columns["psnr"], next_best.columns["psnr"])
    return _Rival(next_best.name, gain, with_error(gain), abs(gain.mean) < 2 * gain.error)


class _StepUp(NamedTuple):
    """What a smaller f or a larger K brings where all else is equal."""

    change: str
    gains: str
    """In dB."""
    bits: str
    """Times as many."""


def _steps_up(tokenizers: Sequence[MeasuredTokenizer]) -> list[_StepUp]:
    by_kind = {(tokenizer.outcome["factor"], tokenizer.outcome["codes"]): tokenizer for tokenizer in tokenizers}
    factors, sizes = sorted({f for f, _ in by_kind}), sorted({K for _, K in by_kind})
    steps = []
    for change, pairs in (
        ("the next smaller f", [((large, K), (small, K)) for small, large in pairwise(factors) for K in sizes]),
        ("the next larger K", [((f, small), (f, large)) for small, large in pairwise(sizes) for f in factors]),
    ):
        found = [(by_kind[a], by_kind[b]) for a, b in pairs if a in by_kind and b in by_kind]
        if found:
            gains = [b.scores["psnr"] - a.scores["psnr"] for a, b in found]
            bits = [b.outcome["bits_per_image"] / a.outcome["bits_per_image"] for a, b in found]
            steps.append(_StepUp(change, _range(gains, ".2f"), _range(bits, ".3g")))
    return steps


def _range(values: Sequence[float], digits: str) -> str:
    low, high = (f"{value:{digits}}".replace("-", "\u2212") for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _cards(
    tokenizers: Sequence[MeasuredTokenizer], best: MeasuredTokenizer, done: Mapping[str, StepResult]
) -> list[Card]:
    least = tokenizers[0]
    return [
        Card(f"Most is kept by {best.name}", f"{best.scores['psnr']:.2f}", unit="dB PSNR"),
        Card(f"The fewest bits: {least.name}", f"{least.outcome['bits_per_image']:,.0f}", unit="bits per image"),
        Card("What those keep", f"{least.scores['psnr']:.2f}", unit="dB PSNR"),
        whole_experiment(done),
    ]


def _distortion(tokenizers: Sequence[MeasuredTokenizer], *, grid: bool) -> list[Plot]:
    plots: list[Plot] = []
    # On a grid those that share f differ in K alone, so that a line between them means something.
    groups: dict[str, list[MeasuredTokenizer]] = {}
    for tokenizer in tokenizers:
        groups.setdefault(f"f{tokenizer.outcome['factor']}" if grid else tokenizer.name, []).append(tokenizer)
    for score, label in SCORE_HEADERS.items():
        if score != FEATURES and all(score in tokenizer.scores for tokenizer in tokenizers):
            lines = [
                Line(name, [(tokenizer.outcome["bits_per_pixel"], tokenizer.scores[score]) for tokenizer in group])
                for name, group in groups.items()
            ]
            better = "lower is better" if score == LPIPS else "higher is better"
            unit = "dB" if score == "psnr" else label
            plots.append(LinePlot(f"{label}: {better}", lines, x_label="bits per pixel", y_label=unit))
    use = [(tokenizer.name, 100 * tokenizer.scores["codes_in_use"]) for tokenizer in tokenizers]
    return [*plots, Bars("Codes in use on these images", use, unit="%")]


def _table(tokenizers: Sequence[MeasuredTokenizer]) -> Table:
    scores = [name for name in SCORE_HEADERS if any(name in tokenizer.scores for tokenizer in tokenizers)]
    head = ["tokenizer", "f", "K", "bits", "bits per pixel", *(SCORE_HEADERS[name] for name in scores)]
    rows: list[list[str | int | float]] = []
    for tokenizer in tokenizers:
        values = [tokenizer.scores.get(name, math.nan) for name in scores]
        rest = [
            f"{tokenizer.scores['codes_in_use']:.1%}",
            1000 * tokenizer.outcome["seconds_per_image"],
            tokenizer.outcome["parameters"],
        ]
        bits = [round(tokenizer.outcome["bits_per_image"]), tokenizer.outcome["bits_per_pixel"]]
        rows.append([tokenizer.name, tokenizer.outcome["factor"], tokenizer.outcome["codes"], *bits, *values, *rest])
    return Table([*head, "in use", "ms", "weights"], rows)


def _pairs(tokenizers: Sequence[MeasuredTokenizer]) -> Table:
    """From each tokenizer to that with the next more bits."""
    rows: list[list[str | int | float]] = []
    for less, more in pairwise(tokenizers):
        gain = difference(more.columns["psnr"], less.columns["psnr"])
        bits = more.outcome["bits_per_image"] / less.outcome["bits_per_image"]
        rows.append(
            [f"{less.name} to {more.name}", f"{bits:.3g} times", with_error(gain), f"{gain.above} of {gain.images}"]
        )
    return Table(["more bits", "bits", "PSNR gained, dB", "better on"], rows)


def _training(tokenizers: Sequence[MeasuredTokenizer], done: Mapping[str, StepResult]) -> list[Plot]:
    """How the tokenizers that the experiment trained came to be what they are."""
    lines, minutes = [], []
    for tokenizer in tokenizers:
        run = done[f"tokenizer-{tokenizer.name}"]
        points = [(line["seen"], line["psnr"]) for line in read_metrics(run.folder) if line["part"] == "validation"]
        lines.append(Line(tokenizer.name, points))
        minutes.append((tokenizer.name, run.seconds / 60))
    return [
        LinePlot("On the way, held-out images", lines, x_label="images seen", y_label="PSNR, dB"),
        Bars("Minutes of training", minutes),
    ]
