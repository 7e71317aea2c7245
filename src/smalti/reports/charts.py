"""Line charts, histograms and bars, drawn by matplotlib as SVG: values in, a `Drawing` for a template out.

The drawings follow the light and the dark scheme of the page: matplotlib draws with placeholder colors, which become
the CSS variables of `report.css`. Text stays text, and the same values give the same bytes. matplotlib is imported when
the first chart is drawn. Lengths are in units of the drawing, 400 of them across.
"""

from __future__ import annotations

import abc
import io
import itertools
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, final

import numpy as np
from markupsafe import Markup

from smalti.core.errors import SmaltiError
from smalti.reports.number_format import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 400, 232  # of a whole drawing; 400 keeps the lettering readable on a telephone
_TOP, _BOTTOM, _RIGHT = 26, 44, 12  # margins; the left one follows the widest tick label
_LETTER = 6.7  # mean advance of a tick label's letter
_HUGE, _TINY = 1e100, 1e-100  # beyond these a range cannot be divided without overflow; such values count as not finite
_SERIES = tuple(f"c{number}" for number in range(6))
"""Variables of `report.css`; a seventh line begins again with another dash."""
_DASHES: tuple[tuple[float, ...], ...] = ((), (7, 4), (1.5, 4), (9, 3, 2, 3))
_PLACEHOLDERS = {name: f"#{number:06x}" for number, name in enumerate((*_SERIES, "ink", "muted", "rule", "surface"), 1)}
"""CSS variable -> the color that stands for it while matplotlib draws."""
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "smalti",
    "text.parse_math": False,
    "font.size": 12,
    "lines.scale_dashes": False,
    "text.color": _PLACEHOLDERS["ink"],
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))

Point: TypeAlias = tuple[float, float]
Scale: TypeAlias = Literal["linear", "log"]


class LegendEntry(NamedTuple):
    """The color and dashes of a line as CSS values, what it is called, and the value at which it ends."""

    color: str
    dashes: str
    label: str
    end: str


class Drawing(NamedTuple):
    """A chart, ready for a template. `svg` is the content of an `<svg>` of WIDTH x `height`, or "" without values."""

    title: str
    svg: Markup
    height: int
    description: str
    legend: Sequence[LegendEntry] = ()
    note: str = ""


class Plot(abc.ABC):
    """A chart: a value that can be drawn."""

    @abc.abstractmethod
    def drawing(self) -> Drawing:
        """The chart -> its drawing, with a sentence on whatever could not be shown."""


@final
@dataclass(frozen=True)
class Line:
    """One line of a chart: (x, y) points in the order they are joined.

    A point without a place on the axes interrupts the line.
    """

    label: str
    points: Sequence[Point]


@final
@dataclass(frozen=True)
class Reference:
    """A horizontal line to compare with: a value of the y axis and what it stands for."""

    value: float
    label: str


