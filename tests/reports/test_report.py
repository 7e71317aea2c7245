"""The report: well-formed, self-contained, escaped, readable."""

from __future__ import annotations

import base64
import io
import math
import re
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from smalti.core.errors import SmaltiError
from smalti.reports.charts import Bars, Histogram, Line, LinePlot, Reference
from smalti.reports.report import (
    Card,
    Comparison,
    EmbeddedImage,
    Table,
    Target,
    environment,
    prose,
    render_report,
    write_report,
)
from tests.reports.html_page import Page

FloatArray = npt.NDArray[np.float64]

_EVIL = "<script>alert('1')</script> \" onload=\"x & </style> `<script>`"
_PIXELS = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
_BLOCKS = '{% import "reports/blocks.html" as blocks with context %}'
_EVERYTHING = """
{% extends "reports/report.html" %}
{% import "reports/blocks.html" as blocks with context %}
{% macro everything() %}
<p>{{ text | prose }}</p>
{{ blocks.cards(cards) }}
{% call blocks.images([image]) %}{{ text }}{% endcall %}
{% call blocks.comparison(comparison) %}{{ text }}{% endcall %}
{% call blocks.charts(plots) %}{{ text }}{% endcall %}
{% call blocks.table(table) %}{{ text }}{% endcall %}
{% call blocks.commands([(text, text)]) %}{{ text }}{% endcall %}
{% call blocks.listing(text) %}{{ text }}{% endcall %}
{% endmacro %}
{% block hero %}{{ blocks.band([image] * 9) }}{% endblock %}
{% block opening %}{{ everything() }}{% endblock %}
{% block body %}
{% for _ in range(3) %}
{% call blocks.section(text) %}{{ everything() }}{% endcall %}
{% endfor %}
{% endblock %}
{% block colophon %}{{ text }}{% endblock %}
"""


def full(text: str) -> str:
    """A page with every block, in which every text is `text`."""
    image = EmbeddedImage(_PIXELS, text, caption=text)
    lines = [Line(text, [(0, 1), (1, 2)])]
    values = {
        "text": text,
        "title": text,
        "lead": text,
        "image": image,
        "cards": [Card(text, text, unit=text, target=Target(text, reached=True)), Card(text, text)],
        "comparison": Comparison([(text, [image]), (text, [image])]),
        "plots": [
            LinePlot(text, lines, x_label=text, y_label=text, references=[Reference(1.5, text)]),
            Histogram(text, [1, 2, 3], x_label=text, y_label=text),
            Bars(text, [(text, 3.0), (text, math.nan)], unit=text),
        ],
        "table": Table([text, text], [[text, 1], [text, 2.5]]),
    }
    return environment().from_string(_EVERYTHING).render(values, contents=[])


def rendered(block: str, **values: Any) -> str:
    """A call of a macro of `blocks.html` -> its HTML."""
    return environment().from_string(_BLOCKS + block).render(values, contents=[])


def test_a_page_is_well_formed_and_its_headings_are_in_order() -> None:
    page = Page(full("plain words"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels == [1, 2, 2, 2]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert ids == ["part-1", "part-2", "part-3"]
    assert [link["href"] for link in page.named("a")] == [f"#{name}" for name in ids]
    assert page.named("html")[0]["lang"] == "en"


def test_a_short_page_has_no_contents() -> None:
    assert not Page(render_report("reports/report.html", {"title": "a", "lead": "b"})).named("nav")


def test_a_page_asks_for_nothing_outside_itself() -> None:
    text = full("plain words")
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
    page = Page(full(_EVIL))  # an attribute that breaks out would also be given twice, or unbalance the page
    assert not page.named("script")
    assert not [attributes for _, attributes in page.tags if "onload" in attributes]
    assert len(page.named("style")) == 1
    plain, wicked = Page(full("words")), [tag for tag, _ in page.tags if tag != "code"]
    assert wicked == [tag for tag, _ in plain.tags if tag != "code"]
    assert "alert" in page.words


def test_a_value_that_a_template_misses_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="'lead' is undefined"):
        render_report("reports/report.html", {"title": "a"})


def test_the_same_values_give_the_same_bytes() -> None:
    assert full("words") == full("words")


def test_names_of_undecodable_files_can_be_written(tmp_path: Path) -> None:
    name = "photo\udcff\x00.png"
    write_report(tmp_path / "report.html", "reports/report.html", {"title": name, "lead": name})
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("photo\ufffd\ufffd.png") == 3


def test_a_failed_write_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "report.html"
    write_report(path, "reports/report.html", {"title": "one", "lead": "first"})
    before = path.read_bytes()

    def refuse(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", refuse)
        with pytest.raises(SmaltiError, match="No space left"):
            write_report(path, "reports/report.html", {"title": "two", "lead": "second"})
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize("pixels", [_PIXELS, _PIXELS[:, :, 0], _PIXELS[::-1, ::2]])
def test_an_image_carries_its_pixels_exactly(pixels: npt.NDArray[np.uint8]) -> None:
    image = Page(rendered("{{ blocks.images(shown) }}", shown=[EmbeddedImage(pixels, "seven tiles")])).named("img")[0]
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
    shown = [EmbeddedImage(_PIXELS, "tiles")]
    assert 'class="images auto"' in rendered("{{ blocks.images(shown) }}", shown=shown)
    assert 'class="images pixelated"' in rendered('{{ blocks.images(shown, scaling="pixelated") }}', shown=shown)
    assert ".pixelated img { image-rendering: pixelated; }" in full("words")


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
    with pytest.raises(SmaltiError, match="not -1"):
        Histogram("codes", [], x_label="draws", bins=-1)


def test_columns_of_numbers_stand_to_the_right() -> None:
    rows: list[list[str | int | float]] = [
        ["ours", 1234567, 23.456, "812 images/s", "small"],
        ["theirs", 2, math.nan, "12.3 ± 0.4", "16 codes nearest"],
    ]
    content = Table(["model", "parameters", "rFID", "speed", "note"], rows)
    page = Page(rendered("{{ blocks.table(content) }}", content=content))
    assert [head.get("class") for head in page.named("th")] == [None, "number", "number", "number", None]
    assert "1\u202f234\u202f56723.46812 images/s" in page.words
    assert [
        cell.get("class")
        for cell in Page(rendered("{{ blocks.table(content) }}", content=Table(["a"], []))).named("th")
    ] == [None]


def test_a_card_says_in_words_whether_its_target_is_reached() -> None:
    cards = [Card("L1", "0.04", target=Target("below 0.06", reached=reached)) for reached in (True, False)]
    words = Page(rendered("{{ blocks.cards(cards) }}", cards=[*cards, Card("time", "94")])).words
    assert words.count("✓ reached") == 1
    assert words.count("✗ not reached") == 1
    assert words.count("target below 0.06") == 2


def test_code_is_set_between_backticks_only() -> None:
    assert prose("use `top_k` <b>\nand *no* more") == "use <code>top_k</code> &lt;b&gt;\nand *no* more"


def test_ordinary_text_is_left_alone() -> None:
    assert prose("8 by 8 tiles,\nnaïve") == "8 by 8 tiles,\nnaïve"


def schemes() -> list[dict[str, str]]:
    """The colors of a page by name, light and dark."""
    style = "".join(
        re.findall("<style>(.*)</style>", render_report("reports/report.html", {"title": "a", "lead": "b"}), re.DOTALL)
    )
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
