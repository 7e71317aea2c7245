"""Which pixels of an image are kept when the rest is generated: a named part, or a mask that a person painted.

H W pixels; True is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smalti.core.errors import SmaltiError, suggestion
from smalti.images.io import Array, DamagedImage, read_image, to_tensor
from smalti.images.large_planes import strip_of
from smalti.images.resizing import covered_middle

Slices = tuple[slice, slice]

PARTS: dict[str, Callable[[int, int], Slices]] = {
    "top-half": lambda H, W: (slice(0, H // 2), slice(None)),
    "bottom-half": lambda H, W: (slice(H // 2, H), slice(None)),
    "left-half": lambda H, W: (slice(None), slice(0, W // 2)),
    "right-half": lambda H, W: (slice(None), slice(W // 2, W)),
    "center": lambda H, W: (slice(H // 4, H - H // 4), slice(W // 4, W - W // 4)),
}
"""Name -> (H, W) -> the rows and columns that are kept."""


def kept_part(name: str, size: tuple[int, int]) -> Tensor:
    """The name of a part -> (H,W) bool. Raises `SmaltiError` for an unknown name, listing those there are."""
    if name not in PARTS:
        raise SmaltiError(f"unknown part {name!r} to keep; {suggestion(name, PARTS)}")
    known = torch.zeros(size, dtype=torch.bool)
    known[PARTS[name](*size)] = True
    return known


def whole_tiles(known: Tensor | npt.NDArray[np.bool_], *, factor: int, image: tuple[int, int]) -> Tensor:
    """A mask (H,W) bool, True where a pixel is kept, of an image's (height, width) -> True where a whole tile is (h,w).

    Raises `SmaltiError` for a mask of another size, for one that is not of True and False, and for one that keeps
    pixels, but no whole tile: nothing would be left of them.
    """
    mask = torch.as_tensor(known) if isinstance(known, np.ndarray) else known
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise SmaltiError(f"a mask is True where a pixel is kept and False elsewhere, not {kind}; give mask > 0, say")
    if mask.shape != image:
        raise SmaltiError(
            f"the mask has the shape {tuple(mask.shape)}, the image (height, width) {image}; "
            "give a mask of the image's size"
        )
    tiles = mask.unfold(0, factor, factor).unfold(1, factor, factor).all(-1).all(-1)
    if mask.any() and not tiles.any():
        raise SmaltiError(
            f"no tile of {factor} x {factor} pixels is kept as a whole, and a part of one cannot be; keep more of the "
            "image"
        )
    return tiles


def read_mask(source: Path | BinaryIO, *, name: str) -> Array:
    """An image file in black and white -> its brightness (H,W,1), uint8 or uint16. Numbers 0 and 1 become black and
    white.

    Raises `DamagedImage` for transparent pixels, which are neither, for masks that are dark everywhere without being
    black (their white would be lost), and for files that are not images.
    """
    pixels = read_image(source, channels=4, name=name, bits=16)  # (H,W,4)
    most = np.iinfo(pixels.dtype).max
    if (pixels[:, :, 3] != most).any():
        raise DamagedImage(name, "has transparent pixels, and a mask is black and white; save it without transparency")
    mask = np.empty((*pixels.shape[:2], 1), dtype=pixels.dtype)
    rows = strip_of((pixels.shape[0], pixels.shape[1]))
    for top in range(0, len(pixels), rows):  # a few rows: the numbers in between take 24 bytes per pixel
        colors = pixels[top : top + rows, :, :3].astype(np.int64)
        mask[top : top + rows] = (colors @ np.array([[299], [587], [114]]) + 500) // 1000  # ITU-R 601, as `read_image`
    brightest = int(mask.max())
    if brightest == 1:
        mask *= most
    elif 0 < brightest <= most // 2:
        raise DamagedImage(
            name,
            f"is dark everywhere, and a mask is black and white: its brightest pixel is {brightest} of {most}; save "
            "it with white where it is to be white",
        )
    return mask


def kept_by_mask(path: Path, *, image: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """A mask file (white is kept) of the image's own (height, width) -> (size) bool, scaled and cropped as the image
    is.

    Raises `SmaltiError` as `read_mask`, for a mask of another size than the image, and for one that keeps nothing.
    """
    mask = read_mask(path, name=str(path))
    if mask.shape[:2] != image:
        raise SmaltiError(
            f"the mask {path} is {mask.shape[0]}x{mask.shape[1]} pixels, its image {image[0]}x{image[1]}; "
            "a mask has the size of its image"
        )
    known = to_tensor(covered_middle(mask, size))[0] >= 0
    if not known.any():
        raise SmaltiError(
            f"the mask {path} is black wherever the image is seen, and white is kept: nothing would be kept; make it "
            "white where the image is to stay"
        )
    return known