@final
@dataclass(frozen=True)
class LinePlot(Plot):
    """Lines over common axes; the labels of the axes carry the units. `scale` is that of the y axis."""

    title: str
    lines: Sequence[Line]
    _: KW_ONLY
    x_label: str
    y_label: str
    scale: Scale = "linear"
    references: Sequence[Reference] = ()

    def drawing(self) -> Drawing:
        runs = [_runs(line.points, self.scale) for line in self.lines]
        shown = [point for of_line in runs for run in of_line for point in run]
        points = [point for line in self.lines for point in line.points] + [(0.0, r.value) for r in self.references]
        note = _left_out(len(points), sum(not _has_place(point, self.scale) for point in points), self.scale)
        if not shown:
            return Drawing(self.title, Markup(), HEIGHT, "", note=note)
        references = [reference for reference in self.references if _holds(reference.value, self.scale)]
        heights = [y for _, y in shown] + [reference.value for reference in references]
        with _figure(HEIGHT) as figure:
            axes = _axes(figure, _apart(*_ends(x for x, _ in shown)), _ends(heights), self.scale)
            _name_axes(figure, self.x_label, self.y_label)
            for reference in references:
                _draw_reference(axes, reference)
            for number, of_line in enumerate(runs):
                for run in of_line:
                    _draw_run(axes, run, number)
            svg = _svg(figure)
        ends = [short(of_line[-1][-1][1] if of_line else math.nan) for of_line in runs]
        legend = [
            LegendEntry(f"var(--{_color(number)})", " ".join(map(str, _dashes(number))) or "none", line.label, end)
            for number, (line, end) in enumerate(zip(self.lines, ends, strict=True))
        ]
        texts = [f"{entry.label} ends at {entry.end}" for entry in legend]
        description = f"{self.y_label} against {self.x_label}: {'; '.join(texts)}."
        return Drawing(self.title, svg, HEIGHT, description, legend, note)


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

    def drawing(self) -> Drawing:
        shown = [float(value) for value in self.values if _holds(value, "linear")]
        note = _left_out(len(self.values), len(self.values) - len(shown), "linear")
        if not shown:
            return Drawing(self.title, Markup(), HEIGHT, "", note=note)
        counts, edges = np.histogram(shown, bins=self.bins, range=_apart(min(shown), max(shown)))
        with _figure(HEIGHT) as figure:
            axes = _axes(figure, (float(edges[0]), float(edges[-1])), (0.0, float(counts.max())), "linear")
            _name_axes(figure, self.x_label, self.y_label)
            filled = counts > 0
            width = (edges[1] - edges[0]) * 0.92  # a gap between neighbors
            bars = axes.bar(edges[:-1][filled], counts[filled], width, align="edge", color=_PLACEHOLDERS["c0"])
            for bar in bars:
                bar.set(clip_on=False, gid="bar")
            svg = _svg(figure)
        description = f"{len(shown)} values of {self.x_label} from {short(min(shown))} to {short(max(shown))}."
        return Drawing(self.title, svg, HEIGHT, description, note=note)


@final
@dataclass(frozen=True)
class Bars(Plot):
    """Named values, one horizontal bar each, from a common zero; one that is not finite reads "not measured"."""

    title: str
    bars: Sequence[tuple[str, float]]
    _: KW_ONLY
    unit: str = ""

    def drawing(self) -> Drawing:
        lengths = [float(value) if _holds(value, "linear") else 0.0 for _, value in self.bars]
        texts = [
            f"{short(value)} {self.unit}".strip() if _holds(value, "linear") else "not measured"
            for _, value in self.bars
        ]
        height = 40 * max(len(self.bars), 1)
        low, high = _apart(min([0.0, *lengths]), max([0.0, *lengths]))
        with _figure(height) as figure:
            axes = figure.add_axes((0.005, 0, 0.99, 1))
            axes.set(xlim=(low, high), ylim=(height, 0))
            axes.set_axis_off()
            for row, ((label, _), length, text) in enumerate(zip(self.bars, lengths, texts, strict=True)):
                room = max(int((WIDTH - 10) / _LETTER) - len(text) - 2, 8)
                fitting = label if len(label) <= room else f"{label[: room - 1]}…"
                axes.text(low, 40 * row + 14, printable(fitting))
                axes.text(high, 40 * row + 14, printable(text), ha="right")
                for gid, start, width in (("groove", low, high - low), ("bar", 0.0, length)):
                    color = _PLACEHOLDERS["rule" if gid == "groove" else "c0"]
                    axes.barh(40 * row + 25, width, 10, left=start, color=color)[0].set(clip_on=False, gid=gid)
            svg = _svg(figure)
        description = "; ".join(f"{label}: {text}" for (label, _), text in zip(self.bars, texts, strict=True))
        return Drawing(self.title, svg, height, f"{description}.")


