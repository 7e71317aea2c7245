"""Uploaded files -> images, masks and label maps. Only bytes come in: no path, no address.

The pixels of a file are counted before it is decoded, and no image is enlarged beyond what is needed.
H W pixels, C channels, n labels, f the downsampling factor.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.images.io import Array, DamagedImage, read_image, read_middle, read_numbers, read_size
from smalti.images.masks import read_mask
from smalti.images.resizing import center_crop, covered_middle
from smalti.web.limits import Limits
from smalti.web.requests import Color

UNPAINTED = -1
"""The number of pixels of a map that have no label yet."""
_FOREIGN = -2  # a color of no label
COLOR_TOLERANCE = 40
"""Largest difference of a channel between a pixel of a map and its label's color."""


class Upload(NamedTuple):
    """An uploaded file: its name on the user's machine, for messages, and its content."""

    name: str
    data: bytes

    @property
    def stream(self) -> io.BytesIO:
        """The content as a stream."""
        return io.BytesIO(self.data)


def check_pixels(file: Upload, limits: Limits) -> tuple[int, int]:
    """An image file -> its (height, width) upright. Raises `SmaltiError` for more than `limits.pixels` million pixels,
    and for files that are not images. Nothing is decoded."""
    height, width = read_size(file.stream, name=file.name)
    if height * width > limits.pixels * 10**6:
        raise DamagedImage(
            file.name,
            f"has {height} x {width} pixels (height x width), and the limit is {limits.pixels} million; scale it down",
        )
    return height, width


