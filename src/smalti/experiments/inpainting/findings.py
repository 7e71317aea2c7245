"""What the experiment `inpainting` found, as the values of its page: nats of holes, completed images, parallel steps.

H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smalti.experiments.base import ExperimentRequest, StepResult
from smalti.experiments.inpainting.holes import SHOWN
from smalti.experiments.page_parts import learning, pixels, whole_experiment
from smalti.reports.charts import Bars
from smalti.reports.number_format import minutes, signed
from smalti.reports.report import Card, Comparison, EmbeddedImage, Table

RASTER, ANY = "raster", "any"
"""The orders of the two priors."""
CODES = "codes"
"""Name of the step that encodes."""
EXACT, REAL = "exact", "real"
"""In the table of samples: any order, one code at a time in raster order; and real images through the codes."""
FAR = 0.15
"""Relative difference of training times above which the page reports it."""
NOT_MEASURED = "\u2013"

Row = Mapping[str, Any]


def findings(settings: Any, request: ExperimentRequest, done: Mapping[str, StepResult]) -> dict[str, Any]:
    """The finished steps of the experiment -> the values of its page."""
    likelihoods, samples = done["likelihoods"].outcome, done["samples"].outcome
    trained = {order: done[f"prior-{order}"].outcome for order in (RASTER, ANY)}
    return {
        "likelihoods": likelihoods,
        "samples": samples,
        "trained": trained,
        "time_differs": abs(trained[ANY]["seconds"] / trained[RASTER]["seconds"] - 1) > FAR,
        "price": price(likelihoods),
        "cards": _cards(likelihoods, done),
        "bars": [
            Bars(
                "Fewer nats in the hole with any order",
                [(name, 100 * gain(row)) for name, row in likelihoods["holes"].items()],
                unit="%",
            )
        ],
        "holes": _holes(likelihoods),
        "whole": _whole(likelihoods, trained),
        "sheets": _sheets(settings, done),
        "sampled": _sampled(samples),
        "curves": learning(
            {order: outcome["curve"] for order, outcome in trained.items()},
            entropy=trained[RASTER]["code_entropy_nats"],
            over={"codes": "Held-out codes over codes", "seconds": "Held-out codes over time"},
        ),
    }


def gain(row: Row) -> float:
    """The nats of a hole -> the share of the raster prior's that any order saves."""
    return 1 - float(row[ANY]) / float(row[RASTER])


def price(likelihoods: Row) -> float:
    """Nats of whole images in raster order -> by which share the any-order prior needs more than the raster prior."""
    return float(likelihoods["whole"][ANY]) / float(likelihoods["whole"][RASTER]) - 1


def _cards(likelihoods: Row, done: Mapping[str, StepResult]) -> list[Card]:
    gains = [gain(row) for row in likelihoods["holes"].values()]
    return [
        Card(
            "A hole costs any order, on average", f"{-sum(gains) / len(gains):+.1%}".replace("-", "\u2212"), unit="nats"
        ),
        Card("A whole image in raster order", f"{price(likelihoods):+.1%}".replace("-", "\u2212"), unit="nats"),
        whole_experiment(done),
    ]


def _holes(likelihoods: Row) -> Table:
    body: list[list[str | int | float]] = [
        [
            name,
            f"{row['share']:.0%}",
            row[RASTER],
            row[ANY],
            signed(row["difference"], row["error"]),
            f"{-gain(row):+.1%}".replace("-", "\u2212"),
            row["filled"],
        ]
        for name, row in likelihoods["holes"].items()
    ]
    return Table(["hole", "of the codes", "raster", "any order", "difference", "relative", "any order, filled"], body)


def _whole(likelihoods: Row, trained: Mapping[str, Row]) -> Table:
    body: list[list[str | int | float]] = [
        [
            {RASTER: "raster", ANY: "any order"}[order],
            likelihoods["parameters"][order],
            row["codes"],
            minutes(row["seconds"]),
            likelihoods["whole"][order],
            NOT_MEASURED
            if order == RASTER
            else signed(likelihoods["price"]["difference"], likelihoods["price"]["error"]),
        ]
        for order, row in trained.items()
    ]
    return Table(["prior", "parameters", "codes seen", "minutes", "nats per code", "minus raster"], body)


def _sheets(settings: Any, done: Mapping[str, StepResult]) -> list[tuple[str, Comparison]]:
    """Each hole with its sheet: originals, what is given, and completed images, one row each."""
    folder, count = done["completions"].folder / "shown", done["completions"].outcome["images"]
    ways = {RASTER: "raster", f"best of {settings.best_of}": f"raster, best of {settings.best_of}", ANY: "any order"}
    found = []
    for hole in SHOWN:
        rows = [("original", _images(folder, "original", count)), ("given", _images(folder, f"{hole}-given", count))]
        rows += [(called, _images(folder, f"{hole}-{way}", count)) for way, called in ways.items()]
        found.append((hole, Comparison(rows)))
    return found


def _images(folder: Path, stem: str, count: int) -> list[EmbeddedImage]:
    return [EmbeddedImage(pixels(folder / f"{stem}-{number:02d}.png"), f"{stem}, {number}") for number in range(count)]


def _sampled(samples: Row) -> Table:
    called = {RASTER: "raster prior", EXACT: "any order, exact", REAL: "real images, through the codes"}
    body: list[list[str | int | float]] = [
        [
            called.get(way, f"any order, {way}"),
            *(f"{1000 * row[time]:.0f} ms" if time in row else NOT_MEASURED for time in ("alone", "in_a_batch")),
            NOT_MEASURED if row["frechet"] is None else row["frechet"],
            NOT_MEASURED if row["class_accuracy"] is None else f"{row['class_accuracy']:.0%}",
        ]
        for way, row in samples["rows"].items()
    ]
    return Table(["samples", "one image alone", "per image in a batch", "Frechet distance", "class accuracy"], body)
