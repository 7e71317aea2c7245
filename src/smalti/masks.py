"""Which pixels of a picture are kept when the rest is laid anew: a named part, or a mask that a person painted.

H W pixels; True is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from smalti.errors import SmaltiError, suggestion
from smalti.images import center_crop, read_image, resize_to_cover, to_tensor

Slices = tuple[slice, slice]

PARTS: dict[str, Callable[[int, int], Slices]] = {
    "top-half": lambda H, W: (slice(0, H // 2), slice(None)),
    "bottom-half": lambda H, W: (slice(H // 2, H), slice(None)),
    "left-half": lambda H, W: (slice(None), slice(0, W // 2)),
    "right-half": lambda H, W: (slice(None), slice(W // 2, W)),
    "centre": lambda H, W: (slice(H // 4, H - H // 4), slice(W // 4, W - W // 4)),
}
"""Name -> (H, W) -> the rows and columns that are kept."""


def kept_part(name: str, size: tuple[int, int]) -> Tensor:
    """The name of a part -> (H,W) bool. Raises `SmaltiError` for an unknown name, listing those there are."""
    if name not in PARTS:
        raise SmaltiError(f"unknown part {name!r} to keep; {suggestion(name, PARTS)}")
    kept = torch.zeros(size, dtype=torch.bool)
    kept[PARTS[name](*size)] = True
    return kept


def kept_by_mask(path: Path, *, picture: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """A mask file (white is kept) of the picture's own (height, width) -> (size) bool, scaled and cropped as the picture is.

    Raises `SmaltiError` for a file that is no picture, and for one of another size than the picture.
    """
    mask = read_image(path, channels=1, name=str(path))
    if mask.shape[:2] != picture:
        raise SmaltiError(
            f"the mask {path} is {mask.shape[0]}x{mask.shape[1]} pixels, its picture {picture[0]}x{picture[1]}; "
            "a mask has the size of its picture"
        )
    return to_tensor(center_crop(resize_to_cover(mask, size), size))[0] >= 0
