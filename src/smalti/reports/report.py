"""A report is a value built from blocks; written, it is one HTML file that needs no network, script or font.

    chart = LinePlot("Loss", [Line("training", points)], x_label="images seen", y_label="loss")
    cards = Cards([Card("Codes in use", "97", unit="%", target=Target("above 90 %", reached=True))])
    Report("A first mosaic", "It learned 256 tiles.", [cards], sections=[Section("How it learned", [Plots([chart])])])

Every text is escaped. Words between backticks in running text are set as code; nothing else is markup.
H W pixels. Images are uint8, (H, W, 3) color or (H, W) gray.
"""

from __future__ import annotations

import abc
import base64
import io
import math
import random
import re
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt
from PIL import Image

from smalti.core.errors import SmaltiError
from smalti.core.files import write_text
from smalti.reports import charts
from smalti.reports.charts import Plot, escaped, short

# A number, perhaps with a sign, a spread and a short unit: the cells of a column of such are set to the right.
_QUANTITY = re.compile(
    r"[-+\u2212<>≈~]?\s?\d[\d.,\u202f]*(e[-+\u2212]?\d+)?(\s?±\s?\d[\d.,]*)?(\s?[%\u00d7]|\s?[a-zA-Zµ/]{1,8})?|[-\u2013]?"
)
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # the browser then asks nobody for anything


def _prose(text: str) -> str:
    """Running text -> escaped HTML, with `words between backticks` as code."""
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escaped(text))


def _caption(text: str) -> str:
    return f"<figcaption>{_prose(text)}</figcaption>" if text else ""


def _scrolling(table: str, caption: str) -> str:
    """A table -> a part of the page that scrolls sideways where the page is narrow, by finger or keyboard."""
    return f'<div class="scroll" role="group" aria-label="{escaped(caption)}" tabindex="0">{table}</div>'


@final
@dataclass(frozen=True, eq=False)
class EmbeddedImage:
    """Pixels, uint8 (H, W, 3) or (H, W), with what they show in words (for readers who cannot see them) and a caption.

    Raises `SmaltiError` for pixels of another type or shape.
    """

    pixels: npt.NDArray[np.uint8]
    alt: str
    _: KW_ONLY
    caption: str = ""

    def __post_init__(self) -> None:
        pixels: npt.NDArray[Any] = self.pixels
        shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
        if pixels.dtype != np.uint8 or not shaped or pixels.size == 0:
            raise SmaltiError(
                f"an image of a report is uint8 of shape (H, W, 3) or (H, W), not {pixels.dtype} of shape "
                f"{pixels.shape}; move channels last, and map [-1, 1] to 0..255"
            )

    def render(self) -> str:
        """The image -> an `<img>` that carries its PNG."""
        height, width = self.pixels.shape[:2]
        return f'<img src="{_png(self.pixels)}" width="{width}" height="{height}" alt="{escaped(self.alt)}">'


