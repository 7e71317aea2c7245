"""Charts survive whatever training hands them, and say what they leave out."""

from __future__ import annotations

import math
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.reports.charts import HEIGHT, WIDTH, Bars, Drawing, Histogram, Line, LinePlot, Reference, Scale
from smalti.reports.number_format import counted, minutes, short, signed, whole
from tests.reports.html_page import Page

Point = tuple[float, float]


def curve(points: list[Point], *, scale: Scale = "linear") -> Drawing:
    return LinePlot("Loss", [Line("loss", points)], x_label="images", y_label="nats", scale=scale).drawing()


def paths(drawing: Drawing, kind: str) -> list[list[Point]]:
    """The corners of each path of the artists of a kind, in units of the drawing."""
    found = re.findall(rf'<g class="{kind}"> <path d="([^"]*)"', drawing.svg)
    return [[(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path)] for path in found]


def labels(drawing: Drawing, anchor: str) -> list[str]:
    """The texts of a drawing that are anchored at their "end" (those of the y axis) or "middle" (of the x axis)."""
    texts: list[str] = re.findall(rf"text-anchor: {anchor}[^>]*muted[^>]*>([^<]*)<", drawing.svg)
    return texts


def test_a_chart_draws_each_line_and_reference() -> None:
    points = [(float(x), float(x % 7)) for x in range(50)]
    lines = [Line("plain", points), Line("other", [(0, 1), (49, 3)])]
    references = [Reference(3, "target"), Reference(math.nan, "none")]
    drawing = LinePlot("Loss", lines, x_label="x", y_label="y", references=references).drawing()
    assert len(paths(drawing, "line")) == 2
    assert len(paths(drawing, "reference")) == 1
    assert "target" in Page(drawing.svg).words
    assert "plain ends at 0; other ends at 3" in drawing.description
    assert [entry.label for entry in drawing.legend] == ["plain", "other"]
    assert drawing.legend[0].color != drawing.legend[1].color
    assert drawing.legend[0].dashes != drawing.legend[1].dashes


def test_colors_are_those_of_the_page() -> None:
    """A drawing has no color of its own, so that it follows light and dark."""
    lines = [Line(str(number), [(0, number), (1, 2)]) for number in range(8)]
    drawing = LinePlot("Loss", lines, x_label="x", y_label="y", references=[Reference(1, "one")]).drawing()
    svg = drawing.svg + Bars("a", [("b", 1.0)]).drawing().svg + Histogram("a", [1, 2], x_label="b").drawing().svg
    assert not re.search(r"#[0-9a-fA-F]{3}|rgb|white|black", svg)
    assert {f"var(--{name})" for name in ("c0", "c5", "ink", "muted", "rule")} <= set(re.findall(r"var\([^)]*\)", svg))


def test_several_drawings_share_a_page() -> None:
    """No ids, which would stand there twice; no styles, which would apply to all of it; no fonts of its own."""
    svg = curve([(0, 1), (1, 2), (3, 4)]).svg
    for part in (" id=", "<style", "<defs", "url(", "font-family", "http", "<metadata"):
        assert part not in svg, part
    Page(svg)


