"""The page of the study `conditions`: what was asked for, what was laid, and how far it is obeyed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from smalti.core.version import __version__
from smalti.experiments.base import Asked, Done
from smalti.experiments.page_parts import counted, made, minutes, pixels
from smalti.reports.charts import Line, LinePlot
from smalti.reports.report import (
    Block,
    Card,
    Cards,
    Comparison,
    EmbeddedImage,
    Plots,
    Report,
    Section,
    Table,
    Target,
    Text,
)
from smalti.training.run_folder import read_metrics


class Words(NamedTuple):
    """What a measure is called."""

    measure: str
    score: str
    unit: str = ""


WORDS: dict[str, Words] = {
    "label": Words("images whose class is named right", "of images"),
    "segmentation": Words("mean IoU of the labels seen", "of the IoU of real images"),
    "depth": Words("rank correlation with the depth seen", "correlation"),
    "edges": Words("F-score of edges", "times the F-score of images told nothing"),
    "lowres": Words("PSNR of the image made smaller, dB", "dB"),
    "layout": Words("boxes that show their class", "times as often as other boxes"),
    "keypoints": Words("houses seen where their keypoints are", "times as often as elsewhere"),
    "coordinates": Words("sky above and ground below, in images twice as high", "of what real images have"),
    "label-segmentation": Words("mean IoU of the labels seen", "of the IoU of real images"),
}


def page(settings: Any, asked: Asked, done: Mapping[str, Done]) -> Report:
    """The finished steps of the study -> its page."""
    names = list(settings.told)
    return Report(
        title="Told, and shown",
        lead=f"{counted(len(names), 'condition')} on the embedded scenes, a prior for each; what is asked for comes from scenes "
        "that no training saw, and a network that has learned from real scenes says what the images show. "
        f"{goals_reached(names, done)} of {len(names)} goals are reached.",
        blocks=[_cards(names, done)],
        sections=[
            Section("What this shows, and what it does not", [Text(_hides(done))]),
            Section("How far they are obeyed", [_table(names, done)]),
            *(Section(name, _shown(settings, name, done)) for name in names),
            Section("On the way", [_curves(names, done)]),
            made("conditions", settings, asked, protocol={}),
        ],
        colophon=f"Made by smalti {__version__}. All figures stand in result.json beside this page.",
    )


def goals_reached(names: list[str], done: Mapping[str, Done]) -> int:
    """How many conditions are obeyed as far as they should be, by all that they are measured by."""
    return sum(all(map(_reached, _measured(done, name).values())) for name in names)


def _measured(done: Mapping[str, Done], name: str) -> dict[str, Mapping[str, Any]]:
    """What a condition was measured by, as `WORDS` call it -> what was found; its own measure first."""
    outcome = done[f"obeyed-{name}"].outcome
    return {name: outcome, **outcome.get("also", {})}


def _reached(found: Mapping[str, Any]) -> bool:
    return bool(found["score"] >= found["goal"])


def _cards(names: list[str], done: Mapping[str, Done]) -> Cards:
    cards = []
    for name in names:
        for measure, found in _measured(done, name).items():
            target = Target(f"{found['goal']:g} or more", reached=_reached(found))
            title = name if measure == name else f"{name}, {measure}"
            cards.append(Card(title, f"{found['score']:.3g}", unit=WORDS[measure].score, target=target))
    return Cards(
        [*cards, Card("Whole study", minutes(sum(each.seconds for each in done.values())), unit="minutes of work")]
    )


def _hides(done: Mapping[str, Done]) -> str:
    judge = done["judge"].outcome
    return (
        "The judge makes mistakes of its own: of real held-out scenes it sees labels with a mean IoU of "
        f"{judge['labels']:.3f}, depths with a rank correlation of {judge['depths']:.3f} and {judge['classes']:.0%} of classes. "
        "Each prior was trained once, with one seed, by one rate. An image that obeys need not be a good image. What is told "
        "comes from scenes like those of training: a map that a person draws may be unlike them."
    )


def _table(names: list[str], done: Mapping[str, Done]) -> Table:
    rows: list[list[str | int | float]] = []
    for name in names:
        for measure, found in _measured(done, name).items():
            score = f"{found['score']:.3g} {WORDS[measure].score} ({found['goal']:g} asked for)"
            rows.append([name, WORDS[measure].measure, found["told"], found["left_open"], found["real"], score])
    return Table(
        ["told", "measured", "told", "told nothing", "real, through the codes", "goal"],
        rows,
        caption=f"Means over {counted(done[f'obeyed-{names[0]}'].outcome['images'], 'image')} of held-out scenes.",
    )


def _shown(settings: Any, name: str, done: Mapping[str, Done]) -> list[Block]:
    step = done[f"obeyed-{name}"]
    numbers = range(min(settings.shown, step.outcome["images"]))
    rows = []
    for file, title in (("asked", "asked for"), ("told", "told"), ("left_open", "told nothing"), ("real", "real")):
        paths = [step.folder / "shown" / f"{number:03d}-{file}.png" for number in numbers]
        if paths[0].is_file():
            rows.append(
                (title, [EmbeddedImage(pixels(path), f"{name}, {title}, {place}") for place, path in enumerate(paths)])
            )
    return [Comparison(rows, caption="What was asked for, as the codes keep it; the same seed told and told nothing.")]


def _curves(names: list[str], done: Mapping[str, Done]) -> Plots:
    lines = []
    for name in names:
        found = [line for line in read_metrics(done[f"prior-{name}"].folder) if line["part"] == "validation"]
        lines.append(Line(name, [(line["seen"], line["below_entropy"] * 100) for line in found]))
    plot = LinePlot("Below the entropy of single codes, held-out", lines, x_label="codes seen", y_label="%")
    return Plots([plot], caption="Lines that still rise say that more training would help.")
