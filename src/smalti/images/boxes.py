"""Boxes and points of objects as fractions of their image. Training and sampling check them alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from smalti.core.errors import SmaltiError

Size: TypeAlias = tuple[float, float]
"""Width and height, by which numbers are divided."""
Refuse: TypeAlias = Callable[[str], SmaltiError]
"""What is wrong -> the error to raise, which says where it stands."""

SHARES: Size = (1.0, 1.0)
"""The size of an image that makes fractions of the numbers."""

_BEYOND = 0.01  # a fraction of the image; by so much rounding may carry a box beyond it
_MAX_NUMBER = 1e9  # of numbers in files; more is not a position and no size
_FARTHEST = 10.0  # images; a keypoint may be cut off with its object, but is never so far outside


def is_number(value: Any) -> bool:
    """Whether a value from a file is a number that can be a position or a size; true, false and NaN are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MAX_NUMBER


def box_within(numbers: Any, size: Size, refuse: Refuse) -> tuple[float, float, float, float]:
    """Left, top, width and height in pixels of an image of that size, or as fractions -> as fractions,
    within the image.

    Raises what `refuse` makes of what is not a box, of one outside the image, and of fractions that reach beyond it.
    """
    if not isinstance(numbers, list | tuple) or len(numbers) != 4 or not all(map(is_number, numbers)):
        raise refuse(f"the box {numbers!r} is not four numbers, left, top, width, height")
    left, top, width, height = numbers[0] / size[0], numbers[1] / size[1], numbers[2] / size[0], numbers[3] / size[1]
    if width < 0 or height < 0:
        raise refuse(f"the box {numbers!r} has a negative width or height; give left, top, width, height")
    right, bottom = left + width, top + height
    if left >= 0 and top >= 0 and right <= 1 and bottom <= 1:
        return left, top, width, height
    if size == SHARES and (min(left, top) < -_BEYOND or max(right, bottom) > 1 + _BEYOND):
        raise refuse(
            f"the box {numbers!r} reaches beyond the image; give left, top, width, height as fractions of it, from 0 "
            "to 1, not in pixels"
        )
    if left > 1 or top > 1 or right < 0 or bottom < 0:
        raise refuse(f"the box {numbers!r} is outside the image, of {size[0]:g}x{size[1]:g} pixels (width x height)")
    left, top = max(left, 0.0), max(top, 0.0)
    return left, top, min(right, 1.0) - left, min(bottom, 1.0) - top


def place_of(x: Any, y: Any, size: Size, refuse: Refuse) -> tuple[float, float]:
    """x and y in pixels of an image of that size, or as fractions -> as fractions.

    Raises what `refuse` makes of what is not a position.
    """
    if not (is_number(x) and is_number(y) and abs(x / size[0]) <= _FARTHEST and abs(y / size[1]) <= _FARTHEST):
        unit = "fractions of the image, from 0 to 1, not in pixels" if size == SHARES else "pixels of the image"
        raise refuse(f"a keypoint is at {[x, y]!r}; give x and y in {unit}")
    return x / size[0], y / size[1]
