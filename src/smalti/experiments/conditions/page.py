"""The page of the experiment `conditions`: the conditions, the generated images, and the fidelity measured on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from smalti.core.version import __version__
from smalti.experiments.base import ExperimentRequest, StepResult
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
    """The display names of a measure."""

    measure: str
    score: str
    unit: str = ""


WORDS: dict[str, Words] = {
    "label": Words("images whose class is named right", "of images"),
    "segmentation": Words("mean IoU of the predicted labels", "of the IoU of real images"),
    "depth": Words("rank correlation with the predicted depth", "correlation"),
    "edges": Words("F-score of edges", "times the F-score of unconditional images"),
    "lowres": Words("PSNR of the image made smaller, dB", "dB"),
    "layout": Words("boxes that show their class", "times as often as other boxes"),
    "keypoints": Words("houses found at their keypoints", "times as often as elsewhere"),
    "coordinates": Words("sky above and ground below, in images twice as high", "of what real images have"),
    "label-segmentation": Words("mean IoU of the predicted labels", "of the IoU of real images"),
}


def page(settings: Any, request: ExperimentRequest, done: Mapping[str, StepResult]) -> Report:
    """The finished steps of the experiment -> its page."""
    names = list(settings.conditions)
    return Report(
        title="Condition fidelity",
        lead=f"{counted(len(names), 'condition')} on the embedded scenes, with one prior each. The conditions "
        "come from held-out "
        "scenes; a network trained on real scenes predicts what the generated images show. "
        f"{goals_reached(names, done)} of {len(names)} goals are reached.",
        blocks=[_cards(names, done)],
        sections=[
            Section("Findings and limitations", [Text(_limitations(done))]),
            Section("Fidelity of each condition", [_table(names, done)]),
            *(Section(name, _shown(settings, name, done)) for name in names),
            Section("Training curves", [_curves(names, done)]),
            made("conditions", settings, request, protocol={}),
        ],
        colophon=f"Made by smalti {__version__}. All figures stand in result.json beside this page.",
    )


def goals_reached(names: list[str], done: Mapping[str, StepResult]) -> int:
    """Number of conditions that reach the goals of all their measures."""
    return sum(all(map(_reached, _measured(done, name).values())) for name in names)


def _measured(done: Mapping[str, StepResult], name: str) -> dict[str, Mapping[str, Any]]:
    """A condition -> its results by the names of `WORDS`, its own measure first."""
    outcome = done[f"fidelity-{name}"].outcome
    return {name: outcome, **outcome.get("also", {})}


def _reached(found: Mapping[str, Any]) -> bool:
    return bool(found["score"] >= found["goal"])


def _cards(names: list[str], done: Mapping[str, StepResult]) -> Cards:
    cards = []
    for name in names:
        for measure, found in _measured(done, name).items():
            target = Target(f"{found['goal']:g} or more", reached=_reached(found))
            title = name if measure == name else f"{name}, {measure}"
            cards.append(Card(title, f"{found['score']:.3g}", unit=WORDS[measure].score, target=target))
    return Cards(
        [*cards, Card("Whole experiment", minutes(sum(each.seconds for each in done.values())), unit="minutes of work")]
    )


def _limitations(done: Mapping[str, StepResult]) -> str:
    network = done["scene-network"].outcome
    return (
        "The scene network makes errors of its own. On real held-out scenes it reaches a mean IoU of "
        f"{network['labels']:.3f} "
        f"for labels, a rank correlation of {network['depths']:.3f} for depth and an accuracy of "
        f"{network['classes']:.0%} for "
        "classes. Each prior was trained once, with one seed and one learning rate. An image that follows "
        "its condition can "
        "still be a poor image. The conditions come from scenes like those of training; a map that a "
        "person draws may differ."
    )


def _table(names: list[str], done: Mapping[str, StepResult]) -> Table:
    rows: list[list[str | int | float]] = []
    for name in names:
        for measure, found in _measured(done, name).items():
            score = f"{found['score']:.3g} {WORDS[measure].score} (goal {found['goal']:g})"
            rows.append(
                [name, WORDS[measure].measure, found["conditioned"], found["unconditional"], found["real"], score]
            )
    return Table(
        ["condition", "measure", "conditioned", "unconditional", "real, reconstructed", "score"],
        rows,
        caption=f"Means over {counted(done[f'fidelity-{names[0]}'].outcome['images'], 'image')} of held-out scenes.",
    )


def _shown(settings: Any, name: str, done: Mapping[str, StepResult]) -> list[Block]:
    step = done[f"fidelity-{name}"]
    numbers = range(min(settings.shown, step.outcome["images"]))
    rows = []
    for title in ("condition", "conditioned", "unconditional", "real"):
        paths = [step.folder / "shown" / f"{number:03d}-{title}.png" for number in numbers]
        if paths[0].is_file():
            rows.append(
                (title, [EmbeddedImage(pixels(path), f"{name}, {title}, {place}") for place, path in enumerate(paths)])
            )
    return [
        Comparison(rows, caption="The condition, decoded from its codes; the same seed conditioned and unconditional.")
    ]


def _curves(names: list[str], done: Mapping[str, StepResult]) -> Plots:
    lines = []
    for name in names:
        found = [line for line in read_metrics(done[f"prior-{name}"].folder) if line["part"] == "validation"]
        lines.append(Line(name, [(line["seen"], line["below_entropy"] * 100) for line in found]))
    plot = LinePlot("Below the entropy of single codes, held-out", lines, x_label="codes seen", y_label="%")
    return Plots([plot], caption="A line that still rises shows that longer training would help.")
