"""The page of the study `reconstruction`: side by side, in details, in a table, and as bits against distortion."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from smalti.evaluation.plots import Bars, Line, LinePlot, Plot
from smalti.evaluation.report import (
    Block,
    Card,
    Cards,
    Commands,
    Comparison,
    Listing,
    Picture,
    Plots,
    Report,
    Section,
    Table,
    Text,
)
from smalti.settings import as_mapping
from smalti.studies.base import Asked, Done
from smalti.studies.reconstruction_words import (
    FEATURES,
    HEADS,
    LPIPS,
    Compared,
    difference,
    hides,
    measured_on,
    shows,
    spread,
)
from smalti.training.config import as_yaml
from smalti.training.folder import read_metrics
from smalti.version import __version__

Pixels = npt.NDArray[np.uint8]

DETAIL = 4
"""A detail is this part of a side."""
F_AND_K = {"model.pyramid.stem", "model.pyramid.multipliers", "model.pyramid.attention", "model.quantizer.size"}
"""Tokenizers that differ in these settings alone differ in f and K alone."""
LONGEST = 12
"""Letters of a name below a picture."""
TIMED = 8
"""Pictures in the batch that is timed."""


def page(settings: Any, asked: Asked, done: Mapping[str, Done]) -> Report:
    """The finished steps of the study -> its page."""
    named = [(step.removeprefix("measure-"), each) for step, each in done.items() if step.startswith("measure-")]
    compared = sorted(
        (Compared(name, each.folder, each.outcome) for name, each in named),
        key=lambda one: one.outcome["bits_a_picture"],
    )
    best = max(compared, key=lambda one: one.scores["psnr"])
    trained = not asked.models
    changes = [change.partition("=")[0] for each in settings.tokenizers for change in each.changes]
    grid = trained and set(changes) <= F_AND_K
    lead = (
        f"{_counted(len(compared), 'tokenizer')}, the same {_counted(measured_on(best), 'picture')}: each picture is turned into "
        "codes and back, and what returns is set beside what was sent."
    )
    shown = _read_shown(compared)
    return Report(
        title="What is kept of a picture",
        lead=lead,
        blocks=[_cards(compared, best, done)],
        hero=[Picture(pixels, f"{name}, from codes of {best.name}") for name, pixels in _hero(best)],
        sections=[
            Section(
                "What this shows, and what it does not",
                [Text(shows(compared, best, grid=grid)), Text(hides(best, trained=trained))],
            ),
            Section("Side by side", _side_by_side(compared, shown, trained=trained)),
            Section("Bits and distortion", _distortion(compared, grid=grid)),
            Section("The table", _tables(compared)),
            *([_training(compared, done)] if trained else []),
            _made(settings, asked, compared),
        ],
        colophon=f"Made by smalti {__version__}. All figures stand in result.json beside this page.",
    )


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _cards(compared: Sequence[Compared], best: Compared, done: Mapping[str, Done]) -> Cards:
    least = compared[0]
    seconds = sum(each.seconds for each in done.values())
    return Cards(
        [
            Card(f"Most is kept by {best.name}", f"{best.scores['psnr']:.2f}", unit="dB PSNR"),
            Card(f"The fewest bits: {least.name}", f"{least.outcome['bits_a_picture']:,.0f}", unit="bits a picture"),
            Card("What those keep", f"{least.scores['psnr']:.2f}", unit="dB PSNR"),
            Card("Whole study", f"{seconds / 60:.1f}", unit="minutes of work"),
        ]
    )


def _hero(best: Compared) -> list[tuple[str, Pixels]]:
    return [
        (shown["name"], _pixels(best.folder / "shown" / f"{shown['number']:03d}.png"))
        for shown in best.outcome["shown"]
    ]


def _pixels(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image)


class Shown(NamedTuple):
    """One picture, as it was and as each tokenizer gives it back."""

    name: str
    place: int
    original: Pixels
    backs: dict[str, Pixels]


def _read_shown(compared: Sequence[Compared]) -> list[Shown]:
    """The pictures that all measuring steps have set down."""
    found = []
    for shown in compared[0].outcome["shown"]:
        number = f"{shown['number']:03d}"
        backs = {one.name: _pixels(one.folder / "shown" / f"{number}.png") for one in compared}
        original = _pixels(compared[0].folder / "shown" / f"{number}-original.png")
        found.append(Shown(shown["name"], shown["place"], original, backs))
    return found


def _side_by_side(compared: Sequence[Compared], shown: Sequence[Shown], *, trained: bool) -> list[Block]:
    best_first = list(reversed(compared))
    rows = [
        ("original", [Picture(each.original, f"{each.name}, original", caption=_short(each.name)) for each in shown])
    ]
    for one in best_first:
        values = one.columns["psnr"]
        pictures = [
            Picture(each.backs[one.name], f"{each.name}, by {one.name}", caption=f"{values[each.place]:.1f} dB")
            for each in shown
        ]
        rows.append((one.name if trained else f"{one.name}: {one.kind}", pictures))
    windows = [detail(each.original) for each in shown]
    close = [("original", [_cut(each.original, w, each.name) for each, w in zip(shown, windows, strict=True)])]
    for one in best_first:
        cuts = [_cut(each.backs[one.name], w, each.name) for each, w in zip(shown, windows, strict=True)]
        close.append((one.name, cuts))
    return [
        Comparison(
            rows, caption="Evenly spread over the pictures that were measured, not chosen. The most bits stand above."
        ),
        Comparison(
            close,
            caption="The part of each picture in which most happens, a quarter of a side; each pixel is a square.",
            scaling="pixelated",
        ),
    ]


def _short(key: str) -> str:
    """The name of a picture -> what fits below it; the whole stands in its description."""
    stem = PurePosixPath(key).stem
    return stem if len(stem) <= LONGEST else f"{stem[: LONGEST - 1]}…"


def detail(pixels: Pixels) -> tuple[slice, slice]:
    """A picture (H,W) or (H,W,3) -> the rows and columns of the part, a quarter of each side, with most edges in it."""
    grey = pixels.astype(np.float64).reshape(*pixels.shape[:2], -1).mean(2)
    edges = np.abs(np.diff(grey, axis=0, prepend=grey[:1])) + np.abs(np.diff(grey, axis=1, prepend=grey[:, :1]))
    h, w = (max(side // DETAIL, 1) for side in grey.shape)
    sums = np.pad(edges.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    within = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
    top, left = np.unravel_index(int(within.argmax()), within.shape)
    return slice(int(top), int(top) + h), slice(int(left), int(left) + w)


def _cut(pixels: Pixels, window: tuple[slice, slice], name: str) -> Picture:
    return Picture(np.ascontiguousarray(pixels[window]), f"a detail of {name}")


def _distortion(compared: Sequence[Compared], *, grid: bool) -> list[Block]:
    plots: list[Plot] = []
    # On a grid those that share f differ in K alone, so that a line between them means something.
    groups: dict[str, list[Compared]] = {}
    for one in compared:
        groups.setdefault(f"f{one.outcome['factor']}" if grid else one.name, []).append(one)
    for score, label in HEADS.items():
        if score != FEATURES and all(score in one.scores for one in compared):
            lines = [
                Line(name, [(one.outcome["bits_a_pixel"], one.scores[score]) for one in group])
                for name, group in groups.items()
            ]
            better = "lower is better" if score == LPIPS else "higher is better"
            unit = "dB" if score == "psnr" else label
            plots.append(LinePlot(f"{label}: {better}", lines, x_label="bits a pixel", y_label=unit))
    use = [(one.name, 100 * one.scores["codes_in_use"]) for one in compared]
    plots.append(Bars("Codes in use on these pictures", use, unit="%"))
    said = "A line joins tokenizers of one f; to the right K grows." if grid else "Each dot is a tokenizer."
    return [Plots(plots, caption=f"{said} The figure beside a name is its last value. A code counts log2 K bits.")]


def _tables(compared: Sequence[Compared]) -> list[Block]:
    scores = [name for name in HEADS if any(name in one.scores for one in compared)]
    head = ["tokenizer", "f", "K", "bits", "bits a pixel", *(HEADS[name] for name in scores)]
    head += ["in use", "ms", "weights"]
    rows: list[list[str | int | float]] = []
    for one in compared:
        values = [one.scores.get(name, math.nan) for name in scores]
        rest = [f"{one.scores['codes_in_use']:.1%}", 1000 * one.outcome["seconds_a_picture"], one.outcome["parameters"]]
        bits = [round(one.outcome["bits_a_picture"]), one.outcome["bits_a_pixel"]]
        rows.append([one.name, one.outcome["factor"], one.outcome["codes"], *bits, *values, *rest])
    device = compared[0].outcome["device"]
    remarks: dict[str, list[str]] = {}
    for one in compared:
        for note in one.outcome["result"]["notes"]:
            remarks.setdefault(note, []).append(one.name)
    blocks: list[Block] = [
        Table(
            head,
            rows,
            caption=f"Means over {measured_on(compared[0]):,} pictures: bits, PSNR in dB, SSIM, LPIPS over SqueezeNet. Frechet: "
            "distance in SqueezeNet's features between the pictures and what returns. In use: share of the codes on these "
            f"pictures. Milliseconds a picture, there and back in batches of {TIMED} on {device}, whatever else the machine did.",
        )
    ]
    if len(compared) > 1:
        blocks.append(_pairs(compared))
    if remarks:
        said = [[note, "all" if len(names) == len(compared) else ", ".join(names)] for note, names in remarks.items()]
        blocks.append(Table(["remark of the measuring", "on"], said))
    return blocks


def _pairs(compared: Sequence[Compared]) -> Table:
    """From each tokenizer to that with the next more bits."""
    rows: list[list[str | int | float]] = []
    for less, more in pairwise(compared):
        gain = difference(more.columns["psnr"], less.columns["psnr"])
        bits = more.outcome["bits_a_picture"] / less.outcome["bits_a_picture"]
        rows.append(
            [f"{less.name} to {more.name}", f"{bits:.3g} times", spread(gain), f"{gain.above} of {gain.pictures}"]
        )
    return Table(
        ["more bits", "bits", "PSNR gained, dB", "better on"],
        rows,
        caption="What the next more bits buy on the same pictures: mean difference and its standard error.",
    )


def _training(compared: Sequence[Compared], done: Mapping[str, Done]) -> Section:
    """How the tokenizers that the study trained came to be what they are."""
    lines, minutes = [], []
    for one in compared:
        run = done[f"tokenizer-{one.name}"]
        points = [(line["seen"], line["psnr"]) for line in read_metrics(run.folder) if line["part"] == "validation"]
        lines.append(Line(one.name, points))
        minutes.append((one.name, run.seconds / 60))
    plots: list[Plot] = [
        LinePlot("On the way, held-out pictures", lines, x_label="images seen", y_label="PSNR, dB"),
        Bars("Minutes of training", minutes),
    ]
    return Section(
        "How they were trained", [Plots(plots, caption="Lines that still rise say that more training would help.")]
    )


def _made(settings: Any, asked: Asked, compared: Sequence[Compared]) -> Section:
    words = ["smalti", "experiment", "reconstruction", *map(str, asked.models), "--scale", asked.scale]
    words += ["--data", str(asked.data)] if asked.data else []
    words += [word for override in asked.overrides for word in ("--set", override)]
    again = shlex.join([*words, "--out", "OUT"])
    return Section(
        "How this was made",
        [
            Commands(
                [
                    (again, "The same again; in the same folder, what is finished is not done again."),
                    (
                        "smalti experiment reconstruction MODEL MODEL --data PICTURES --out OUT",
                        "Tokenizers of your own.",
                    ),
                ]
            ),
            Listing(as_yaml(as_mapping(settings)), caption="The settings of the study."),
            Listing(
                as_yaml(
                    {
                        name: value
                        for name, value in compared[0].outcome["result"]["protocol"].items()
                        if value is not None
                    }
                ),
                caption="The protocol by which each tokenizer was measured.",
            ),
        ],
    )
