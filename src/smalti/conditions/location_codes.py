"""Positions in an image as codes: points, boxes and crops.

A position is one code: the image has n x n points, n its `sections`, and the code of a point is its raster index.
Layouts and keypoints use these codes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from smalti.core.errors import SmaltiError
from smalti.prior.window import Window

ROUNDING = 1e-6
"""Tolerance of sums of fractions."""


class Box(NamedTuple):
    """A part of an image, as fractions of its width and height from the left top: 0 to 1, and beyond where it is
    cut."""

    left: float
    top: float
    width: float
    height: float


FULL_IMAGE = Box(0.0, 0.0, 1.0, 1.0)
"""The box of the whole image."""


def check_unique(names: tuple[str, ...], *, what: str) -> tuple[str, ...]:
    """Names of classes or points -> the same. Raises `ValueError`, for settings, if a name occurs twice."""
    duplicates = [name for name, count in Counter(names).items() if count > 1]
    if duplicates:
        raise ValueError(f"the {what} {duplicates[0]!r} is named twice")
    return names


def check_crop(crop: Box) -> None:
    """Raise `SmaltiError` for a box that is not a part of the image, up to rounding, or has no area."""
    left, top, width, height = crop
    inside = left >= -ROUNDING and top >= -ROUNDING and left + width <= 1 + ROUNDING and top + height <= 1 + ROUNDING
    if not (inside and width > 0 and height > 0):
        raise SmaltiError(
            f"the crop {tuple(crop)} is not a part of an image; give left, top, width, height as fractions of it, "
            "within 0 to 1"
        )


def window_crop(window: Window, *, grid: tuple[int, int]) -> Box:
    """A position of the prior's window on a grid (h,w) of codes -> the part of the image under it."""
    top, left, rows, columns = window
    height, width = grid
    return Box(left / width, top / height, columns / width, rows / height)


def flipped(box: Box) -> Box:
    """A box -> the box in the horizontally mirrored image."""
    return box._replace(left=1 - (box.left + box.width))


def point_code(x: float, y: float, *, sections: int) -> int:
    """A position in [0,1] x [0,1] -> the code of the nearest of n x n points; halves are rounded to even."""
    return round(y * (sections - 1)) * sections + round(x * (sections - 1))


def corner_codes(box: Box, *, sections: int) -> tuple[int, int]:
    """A box -> the codes of its left top and right bottom corners."""
    return (
        point_code(box.left, box.top, sections=sections),
        point_code(box.left + box.width, box.top + box.height, sections=sections),
    )


def point_from_code(code: int, *, sections: int) -> tuple[float, float]:
    """The code of a point -> its x and y."""
    row, column = divmod(code, sections)
    return column / (sections - 1), row / (sections - 1)


def box_from_codes(first: int, second: int, *, sections: int) -> Box:
    """The codes of a box's left top and right bottom corners -> the box; its size is negative if they are
    exchanged."""
    left, top = point_from_code(first, sections=sections)
    right, bottom = point_from_code(second, sections=sections)
    return Box(left, top, right - left, bottom - top)


def relative_to_crop(crop: Box, box: Box, *, flip: bool) -> Box:
    """A box in an image -> the same relative to a crop, which it may exceed; `flip` mirrors the crop."""
    left, top = (box.left - crop.left) / crop.width, (box.top - crop.top) / crop.height
    moved = Box(left, top, box.width / crop.width, box.height / crop.height)
    return flipped(moved) if flip else moved


def rasterize(shapes: Sequence[tuple[Box, int]], grid: tuple[int, int], *, empty: int) -> list[int]:
    """Boxes relative to the crop, each with a code, and a grid (h,w) over it -> the code at each position, row by
    row.

    A box covers the positions whose centers it contains, and the position of its own center. Small boxes cover
    large ones; `empty` is the code without a box.
    """
    h, w = grid
    codes = [empty] * (h * w)
    for box, code in sorted(shapes, key=lambda shape: -shape[0].width * shape[0].height):
        rows = _covered(box.top, box.height, h)
        columns = _covered(box.left, box.width, w)
        for cell in (row * w + column for row in rows for column in columns):
            codes[cell] = code
    return codes


def _covered(begin: float, length: float, count: int) -> range:
    """An interval of [0,1], which it may exceed -> the range of `count` equal parts it covers, at least the part
    with its center."""
    first, end = math.ceil(begin * count - 0.5), math.ceil((begin + length) * count - 0.5)
    middle = begin + length / 2
    if first >= end and 0 <= middle <= 1:
        first = min(math.floor(middle * count), count - 1)
        end = first + 1
    return range(max(first, 0), min(end, count))


def outline(box: Box, *, side: int) -> tuple[float, float, float, float]:
    """A box -> the left, top, right and bottom of a rectangle in a preview of `side` pixels, with exchanged corners
    corrected."""
    x = sorted((box.left * (side - 1), (box.left + box.width) * (side - 1)))
    y = sorted((box.top * (side - 1), (box.top + box.height) * (side - 1)))
    return x[0], y[0], x[1], y[1]