def printable(text: str) -> str:
    """Any text -> text that a page can hold: control characters, and the halves of characters which undecodable file
    names leave behind, become U+FFFD."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "\ufffd", text)


def _holds(value: float, scale: Scale) -> bool:
    """Whether a value, which may be NaN or infinite, has a place on an axis."""
    return abs(value) < _HUGE if scale == "linear" else _TINY < value < _HUGE


def _has_place(point: Point, scale: Scale) -> bool:
    return _holds(point[0], "linear") and _holds(point[1], scale)


def _left_out(total: int, refused: int, scale: Scale) -> str:
    """How many values a chart does not show -> a sentence for the reader, or nothing."""
    reason = "only finite numbers can be drawn"
    if scale == "log":
        reason = "only finite numbers above zero have a place on a logarithmic axis"
    return f"Not shown: {refused} of {total} values, as {reason}." if refused else ""


def _runs(points: Sequence[Point], scale: Scale) -> list[list[Point]]:
    """Points -> the uninterrupted stretches of those that can be drawn."""
    stretches = itertools.groupby(points, lambda point: _has_place(point, scale))
    return [[(float(x), float(y)) for x, y in stretch] for drawable, stretch in stretches if drawable]


def _ends(values: Iterator[float] | Sequence[float]) -> Point:
    numbers = list(values)
    return min(numbers), max(numbers)


def _apart(low: float, high: float) -> Point:
    """Ends that differ enough to be divided: a constant gets a tenth of itself, zero gets a half, on either side."""
    size = max(abs(low), abs(high))
    if high - low > max(size * 1e-9, _TINY):
        return low, high
    room = size * 0.1 if size > _TINY else 0.5
    return low - room, high + room


def _linear_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """The ends of the values -> round ticks that enclose them, with labels in one unit (k, M, G or a power of ten)."""
    from matplotlib.ticker import MaxNLocator

    values = [float(value) for value in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(*_apart(low, high))]
    largest = max(abs(value) for value in values)
    power = next((p for p in (9, 6, 3) if largest >= max(10.0**p, 1e4)), 0)
    unit = {0: "", 3: "k", 6: "M", 9: "G"}[power]
    if largest >= 1e12 or largest < 1e-3:
        power = math.floor(math.log10(largest)) if largest > 0 else 0
        unit = f"e{power}" if power else ""
    scaled = (values[1] - values[0]) / 10.0**power
    decimals = next((d for d in range(12) if abs(round(scaled, d) - scaled) < scaled * 1e-6), 12)
    labels = [f"{value / 10.0**power:.{decimals}f}{unit}" if abs(value) > largest * 1e-9 else "0" for value in values]
    return values, [label.replace("-", "\u2212") for label in labels]


def _log_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """The ends of the values -> ticks at 1, 2 and 5 times powers of ten that enclose them; over more than two decades
    at powers of ten alone, about six, and at the ends."""
    if high < low * 1.05:
        low, high = low / 2, high * 2
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [float(f"{multiple}e{exponent}") for exponent in exponents for multiple in (1, 2, 5)]
    first, last = max(m for m in marks if m <= low * 1.000001), min(m for m in marks if m >= high * 0.999999)
    values = [mark for mark in marks if first <= mark <= last]
    if math.log10(last / first) > 2.2:
        decades = [mark for mark in marks[::3] if first < mark < last]
        values = [first, *decades[:: math.ceil(len(decades) / 6)], last]
    return values, [short(value) if value in marks[::3] or len(values) < 8 else "" for value in values]


@contextmanager
def _figure(height: int) -> Iterator[Figure]:
    """A figure of WIDTH x `height`, in matplotlib's default style whatever the user's is."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the reader's browser has its own
        figure = Figure(figsize=(WIDTH / 72, height / 72))  # a point of matplotlib is a unit of the drawing
        figure.patch.set_visible(False)
        yield figure


