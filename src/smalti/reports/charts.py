"""Line charts, histograms and bars, written as inline SVG with no library: values in, one `<figure>` of HTML out.

Lengths are in units of the drawing (`_WIDTH` of them across); the page scales the drawing to the width it has. Colors
and line widths are in `STYLE`, so that they follow the reader's light or dark scheme and the printer.
"""

from __future__ import annotations

import abc
import html
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import final

import numpy as np

from smalti.core.errors import SmaltiError

_WIDTH, _HEIGHT = 400.0, 232.0  # of a whole drawing; 400 keeps the lettering readable on a telephone
_TOP, _BOTTOM, _RIGHT = 26.0, 44.0, 12.0  # margins; the left one follows the widest tick label
_LETTER = 6.7  # mean advance of a tick label's letter
_MOST_POINTS = 600  # of one drawn run; more than the pixels of a screen column cannot be seen and only weigh
_HUGE, _TINY = 1e100, 1e-100  # beyond these a range cannot be divided without overflow; such values count as not finite
_SERIES = 6  # colors in STYLE; a seventh line begins again with another dash

Point = tuple[float, float]


def escaped(text: str) -> str:
    """Any text -> text that is safe between tags and inside quoted attributes, and that UTF-8 can hold.

    Control characters and the halves of characters which undecodable file names leave behind become U+FFFD.
    """
    return html.escape(re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "\ufffd", text), quote=True)


def short(number: float) -> str:
    """A number -> about four significant digits, in thousands (k, M, G) from 10k up; a dash when it is not finite."""
    if not math.isfinite(number):
        return "\u2013"
    size = abs(number)
    if size >= 1e12 or 0 < size < 1e-3:
        mantissa, exponent = f"{number:.2e}".split("e")
        shown = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    else:
        units = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
        factor, letter = next((f, unit) for f, unit in units if size >= max(f, 1e4) or f == 1)
        shown = f"{number / factor:.4g}{letter}"
    return shown.replace("-", "\u2212")


class Scale(abc.ABC):
    """How the numbers of an axis are spread along it."""

    refusal: str  # why some values have no place, as the end of a sentence

    @abc.abstractmethod
    def holds(self, value: float) -> bool:
        """Whether a value, which may be NaN or infinite, has a place on the axis."""

    @abc.abstractmethod
    def place(self, value: float) -> float:
        """A value -> a number that grows evenly along the axis."""

    @abc.abstractmethod
    def bounds(self, low: float, high: float) -> Point:
        """The least and greatest value -> the round ends of an axis that shows both; never equal."""

    @abc.abstractmethod
    def ticks(self, low: float, high: float) -> list[tuple[float, str]]:
        """The ends of an axis -> the values to mark, each with its label."""


@final
@dataclass(frozen=True)
class Linear(Scale):
    """Equal differences take equal room."""

    refusal = "only finite numbers can be drawn"

    def holds(self, value: float) -> bool:
        return abs(value) < _HUGE

    def place(self, value: float) -> float:
        return value

    def bounds(self, low: float, high: float) -> Point:
        low, high = _apart(low, high)
        step = _round_step((high - low) / 5)
        return math.floor(round(low / step, 6)) * step, math.ceil(round(high / step, 6)) * step

    def ticks(self, low: float, high: float) -> list[tuple[float, str]]:
        step = _round_step((high - low) / 5)
        first, last = math.ceil(round(low / step, 6)), math.floor(round(high / step, 6))
        values = [number * step for number in range(first, last + 1)]
        return list(zip(values, _tick_labels(values, step), strict=True))


