"""A report is a jinja2 template and values; written, it is one HTML file that needs no network, script or font.

Templates extend `reports/report.html` and lay their content out with the macros of `reports/blocks.html`. All text is
escaped. The values that need more than text are here: images, key figures, tables. H W pixels. Images are uint8, (H, W,
3) color or (H, W) gray.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cache
from pathlib import Path
from typing import Any, final

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from PIL import Image

from smalti.core.errors import SmaltiError
from smalti.core.files import write_text
from smalti.core.version import __version__
from smalti.reports.charts import WIDTH, printable
from smalti.reports.number_format import counted, minutes, short, signed, whole

# A number, perhaps with a sign, a spread and a short unit: the cells of a column of such are set to the right.
_QUANTITY = re.compile(
    r"[-+\u2212<>≈~]?\s?\d[\d.,\u202f]*(e[-+\u2212]?\d+)?(\s?±\s?\d[\d.,]*)?(\s?[%\u00d7]|\s?[a-zA-Zµ/]{1,8})?|[-\u2013]?"
)


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

    @property
    def source(self) -> str:
        """The image as PNG in a data URI."""
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(self.pixels)).save(buffer, format="PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


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


@final
@dataclass(frozen=True)
class Comparison:
    """Rows of images under one another, as originals over reconstructions: each row is a name and its images.

    Raises `SmaltiError` when the rows differ in length.
    """

    rows: Sequence[tuple[str, Sequence[EmbeddedImage]]]

    def __post_init__(self) -> None:
        lengths = [(name, len(images)) for name, images in self.rows]
        if len({length for _, length in lengths}) > 1:
            raise SmaltiError(f"the rows of a comparison must hold equally many images, not {lengths}")


@final
@dataclass(frozen=True)
class Table:
    """A head and rows of cells. Numbers are shown to four digits; columns of numbers stand to the right, units too.

    Raises `SmaltiError` when a row is not as long as the head.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.head):
                raise SmaltiError(f"a row of a table has {len(row)} cells under {len(self.head)} headings: {list(row)}")

    @property
    def cells(self) -> list[list[str]]:
        """All cells below the head, as text."""
        return [[cell if isinstance(cell, str) else _number(cell) for cell in row] for row in self.rows]

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold nothing but numbers."""
        columns = zip(*self.cells, strict=True) if self.rows else [("words",)] * len(self.head)
        return [all(_QUANTITY.fullmatch(cell.strip()) for cell in column) for column in columns]


def _number(value: int | float) -> str:
    return whole(value) if isinstance(value, int) else short(value)


def render_report(template: str, values: Mapping[str, Any]) -> str:
    """A template's path within the package, such as "reports/evaluation.html", and its values -> a whole HTML document
    that refers to nothing outside itself (and forbids the browser to)."""
    return printable(environment().get_template(template).render(values, contents=[]))


def write_report(path: Path, template: str, values: Mapping[str, Any]) -> None:
    """Write the page as one file, whole or not at all. Raises `SmaltiError` if writing fails."""
    write_text(path, render_report(template, values))


@cache
def environment() -> jinja2.Environment:
    """What reads the templates of the package: text is escaped, and a value that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("smalti", "."),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.do"],
    )
    for function in (counted, minutes, prose, short, signed, whole):
        environment.filters[function.__name__] = function
    environment.globals.update(version=__version__, chart_width=WIDTH)
    return environment


def prose(text: str) -> Markup:
    """Text that is not a template's -> escaped HTML, with `words between backticks` as code."""
    return Markup(re.sub(r"`([^`\n]+)`", r"<code>\1</code>", str(escape(text))))
