"""Values that the pages of experiments share: images side by side and in details, curves, remarks of the measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from smalti.experiments.base import StepResult
from smalti.experiments.tokenizer_comparison import SCORE_HEADERS, MeasuredTokenizer
from smalti.reports.charts import Line, LinePlot, Reference
from smalti.reports.number_format import minutes
from smalti.reports.report import Card, Comparison, EmbeddedImage, Table
from smalti.training.config import as_yaml

Pixels = npt.NDArray[np.uint8]

DETAIL = 4
"""A detail is this part of a side."""
LONGEST = 12
"""Letters of a name below an image."""


def learning(
    lines: Mapping[str, Sequence[Mapping[str, float]]], *, entropy: float, over: Mapping[str, str]
) -> list[LinePlot]:
    """What priors are called and their curves -> charts of the nats per code, over "codes" or "seconds" as `over` names
    and titles them."""
    units = {"codes": "codes seen", "seconds": "seconds of training"}
    return [
        LinePlot(
            title,
            [Line(called, [(point[key], point["nats"]) for point in points]) for called, points in lines.items()],
            x_label=units[key],
            y_label="nats per code",
            references=[Reference(entropy, "unigram entropy")],
        )
        for key, title in over.items()
    ]


def hero(tokenizer: MeasuredTokenizer) -> list[EmbeddedImage]:
    """What a tokenizer gives back, for the band above a page."""
    return [
        EmbeddedImage(
            pixels(tokenizer.folder / "shown" / f"{shown['number']:03d}.png"),
            f"{shown['name']}, from codes of {tokenizer.name}",
        )
        for shown in tokenizer.outcome["shown"]
    ]


def pixels(path: Path) -> Pixels:
    """The pixels of a file that a step has set down."""
    with Image.open(path) as image:
        return np.asarray(image)


class Shown(NamedTuple):
    """One image, as it was and as each tokenizer gives it back."""

    name: str
    number: int
    original: Pixels
    backs: dict[str, Pixels]


def read_shown(compared: Sequence[MeasuredTokenizer]) -> list[Shown]:
    """The images that all measuring steps have set down."""
    found = []
    for shown in compared[0].outcome["shown"]:
        number = f"{shown['number']:03d}"
        backs = {tokenizer.name: pixels(tokenizer.folder / "shown" / f"{number}.png") for tokenizer in compared}
        original = pixels(compared[0].folder / "shown" / f"{number}-original.png")
        found.append(Shown(shown["name"], shown["index"], original, backs))
    return found


class SideBySide(NamedTuple):
    """Originals above what each tokenizer gives back."""

    whole: Comparison
    details: Comparison


def side_by_side(rows: Sequence[tuple[str, MeasuredTokenizer]]) -> SideBySide:
    """Tokenizers with what their rows are called -> originals above what each gives back, whole and in details."""
    shown = read_shown([tokenizer for _, tokenizer in rows])
    originals = [EmbeddedImage(each.original, f"{each.name}, original", caption=_short(each.name)) for each in shown]
    whole = [("original", originals)]
    windows = [detail(each.original) for each in shown]
    close = [("original", [_cut(each.original, w, each.name) for each, w in zip(shown, windows, strict=True)])]
    for called, tokenizer in rows:
        values = tokenizer.columns["psnr"]
        images = [
            EmbeddedImage(
                each.backs[tokenizer.name], f"{each.name}, by {tokenizer.name}", caption=f"{values[each.number]:.1f} dB"
            )
            for each in shown
        ]
        whole.append((called, images))
        cuts = [_cut(each.backs[tokenizer.name], w, each.name) for each, w in zip(shown, windows, strict=True)]
        close.append((tokenizer.name, cuts))
    return SideBySide(Comparison(whole), Comparison(close))


def _short(key: str) -> str:
    """The name of an image -> what fits below it; the whole is in its description."""
    stem = PurePosixPath(key).stem
    return stem if len(stem) <= LONGEST else f"{stem[: LONGEST - 1]}…"


def detail(pixels: Pixels) -> tuple[slice, slice]:
    """An image (H,W) or (H,W,3) -> the rows and columns of the part, a quarter of each side, with most edges in it."""
    gray = pixels.astype(np.float64).reshape(*pixels.shape[:2], -1).mean(2)
    edges = np.abs(np.diff(gray, axis=0, prepend=gray[:1])) + np.abs(np.diff(gray, axis=1, prepend=gray[:, :1]))
    h, w = (max(side // DETAIL, 1) for side in gray.shape)
    sums = np.pad(edges.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    within = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
    top, left = np.unravel_index(int(within.argmax()), within.shape)
    return slice(int(top), int(top) + h), slice(int(left), int(left) + w)


def _cut(pixels: Pixels, window: tuple[slice, slice], name: str) -> EmbeddedImage:
    return EmbeddedImage(np.ascontiguousarray(pixels[window]), f"a detail of {name}")


def remarks(compared: Sequence[MeasuredTokenizer]) -> Table:
    """What measuring remarked, and on which tokenizers; no rows where it remarked nothing."""
    found: dict[str, list[str]] = {}
    for tokenizer in compared:
        for note in tokenizer.outcome["result"]["notes"]:
            found.setdefault(note, []).append(tokenizer.name)
    rows = [[note, "all" if len(names) == len(compared) else ", ".join(names)] for note, names in found.items()]
    return Table(["remark of the measuring", "on"], rows)


def not_measured(tokenizer: MeasuredTokenizer) -> list[tuple[str, str]]:
    """The scores whose weights were unavailable, each with the reason."""
    return [(SCORE_HEADERS[score], reason) for score, reason in tokenizer.outcome["missing"].items()]


def protocol(tokenizer: MeasuredTokenizer) -> str:
    """The protocol by which a tokenizer was measured, as YAML."""
    return as_yaml(
        {name: value for name, value in tokenizer.outcome["result"]["protocol"].items() if value is not None}
    )


def whole_experiment(done: Mapping[str, StepResult]) -> Card:
    """The key figure that every page of an experiment ends its cards with."""
    return Card("Whole experiment", minutes(sum(each.seconds for each in done.values())), unit="minutes of work")