def test_the_same_values_give_the_same_bytes_in_another_process() -> None:
    code = (
        "from smalti.reports.charts import Line, LinePlot;"
        "print(LinePlot('a', [Line('b', [(0, 1), (1, 3)])], x_label='c', y_label='d').drawing().svg)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)]
    assert runs[0] == runs[1]
    assert b"<path" in runs[0]


def test_a_value_that_is_not_a_number_interrupts_the_line_and_is_noted() -> None:
    drawing = curve([(0, 1), (1, 2), (2, math.nan), (3, 1), (4, 2), (math.inf, 1), (6, 3)])
    assert len(paths(drawing, "line")) == 2
    assert len(paths(drawing, "dot")) == 1  # the last point stands alone
    assert "Not shown: 2 of 7 values" in drawing.note


@pytest.mark.parametrize("points", [[], [(0.0, math.nan)], [(math.inf, 1.0)]])
def test_a_chart_without_values_has_no_drawing(points: list[Point]) -> None:
    assert curve(points).svg == ""


@pytest.mark.parametrize("value", [0.0, 5.0, -3e-7, 1e15])
@pytest.mark.parametrize("count", [1, 3])
def test_a_constant_is_drawn_inside_the_frame(value: float, count: int) -> None:
    drawing = curve([(float(x), value) for x in range(count)])
    found = paths(drawing, "line") + paths(drawing, "dot")
    assert len(found) == 1
    assert all(26 < y < HEIGHT - 44 for _, y in found[0])
    assert "nan" not in drawing.svg


def test_a_logarithmic_axis_leaves_out_zero_and_less_and_says_how_many() -> None:
    drawing = curve([(0, 1), (1, 0.1), (2, 0), (3, -1), (4, 0.01), (5, 0.001)], scale="log")
    assert "Not shown: 2 of 6 values, as only finite numbers above zero" in drawing.note
    first, second = paths(drawing, "line")
    assert second[1][1] - second[0][1] == pytest.approx(first[1][1] - first[0][1], abs=0.2)  # equal ratios, equal room
    assert curve([(0, 0), (1, -2)], scale="log").svg == ""


def test_long_lines_are_thinned_without_losing_their_peaks() -> None:
    points = [(float(x), 0.0) for x in range(50_000)]
    points[31_234] = (31_234.0, 1.0)
    (drawn,) = paths(curve(points), "line")
    assert len(drawn) < 700
    assert min(y for _, y in drawn) == pytest.approx(26, abs=0.1)  # the top of the frame


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(), st.floats() | st.floats(-5, 5) | st.floats(1, 1.001)), max_size=30),
    st.sampled_from(["linear", "log"]),
)
def test_any_points_are_drawn_inside_the_drawing(points: list[Point], scale: Scale) -> None:
    drawing = curve(points, scale=scale)
    for x, y in [corner for kind in ("line", "dot") for path in paths(drawing, kind) for corner in path]:
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(), max_size=30), st.integers(1, 40))
def test_any_values_have_a_histogram_and_bars(values: list[float], bins: int) -> None:
    histogram = Histogram("codes", values, x_label="draws", bins=bins).drawing()
    bars = Bars("times", [("stage", value) for value in values]).drawing()
    assert len(paths(bars, "bar")) == len(paths(bars, "groove")) == len(values)
    for drawing in (histogram, bars):
        for x, y in [corner for path in paths(drawing, "bar") for corner in path]:
            assert -0.01 <= x <= WIDTH + 0.01
            assert 0 <= y <= drawing.height


def test_a_histogram_counts_its_values() -> None:
    drawing = Histogram("codes", [0, 0, 0, 1, math.nan], x_label="draws", bins=2).drawing()
    tall, low = (max(y for _, y in bar) - min(y for _, y in bar) for bar in paths(drawing, "bar"))
    assert tall == pytest.approx(3 * low, rel=0.01)
    assert "Not shown: 1 of 5 values" in drawing.note


def test_a_bar_that_was_not_measured_says_so() -> None:
    drawing = Bars("rFID", [("ours", 10), ("theirs", 5), ("other", math.nan)], unit="s").drawing()
    widths = [max(x for x, _ in bar) - min(x for x, _ in bar) for bar in paths(drawing, "bar")]
    assert widths == pytest.approx([396.0, 198.0, 0.0], abs=0.1)
    words = Page(drawing.svg).words
    assert "not measured" in words
    assert "10 s" in words
    assert "ours: 10 s; theirs: 5 s; other: not measured." in drawing.description


def test_a_label_is_text_whatever_is_in_it() -> None:
    drawing = Bars("a", [("$x^2$ <b> \u65e5\u672c\udcff", 1.0)]).drawing()
    assert "$x^2$ <b> \u65e5\u672c\ufffd" in Page(str(drawing.svg)).words


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (0.04567, "0.04567"),
        (12345.6, "12.35k"),
        (-2.5e6, "\u22122.5M"),
        (3e-5, "3e\u22125"),
        (math.nan, "\u2013"),
    ],
)
def test_numbers_are_short(number: float, shown: str) -> None:
    assert short(number) == shown


def test_numbers_in_words() -> None:
    assert (counted(1, "image"), counted(2345, "image")) == ("1 image", "2,345 images")
    assert whole(-1234567) == "\u22121\u202f234\u202f567"
    assert minutes(90) == "1.5"
    assert (signed(-0.01, 0.0026), signed(0.25, None)) == ("\u22120.010 ± 0.003", "+0.250")


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0, 40000, ["0", "10k", "20k", "30k", "40k"]),
        (-0.0004, 0.0004, ["\u22124e\u22124", "\u22122e\u22124", "0", "2e\u22124", "4e\u22124"]),
    ],
)
def test_ticks_are_round(low: float, high: float, wanted: list[str]) -> None:
    assert labels(curve([(0, low), (1, high)]), "end") == wanted
    assert labels(curve([(low, 0), (high, 1)]), "middle") == wanted


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0.001, 10, ["0.001", "0.01", "0.1", "1", "10"]), (1.2, 18, ["1", "2", "5", "10", "20"])],
)
def test_logarithmic_ticks_are_decades_or_halves_of_them(low: float, high: float, wanted: list[str]) -> None:
    assert labels(curve([(0, low), (1, high)], scale="log"), "end") == wanted
