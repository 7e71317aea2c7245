"""The page of the experiment `reconstruction`: side by side, in details, in a table, and as bits against distortion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from smalti.core.version import __version__
from smalti.experiments.base import ExperimentRequest, StepResult
from smalti.experiments.page_parts import counted, hero, made, minutes, remarks, side_by_side
from smalti.experiments.reconstruction.findings import findings, limitations
from smalti.experiments.tokenizer_comparison import FEATURES, HEADS, LPIPS, Compared, difference, measured_on, spread
from smalti.experiments.tokenizer_measurement import TIMED
from smalti.reports.charts import Bars, Line, LinePlot, Plot
from smalti.reports.report import Block, Card, Cards, Plots, Report, Section, Table, Text
from smalti.training.run_folder import read_metrics

F_AND_K = {
    "model.autoencoder.patch_size",
    "model.autoencoder.channel_multipliers",
    "model.autoencoder.attention_levels",
    "model.quantizer.codebook_size",
}
"""Tokenizers that differ in these settings alone differ in f and K alone."""


def page(settings: Any, request: ExperimentRequest, done: Mapping[str, StepResult]) -> Report:
    """The finished steps of the experiment -> its page."""
    named = [(step.removeprefix("measure-"), each) for step, each in done.items() if step.startswith("measure-")]
    compared = sorted(
        (Compared(name, each.folder, each.outcome) for name, each in named),
        key=lambda one: one.outcome["bits_per_image"],
    )
    best = max(compared, key=lambda one: one.scores["psnr"])
    trained = not request.models
    changes = [change.partition("=")[0] for each in settings.tokenizers for change in each.changes]
    grid = trained and set(changes) <= F_AND_K
    lead = (
        f"{counted(len(compared), 'tokenizer')}, the same {counted(measured_on(best), 'image')}: each "
        "image is turned into "
        "codes and back, and what returns is set beside what was sent."
    )
    best_first = list(reversed(compared))
    rows = [(one.name if trained else f"{one.name}: {one.kind}", one) for one in best_first]
    return Report(
        title="What is kept of an image",
        lead=lead,
        blocks=[_cards(compared, best, done)],
        hero=hero(best),
        sections=[
            Section(
                "Findings and limitations",
                [Text(findings(compared, best, grid=grid)), Text(limitations(best, trained=trained))],
            ),
            Section("Side by side", [Text("The most bits stand above."), *side_by_side(rows)]),
            Section("Bits and distortion", _distortion(compared, grid=grid)),
            Section("The table", _tables(compared)),
            *([_training(compared, done)] if trained else []),
            made(
                "reconstruction",
                settings,
                request,
                protocol=compared[0].outcome["result"]["protocol"],
                others=[
                    (
                        "smalti experiment reconstruction MODEL MODEL --data IMAGES --out OUT",
                        "Tokenizers of your own.",
                    )
                ],
            ),
        ],
        colophon=f"Made by smalti {__version__}. All figures stand in result.json beside this page.",
    )


def _cards(compared: Sequence[Compared], best: Compared, done: Mapping[str, StepResult]) -> Cards:
    least = compared[0]
    seconds = sum(each.seconds for each in done.values())
    return Cards(
        [
            Card(f"Most is kept by {best.name}", f"{best.scores['psnr']:.2f}", unit="dB PSNR"),
            Card(f"The fewest bits: {least.name}", f"{least.outcome['bits_per_image']:,.0f}", unit="bits per image"),
            Card("What those keep", f"{least.scores['psnr']:.2f}", unit="dB PSNR"),
            Card("Whole experiment", minutes(seconds), unit="minutes of work"),
        ]
    )


def _distortion(compared: Sequence[Compared], *, grid: bool) -> list[Block]:
    plots: list[Plot] = []
    # On a grid those that share f differ in K alone, so that a line between them means something.
    groups: dict[str, list[Compared]] = {}
    for one in compared:
        groups.setdefault(f"f{one.outcome['factor']}" if grid else one.name, []).append(one)
    for score, label in HEADS.items():
        if score != FEATURES and all(score in one.scores for one in compared):
            lines = [
                Line(name, [(one.outcome["bits_per_pixel"], one.scores[score]) for one in group])
                for name, group in groups.items()
            ]
            better = "lower is better" if score == LPIPS else "higher is better"
            unit = "dB" if score == "psnr" else label
            plots.append(LinePlot(f"{label}: {better}", lines, x_label="bits per pixel", y_label=unit))
    use = [(one.name, 100 * one.scores["codes_in_use"]) for one in compared]
    plots.append(Bars("Codes in use on these images", use, unit="%"))
    sentences = "A line joins tokenizers of one f; to the right K grows." if grid else "Each dot is a tokenizer."
    return [Plots(plots, caption=f"{sentences} The figure beside a name is its last value. A code counts log2 K bits.")]


def _tables(compared: Sequence[Compared]) -> list[Block]:
    scores = [name for name in HEADS if any(name in one.scores for one in compared)]
    head = ["tokenizer", "f", "K", "bits", "bits per pixel", *(HEADS[name] for name in scores)]
    head += ["in use", "ms", "weights"]
    rows: list[list[str | int | float]] = []
    for one in compared:
        values = [one.scores.get(name, math.nan) for name in scores]
        rest = [f"{one.scores['codes_in_use']:.1%}", 1000 * one.outcome["seconds_per_image"], one.outcome["parameters"]]
        bits = [round(one.outcome["bits_per_image"]), one.outcome["bits_per_pixel"]]
        rows.append([one.name, one.outcome["factor"], one.outcome["codes"], *bits, *values, *rest])
    device = compared[0].outcome["device"]
    blocks: list[Block] = [
        Table(
            head,
            rows,
            caption=f"Means over {measured_on(compared[0]):,} images: bits, PSNR in dB, SSIM, LPIPS over "
            "SqueezeNet. Frechet: "
            "distance in SqueezeNet's features between the images and what returns. In use: share of the "
            "codes on these "
            f"images. Milliseconds an image, there and back in batches of {TIMED} on {device}, whatever else "
            "the machine did.",
        )
    ]
    if len(compared) > 1:
        blocks.append(_pairs(compared))
    blocks += remarks(compared)
    return blocks


def _pairs(compared: Sequence[Compared]) -> Table:
    """From each tokenizer to that with the next more bits."""
    rows: list[list[str | int | float]] = []
    for less, more in pairwise(compared):
        gain = difference(more.columns["psnr"], less.columns["psnr"])
        bits = more.outcome["bits_per_image"] / less.outcome["bits_per_image"]
        rows.append(
            [f"{less.name} to {more.name}", f"{bits:.3g} times", spread(gain), f"{gain.above} of {gain.images}"]
        )
    return Table(
        ["more bits", "bits", "PSNR gained, dB", "better on"],
        rows,
        caption="What the next more bits buy on the same images: mean difference and its standard error.",
    )


def _training(compared: Sequence[Compared], done: Mapping[str, StepResult]) -> Section:
    """How the tokenizers that the experiment trained came to be what they are."""
    lines, minutes = [], []
    for one in compared:
        run = done[f"tokenizer-{one.name}"]
        points = [(line["seen"], line["psnr"]) for line in read_metrics(run.folder) if line["part"] == "validation"]
        lines.append(Line(one.name, points))
        minutes.append((one.name, run.seconds / 60))
    plots: list[Plot] = [
        LinePlot("On the way, held-out images", lines, x_label="images seen", y_label="PSNR, dB"),
        Bars("Minutes of training", minutes),
    ]
    return Section(
        "How they were trained", [Plots(plots, caption="Lines that still rise say that more training would help.")]
    )
