"""The position of each code in the image as a condition: the paper's way to generate faces and other aligned
images.

Notation: B batch, H W pixels, h w grid of codes, f = H/h, L levels. Source: arXiv 2012.09841, section 3.2,
"generating high-resolution images".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.conditions.base import Grid, UnsizedCondition, WindowPrefix, check_grid, code_crops
from smalti.core.errors import SmaltiError
from smalti.core.settings import Positive, as_mapping, settings
from smalti.images.io import Array, to_array


@settings
class CoordinatesSettings:
    """`levels` L: the number of levels between the first and the last pixel. `codebook_size`: the number of codes.

    Coordinates are rounded to the nearest level, so codes are 0 to L, and L occurs only near the lower right corner
    of large images. With a `codebook_size` of L, code L becomes L - 1; with L + 1 nothing changes. `factor`: pixels
    per code, along one side. `grid`: the window (h, w) of the prior, in codes.
    """

    name: Literal["coordinates"] = "coordinates"
    levels: Positive
    codebook_size: Positive
    factor: Positive
    grid: tuple[Positive, Positive]


class ImageCrop(NamedTuple):
    """A crop of a larger image: its first row and column there, and the size (H, W) of the larger image."""

    top: int
    left: int
    full_size: tuple[int, int]


def coordinate_image(size: tuple[int, int]) -> Tensor:
    """A size (H, W) -> the fraction of the pixels before each pixel in raster order: (1, H, W) float32 in [0, 1)."""
    height, width = size
    # In double precision first, as the original has it: the nearest float32 of the exact share.
    shares = torch.arange(height * width, dtype=torch.float64) / (height * width)
    return shares.view(1, height, width).float()


@final
class Coordinates(UnsizedCondition):
    """None or an `ImageCrop` -> (B, h w): for each code the fraction of the image before it in raster order.

    None stands for a whole image.
    """

    key = "coordinates"
    optional = True

    def __init__(self, settings: CoordinatesSettings) -> None:
        if not settings.levels <= settings.codebook_size <= settings.levels + 1:
            raise SmaltiError(
                f"coordinates of {settings.levels} levels have {settings.levels} or {settings.levels + 1} codes, "
                f"not {settings.codebook_size}"
            )
        self.settings = settings
        self.smallest_grid = settings.grid
        self.size, self.length, self.maps = settings.codebook_size, settings.grid[0] * settings.grid[1], (0,)

    def read(self, text: str) -> ImageCrop:
        """The crop's position in the larger image, and its size: "TOP,LEFT,HEIGHTxWIDTH" in pixels."""
        match = re.fullmatch(r"(\d+),(\d+),(\d+)x(\d+)", text.replace(" ", ""))
        if match is None:
            raise SmaltiError(f"{text!r} is not a crop of a larger image; write TOP,LEFT,HEIGHTxWIDTH: 0,128,512x512")
        top, left, height, width = (int(number) for number in match.groups())
        return ImageCrop(top, left, (height, width))

    def encode(self, values: Sequence[Any]) -> Tensor:
        return self._codes(values, self.settings.grid).flatten(1)

    def encode_windows(self, values: Sequence[Any], *, grid: Grid) -> WindowPrefix:
        check_grid(grid, window=self.settings.grid, key=self.key)
        return code_crops(self._codes(values, grid))

    def _codes(self, values: Sequence[Any], grid: Grid) -> Tensor:
        """B values -> (B,h,w) codes of images of `grid` codes."""
        size = (grid[0] * self.settings.factor, grid[1] * self.settings.factor)
        images = [_image(value, size) for value in values]
        return self.codes(torch.stack(images) if images else torch.empty(0, 1, *size))

    def codes(self, coordinates: Tensor) -> Tensor:
        """Coordinate images (B,1,H,W) in [0,1] -> codes (B,h,w) int64 in [0,size): their mean over f x f pixels,
        rounded.

        Halves are rounded to even. Raises `SmaltiError` for values outside [0,1], and for sides that f does not divide.
        """
        factor = self.settings.factor
        height, width = coordinates.shape[2:]
        if height % factor or width % factor:
            raise SmaltiError(
                f"coordinates of {height} x {width} pixels (height x width) are not made of tiles of {factor}; crop "
                f"them to {height // factor * factor} x {width // factor * factor}"
            )
        if coordinates.numel() and not (coordinates.min() >= 0 and coordinates.max() <= 1):
            raise SmaltiError(
                f"coordinates are fractions of an image, from 0 to 1, and these are from {float(coordinates.min()):g} "
                f"to {float(coordinates.max()):g}"
            )
        means = F.adaptive_avg_pool2d(coordinates.cpu(), (height // factor, width // factor))  # (B,1,h,w)
        levels = (means.clamp(0, 1) * self.settings.levels).round().squeeze(1).to(torch.int64)  # (B,h,w)
        return levels.clamp(max=self.size - 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B,h,w) -> coordinate images (B,1,H,W) float32 in [0,1], each code f x f pixels of one value."""
        means = (codes.float() / self.settings.levels).unsqueeze(1)  # (B,1,h,w)
        return means.repeat_interleave(self.settings.factor, 2).repeat_interleave(self.settings.factor, 3)  # (B,1,H,W)

    def preview(self, codes: Tensor) -> Array:
        gray = self.decode(codes.reshape(1, *self.settings.grid))[0] * 2 - 1  # (1,H,W)
        return np.repeat(to_array(gray), 3, axis=2)

    def save(self, folder: Path) -> dict[str, Any]:
        return as_mapping(self.settings)


def _image(value: Any, size: tuple[int, int]) -> Tensor:
    """A value, and the size (H, W) of the image it is for -> its coordinates (1,H,W)."""
    if value is None:
        return coordinate_image(size)
    if not isinstance(value, ImageCrop):
        raise SmaltiError(
            f"{value!r} is not a crop of a larger image; leave it out, or give ImageCrop(top, left, full_size=(H, W))"
        )
    bottom, right = value.top + size[0], value.left + size[1]
    if value.top < 0 or value.left < 0 or bottom > value.full_size[0] or right > value.full_size[1]:
        raise SmaltiError(
            f"an image of {size[0]} x {size[1]} pixels (height x width) at ({value.top}, {value.left}) reaches beyond "
            f"the larger one of {value.full_size[0]} x {value.full_size[1]}; begin between (0, 0) and "
            f"({max(value.full_size[0] - size[0], 0)}, {max(value.full_size[1] - size[1], 0)})"
        )
    return coordinate_image(value.full_size)[:, value.top : bottom, value.left : right]
