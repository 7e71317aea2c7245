"""The report: well-formed, self-contained, escaped, readable; and charts that survive whatever training hands them."""

from __future__ import annotations

import base64
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smalti.core.errors import SmaltiError
from smalti.reports.charts import (
    Bars,
    Histogram,
    Line,
    Linear,
    LinePlot,
    Logarithmic,
    Plot,
    Reference,
    Scale,
    escaped,
    short,
)
from smalti.reports.report import (
    Block,
    Card,
    Cards,
    Commands,
    Comparison,
    EmbeddedImage,
    Images,
    Listing,
    Plots,
    Report,
    Section,
    Table,
    Target,
    Text,
)

FloatArray = npt.NDArray[np.float64]

_VOID = {"meta", "link", "img", "br"}
_EVIL = "<script>alert('1')</script> \" onload=\"x & </style> `<script>`"
_PIXELS = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


class Page(HTMLParser):
    """Reads a page and holds what the tests ask about; an unbalanced tag fails at once."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"an attribute of {tag} is given twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data

    def named(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in tags]


def full(text: str) -> Report:
    """A report with every block, in which every text field is `text`."""
    image = EmbeddedImage(_PIXELS, text, caption=text)
    lines = [Line(text, [(0, 1), (1, 2)]), Line(text, [(0, 2), (1, 1)], smoothing=3)]
    plots: list[Plot] = [
        LinePlot(text, lines, x_label=text, y_label=text, references=[Reference(1.5, text)]),
        Histogram(text, [1, 2, 3], x_label=text, y_label=text),
        Bars(text, [(text, 3.0), (text, math.nan)], unit=text),
    ]
    blocks: list[Block] = [
        Text(text),
        Cards([Card(text, text, unit=text, target=Target(text, reached=True)), Card(text, text)]),
        Images([image], caption=text),
        Comparison([(text, [image]), (text, [image])], caption=text),
        Plots(plots, caption=text),
        Table([text, text], [[text, 1], [text, 2.5]], caption=text),
        Commands([(text, text)], caption=text),
        Listing(text, caption=text),
    ]
    sections = [Section(text, blocks)] * 3
    return Report(text, text, blocks, hero=[image] * 9, sections=sections, colophon=text)


def curve(points: list[tuple[float, float]], *, scale: Scale = Linear(), smoothing: int = 1) -> str:  # noqa: B008
    line = Line("loss", points, smoothing=smoothing)
    return LinePlot("Loss", [line], x_label="images", y_label="nats", scale=scale).render()


def heights(svg: str, kind: str = "c0") -> list[float]:
    """The vertical places of the polyline with this class."""
    found = re.search(rf'<polyline class="{kind} d0" points="([^"]*)"', svg)
    assert found
    return [float(place.split(",")[1]) for place in found[1].split()]


def test_a_page_is_well_formed_and_its_headings_are_in_order() -> None:
    page = Page(full("plain words").render())
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels == [1, 2, 2, 2]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == 3
    assert [link["href"] for link in page.named("a")] == [f"#{name}" for name in ids]
    assert page.named("html")[0]["lang"] == "en"


def test_a_page_requests_nothing_outside_itself() -> None:
    text = full("plain words").render()
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "@import" not in text
    page = Page(text)
    assert not page.named("script", "iframe", "object")
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    policy = [meta["content"] for meta in page.named("meta") if "http-equiv" in meta]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_every_text_is_escaped() -> None:
    page = Page(full(_EVIL).render())  # an attribute that breaks out would also be given twice, or unbalance the page
    assert not page.named("script")
    assert not [attributes for _, attributes in page.tags if "onload" in attributes]
    assert len(page.named("style")) == 1
    plain, wicked = Page(full("words").render()), [tag for tag, _ in page.tags if tag != "code"]
    assert wicked == [tag for tag, _ in plain.tags if tag != "code"]
    assert "alert" in page.words


def test_names_of_undecodable_files_can_be_written(tmp_path: Path) -> None:
    full("photo\udcff\x00.png").write(tmp_path / "report.html")
    assert "photo\ufffd\ufffd.png" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "report.html"
    Report("one", "first").write(path)
    before = path.read_bytes()

    def refuse(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", refuse)
        with pytest.raises(SmaltiError, match="No space left"):
            Report("two", "second").write(path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize("pixels", [_PIXELS, _PIXELS[:, :, 0], _PIXELS[::-1, ::2]])
def test_an_image_carries_its_pixels_exactly(pixels: npt.NDArray[np.uint8]) -> None:
    image = Page(Images([EmbeddedImage(pixels, "seven tiles")], scaling="pixelated").render()).named("img")[0]
    source = image["src"]
    assert source is not None
    read = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))))
    assert np.array_equal(np.asarray(read), pixels)
    assert (image["alt"], image["width"], image["height"]) == (
        "seven tiles",
        str(pixels.shape[1]),
        str(pixels.shape[0]),
    )


def test_enlarging_is_smooth_unless_requested_otherwise() -> None:
    image = EmbeddedImage(_PIXELS, "tiles")
    assert 'class="images auto"' in Images([image]).render()
    assert 'class="images pixelated"' in Images([image], scaling="pixelated").render()
    assert ".pixelated img { image-rendering: pixelated; }" in Report("a", "b").render()


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4, 3)), np.zeros((3, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros(4, np.uint8)]
)
def test_pixels_of_another_kind_are_refused_with_their_shape(
    pixels: npt.NDArray[np.uint8],
) -> None:
    with pytest.raises(SmaltiError, match=re.escape(f"{pixels.dtype} of shape {pixels.shape}")):
        EmbeddedImage(pixels, "nothing")


def test_rows_that_do_not_fit_are_refused() -> None:
    image = EmbeddedImage(_PIXELS, "tiles")
    with pytest.raises(SmaltiError, match="3 cells under 2 headings"):
        Table(["a", "b"], [["x", 1], ["y", 2, 3]])
    with pytest.raises(SmaltiError, match=r"\('in', 2\), \('in', 1\)"):
        Comparison([("in", [image, image]), ("in", [image])])
    with pytest.raises(SmaltiError, match="not 0"):
        Line("loss", [], smoothing=0)
    with pytest.raises(SmaltiError, match="not -1"):
        Histogram("codes", [], x_label="draws", bins=-1)


def test_columns_of_numbers_stand_to_the_right() -> None:
    rows: list[list[str | int | float]] = [
        ["ours", 1234567, 23.456, "812 images/s", "small"],
        ["theirs", 2, math.nan, "12.3 ± 0.4", "16 codes nearest"],
    ]
    page = Page(Table(["model", "parameters", "rFID", "speed", "note"], rows).render())
    assert [head.get("class") for head in page.named("th")] == [None, "number", "number", "number", None]
    assert "1\u202f234\u202f56723.46812 images/s" in page.words
    assert [cell.get("class") for cell in Page(Table(["a"], []).render()).named("th")] == [None]


def test_a_card_says_in_words_whether_its_target_is_reached() -> None:
    cards = [Card("L1", "0.04", target=Target("below 0.06", reached=reached)) for reached in (True, False)]
    words = Page(Cards([*cards, Card("time", "94")]).render()).words
    assert words.count("✓ reached") == 1
    assert words.count("✗ not reached") == 1
    assert words.count("target below 0.06") == 2


def test_code_is_set_between_backticks_only() -> None:
    assert Text("use `top_k`\n\nand *no* more").render() == "<p>use <code>top_k</code></p><p>and *no* more</p>"


def test_a_chart_draws_each_line_and_over_a_raw_line_its_smoothed_one() -> None:
    points = [(float(x), float(x % 7)) for x in range(50)]
    lines = [Line("plain", points), Line("smooth", points, smoothing=9)]
    page = Page(LinePlot("Loss", lines, x_label="x", y_label="y", references=[Reference(3, "target")]).render())
    assert len(page.named("polyline")) == 3
    assert sum("raw" in (line["class"] or "") for line in page.named("polyline")) == 1
    assert sum(line["class"] == "reference" for line in page.named("line")) == 1
    drawing = next(svg for svg in page.named("svg") if svg.get("role") == "img")
    assert "plain ends at 0" in (drawing["aria-label"] or "")


def test_a_value_that_is_not_a_number_interrupts_the_line_and_is_reported() -> None:
    drawn = curve([(0, 1), (1, 2), (2, math.nan), (3, 1), (4, 2), (math.inf, 1), (6, 3)])
    page = Page(drawn)
    assert len(page.named("polyline")) == 2
    assert len(page.named("circle")) == 1  # the last point stands alone
    assert "Not shown: 2 of 7 values" in page.words


@pytest.mark.parametrize("points", [[], [(0.0, math.nan)], [(math.inf, 1.0)]])
def test_a_chart_without_values_says_so(points: list[tuple[float, float]]) -> None:
    drawn = curve(points)
    assert "nothing to draw yet" in drawn
    assert "<svg" not in drawn


@pytest.mark.parametrize("value", [0.0, 5.0, -3e-7, 1e15])
@pytest.mark.parametrize("count", [1, 3])
def test_a_constant_is_drawn_inside_the_frame(value: float, count: int) -> None:
    page = Page(curve([(float(x), value) for x in range(count)]))
    assert len(page.named("circle", "polyline")) == 1
    assert "nan" not in page.words.lower()


def test_a_logarithmic_axis_leaves_out_zero_and_less_and_says_how_many() -> None:
    drawn = curve([(0, 1), (1, 0.1), (2, 0), (3, -1), (4, 0.01), (5, 0.001)], scale=Logarithmic())
    page = Page(drawn)
    assert len(page.named("polyline")) == 2
    assert "Not shown: 2 of 6 values, as only finite numbers above zero" in page.words
    first, second = (heights(f"<polyline{part}") for part in drawn.split("<polyline")[1:])
    assert second[1] - second[0] == pytest.approx(first[1] - first[0], abs=0.2)  # equal ratios, equal room
    assert "nothing to draw" in curve([(0, 0), (1, -2)], scale=Logarithmic())


def test_smoothing_keeps_straight_lines_and_calms_noise() -> None:
    straight = [(float(x), 3 - 0.02 * x) for x in range(100)]
    assert heights(curve(straight, smoothing=31)) == heights(curve(straight))
    chance = np.random.default_rng(0)
    noisy = [(float(x), float(chance.normal())) for x in range(400)]
    drawn = curve(noisy, smoothing=51)
    assert np.std(heights(drawn)) < 0.35 * np.std(heights(drawn, "raw c0"))


def test_long_lines_are_thinned_without_losing_their_peaks() -> None:
    points = [(float(x), 0.0) for x in range(50_000)]
    points[31_234] = (31_234.0, 1.0)
    places = heights(curve(points))
    assert len(places) < 700
    assert min(places) == 26.0  # the top of the frame


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.floats(), st.floats() | st.floats(-5, 5) | st.floats(1, 1.001)), max_size=30),
    st.sampled_from([Linear(), Logarithmic()]),
    st.integers(1, 9),
)
def test_any_points_are_drawn_inside_the_drawing(
    points: list[tuple[float, float]], scale: Scale, smoothing: int
) -> None:
    page = Page(curve(points, scale=scale, smoothing=smoothing))
    places = [place for line in page.named("polyline") for place in (line["points"] or "").split()]
    places += [f"{dot['cx']},{dot['cy']}" for dot in page.named("circle")]
    for place in places:
        x, y = map(float, place.split(","))
        assert 0 <= x <= 400
        assert 0 <= y <= 232


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(), max_size=30), st.integers(1, 40))
def test_any_values_have_a_histogram_and_bars(values: list[float], bins: int) -> None:
    page = Page(Histogram("codes", values, x_label="draws", bins=bins).render())
    assert all(float(bar["height"] or "-1") >= 0 and float(bar["width"] or "0") > 0 for bar in page.named("rect"))
    bars = Page(Bars("times", [("stage", value) for value in values]).render())
    assert len(bars.named("rect")) == 2 * len(values)
    assert all(float(bar["x"] or "-1") >= 0 and float(bar["width"] or "-1") >= 0 for bar in bars.named("rect"))


def test_a_histogram_counts_its_values() -> None:
    page = Page(Histogram("codes", [0, 0, 0, 1, math.nan], x_label="draws", bins=2).render())
    tall, low = (float(bar["height"] or "0") for bar in page.named("rect"))
    assert tall == pytest.approx(3 * low, rel=0.01)
    assert "Not shown: 1 of 5 values" in page.words


def test_a_bar_that_was_not_measured_says_so() -> None:
    page = Page(Bars("rFID", [("ours", 10), ("theirs", 5), ("other", math.nan)], unit="s").render())
    widths = [float(bar["width"] or "-1") for bar in page.named("rect") if bar["class"] == "c0"]
    assert widths == [396.0, 198.0, 0.0]
    assert "not measured" in page.words
    assert "10 s" in page.words


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


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0, 40000, ["0", "10k", "20k", "30k", "40k"]),
        (-0.0004, 0.0004, ["\u22124e\u22124", "\u22122e\u22124", "0", "2e\u22124", "4e\u22124"]),
    ],
)
def test_ticks_are_round(low: float, high: float, labels: list[str]) -> None:
    assert [label for _, label in Linear().ticks(low, high)] == labels


def test_logarithmic_ticks_are_decades_or_halves_of_them() -> None:
    assert [label for _, label in Logarithmic().ticks(0.001, 10)] == ["0.001", "0.01", "0.1", "1", "10"]
    assert [label for _, label in Logarithmic().ticks(1, 20)] == ["1", "2", "5", "10", "20"]
    assert Logarithmic().bounds(1.2, 18) == (1, 20)


def schemes() -> list[dict[str, str]]:
    """The colors of a page by name, light and dark."""
    style = "".join(re.findall("<style>(.*)</style>", Report("a", "b").render(), re.DOTALL))
    found = re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", style)
    assert len(found) == 38
    return [dict(found[:13] + found[26:32]), dict(found[13:26] + found[32:])]


def linear_light(color: str) -> FloatArray:
    parts = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("scheme", schemes(), ids=["light", "dark"])
def test_colors_contrast_with_the_page(scheme: dict[str, str]) -> None:
    """WCAG 2.2: 4.5 to 1 for text, 3 to 1 for the lines of a chart."""
    luminance = {name: float(linear_light(color) @ [0.2126, 0.7152, 0.0722]) for name, color in scheme.items()}
    for name in ("ink", "muted", "accent", "good", "bad", "c0", "c1", "c2", "c3", "c4", "c5"):
        for ground in ("page", "surface"):
            deep, pale = sorted((luminance[name], luminance[ground]))
            assert (pale + 0.05) / (deep + 0.05) >= (3 if re.fullmatch("c[0-5]", name) else 4.5), (name, ground)


# Machado, Oliveira, Fernandes 2009 (doi 10.1109/TVCG.2009.113), table 1 at full severity: on linear RGB.
@pytest.mark.parametrize(
    "seen",
    [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
    ],
    ids=["all cones", "no long", "no middle", "no short"],
)
@pytest.mark.parametrize("scheme", schemes(), ids=["light", "dark"])
def test_lines_stay_apart_for_readers_who_see_fewer_colors(scheme: dict[str, str], seen: list[list[float]]) -> None:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    places = []
    for number in range(6):
        xyz = to_xyz @ np.clip(np.array(seen) @ linear_light(scheme[f"c{number}"]), 0, 1) / [0.9505, 1, 1.089]
        x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        places.append(np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)]))  # CIELAB
    assert min(np.linalg.norm(places[i] - places[j]) for i in range(6) for j in range(i)) > 20


def test_escaping_leaves_ordinary_text_alone() -> None:
    assert escaped("8 by 8 tiles,\nnaïve") == "8 by 8 tiles,\nnaïve"
