"""Checks of arguments from Python callers: integers, sizes in pixels, and tensors that must be finite."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from smalti.core.errors import SmaltiError


def whole_number(value: Any, name: str, *, least: int | None = None) -> int:
    """A whole number of Python's, NumPy's or PyTorch's -> int. Raises `SmaltiError` for others and for less than
    `least`."""
    wanted = "a whole number" if least is None else f"a whole number from {least} on"
    try:
        number = operator.index(value)
    except TypeError as error:
        raise SmaltiError(f"{name} = {_in_short(value)} is not {wanted}; give one") from error
    if isinstance(value, bool) or (least is not None and number < least):
        raise SmaltiError(f"{name} = {_in_short(value)} is not {wanted}; give one")
    return number


def center_offset(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """(height, width) and those of a canvas, no smaller -> (top, left) of the center; of unequal margins the lower and
    the right one are larger by one."""
    return (canvas[0] - size[0]) // 2, (canvas[1] - size[1]) // 2


def tiles(size: Any, *, factor: int) -> tuple[int, int]:
    """(height, width) in pixels, or one number for both -> rows and columns of tiles of `factor` pixels.

    Raises `SmaltiError` for a value that is not a size, and for pixels that are not made of tiles.
    """
    sides = (size, size) if _is_whole(size) else size
    if (
        isinstance(sides, str | bytes)
        or not hasattr(sides, "__len__")
        or len(sides) != 2
        or not all(map(_is_whole, sides))
    ):
        raise SmaltiError(
            f"size = {_in_short(size)} is not a size in pixels; give (height, width), such as (64, 128), or 64 for both"
        )
    height, width = (operator.index(side) for side in sides)
    if height % factor or width % factor or height < factor or width < factor:
        raise SmaltiError(
            f"an image of {height} x {width} (height x width) is not made of tiles of {factor} pixels; "
            f"try {max(round(height / factor), 1) * factor}x{max(round(width / factor), 1) * factor}"
        )
    return height // factor, width // factor


def _in_short(value: Any) -> str:
    return f"{value!r:.60}"


def _is_whole(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def check_finite(numbers: Tensor, *, what: str) -> None:
    """Raise `SmaltiError`, where they are called `what`, for numbers computed by a network that are NaN or infinite.

    Codes that are chosen from them would be 0 everywhere, and images black. Under a compiler nothing is checked.
    """
    if not torch.compiler.is_compiling() and not bool(numbers.detach().isfinite().all()):
        raise SmaltiError(
            f"{what} are not finite (NaN or infinite): the weights of the model are damaged; copy or convert it again, "
            "or go back to an earlier checkpoint"
        )
