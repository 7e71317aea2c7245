"""The page of a training run: what was reached, its diagnostics, its curves, its images on the way, its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smalti.core.version import __version__
from smalti.images.io import read_image
from smalti.reports.charts import Line, LinePlot, short
from smalti.reports.report import Card, Cards, EmbeddedImage, Images, Listing, Plots, Report, Section, Text
from smalti.training.config import as_yaml
from smalti.training.diagnostics import describe_diagnostics
from smalti.training.run_folder import read_diagnostics, read_metrics

PAGE = "report.html"
SHOWN = 6
"""Images from the way, evenly spread, the last one among them."""
_NO_CURVES = ("seen", "part", "time", "elapsed", "best_nats", "best_seen")


def write_page(folder: Path, config: Mapping[str, Any], *, unit: str) -> None:
    """A run folder with metrics -> `folder/report.html`. `unit`: what is counted, "images" or "codes".

    Raises `SmaltiError` when the disk refuses.
    """
    metrics = read_metrics(folder)
    validation = [line for line in metrics if line["part"] == "validation"]
    seen = max((line["seen"] for line in metrics), default=0)
    last = {key: value for key, value in (validation[-1] if validation else {}).items() if key not in _NO_CURVES}
    images = _images(folder / "images", unit)
    stage = config["stage"]
    best = _best_described(validation, unit)
    diagnostics = describe_diagnostics(read_diagnostics(folder), unit=unit)
    Report(
        title=f"Training of a {stage}",
        lead=f"{folder.resolve().name}, after {seen:,} {unit}. Validation is on held-out data.",
        blocks=[Cards([Card(name.replace("_", " "), short(value)) for name, value in last.items()])],
        sections=[
            *([Section("The model that is kept", [Text(best)])] if best else []),
            *([Section("Diagnostics", [Text("\n\n".join(diagnostics))])] if diagnostics else []),
            Section("Curves", [Plots(_plots(metrics, unit))]),
            Section("On the way", [Text(_ABOUT[stage]), Images(images, width=420)]),
            Section("Settings", [Listing(as_yaml(config))]),
        ],
        colophon=f"Made by smalti {__version__}. The figures stand in metrics.jsonl beside this page.",
    ).write(folder / PAGE)


def _best_described(validation: Sequence[Mapping[str, Any]], unit: str) -> str:
    """Validated lines -> which model is kept and what came after it, "" where none was the best."""
    if not validation or "best_seen" not in validation[-1]:
        return ""
    last = validation[-1]
    best, now = last["best_seen"], last["seen"]
    value, then = short(last["best_nats"]), short(last["nats"])
    sentence = f"It is that of {best:,} {unit}, whose nats per code on held-out data are the lowest: {value}."
    later = sum(line["seen"] > best for line in validation)
    return (
        sentence if now == best else f"{sentence} In {later} validations after it they were higher; at the end, {then}."
    )


_ABOUT = {
    "tokenizer": "Held-out images above, what their codes keep of them below, from the first to the last.",
    "prior": "Samples with the same seeds, from the first to the last.",
}


def _plots(metrics: Sequence[Mapping[str, Any]], unit: str) -> list[LinePlot]:
    """One plot for each number, training and validation in the same one where both have it."""
    names = dict.fromkeys(key for line in metrics for key in line if key not in _NO_CURVES)
    plots = []
    for name in names:
        lines = []
        for part in ("train", "validation"):
            points = [(line["seen"], line[name]) for line in metrics if line["part"] == part and name in line]
            if points and (name != "skipped" or any(value for _, value in points)):
                lines.append(Line({"train": "training"}.get(part, part), points))
        if lines:
            plots.append(LinePlot(name.replace("_", " "), lines, x_label=unit, y_label=name.replace("_", " ")))
    return plots


def _images(folder: Path, unit: str) -> list[EmbeddedImage]:
    files = sorted(file for file in folder.glob("*.png") if file.stem.isdigit())
    count = min(SHOWN, len(files))
    chosen = [files[(place + 1) * len(files) // count - 1] for place in range(count)]
    shown = []
    for file in chosen:
        seen = f"{int(file.stem):,} {unit}"  # they are named by how much had been seen
        pixels = read_image(file, channels=3, name=str(file)).astype(np.uint8)
        shown.append(EmbeddedImage(pixels, f"after {seen}", caption=seen))
    return shown