def read_whole_tiles(file: Upload, *, channels: int, factor: int, most: int, limits: Limits) -> Array:
    """An image file -> (H,W,C) uint8 at its own size, cropped in the middle to whole tiles of f pixels.

    An image with a side of more than `most` pixels is scaled down. Raises `DamagedImage` for images smaller than a
    tile, and as `check_pixels`.
    """
    height, width = check_pixels(file, limits)
    scale = min(most / max(height, width), 1.0)
    size = (int(height * scale) // factor * factor, int(width * scale) // factor * factor)
    if not min(size):
        raise DamagedImage(
            file.name,
            f"is {height}x{width} pixels (height x width), smaller than a tile of {factor} x {factor} pixels"
            f"{' after it is scaled down' if scale < 1 else ''}; use a larger or less narrow image",
        )
    if scale < 1:
        pixels = read_middle(file.stream, size, channels=channels, name=file.name)
    else:
        pixels = center_crop(read_image(file.stream, channels=channels, name=file.name), size)
    return as_bytes(pixels)


def as_bytes(pixels: Array) -> npt.NDArray[np.uint8]:
    """(H,W,C) uint8 or uint16 -> uint8."""
    return np.ascontiguousarray(pixels if pixels.dtype == np.uint8 else pixels >> 8).astype(np.uint8)


def read_edit_mask(file: Upload, size: tuple[int, int], *, limits: Limits) -> Tensor:
    """A mask file of an image of `size` (H,W), white where it is to be generated -> (H,W) bool, True there.

    Raises `DamagedImage` for a mask of another size, and as `masks.read_mask`.
    """
    found = check_pixels(file, limits)
    if found != size:
        raise DamagedImage(
            file.name, f"is {found[0]}x{found[1]} pixels, and its image {size[0]}x{size[1]}; a mask has the same size"
        )
    levels = read_mask(file.stream, name=file.name)
    return torch.from_numpy(levels[:, :, 0] > np.iinfo(levels.dtype).max // 2)


def read_label_map(
    file: Upload,
    *,
    names: Sequence[str],
    colors: Sequence[Color],
    unlabeled: int | None,
    size: tuple[int, int],
    limits: Limits,
) -> Tensor:
    """A label map -> (H,W) int64 for an image of `size`: labels in [0,n), and `UNPAINTED`.

    A file holds numbers (grayscale or a palette), or the `colors` of the labels or colors close to them; transparent
    pixels, and the number `unlabeled`, are unpainted. It is scaled to cover the size, labels by nearest neighbor, and
    its middle is cut out. Raises `DamagedImage` that names the value and the place of what is no label.
    """
    check_pixels(file, limits)
    numbers = read_numbers(file.stream, name=file.name)
    if numbers.ndim == 2:
        labels = _numbered(file.name, numbers, count=len(names), unlabeled=unlabeled)
        shifted = (labels + 1).astype(np.uint16)[:, :, None]  # unpainted is 0
        fitted = covered_middle(shifted, size, filter="nearest")[:, :, 0].astype(np.int64) - 1
    else:
        pixels = as_bytes(read_image(file.stream, channels=4, name=file.name))
        fitted = _colored(file.name, covered_middle(pixels, size, filter="nearest"), names, colors)
    return torch.from_numpy(fitted)


def _numbered(name: str, numbers: npt.NDArray[Any], *, count: int, unlabeled: int | None) -> npt.NDArray[np.int64]:
    """Numbers (H,W) -> labels (H,W)."""
    if numbers.dtype.kind not in "biu":
        raise DamagedImage(name, "holds floats, and a map whole numbers; save it with 8 bits")
    labels = numbers.astype(np.int64)
    wrong = (labels < 0) | (labels >= count)
    if unlabeled is not None:
        wrong &= labels != unlabeled
    if wrong.any():
        row, column = np.unravel_index(int(wrong.argmax()), wrong.shape)
        raise DamagedImage(
            name,
            f"is no label map of this model: row {row}, column {column} holds the number {labels[row, column]}, and "
            f"labels are 0 to {count - 1}; a photo is no map",
        )
    return np.where(labels < count, labels, UNPAINTED)


def _colored(name: str, pixels: Array, names: Sequence[str], colors: Sequence[Color]) -> npt.NDArray[np.int64]:
    """Pixels (H,W,4) -> labels (H,W)."""
    packed = np.ascontiguousarray(pixels).view(np.uint32)[:, :, 0]
    found, place = np.unique(packed, return_inverse=True)  # few colors in a map, many in a photo
    levels = found.view(np.uint8).reshape(-1, 4).astype(np.int64)  # (m,4)
    palette = np.array(colors, dtype=np.int64)  # (n,3)
    labels = np.empty(len(found), dtype=np.int64)
    for begin in range(0, len(found), 4096):
        distance = np.abs(levels[begin : begin + 4096, None, :3] - palette).max(axis=2)
        near = distance.min(axis=1) <= COLOR_TOLERANCE
        labels[begin : begin + 4096] = np.where(near, distance.argmin(axis=1), _FOREIGN)
    labels[levels[:, 3] < 128] = UNPAINTED
    fitted: npt.NDArray[np.int64] = labels[place.reshape(packed.shape)]
    foreign = fitted == _FOREIGN
    if foreign.any():
        row, column = np.unravel_index(int(foreign.argmax()), foreign.shape)
        red, green, blue = (int(level) for level in pixels[row, column, :3])
        raise DamagedImage(
            name,
            f"is no label map of this model: its color #{red:02x}{green:02x}{blue:02x} is not that of a label "
            f"({', '.join(names[:3])}, ...); use the colors of the page, or numbers, "
            "in a PNG file",
        )
    return fitted


def with_nearest_labels(labels: Tensor) -> Tensor:
    """A map (H,W) int64 with `UNPAINTED` pixels -> the same, with the label of the nearest painted pixel there.

    By jump flooding (Rong and Tan, I3D 2006), as static/label_map.js shows it on the page. Raises `SmaltiError` if
    nothing is painted.
    """
    painted = labels != UNPAINTED
    if painted.all():
        return labels
    if not painted.any():
        raise SmaltiError("the map is unpainted; paint something, or leave the map out")
    height, width = labels.shape
    rows, columns = np.indices((height, width))
    far = 10**6
    known = painted.numpy()
    nearest = np.stack([np.where(known, rows, far), np.where(known, columns, far)])  # the place of the nearest one
    step = 1 << max(max(height, width) - 1, 1).bit_length() - 1
    while step:
        for down in (-step, 0, step):
            for right in (-step, 0, step):
                if down or right:
                    _adopt(nearest, rows, columns, down, right)
        step //= 2
    return labels[torch.from_numpy(nearest[0]), torch.from_numpy(nearest[1])]


def _adopt(
    nearest: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    down: int,
    right: int,
) -> None:
    """Each pixel takes the nearest place of the pixel `down` and `right` of it where that is nearer, in place."""
    height, width = rows.shape
    if abs(down) >= height or abs(right) >= width:
        return
    here = (slice(max(-down, 0), min(height - down, height)), slice(max(-right, 0), min(width - right, width)))
    there = (slice(max(down, 0), min(height + down, height)), slice(max(right, 0), min(width + right, width)))
    own, other = nearest[:, here[0], here[1]], nearest[:, there[0], there[1]].copy()
    y, x = rows[here], columns[here]
    nearer = (other[0] - y) ** 2 + (other[1] - x) ** 2 < (own[0] - y) ** 2 + (own[1] - x) ** 2
    own[:, nearer] = other[:, nearer]