@final
@dataclass(frozen=True)
class Logarithmic(Scale):
    """Equal ratios take equal room. Zero and negative values have none, and the chart says how many it left out."""

    refusal = "only finite numbers above zero have a place on a logarithmic axis"

    def holds(self, value: float) -> bool:
        return _TINY < value < _HUGE

    def place(self, value: float) -> float:
        return math.log10(value)

    def bounds(self, low: float, high: float) -> Point:
        if high < low * 1.05:
            low, high = low / 2, high * 2
        marks = self._marks(low, high, (1, 2, 5))
        return max(m for m in marks if m <= low * 1.000001), min(m for m in marks if m >= high * 0.999999)

    def ticks(self, low: float, high: float) -> list[tuple[float, str]]:
        decades = math.log10(high / low)
        marks = self._marks(low, high, (1,))[:: math.ceil(decades / 6)]
        marks = marks if decades > 2.2 else self._marks(low, high, (1, 2, 5))
        return [(mark, short(mark)) for mark in marks if low * 0.999999 <= mark <= high * 1.000001]

    @staticmethod
    def _marks(low: float, high: float, multiples: Sequence[int]) -> list[float]:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        return [float(f"{multiple}e{exponent}") for exponent in exponents for multiple in multiples]


def _apart(low: float, high: float) -> Point:
    """Ends that differ enough to be divided: a constant gets a tenth of itself, zero gets a half, on either side."""
    size = max(abs(low), abs(high))
    if high - low > max(size * 1e-9, _TINY):
        return low, high
    room = size * 0.1 if size > _TINY else 0.5
    return low - room, high + room


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 2.5, 5, 10, 20) if m * power >= least * 0.9999)


def _tick_labels(values: Sequence[float], step: float) -> list[str]:
    """Ticks with as many decimals as their step needs, all in one unit (k, M, G or a power of ten)."""
    largest = max(abs(value) for value in values)
    power = next((p for p in (9, 6, 3) if largest >= max(10.0**p, 1e4)), 0)
    unit = {0: "", 3: "k", 6: "M", 9: "G"}[power]
    if largest >= 1e12 or largest < 1e-3:
        power = math.floor(math.log10(largest)) if largest > 0 else 0
        unit = f"e{power}" if power else ""
    scaled = step / 10.0**power
    decimals = next((d for d in range(12) if abs(round(scaled, d) - scaled) < scaled * 1e-6), 12)
    shown = [f"{value / 10.0**power:.{decimals}f}{unit}" if value else "0" for value in values]
    return [label.replace("-", "\u2212") for label in shown]


@final
@dataclass(frozen=True)
class _Axis:
    """A scale from an interval of values to an interval of positions."""

    scale: Scale
    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        place = self.scale.place
        part = (place(value) - place(self.low)) / (place(self.high) - place(self.low))
        return self.start + part * (self.end - self.start)


def _axes(xs: Point, ys: Point, scale: Scale) -> tuple[_Axis, _Axis]:
    """The ends of both axes -> the axes, with room on the left for the widest label of the vertical one."""
    widest = max((len(label) for _, label in scale.ticks(*ys)), default=0)
    return _Axis(Linear(), *xs, 12 + _LETTER * widest, _WIDTH - _RIGHT), _Axis(scale, *ys, _HEIGHT - _BOTTOM, _TOP)


