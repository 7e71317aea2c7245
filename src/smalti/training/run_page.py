"""The page of a training run: what was reached, its diagnostics, its curves, its images on the way, its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from smalti.images.io import read_image
from smalti.reports.charts import Line, LinePlot
from smalti.reports.number_format import short
from smalti.reports.report import Card, EmbeddedImage, write_report
from smalti.training.config import as_yaml
from smalti.training.diagnostics import describe_diagnostics
from smalti.training.run_folder import read_diagnostics, read_metrics

PAGE = "report.html"
SHOWN = 6
"""Images from the way, evenly spread, the last one among them."""
_NO_CURVES = ("seen", "part", "time", "elapsed", "best_nats", "best_seen")


def write_page(folder: Path, config: Mapping[str, Any], *, unit: str) -> None:
    """A run folder with metrics -> `folder/report.html`. `unit`: what is counted, "images" or "codes".

    Raises `SmaltiError` if writing fails.
    """
    metrics = read_metrics(folder)
    validation = [line for line in metrics if line["part"] == "validation"]
    last = {key: value for key, value in (validation[-1] if validation else {}).items() if key not in _NO_CURVES}
    values = {
        "stage": config["stage"],
        "name": folder.resolve().name,
        "seen": max((line["seen"] for line in metrics), default=0),
        "unit": unit,
        "cards": [Card(name.replace("_", " "), short(value)) for name, value in last.items()],
        "best": _best(validation),
        "diagnostics": describe_diagnostics(read_diagnostics(folder), unit=unit),
        "plots": _plots(metrics, unit),
        "images": _images(folder / "images", unit),
        "settings": as_yaml(config),
    }
    write_report(folder / PAGE, "training/run_page.html", values)


class _Best(NamedTuple):
    """The model that is kept, where validations choose it."""

    seen: int
    nats: float
    later: int
    """Validations after it."""
    last_nats: float


def _best(validation: Sequence[Mapping[str, Any]]) -> _Best | None:
    """Validated lines -> which model is kept, None where none is chosen as the best."""
    if not validation or "best_seen" not in validation[-1]:
        return None
    last = validation[-1]
    later = sum(line["seen"] > last["best_seen"] for line in validation)
    return _Best(last["best_seen"], last["best_nats"], later, last["nats"])


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
    chosen = [files[(index + 1) * len(files) // count - 1] for index in range(count)]
    shown = []
    for file in chosen:
        seen = f"{int(file.stem):,} {unit}"  # they are named by how much had been seen
        pixels = read_image(file, channels=3, name=str(file)).astype(np.uint8)
        shown.append(EmbeddedImage(pixels, f"after {seen}", caption=seen))
    return shown
