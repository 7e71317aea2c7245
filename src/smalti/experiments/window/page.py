"""The page of the experiment `window`: images of each size in each way, charts over the size, a table.

h w grid of codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from smalti.core.version import __version__
from smalti.experiments.base import ExperimentRequest, StepResult
from smalti.experiments.page_parts import counted, learning, made, minutes, pixels, signed
from smalti.reports.charts import Line, Linear, LinePlot, Logarithmic
from smalti.reports.report import Card, Cards, Comparison, EmbeddedImage, Plots, Report, Section, Table, Text

Grid: TypeAlias = tuple[int, int]
Row: TypeAlias = Mapping[str, Any]

TILES, WINDOW, COORDINATES, NEIGHBORHOOD, WHOLE = "tiles", "window", "window-coordinates", "neighborhood", "whole"
CALLED = {
    TILES: "tiles, each by itself",
    WINDOW: "sliding window",
    COORDINATES: "window with coordinates",
    NEIGHBORHOOD: "neighborhood",
    WHOLE: "whole images learned",
}
"""The ways in which images are generated, in the order of the page."""
REAL = "real"
MEASURES = {
    "nats": "Held-out codes, lower is better: nats per code",
    "structure": "Sky above and ground below: share of both thirds",
    "seams": "Seams: jumps at borders of tiles, over those at other codes",
    "roughness": "Roughness: jumps from code to code",
    "seconds": "Seconds an image",
    "steps": "Steps one after the other",
}
"""What is measured of each way at each size; the last two on a scale of powers."""


def named(grid: Sequence[int]) -> str:
    """(16, 64) -> "16x64"."""
    return f"{grid[0]}x{grid[1]}"


def page(settings: Any, request: ExperimentRequest, done: Mapping[str, StepResult]) -> Report:
    """The finished steps of the experiment -> its page."""
    window = settings.window
    found = {grid: _rows(done, grid) for grid in (window, *settings.sizes)}
    largest = max(found, key=math.prod)
    return Report(
        title="Larger than what was learned",
        lead=f"Priors trained on {window[0]} x {window[1]} codes of scenes generate up to {largest[0]} x "
        f"{largest[1]}, "
        "beside some that have learned whole images: all with about as many parameters, after as many codes of one "
        "tokenizer.",
        blocks=[_cards(found[largest], largest, done)],
        sections=[
            Section(
                "Findings and limitations", [Text(_findings(found[largest], largest)), Text(_limitations(settings))]
            ),
            *(Section(_title(grid, window), [_images(settings, grid, found[grid], done)]) for grid in found),
            Section("Over the size", [_curves(found, window)]),
            Section("In numbers", [_table(found, settings)]),
            Section("How the priors learned", [_learning(done)]),
            made("window", settings, request, protocol={}),
        ],
        colophon=f"Made by smalti {__version__}. All figures stand in result.json beside this page.",
    )


def _rows(done: Mapping[str, StepResult], grid: Grid) -> dict[str, Row]:
    """All that is known of images of one size: of real ones, and of each way."""
    compared = done[f"compare-{named(grid)}"].outcome
    seen = done["structure"].outcome.get(named(grid), {})
    rows = {REAL: compared["real"], **compared["rows"]}
    return {way: {**dict.fromkeys(MEASURES), **row, "structure": seen.get(way)} for way, row in rows.items()}


def growing(rows: Mapping[str, Row]) -> list[str]:
    """The ways whose priors have learned from windows and that look around, from the one under which codes are
    likeliest on."""
    return sorted((way for way in rows if way not in (REAL, TILES, WHOLE)), key=lambda way: float(rows[way]["nats"]))


def _title(grid: Grid, window: Grid) -> str:
    times = math.prod(grid) / math.prod(window)
    return f"{grid[0]} x {grid[1]} codes, {'as learned' if times == 1 else f'{times:g} times as many as learned'}"


def _cards(rows: Mapping[str, Row], grid: Grid, done: Mapping[str, StepResult]) -> Cards:
    best, fewest = growing(rows)[0], min(growing(rows), key=lambda way: int(rows[way]["steps"]))
    whole = sum(each.seconds for each in done.values())
    return Cards(
        [
            Card(f"Likeliest at {named(grid)}: {CALLED[best]}", f"{rows[best]['nats']:.3f}", unit="nats per code"),
            Card(
                f"Fewest steps: {CALLED[fewest]}", f"{rows[fewest]['steps']:,}", unit=f"for {math.prod(grid):,} codes"
            ),
            Card("Whole experiment", minutes(whole), unit="minutes of work"),
        ]
    )


def _findings(rows: Mapping[str, Row], grid: Grid) -> str:
    """What was found at the largest size, in sentences."""
    each = [
        f"{CALLED[way]} {signed(row['over_window'], row['error'])}"
        for way, row in rows.items()
        if way not in (REAL, WINDOW)
    ]
    sentences = [
        f"Under the sliding window real images of {named(grid)} codes have {rows[WINDOW]['nats']:.3f} nats "
        "per code. More than "
        f"that, or less: {', '.join(each)}."
    ]
    if rows[TILES]["seams"] is not None:
        others = [f"{CALLED[way]} {rows[way]['seams']:.2f}" for way in rows if way not in (REAL, TILES)]
        sentences.append(
            f"Where tiles know nothing of one another, pixels jump {rows[TILES]['seams']:.2f} times as far "
            "across their borders as "
            f"across other borders of codes; in real images {rows[REAL]['seams']:.2f} times; {', '.join(others)}."
        )
    if rows[REAL]["structure"] is not None:
        others = [f"{CALLED[way]} {row['structure']:.0%}" for way, row in rows.items() if way != REAL]
        sentences.append(
            "Of the upper and the lower third, the scene network predicts as sky and as ground: in real images "
            f"{rows[REAL]['structure']:.0%}; {', '.join(others)}."
        )
    return " ".join(sentences)


def _limitations(settings: Any) -> str:
    return " ".join(
        [
            "Each prior was trained once, with one seed, at one rate; those of whole images have seen as many "
            "codes, and so far "
            "fewer images. Standard errors are over images alone.",
            f"Seams and sky are measured on {counted(settings.samples, 'image')} in each way. A seam here is "
            "what stands out at "
            "the borders of tiles; what goes wrong everywhere alike, as colors that drift, is not in it.",
            "Likelihood is that of real images under each method; the prior with coordinates "
            "receives those of the crops "
            "too. For generation, its coordinates span the whole image.",
            "Seconds are those by the clock, of images generated together, on a machine that may have had "
            "other work; steps are "
            "the sequential steps, however many codes each generates.",
        ]
    )


def _images(settings: Any, grid: Grid, rows: Mapping[str, Row], done: Mapping[str, StepResult]) -> Comparison:
    folders = {
        way: done[f"compare-{named(grid)}"].folder / "real"
        if way == REAL
        else done[f"samples-{way}-{named(grid)}"].folder / "samples"
        for way in rows
    }
    files = {way: sorted(folder.glob("*.png")) for way, folder in folders.items()}
    shown = min(max(settings.shown * grid[0] // max(grid), 1), *map(len, files.values()))  # a panorama needs room
    return Comparison(
        [
            (
                CALLED.get(way, "real, through the codes"),
                [
                    EmbeddedImage(pixels(file), f"{named(grid)}, {CALLED.get(way, way)}, {int(file.stem)}")
                    for file in found[:shown]
                ],
            )
            for way, found in files.items()
        ],
        caption="Seeds from 0 on, not chosen; in a column nothing but the seed is the same.",
    )


def _curves(found: Mapping[Grid, Mapping[str, Row]], window: Grid) -> Plots:
    def line(way: str, measure: str) -> Line:
        points = [
            (math.log2(math.prod(grid) / math.prod(window)), float(rows[way][measure]))
            for grid, rows in found.items()
            if way in rows and rows[way][measure] is not None
        ]
        return Line(CALLED.get(way, REAL), points)

    plots = []
    for measure, title in MEASURES.items():
        lines = [line(way, measure) for way in (*CALLED, REAL)]  # in one order, for one way one color
        scale = Logarithmic() if measure in ("seconds", "steps") else Linear()
        known = [each for each in lines if each.points]
        if known:
            plots.append(LinePlot(title, known, x_label="log2 of the size", y_label=measure, scale=scale))
    return Plots(plots, caption="log2 of the size: 0 is the window, 4 sixteen times as many codes.")


def _table(found: Mapping[Grid, Mapping[str, Row]], settings: Any) -> Table:
    def cell(value: float | None) -> str | float:
        return "\u2013" if value is None else value

    body: list[list[str | int | float]] = []
    for grid, rows in found.items():
        for way, row in rows.items():
            others = [cell(row[name]) for name in ("structure", "seams", "roughness", "seconds", "steps")]
            over = "\u2013" if way in (REAL, WINDOW) else signed(row["over_window"], row["error"])
            count = "\u2013" if way == REAL else f"{row['parameters']:,}"
            body.append([named(grid), CALLED.get(way, REAL), count, cell(row["nats"]), over, *others])
    return Table(
        [
            "codes",
            "method",
            "parameters",
            "nats per code",
            "over the window's",
            "sky and ground",
            "seams",
            "roughness",
            "seconds",
            "steps",
        ],
        body,
        caption=f"Nats over {counted(settings.images, 'held-out crop')} of each size at most, the difference with "
        "its standard "
        f"error; all else over {counted(settings.samples, 'image')}. Sky and ground: of the upper and of "
        "the lower third, where "
        "images are as high as the scenes. Roughness: how far pixels jump from one code to the next at "
        "its right, of 2 from "
        "black to white. Seams: how many times as far they jump where a tile of a window's width would end.",
    )


def _learning(done: Mapping[str, StepResult]) -> Plots:
    trained = {step.removeprefix("prior-"): each.outcome for step, each in done.items() if step.startswith("prior-")}
    entropy = max(outcome["code_entropy_nats"] for outcome in trained.values())
    return learning(
        {name: outcome["curve"] for name, outcome in trained.items()},
        entropy=entropy,
        over={"codes": "Held-out codes of the size that each learns from"},
    )