def _png(pixels: npt.NDArray[np.uint8]) -> str:
    """Pixels -> a PNG as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


class Block(abc.ABC):
    """A part of a page: a value that renders itself."""

    @abc.abstractmethod
    def render(self) -> str:
        """The block -> well-formed HTML without headings, all text escaped."""


@final
@dataclass(frozen=True)
class Text(Block):
    """Paragraphs of running text, separated by empty lines."""

    text: str

    def render(self) -> str:
        paragraphs = [part.strip() for part in re.split(r"\n\s*\n", self.text) if part.strip()]
        return "".join(f"<p>{_prose(paragraph)}</p>" for paragraph in paragraphs)


@final
@dataclass(frozen=True)
class Target:
    """What a figure should be, in words, and whether it is."""

    text: str
    _: KW_ONLY
    reached: bool


@final
@dataclass(frozen=True)
class Card:
    """A key figure: what it is, its value as shown, its unit, and the target it was held to, where there is one."""

    name: str
    value: str
    _: KW_ONLY
    unit: str = ""
    target: Target | None = None

    def render(self) -> str:
        """The card -> an entry of a description list."""
        unit = f' <span class="unit">{escaped(self.unit)}</span>' if self.unit else ""
        state, verdict = "", ""
        if self.target is not None:
            state, words = ("reached", "✓ reached") if self.target.reached else ("missed", "✗ not reached")
            verdict = f'<dd class="verdict"><b>{words}</b> <span>target {_prose(self.target.text)}</span></dd>'
        value = f'<dd class="figure">{escaped(self.value)}{unit}</dd>'
        return f'<div class="card {state}"><dt>{_prose(self.name)}</dt>{value}{verdict}</div>'


@final
@dataclass(frozen=True)
class Cards(Block):
    """Key figures side by side."""

    cards: Sequence[Card]

    def render(self) -> str:
        return f'<dl class="cards">{"".join(card.render() for card in self.cards)}</dl>' if self.cards else ""


@final
@dataclass(frozen=True)
class Images(Block):
    """A grid of images with their captions, each about `width` CSS pixels wide, as many in a row as there is room.

    `scaling` is how pixels are enlarged: "auto" smooths, "pixelated" shows each pixel as a square.
    """

    images: Sequence[EmbeddedImage]
    _: KW_ONLY
    caption: str = ""
    width: int = 150
    scaling: Literal["auto", "pixelated"] = "auto"

    def render(self) -> str:
        if not self.images:
            return '<p class="nothing">There are no images yet.</p>'
        items = "".join(f"<figure>{image.render()}{_caption(image.caption)}</figure>" for image in self.images)
        grid = f'<div class="grid" style="--width:{int(self.width)}px">{items}</div>'
        return f'<figure class="images {escaped(self.scaling)}">{grid}{_caption(self.caption)}</figure>'


@final
@dataclass(frozen=True)
class Comparison(Block):
    """Rows of images under one another, as originals over reconstructions: each row is a name and its images.

    Raises `SmaltiError` when the rows differ in length.
    """

    rows: Sequence[tuple[str, Sequence[EmbeddedImage]]]
    _: KW_ONLY
    caption: str = ""
    scaling: Literal["auto", "pixelated"] = "auto"

    def __post_init__(self) -> None:
        lengths = [(name, len(images)) for name, images in self.rows]
        if len({length for _, length in lengths}) > 1:
            raise SmaltiError(f"the rows of a comparison must hold equally many images, not {lengths}")

    def render(self) -> str:
        rows = ""
        for name, images in self.rows:
            cells = "".join(f"<td>{each.render()}<small>{_prose(each.caption)}</small></td>" for each in images)
            rows += f'<tr><th scope="row">{_prose(name)}</th>{cells}</tr>'
        table = _scrolling(f"<table>{rows}</table>", self.caption)
        return f'<figure class="comparison {escaped(self.scaling)}">{table}{_caption(self.caption)}</figure>'


@final
@dataclass(frozen=True)
class Plots(Block):
    """Charts side by side, one under another on a narrow page."""

    plots: Sequence[Plot]
    _: KW_ONLY
    caption: str = ""

    def render(self) -> str:
        charts = f'<div class="plots">{"".join(plot.render() for plot in self.plots)}</div>'
        return f'<figure class="charts">{charts}{_caption(self.caption)}</figure>'


@final
@dataclass(frozen=True)
class Table(Block):
    """A head and rows of cells. Numbers are shown to four digits; columns of numbers stand to the right, units too.

    Raises `SmaltiError` when a row is not as long as the head.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]
    _: KW_ONLY
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.head):
                raise SmaltiError(f"a row of a table has {len(row)} cells under {len(self.head)} headings: {list(row)}")

    def render(self) -> str:
        cells = [[cell if isinstance(cell, str) else _number(cell) for cell in row] for row in self.rows]
        columns = list(zip(*cells, strict=True)) or [("words",)] * len(self.head)
        numeric = [all(_QUANTITY.fullmatch(cell.strip()) for cell in column) for column in columns]
        looks = [' class="number"' if each else "" for each in numeric]
        heads = "".join(f'<th scope="col"{a}>{_prose(name)}</th>' for name, a in zip(self.head, looks, strict=True))
        body = "".join(
            f"<tr>{''.join(f'<td{look}>{_prose(cell)}</td>' for cell, look in zip(row, looks, strict=True))}</tr>"
            for row in cells
        )
        table = _scrolling(f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>", self.caption)
        return f'<figure class="table">{_caption(self.caption)}{table}</figure>'


def _number(value: int | float) -> str:
    """A number of a table: whole ones in full with narrow spaces between thousands, others to four digits."""
    return f"{value:,}".replace(",", "\u202f").replace("-", "\u2212") if isinstance(value, int) else short(value)


@final
@dataclass(frozen=True)
class Commands(Block):
    """Commands to type, in order, each with what it is for (which may be empty). The prompt is not copied with them."""

    commands: Sequence[tuple[str, str]]
    _: KW_ONLY
    caption: str = ""

    def render(self) -> str:
        items = "".join(
            f"<li>{f'<p>{_prose(purpose)}</p>' if purpose else ''}<pre><code>{escaped(command)}</code></pre></li>"
            for command, purpose in self.commands
        )
        return f'<figure class="commands">{_caption(self.caption)}<ul>{items}</ul></figure>'


@final
@dataclass(frozen=True)
class Listing(Block):
    """Text set as it stands: resolved settings, a log."""

    text: str
    _: KW_ONLY
    caption: str = ""

    def render(self) -> str:
        return f'<figure class="listing">{_caption(self.caption)}<pre><code>{escaped(self.text)}</code></pre></figure>'


@final
@dataclass(frozen=True)
class Section:
    """A headed part of a page. Sections do not nest, so that headings stay in order."""

    title: str
    blocks: Sequence[Block]


@final
@dataclass(frozen=True)
class Report:
    """A page: a band of images, title, lead sentence, the first blocks, headed sections, a closing line."""

    title: str
    lead: str
    blocks: Sequence[Block] = ()
    _: KW_ONLY
    hero: Sequence[EmbeddedImage] = ()
    sections: Sequence[Section] = ()
    colophon: str = ""

    def render(self) -> str:
        """The report -> a whole HTML document that refers to nothing outside itself (and forbids the browser to)."""
        opening = "".join(block.render() for block in self.blocks)
        body = "".join(
            f'<section aria-labelledby="part-{number}"><h2 id="part-{number}">{_prose(section.title)}</h2>'
            f"{''.join(block.render() for block in section.blocks)}</section>"
            for number, section in enumerate(self.sections, 1)
        )
        colophon = f"<p>{_prose(self.colophon)}</p>" if self.colophon else ""
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<title>{escaped(self.title)}</title><link rel="icon" href="data:,">'
            f"<style>{_STYLE}{charts.STYLE}</style></head>\n"
            f'<body><header>{self._band()}{_mosaic()}<div class="page"><h1>{_prose(self.title)}</h1>'
            f'<p class="lead">{_prose(self.lead)}</p>{self._contents()}</div></header>\n'
            f'<main class="page">{opening}{body}</main>\n<footer class="page">{colophon}</footer></body></html>\n'
        )

    def write(self, path: Path) -> None:
        """Write the page as one file, whole or not at all. Raises `SmaltiError` when the disk refuses."""
        write_text(path, self.render())

    def _band(self) -> str:
        """The hero images in one row, or two where they are many; on a narrow page twice as many rows."""
        if not self.hero:
            return ""
        across = len(self.hero) if len(self.hero) <= 8 else math.ceil(len(self.hero) / 2)
        narrow = across if across <= 3 else math.ceil(across / 2)
        images = "".join(image.render() for image in self.hero)
        return f'<div class="band" style="--across:{across};--narrow:{narrow}">{images}</div>'

    def _contents(self) -> str:
        if len(self.sections) < 3:
            return ""
        items = "".join(f'<li><a href="#part-{n}">{_prose(s.title)}</a></li>' for n, s in enumerate(self.sections, 1))
        return f'<nav aria-label="Contents"><ol>{items}</ol></nav>'


