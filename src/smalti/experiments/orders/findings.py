"""What the experiment `orders` found, as the values of its page: likelihoods, curves over codes and over the turns of a
sequence, samples side by side.

H W pixels, h w grid of codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from smalti.experiments.base import ExperimentRequest, StepResult
from smalti.experiments.page_parts import Pixels, learning, pixels, whole_experiment
from smalti.prior.order import ORDERS, Order
from smalti.reports.charts import Bars, Line, LinePlot, Reference
from smalti.reports.number_format import minutes, signed
from smalti.reports.report import Card, Comparison, EmbeddedImage, Table

RASTER: Order = "raster"
"""The order that the others are compared with."""
CALLED: dict[Order, str] = {
    "raster": "row major",
    "subsample": "subsample",
    "z_curve": "z-curve",
    "spiral_out": "spiral out",
    "spiral_in": "spiral in",
    "random": "random",
    "alternate": "alternate",
}
"""As the paper calls them."""
FIRST, LAST = 240, 30
"""Brightness of the first and of the last code of an order, where it is shown."""
PARTS = 8
"""Parts of a sequence over which the nats of single turns are averaged."""


def findings(settings: Any, request: ExperimentRequest, done: Mapping[str, StepResult]) -> dict[str, Any]:
    """The finished steps of the experiment -> the values of its page."""
    outcome = done["compare"].outcome
    rows = outcome["rows"]
    curves = {CALLED[order]: done[f"prior-{order}"].outcome["curve"] for order in rows}
    return {
        "outcome": outcome,
        "raster": rows[RASTER],
        "verdict": compare_to_raster(rows),
        "called": CALLED,
        "cards": _cards(rows, done),
        "bars": _bars(rows),
        "table": _table(outcome),
        "samples": _samples(settings, outcome, done),
        "curves": learning(curves, entropy=outcome["code_entropy_nats"], over={"codes": "Held-out codes over codes"}),
        "turns": [_turns(outcome)],
    }


def orders_by_nats(rows: Mapping[Order, Mapping[str, Any]]) -> list[Order]:
    """The orders, from the one whose codes are likeliest on."""
    return sorted(rows, key=lambda order: float(rows[order]["nats"]))


def _cards(rows: Mapping[Order, Mapping[str, Any]], done: Mapping[str, StepResult]) -> list[Card]:
    best, *_, worst = orders_by_nats(rows) if len(rows) > 1 else [RASTER, RASTER]
    return [
        Card(f"Likeliest: {CALLED[best]}", f"{rows[best]['nats']:.3f}", unit="nats per code"),
        Card(f"Least likely: {CALLED[worst]}", f"{rows[worst]['nats']:.3f}", unit="nats per code"),
        Card("Each has seen", f"{rows[RASTER]['codes']:,}", unit="codes"),
        whole_experiment(done),
    ]


class Verdict(NamedTuple):
    """The other orders beside raster, each group from the likeliest on."""

    better: list[Order]
    alike: list[Order]
    worse: list[Order]


def compare_to_raster(rows: Mapping[Order, Mapping[str, Any]]) -> Verdict:
    """Rows of all orders -> which are further from raster than two standard errors of the difference, and to which
    side."""
    found = Verdict([], [], [])
    for order in orders_by_nats(rows):
        over, error = rows[order]["over_raster"], rows[order]["error"]
        if error is None or abs(over) <= 2 * error:
            found.alike.append(order)
        else:
            (found.worse if over > 0 else found.better).append(order)
    found.alike.remove(RASTER)
    return found


def _bars(rows: Mapping[Order, Mapping[str, Any]]) -> list[Bars]:
    likelihood = [(CALLED[order], float(rows[order]["nats"])) for order in orders_by_nats(rows)]
    over = [(CALLED[order], float(rows[order]["over_raster"])) for order in orders_by_nats(rows) if order != RASTER]
    plots = [Bars("Held-out codes, lower is better", likelihood, unit="nats")]
    return [*plots, Bars(f"More than {CALLED[RASTER]}", over, unit="nats")] if over else plots


def _table(outcome: Mapping[str, Any]) -> Table:
    rows = outcome["rows"]
    body: list[list[str | int | float]] = [
        [
            CALLED[order],
            rows[order]["nats"],
            "\u2013" if order == RASTER else signed(rows[order]["over_raster"], rows[order]["error"]),
            f"{rows[order]['nats'] / max(outcome['code_entropy_nats'], 1e-9):.1%}",
            rows[order]["last_nats"],
            minutes(rows[order]["seconds"]),
        ]
        for order in orders_by_nats(rows)
    ]
    return Table(["order", "nats per code", "less row major's", "of entropy", "at the end", "minutes"], body)


def _samples(settings: Any, outcome: Mapping[str, Any], done: Mapping[str, StepResult]) -> Comparison:
    found: list[tuple[str, Sequence[EmbeddedImage]]] = []
    for order in outcome["rows"]:
        files = sorted((done[f"samples-{order}"].folder / "samples").glob("*.png"))
        generated = [
            EmbeddedImage(
                pixels(file), f"generated in the order {CALLED[order]}, {_seed(file.stem)}", caption=_seed(file.stem)
            )
            for file in files
        ]
        way = shown(order, tuple(outcome["grid"]), size=settings.size)
        found.append(
            (CALLED[order], [EmbeddedImage(way, f"the order {CALLED[order]}", caption="the order"), *generated])
        )
    return Comparison(found)


def _seed(stem: str) -> str:
    return f"seed {int(stem)}"


def shown(order: Order, grid: tuple[int, int], *, size: tuple[int, int]) -> Pixels:
    """An order on a grid (h,w) -> an image (H,W) of `size`, in which a position is darker the later it comes."""
    h, w = grid
    turns = ORDERS[order](h, w).argsort().view(h, w).numpy()
    gray = np.linspace(FIRST, LAST, h * w)[turns].round().astype(np.uint8)
    return np.kron(gray, np.ones((size[0] // h, size[1] // w), np.uint8))


def _turns(outcome: Mapping[str, Any]) -> LinePlot:
    return LinePlot(
        "Nats of a code by its turn",
        [Line(CALLED[order], by_part(values)) for order, values in outcome["by_turn"].items()],
        x_label="turn",
        y_label="nats",
        references=[Reference(outcome["code_entropy_nats"], "unigram entropy")],
    )


def by_part(values: Sequence[float]) -> list[tuple[float, float]]:
    """Numbers of the turns 1, 2, ... -> the middle turn of each of at most `PARTS` parts, and the mean there."""
    parts = [part for part in np.array_split(np.arange(len(values)), PARTS) if len(part)]
    return [(float(part.mean()) + 1, float(np.mean([values[turn] for turn in part]))) for part in parts]