def _frame(x: _Axis, y: _Axis, x_label: str, y_label: str) -> str:
    """Two axes -> grid lines, tick labels and the names of the axes."""
    parts = []
    for value, label in y.scale.ticks(y.low, y.high):
        at = y.at(value)
        parts.append(f'<line class="grid" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{x.start - 7:.1f}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
    for value, label in x.scale.ticks(x.low, x.high):
        at, half = x.at(value), len(label) * _LETTER / 2
        anchor, place = ("end", x.end) if at + half > _WIDTH else ("middle", at)
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{y.start:.1f}" y2="{y.start + 4:.1f}"/>')
        parts.append(f'<text x="{place:.1f}" y="{y.start + 18:.1f}" text-anchor="{anchor}">{label}</text>')
    parts.append(f'<line class="base" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{y.start:.1f}" y2="{y.start:.1f}"/>')
    parts.append(f'<text class="name" x="2" y="12">{escaped(y_label)}</text>')
    parts.append(f'<text class="name" x="{x.end:.1f}" y="{_HEIGHT - 6}" text-anchor="end">{escaped(x_label)}</text>')
    return "".join(parts)


def _figure(title: str, drawing: str, text: str, *, height: float = _HEIGHT, legend: str = "", note: str = "") -> str:
    """The parts of a chart -> its `<figure>`; a sentence replaces an empty drawing."""
    svg = (
        f'<svg viewBox="0 0 {_WIDTH:g} {height:g}" role="img" aria-label="{escaped(title)}. {escaped(text)}">'
        f"{drawing}</svg>"
        if drawing
        else '<p class="nothing">There is nothing to draw yet.</p>'
    )
    notes = f'<p class="note">{escaped(note)}</p>' if note else ""
    return f'<figure class="plot"><figcaption>{escaped(title)}</figcaption>{legend}{svg}{notes}</figure>'


def _left_out(total: int, refused: int, scale: Scale) -> str:
    """How many values a chart does not show -> a sentence for the reader, or nothing."""
    return f"Not shown: {refused} of {total} values, as {scale.refusal}." if refused else ""


class Plot(abc.ABC):
    """A chart: a value that renders itself as one `<figure>`."""

    @abc.abstractmethod
    def render(self) -> str:
        """The chart -> HTML with the title, the SVG and a sentence on whatever could not be shown."""


@final
@dataclass(frozen=True)
class Line:
    """One line of a chart: (x, y) points in the order they are joined.

    A point without a place on the axes interrupts the line. With `smoothing` above 1, the raw line is pale, and over it
    is drawn what remains after smoothing over about that many neighboring points.
    """

    label: str
    points: Sequence[Point]
    _: KW_ONLY
    smoothing: int = 1

    def __post_init__(self) -> None:
        if self.smoothing < 1:
            raise SmaltiError(f"line {self.label!r}: smoothing is a number of points from 1, not {self.smoothing}")


@final
@dataclass(frozen=True)
class Reference:
    """A horizontal line to compare with: a value of the y axis and what it stands for."""

    value: float
    label: str


@final
@dataclass(frozen=True)
class LinePlot(Plot):
    """Lines over common axes; the labels of the axes carry the units."""

    title: str
    lines: Sequence[Line]
    _: KW_ONLY
    x_label: str
    y_label: str
    scale: Scale = Linear()
    references: Sequence[Reference] = ()

    def render(self) -> str:
        runs = [_runs(line.points, self.scale) for line in self.lines]
        shown = [point for of_line in runs for run in of_line for point in run]
        if not shown:
            return _figure(self.title, "", "", note=self._note())
        references = [reference for reference in self.references if self.scale.holds(reference.value)]
        heights = [y for _, y in shown] + [reference.value for reference in references]
        places = [x for x, _ in shown]
        x, y = _axes(_apart(min(places), max(places)), self.scale.bounds(min(heights), max(heights)), self.scale)
        parts = [_frame(x, y, self.x_label, self.y_label)]
        parts += [_reference(reference, x, y) for reference in references]
        smoothed = []
        for number, (line, of_line) in enumerate(zip(self.lines, runs, strict=True)):
            smoothed.append([_smoothed(run, line.smoothing) for run in of_line])
            if line.smoothing > 1:
                parts += [_path(run, x, y, f"raw {_look(number)}") for run in of_line]
        for number, of_line in enumerate(smoothed):  # after all the raw lines, so that none of them covers one of these
            parts += [_path(run, x, y, _look(number)) for run in of_line]
        ends = [of_line[-1][-1][1] if of_line else math.nan for of_line in smoothed]
        texts = [f"{line.label} ends at {short(end)}" for line, end in zip(self.lines, ends, strict=True)]
        description = f"{self.y_label} against {self.x_label}: {'; '.join(texts)}."
        return _figure(self.title, "".join(parts), description, legend=self._legend(ends), note=self._note())

    def _legend(self, ends: Sequence[float]) -> str:
        """A swatch and a label for each line, with the value at which it ends."""
        items = [
            f'<li><svg class="key" viewBox="0 0 26 8" aria-hidden="true"><line class="{_look(number)}" x1="1" x2="25" '
            f'y1="4" y2="4"/></svg>{escaped(line.label)} <span class="end">{short(end)}</span></li>'
            for number, (line, end) in enumerate(zip(self.lines, ends, strict=True))
        ]
        return f'<ul class="legend">{"".join(items)}</ul>'

    def _note(self) -> str:
        points = [point for line in self.lines for point in line.points] + [(0.0, r.value) for r in self.references]
        return _left_out(len(points), sum(not _drawable(point, self.scale) for point in points), self.scale)


def _drawable(point: Point, scale: Scale) -> bool:
    return Linear().holds(point[0]) and scale.holds(point[1])


def _runs(points: Sequence[Point], scale: Scale) -> list[list[Point]]:
    """Points -> the uninterrupted stretches of those that can be drawn."""
    stretches = itertools.groupby(points, lambda point: _drawable(point, scale))
    return [[(float(x), float(y)) for x, y in stretch] for drawable, stretch in stretches if drawable]


def _smoothed(run: Sequence[Point], window: int) -> list[Point]:
    """A run -> at each point, the straight line fitted to the `window` points around it.

    In the middle that is the moving mean. At the ends, with neighbors on one side only, it neither lags behind a slope
    as a mean does nor jumps to the last raw value. Nothing leaves the range of the run: logarithms stay possible.
    """
    if window == 1:
        return list(run)
    index, heights = np.arange(len(run)), np.array([y for _, y in run])
    low, high = np.maximum(index - window // 2, 0), np.minimum(index + window // 2, len(run) - 1)
    count, center = high - low + 1, (low + high) / 2
    sums, moments = (np.concatenate(([0.0], np.cumsum(each))) for each in (heights, index * heights))
    total, moment = sums[high + 1] - sums[low], moments[high + 1] - moments[low]
    slope = (moment - center * total) / np.maximum(count * (count**2 - 1) / 12, 1)
    fitted = np.clip(total / count + slope * (index - center), heights.min(), heights.max())
    return [(x, y) for (x, _), y in zip(run, fitted.tolist(), strict=True)]


def _thinned(run: Sequence[Point]) -> list[Point]:
    """A run -> at most about `_MOST_POINTS` of its points: the ends, and the lowest and highest of each stretch."""
    stretch = math.ceil(2 * len(run) / _MOST_POINTS)
    if len(run) <= _MOST_POINTS:
        return list(run)
    kept = {0, len(run) - 1}
    for start in range(0, len(run), stretch):
        indices = range(start, min(start + stretch, len(run)))
        kept |= {min(indices, key=lambda i: run[i][1]), max(indices, key=lambda i: run[i][1])}
    return [run[index] for index in sorted(kept)]


def _look(number: int) -> str:
    """The number of a line -> the classes of its color and dash: both differ, for readers who see no color."""
    return f"c{number % _SERIES} d{(number + number // _SERIES) % 4}"


def _path(run: Sequence[Point], x: _Axis, y: _Axis, look: str) -> str:
    """A run -> a polyline, or a dot where a line would have no length."""
    if len(run) == 1:
        return f'<circle class="{look}" cx="{x.at(run[0][0]):.1f}" cy="{y.at(run[0][1]):.1f}" r="3"/>'
    places = " ".join(f"{x.at(across):.1f},{y.at(up):.1f}" for across, up in _thinned(run))
    return f'<polyline class="{look}" points="{places}"/>'


def _reference(reference: Reference, x: _Axis, y: _Axis) -> str:
    at = y.at(reference.value)
    above = at - 5 if at > _TOP + 16 else at + 14
    return (
        f'<line class="reference" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text class="label" x="{x.end:.1f}" y="{above:.1f}" text-anchor="end">{escaped(reference.label)}</text>'
    )


@final
@dataclass(frozen=True)
class Histogram(Plot):
    """How many of the values fall into each of `bins` equal intervals."""

    title: str
    values: Sequence[float]
    _: KW_ONLY
    x_label: str
    y_label: str = "count"
    bins: int = 30

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise SmaltiError(f"histogram {self.title!r}: bins is a number of intervals from 1, not {self.bins}")

    def render(self) -> str:
        shown = [float(value) for value in self.values if Linear().holds(value)]
        note = _left_out(len(self.values), len(self.values) - len(shown), Linear())
        if not shown:
            return _figure(self.title, "", "", note=note)
        counts, edges = np.histogram(shown, bins=self.bins, range=_apart(min(shown), max(shown)))
        x, y = _axes((float(edges[0]), float(edges[-1])), Linear().bounds(0.0, float(counts.max())), Linear())
        bars = []
        for count, left, right in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            start, width, top = x.at(left), x.at(right) - x.at(left), y.at(count)
            box = f'x="{start:.2f}" width="{max(width - 1, width / 2):.2f}" y="{top:.1f}" height="{y.start - top:.1f}"'
            bars.append(f'<rect class="c0" {box}/>' if count else "")
        description = f"{len(shown)} values of {self.x_label} from {short(min(shown))} to {short(max(shown))}."
        return _figure(self.title, _frame(x, y, self.x_label, self.y_label) + "".join(bars), description, note=note)


@final
@dataclass(frozen=True)
class Bars(Plot):
    """Named values, one horizontal bar each, from a common zero; one that is not finite reads "not measured"."""

    title: str
    bars: Sequence[tuple[str, float]]
    _: KW_ONLY
    unit: str = ""

    def render(self) -> str:
        drawable = [value for _, value in self.bars if Linear().holds(value)]
        x = _Axis(Linear(), *_apart(min([0.0, *drawable]), max([0.0, *drawable])), 2.0, _WIDTH - 2)
        parts, description = [], []
        for row, (label, value) in enumerate(self.bars):
            known = Linear().holds(value)
            shown = f"{short(value)} {self.unit}".strip() if known else "not measured"
            room = max(int((_WIDTH - 10) / _LETTER) - len(shown) - 2, 8)
            fitting = label if len(label) <= room else f"{label[: room - 1]}…"
            top, (start, end) = 40.0 * row + 20, sorted((x.at(0.0), x.at(value if known else 0.0)))
            parts += [
                f'<text class="name" x="2" y="{top - 6:g}">{escaped(fitting)}</text>',
                f'<text class="value" x="{x.end:g}" y="{top - 6:g}" text-anchor="end">{escaped(shown)}</text>',
                f'<rect class="groove" x="2" y="{top:g}" width="{_WIDTH - 4:g}" height="10"/>',
                f'<rect class="c0" x="{start:.1f}" y="{top:g}" width="{end - start:.1f}" height="10"/>',
            ]
            description.append(f"{label}: {shown}")
        return _figure(self.title, "".join(parts), "; ".join(description) + ".", height=40.0 * len(self.bars) - 4)


# Six hues that stay apart in the common forms of color blindness, at 3:1 or more against the page in both schemes.
STYLE = """
:root { --c0: #083d9f; --c1: #d1790a; --c2: #0d826a; --c3: #c572b8; --c4: #8e9054; --c5: #22252e; }
@media screen and (prefers-color-scheme: dark) {
  :root { --c0: #4370d1; --c1: #bb5d3c; --c2: #73f7b0; --c3: #82657d; --c4: #eec94c; --c5: #c7d2f7; }
}
.plot svg { display: block; width: 100%; height: auto; overflow: visible; }
.plot svg text { font: 12px var(--sans); fill: var(--muted); font-variant-numeric: tabular-nums; }
.plot svg .name, .plot svg .value, .plot svg .label { fill: var(--ink); }
.plot svg .label { paint-order: stroke; stroke: var(--surface); stroke-width: 4px; stroke-linejoin: round; }
.plot .grid { stroke: var(--rule); } .plot .base, .plot .mark { stroke: var(--muted); }
.plot .reference { stroke: var(--ink); stroke-dasharray: 2 3; } .plot .groove { fill: var(--rule); opacity: .55; }
.plot polyline { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.plot .raw { opacity: .45; } .plot polyline.raw { stroke-width: 1; stroke-dasharray: none; }
.plot .key { display: inline-block; width: 26px; height: 8px; margin-right: .4em; stroke-width: 2; }
.plot .d1 { stroke-dasharray: 7 4; } .plot .d2 { stroke-dasharray: 1.5 4; } .plot .d3 { stroke-dasharray: 9 3 2 3; }
""" + "".join(
    f".plot :is(polyline, line).c{number} {{ stroke: var(--c{number}); }} "
    f".plot :is(rect, circle).c{number} {{ fill: var(--c{number}); }}\n"
    for number in range(_SERIES)
)
