"""The page of the experiment `orders`: likelihoods, curves over codes and over the turns of a sequence, samples side by
side.

H W pixels, h w grid of codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from smalti.core.version import __version__
from smalti.experiments.base import ExperimentRequest, StepResult
from smalti.experiments.page_parts import Pixels, counted, learning, made, minutes, pixels, signed
from smalti.prior.order import ORDERS, Order
from smalti.reports.charts import Bars, Line, LinePlot, Reference
from smalti.reports.report import Card, Cards, Comparison, EmbeddedImage, Plots, Report, Section, Table, Text

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


def page(settings: Any, request: ExperimentRequest, done: Mapping[str, StepResult]) -> Report:
    """The finished steps of the experiment -> its page."""
    outcome = done["compare"].outcome
    rows, (h, w) = outcome["rows"], outcome["grid"]
    return Report(
        title="Code orders compared",
        lead=f"{counted(len(rows), 'order')} of {h} x {w} codes: for each a prior of the same "
        f"{outcome['parameters']:,} "
        "parameters, on the same batches of codes of one tokenizer, evaluated on those of "
        f"{counted(outcome['images'], 'held-out image')}.",
        blocks=[_cards(rows, done)],
        sections=[
            Section("Findings and limitations", [Text(_findings(rows)), Text(_limitations(outcome))]),
            Section("Likelihood", [_bars(rows), _table(outcome)]),
            Section("The orders, and samples", [_samples(settings, outcome, done)]),
            Section("On the way", [_curves(outcome, done)]),
            Section("Within an image", [_turns(outcome)]),
            made("orders", settings, request, protocol={}),
        ],
        colophon=f"Made by smalti {__version__}. All figures stand in result.json beside this page.",
    )


def ranked(rows: Mapping[Order, Mapping[str, Any]]) -> list[Order]:
    """The orders, from the one whose codes are likeliest on."""
    return sorted(rows, key=lambda order: float(rows[order]["nats"]))


def _cards(rows: Mapping[Order, Mapping[str, Any]], done: Mapping[str, StepResult]) -> Cards:
    best, *_, worst = ranked(rows) if len(rows) > 1 else [RASTER, RASTER]
    return Cards(
        [
            Card(f"Likeliest: {CALLED[best]}", f"{rows[best]['nats']:.3f}", unit="nats per code"),
            Card(f"Least likely: {CALLED[worst]}", f"{rows[worst]['nats']:.3f}", unit="nats per code"),
            Card("Each has seen", f"{rows[RASTER]['codes']:,}", unit="codes"),
            Card("Whole experiment", minutes(sum(each.seconds for each in done.values())), unit="minutes of work"),
        ]
    )


class Verdict(NamedTuple):
    """The other orders beside raster, each group from the likeliest on."""

    better: list[Order]
    alike: list[Order]
    worse: list[Order]


def compare_to_raster(rows: Mapping[Order, Mapping[str, Any]]) -> Verdict:
    """Rows of all orders -> which are further from raster than two standard errors of the difference, and to which
    side."""
    found = Verdict([], [], [])
    for order in ranked(rows):
        over, error = rows[order]["over_raster"], rows[order]["error"]
        if error is None or abs(over) <= 2 * error:
            found.alike.append(order)
        else:
            (found.worse if over > 0 else found.better).append(order)
    found.alike.remove(RASTER)
    return found


def _findings(rows: Mapping[Order, Mapping[str, Any]]) -> str:
    found = compare_to_raster(rows)
    sentences = [f"After as many codes {CALLED[RASTER]} has {rows[RASTER]['nats']:.3f} nats per code."]
    for verdict, orders in (
        ("Likelier than that, with the difference in nats per code", found.better),
        ("Not significantly different", found.alike),
        ("Less likely", found.worse),
    ):
        if orders:
            each = [f"{CALLED[order]} ({signed(rows[order]['over_raster'], rows[order]['error'])})" for order in orders]
            sentences.append(f"{verdict}: {', '.join(each)}.")
    sentences.append("In the paper's figure row major is the best at the end of training.")
    return " ".join(sentences)


def _limitations(outcome: Mapping[str, Any]) -> str:
    sentences = [
        "Each was trained once, with one seed, at one rate. Orders count as different where they differ by "
        "more than two standard "
        "errors. These are over images alone; what another seed would change is not in them, and may be "
        "as much as a small "
        "difference.",
        "Each is the model of its training that found the held-out codes likeliest, and these are the "
        "codes it is evaluated on: "
        "all gain alike by that, and a little.",
        "An order that is ahead early need not be so at the end: the curves say how far they are from it.",
    ]
    if outcome["network"] == "transformer":
        sentences.append(
            "The network `transformer` receives the rows and columns of the previous codes, and not of the "
            "one to come, and may "
            "find an order hard for that alone; the paper's, `gpt`, learns both by the turn."
        )
    if outcome["images"] < 2:
        sentences.append("One image has no standard error.")
    return " ".join(sentences)


def _bars(rows: Mapping[Order, Mapping[str, Any]]) -> Plots:
    likelihood = [(CALLED[order], float(rows[order]["nats"])) for order in ranked(rows)]
    over = [(CALLED[order], float(rows[order]["over_raster"])) for order in ranked(rows) if order != RASTER]
    plots = [Bars("Held-out codes, lower is better", likelihood, unit="nats")]
    return Plots([*plots, Bars(f"More than {CALLED[RASTER]}", over, unit="nats")] if over else plots)


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
        for order in ranked(rows)
    ]
    return Table(
        ["order", "nats per code", "less row major's", "of entropy", "at the end", "minutes"],
        body,
        caption=f"Means over {counted(outcome['images'], 'held-out image')}, of the model that each training has "
        "kept; the "
        "difference with its standard error; as a share of the entropy of single codes "
        f"({outcome['code_entropy_nats']:.3f} nats); "
        "what the last model of the training had, as far as its validation looked; and the minutes of "
        "training, as measured.",
    )


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
    return Comparison(
        found,
        caption="In front the order itself: the first code bright, the last one dark. Seeds from 0 on, not "
        "chosen; in a column "
        "each place has the same chance in all orders.",
    )


def _seed(stem: str) -> str:
    return f"seed {int(stem)}"


def shown(order: Order, grid: tuple[int, int], *, size: tuple[int, int]) -> Pixels:
    """An order on a grid (h,w) -> an image (H,W) of `size`, in which a place is the darker the later its turn comes."""
    h, w = grid
    turns = ORDERS[order](h, w).argsort().view(h, w).numpy()
    gray = np.linspace(FIRST, LAST, h * w)[turns].round().astype(np.uint8)
    return np.kron(gray, np.ones((size[0] // h, size[1] // w), np.uint8))


def _curves(outcome: Mapping[str, Any], done: Mapping[str, StepResult]) -> Plots:
    return learning(
        {CALLED[order]: done[f"prior-{order}"].outcome["curve"] for order in outcome["rows"]},
        entropy=outcome["code_entropy_nats"],
        over={"codes": "Held-out codes over codes"},
    )


def _turns(outcome: Mapping[str, Any]) -> Plots:
    lines = [Line(CALLED[order], by_part(values)) for order, values in outcome["by_turn"].items()]
    chart = LinePlot(
        "Nats of a code by its turn",
        lines,
        x_label="turn",
        y_label="nats",
        references=[Reference(outcome["code_entropy_nats"], "entropy of single codes")],
    )
    return Plots(
        [chart],
        caption="What each next code costs when those before it are known; means of an eighth of the turns each.",
    )


def by_part(values: Sequence[float]) -> list[tuple[float, float]]:
    """Numbers of the turns 1, 2, ... -> the middle turn of each of at most `PARTS` parts, and the mean there."""
    parts = [part for part in np.array_split(np.arange(len(values)), PARTS) if len(part)]
    return [(float(part.mean()) + 1, float(np.mean([values[turn] for turn in part]))) for part in parts]
