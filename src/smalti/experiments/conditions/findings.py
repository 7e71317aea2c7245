"""What the experiment `conditions` found, as the values of its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from smalti.experiments.base import ExperimentRequest, StepResult
from smalti.experiments.page_parts import pixels, whole_experiment
from smalti.reports.charts import Line, LinePlot
from smalti.reports.report import Card, Comparison, EmbeddedImage, Table, Target
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


def findings(settings: Any, request: ExperimentRequest, done: Mapping[str, StepResult]) -> dict[str, Any]:
    """The finished steps of the experiment -> the values of its page."""
    names = list(settings.conditions)
    return {
        "names": names,
        "goals_reached": goals_reached(names, done),
        "network": done["scene-network"].outcome,
        "images": done[f"fidelity-{names[0]}"].outcome["images"],
        "cards": _cards(names, done),
        "fidelity": _table(names, done),
        "shown": {name: _shown(name, settings.shown, done) for name in names},
        "curves": [_curves(names, done)],
    }


def goals_reached(names: Sequence[str], done: Mapping[str, StepResult]) -> int:
    """Number of conditions that reach the goals of all their measures."""
    return sum(all(map(_reached, _measured(done, name).values())) for name in names)


def _measured(done: Mapping[str, StepResult], name: str) -> dict[str, Mapping[str, Any]]:
    """A condition -> its results by the names of `WORDS`, its own measure first."""
    outcome = done[f"fidelity-{name}"].outcome
    return {name: outcome, **outcome.get("also", {})}


def _reached(found: Mapping[str, Any]) -> bool:
    return bool(found["score"] >= found["goal"])


def _cards(names: Sequence[str], done: Mapping[str, StepResult]) -> list[Card]:
    cards = []
    for name in names:
        for measure, found in _measured(done, name).items():
            target = Target(f"{found['goal']:g} or more", reached=_reached(found))
            title = name if measure == name else f"{name}, {measure}"
            cards.append(Card(title, f"{found['score']:.3g}", unit=WORDS[measure].score, target=target))
    return [*cards, whole_experiment(done)]


def _table(names: Sequence[str], done: Mapping[str, StepResult]) -> Table:
    rows: list[list[str | int | float]] = []
    for name in names:
        for measure, found in _measured(done, name).items():
            score = f"{found['score']:.3g} {WORDS[measure].score} (goal {found['goal']:g})"
            rows.append(
                [name, WORDS[measure].measure, found["conditioned"], found["unconditional"], found["real"], score]
            )
    return Table(["condition", "measure", "conditioned", "unconditional", "real, reconstructed", "score"], rows)


def _shown(name: str, count: int, done: Mapping[str, StepResult]) -> Comparison:
    step = done[f"fidelity-{name}"]
    numbers = range(min(count, step.outcome["images"]))
    rows = []
    for title in ("condition", "conditioned", "unconditional", "real"):
        paths = [step.folder / "shown" / f"{number:03d}-{title}.png" for number in numbers]
        if paths[0].is_file():
            images = [EmbeddedImage(pixels(path), f"{name}, {title}, {index}") for index, path in enumerate(paths)]
            rows.append((title, images))
    return Comparison(rows)


def _curves(names: Sequence[str], done: Mapping[str, StepResult]) -> LinePlot:
    lines = []
    for name in names:
        found = [line for line in read_metrics(done[f"prior-{name}"].folder) if line["part"] == "validation"]
        lines.append(Line(name, [(line["seen"], line["below_entropy"] * 100) for line in found]))
    return LinePlot("Below the unigram entropy, held-out", lines, x_label="codes seen", y_label="%")
