"""The page of the experiment `quantizers`: bars, a table, curves, and images side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from smalti.core.version import __version__
from smalti.experiments.base import ExperimentRequest, StepResult
from smalti.experiments.page_parts import counted, hero, made, minutes, not_measured, remarks, side_by_side
from smalti.experiments.tokenizer_comparison import HEADS, LPIPS, Compared, measured_on
from smalti.reports.charts import Bars, Line, LinePlot
from smalti.reports.report import Block, Card, Cards, Plots, Report, Section, Table, Text
from smalti.training.run_folder import read_metrics


class _Entry(NamedTuple):
    """One quantizer."""

    measured: Compared
    pace: Mapping[str, Any]
    validation: Sequence[Mapping[str, Any]]
    """What its training saw on held-out images, oldest first."""

    @property
    def speed(self) -> float:
        """Images per second of training."""
        return 1 / float(self.pace["seconds_per_image"])


def page(settings: Any, request: ExperimentRequest, done: Mapping[str, StepResult]) -> Report:
    """The finished steps of the experiment -> its page."""
    found = [_one(each.name, done) for each in settings.quantizers]
    best = max(found, key=lambda one: one.measured.scores["psnr"])
    count = counted(measured_on(best.measured), "held-out image")
    return Report(
        title="From features to codes",
        lead=f"{counted(len(found), 'quantizer')}, all else equal, trained on the same number of images and "
        f"evaluated on {count}.",
        blocks=[_cards(found, best, done)],
        hero=hero(best.measured),
        sections=[
            Section("Findings and limitations", [Text(_findings(found, best)), Text(_limitations(best))]),
            Section("Side by side", side_by_side([(one.measured.name, one.measured) for one in found])),
            Section("Quality, use, speed", [_bars(found), _table(found), *remarks([one.measured for one in found])]),
            Section("On the way", [_curves(found)]),
            made("quantizers", settings, request, protocol=best.measured.outcome["result"]["protocol"]),
        ],
        colophon=f"Made by smalti {__version__}. All figures stand in result.json beside this page.",
    )


def _one(name: str, done: Mapping[str, StepResult]) -> _Entry:
    measured, run = done[f"measure-{name}"], done[f"tokenizer-{name}"]
    validation = [line for line in read_metrics(run.folder) if line["part"] == "validation"]
    return _Entry(Compared(name, measured.folder, measured.outcome), done[f"pace-{name}"].outcome, validation)


def _cards(found: Sequence[_Entry], best: _Entry, done: Mapping[str, StepResult]) -> Cards:
    fullest = max(found, key=lambda one: one.measured.scores["perplexity"])
    fastest = max(found, key=lambda one: one.speed)
    return Cards(
        [
            Card(f"Most is kept by {best.measured.name}", f"{best.measured.scores['psnr']:.2f}", unit="dB PSNR"),
            Card(
                f"The evenest use: {fullest.measured.name}",
                f"{fullest.measured.scores['perplexity']:.0f}",
                unit=f"perplexity of {fullest.measured.outcome['codes']:,} codes",
            ),
            Card(f"The fastest: {fastest.measured.name}", f"{fastest.speed:.1f}", unit="images per second of training"),
            Card("Whole experiment", minutes(sum(each.seconds for each in done.values())), unit="minutes of work"),
        ]
    )


def _findings(found: Sequence[_Entry], best: _Entry) -> str:
    least = min(found, key=lambda one: one.measured.scores["psnr"])
    slow, fast = min(found, key=lambda one: one.speed), max(found, key=lambda one: one.speed)
    sentences = [
        f"By PSNR {best.measured.name} keeps most ({best.measured.scores['psnr']:.2f} dB) and "
        f"{least.measured.name} least "
        f"({least.measured.scores['psnr']:.2f} dB). Of the codes, "
        + ", ".join(f"{one.measured.name} has {one.measured.scores['codes_in_use']:.0%} in use" for one in found)
        + f". An image costs {slow.measured.name} {fast.speed / slow.speed:.2f} times the training time that "
        "it costs "
        f"{fast.measured.name}."
    ]
    if all(LPIPS in one.measured.scores for one in found):
        nearest = min(found, key=lambda one: one.measured.scores[LPIPS])
        sentences.append(f"By LPIPS {nearest.measured.name} is nearest ({nearest.measured.scores[LPIPS]:.3f}).")
    return " ".join(sentences)


def _limitations(best: _Entry) -> str:
    sentences = [
        "Each was trained once, with one seed, by settings that were chosen for nearest codes: none was "
        "tuned, and differences "
        "of a few tenths of a dB may be chance.",
        "Reconstruction is half of what codes are for: how easily a prior learns them is not measured here.",
        "Speed is that of whole training steps on this machine, whatever else it did.",
    ]
    return " ".join([*sentences, *not_measured(best.measured)])


def _bars(found: Sequence[_Entry]) -> Plots:
    scores = [name for name in ("psnr", LPIPS) if all(name in one.measured.scores for one in found)]
    bars = [Bars(HEADS[name], [(one.measured.name, one.measured.scores[name]) for one in found]) for name in scores]
    bars += [
        Bars(
            "Codes in use", [(one.measured.name, 100 * one.measured.scores["codes_in_use"]) for one in found], unit="%"
        ),
        Bars("Perplexity of codes", [(one.measured.name, one.measured.scores["perplexity"]) for one in found]),
        Bars("Training, images per second", [(one.measured.name, one.speed) for one in found]),
    ]
    return Plots(bars, caption="PSNR: higher is better; LPIPS: lower is better.")


def _table(found: Sequence[_Entry]) -> Block:
    scores = [name for name in HEADS if any(name in one.measured.scores for one in found)]
    head = [
        "quantizer",
        "K",
        *(HEADS[name] for name in scores),
        "loss",
        "in use",
        "perplexity",
        "images/s",
        "weights",
    ]
    rows: list[list[str | int | float]] = [
        [
            one.measured.name,
            one.measured.outcome["codes"],
            *(one.measured.scores.get(name, math.nan) for name in scores),
            one.validation[-1]["reconstruction"],
            f"{one.measured.scores['codes_in_use']:.1%}",
            one.measured.scores["perplexity"],
            one.speed,
            one.measured.outcome["parameters"],
        ]
        for one in found
    ]
    return Table(
        head,
        rows,
        caption="Means over the held-out images: PSNR in dB, SSIM, LPIPS over SqueezeNet. Frechet: distance in "
        "SqueezeNet's "
        "features between the images and what returns. Loss: pixel term (L1) and, where it is trained "
        "for, perceptual term, at "
        "the end of training.",
    )


def _curves(found: Sequence[_Entry]) -> Plots:
    plots = [
        LinePlot(
            title,
            [Line(one.measured.name, [(line["seen"], line[name]) for line in one.validation]) for one in found],
            x_label="images seen",
            y_label=unit,
        )
        for title, name, unit in (
            ("PSNR of held-out images", "psnr", "dB"),
            ("Perplexity of codes", "perplexity", "codes"),
        )
    ]
    return Plots(plots, caption="Lines that still rise say that more training would help.")