def _mosaic() -> str:
    """A decorative strip of small tiles, the same on every page."""
    chance = random.Random(64)
    tiles = []
    for column in range(72):
        for row in range(2):
            x, y, turn = (
                10 * column + chance.uniform(0.5, 1.2),
                10 * row + chance.uniform(0.5, 1.2),
                chance.uniform(-5, 5),
            )
            look = f'style="fill:var(--t{chance.choice("0001122334")})" opacity="{chance.uniform(0.55, 1):.2f}"'
            place = f'x="{x:.1f}" y="{y:.1f}" transform="rotate({turn:.0f} {x + 4:.0f} {y + 4:.0f})"'
            tiles.append(f'<rect {look} {place} width="8.4" height="8.4"/>')
    return f'<svg class="mosaic" viewBox="0 0 720 20" aria-hidden="true">{"".join(tiles)}</svg>'


_STYLE = """
:root { color-scheme: light dark; --page: #fbfaf7; --surface: #ffffff; --ink: #22262b; --muted: #5a6068;
  --rule: #e4e0d7; --accent: #1b656e; --good: #1d6b45; --bad: #a63a24; --t0: #1f6f78; --t1: #5aa3a5; --t2: #c48f32;
  --t3: #b55233; --t4: #33475b;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, Georgia, "Noto Serif", serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #15181b; --surface: #1d2125; --ink: #e9e6df; --muted: #a7abb0; --rule: #33393e; --accent: #7cc7cd;
    --good: #6fd0a0; --bad: #ff9c83; --t0: #2f8d97; --t1: #79bdbf; --t2: #d9a74e; --t3: #cf6c4b; --t4: #6a8199; }
}
* { box-sizing: border-box; } html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 17px/1.6 var(--sans); }
.page { max-width: 1104px; margin: 0 auto; padding: 0 24px; }
.band { display: grid; grid-template-columns: repeat(var(--across), 1fr); gap: 3px; padding-bottom: 3px;
  grid-auto-rows: min(calc(100vw / var(--across)), 340px); } .band img { width: 100%; height: 100%; object-fit: cover; }
.mosaic { display: block; width: 100%; height: auto; }
h1, h2, .figure { font-family: var(--serif); font-weight: 500; line-height: 1.15; letter-spacing: -.01em;
  text-wrap: balance; } h1 { font-size: clamp(2.1rem, 6vw, 3.5rem); margin: 3.2rem 0 .9rem; }
h2 { font-size: clamp(1.5rem, 4vw, 2.05rem); margin: 0 0 1.4rem; }
h2::before { content: ""; display: block; width: 34px; height: 10px; margin-bottom: .9rem;
  background: linear-gradient(90deg, var(--t0) 10px, transparent 10px 12px, var(--t2) 12px 22px,
  transparent 22px 24px, var(--t3) 24px); } section { margin-top: 4.5rem; }
p { max-width: 66ch; margin: 0 0 1.1em; text-wrap: pretty; }
.lead { font-size: clamp(1.1rem, 2.6vw, 1.35rem); line-height: 1.5; color: var(--muted); max-width: 58ch;
  margin-bottom: 2.2rem; } a { color: var(--accent); text-underline-offset: .18em; text-decoration-thickness: 1px; }
nav ol { display: flex; flex-wrap: wrap; gap: .2rem 1.6rem; list-style: none; margin: 0 0 2.6rem; padding: .7rem 0;
  font-size: .95rem; border-block: 1px solid var(--rule); }
code, pre { font-family: var(--mono); font-size: .86em; overflow-wrap: anywhere; }
p code, li p code, figcaption code, td code { background: var(--rule); border-radius: 3px; padding: .08em .32em; }
figure { margin: 0 0 2.2rem; }
figcaption, .note, .nothing { font-size: .88rem; line-height: 1.5; color: var(--muted); max-width: 66ch;
  margin: .7rem 0 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 205px), 1fr)); gap: 14px;
  margin: 0 0 2.4rem; }
.card { background: var(--surface); border: 1px solid var(--rule); border-top: 4px solid var(--t4);
  border-radius: 4px; padding: 1rem 1.15rem 1.05rem; display: flex; flex-direction: column; }
.card.reached { border-top-color: var(--good); } .card.missed { border-top-color: var(--bad); }
.card dt { font-size: .9rem; line-height: 1.35; color: var(--muted); } .card dd { margin: 0; }
.figure { font-size: 2.15rem; margin: .35rem 0 .5rem !important; font-variant-numeric: lining-nums;
  overflow-wrap: anywhere; } .unit { font: .95rem var(--sans); color: var(--muted); letter-spacing: 0; }
.verdict { font-size: .84rem; line-height: 1.4; color: var(--muted); margin-top: auto !important; }
.verdict span { display: block; } .reached b { color: var(--good); } .missed b { color: var(--bad); }
.images > .grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--width)), 1fr));
  gap: 14px 10px; } .images figure { margin: 0; }
.images img, .comparison img { display: block; width: 100%; height: auto; border-radius: 2px; }
.images figure figcaption { font-size: .82rem; line-height: 1.4; margin-top: .4rem; }
.pixelated img { image-rendering: pixelated; } .scroll { overflow: auto hidden; }
.comparison table { border-collapse: separate; border-spacing: 4px; width: 100%; table-layout: fixed; }
.comparison th { width: 8.2rem; padding-right: .8rem; text-align: left; font-weight: 500; font-size: .9rem;
  line-height: 1.35; } .comparison td { min-width: 76px; padding: 0; vertical-align: top; }
.comparison small:not(:empty) { display: block; color: var(--muted); line-height: 1.35; margin: .2rem 0 .5rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 14px; }
.plot { background: var(--surface); border: 1px solid var(--rule); border-radius: 4px; padding: 1.1rem 1.2rem 1rem;
  margin: 0; max-width: 576px; min-width: 0; }
.plot figcaption { font: 500 1.05rem/1.35 var(--sans); color: var(--ink); margin: 0 0 .5rem; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; list-style: none; padding: 0; margin: 0 0 .7rem;
  font-size: .86rem; } .end { color: var(--muted); font-variant-numeric: tabular-nums; }
.table figcaption, .commands figcaption, .listing figcaption { margin: 0 0 .7rem; }
.table table { border-collapse: collapse; min-width: min(100%, 32rem); font-size: .94rem;
  font-variant-numeric: tabular-nums lining-nums; }
.table th, .table td { padding: .5rem .9rem; text-align: left; border-bottom: 1px solid var(--rule);
  vertical-align: baseline; }
.table thead th { font-size: .85rem; font-weight: 500; color: var(--muted); border-bottom: 1.5px solid var(--muted); }
.table :is(th, td):first-child { padding-left: 2px; } .table .number { text-align: right; white-space: nowrap; }
.commands ul { list-style: none; margin: 0; padding: 0; } .commands p { margin: 0 0 .35rem; font-size: .95rem; }
pre { background: var(--surface); border: 1px solid var(--rule); border-left: 4px solid var(--t0); border-radius: 4px;
  margin: 0 0 1.1rem; padding: .75rem 1rem; white-space: pre-wrap; line-height: 1.55; }
.commands code::before { content: "$ "; color: var(--muted); user-select: none; -webkit-user-select: none; }
footer { margin-top: 5rem; padding-bottom: 3rem; font-size: .86rem; color: var(--muted); }
footer p { border-top: 1px solid var(--rule); padding-top: 1rem; max-width: none; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; }
@media (max-width: 620px) {
  body { font-size: 16px; } .page { padding: 0 16px; } h1 { margin-top: 2rem; } section { margin-top: 3.2rem; }
  .band { grid-template-columns: repeat(var(--narrow), 1fr); grid-auto-rows: min(calc(100vw / var(--narrow)), 260px); }
  .cards { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; } .card { padding: .8rem .9rem; }
  .figure { font-size: 1.7rem; }
  .images > .grid { grid-template-columns: repeat(auto-fill, minmax(min(100%, calc(var(--width) * .7)), 1fr));
    gap: 10px 8px; } .comparison table { width: max-content; min-width: 100%; }
  .comparison th { width: 6.6rem; position: sticky; left: 0; background: var(--page); padding-right: .3rem;
    font-size: .8rem; hyphens: auto; } .comparison td { width: 96px; } .plot { padding: .8rem .6rem .7rem; }
  .table th, .table td { padding: .45rem .6rem; }
}
@media print {
  body { font-size: 10.5pt; background: none; } nav { display: none; } section { margin-top: 2.2rem; }
  figure, .card, pre { break-inside: avoid; } h2 { break-after: avoid; } .scroll { overflow: visible; }
  .plots { grid-template-columns: repeat(2, 1fr); } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