def _axes(figure: Figure, xs: Point, ys: Point, scale: Scale) -> Axes:
    """The ends of both axes -> axes with horizontal grid lines, and room on the left for the widest tick label."""
    y_ticks, y_labels = (_linear_ticks if scale == "linear" else _log_ticks)(*ys)
    left = 12 + _LETTER * max(map(len, y_labels))
    box = (left / WIDTH, _BOTTOM / HEIGHT, (WIDTH - _RIGHT - left) / WIDTH, (HEIGHT - _TOP - _BOTTOM) / HEIGHT)
    axes = figure.add_axes(box, yscale=scale, xlim=xs, ylim=(y_ticks[0], y_ticks[-1]))
    axes.patch.set_visible(False)
    for side in ("left", "top", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_PLACEHOLDERS["muted"])
    x_ticks, x_labels = _linear_ticks(*xs)
    inside = [(tick, label) for tick, label in zip(x_ticks, x_labels, strict=True) if xs[0] <= tick <= xs[1]]
    axes.set_xticks([tick for tick, _ in inside], [label for _, label in inside])
    axes.set_yticks(y_ticks, y_labels)
    axes.minorticks_off()
    axes.tick_params(left=False, bottom=False, labelcolor=_PLACEHOLDERS["muted"], pad=6)
    for tick in y_ticks[1:]:
        axes.axhline(tick, color=_PLACEHOLDERS["rule"], linewidth=1, clip_on=False, zorder=0)
    return axes


def _name_axes(figure: Figure, x_label: str, y_label: str) -> None:
    figure.text(2 / WIDTH, 1 - 12 / HEIGHT, printable(y_label))
    figure.text(1 - _RIGHT / WIDTH, 6 / HEIGHT, printable(x_label), ha="right")


def _draw_reference(axes: Axes, reference: Reference) -> None:
    ink = _PLACEHOLDERS["ink"]
    axes.axhline(reference.value, color=ink, linewidth=1, linestyle=(0, (2, 3)), clip_on=False, gid="reference")
    _, place = axes.transData.transform((axes.get_xlim()[1], reference.value))
    above = place < axes.bbox.y1 - 16
    axes.annotate(
        printable(reference.label),
        (1, reference.value),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, 5 if above else -14),
        textcoords="offset points",
        ha="right",
        annotation_clip=False,
        gid="label",
    )


def _draw_run(axes: Axes, run: Sequence[Point], number: int) -> None:
    """Join the points of a run; one alone is a dot: a line without length has round ends."""
    xs, ys = zip(*(run if len(run) > 1 else [*run, *run]), strict=True)
    alone = len(run) == 1
    axes.plot(
        xs,
        ys,
        color=_PLACEHOLDERS[_color(number)],
        linewidth=6 if alone else 2,
        linestyle="solid" if alone or not _dashes(number) else (0, _dashes(number)),
        solid_capstyle="round",
        dash_capstyle="round",
        clip_on=False,
        gid="dot" if alone else "line",
    )


def _color(number: int) -> str:
    """The number of a line -> the CSS variable of its color."""
    return _SERIES[number % len(_SERIES)]


def _dashes(number: int) -> tuple[float, ...]:
    """The number of a line -> its dashes: they differ like the colors, for readers who see no color."""
    return _DASHES[(number + number // len(_SERIES)) % len(_DASHES)]


def _svg(figure: Figure) -> Markup:
    """A figure -> the content of its `<svg>`: placeholders are CSS variables, and names of artists are classes.

    Ids go, which would stand on a page once for each chart, and so does the style sheet, which would apply to all of
    it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    svg = buffer.getvalue().partition("<svg")[2].partition(">")[2].rpartition("</svg>")[0]
    svg = re.sub(r"<defs>.*?</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'\bid="(line|dot|bar|groove|reference|label)"', r'class="\1"', svg)
    svg = re.sub(r' id="[^"]*"', "", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for name, color in _PLACEHOLDERS.items():
        svg = svg.replace(color, f"var(--{name})")
    return Markup(re.sub(r"\s*\n\s*", " ", svg))  # matplotlib has escaped all text
