"""Files whose pixels are numbers and not colors: label maps and depth maps.

H W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smalti.images.io import IMAGE_SUFFIXES, Array, DamagedImage, opened, read_numbers

_COLORS = (".avif", ".jfif", ".jpeg", ".jpg", ".webp")
LABEL_SUFFIXES = tuple(suffix for suffix in IMAGE_SUFFIXES if suffix not in _COLORS)
"""Compression that is for colors changes numbers a little, and that makes other labels of them."""
DEPTH_SUFFIXES = (*IMAGE_SUFFIXES, ".npy")

_NARROWEST = 1e-8  # span of depths, from the original: what spans less is flat
_NO_DEPTH = 1e30
_NUMPY = b"\x93NUMPY"  # the first bytes of an .npy file


def read_labels(source: Path | BinaryIO, *, name: str) -> Array:
    """An image file with one number per pixel (palette, grayscale of 8 or 16 bits) -> labels (H,W,1) uint8 or uint16.

    Raises `DamagedImage` for color images, for numbers that are not labels, and for files that are not images.
    """
    numbers = read_numbers(source, name=name)
    if numbers.ndim != 2:
        raise DamagedImage(
            name, "holds colors, and a segmentation one label a pixel; save it with a palette or as grayscale"
        )
    if numbers.dtype.kind == "f":
        raise DamagedImage(name, "holds floats, and a segmentation whole numbers; save it with 8 or 16 bits")
    least, most = int(numbers.min()), int(numbers.max())
    if least < 0 or most > 65535:
        worst = least if least < 0 else most
        raise DamagedImage(name, f"holds the label {worst}, and labels go from 0 to 65535; give it another number")
    narrow = numbers.dtype.itemsize == 1
    return numbers.astype(np.uint8)[:, :, None] if narrow else numbers.astype(np.uint16)[:, :, None]


def read_depth(source: Path | BinaryIO, *, name: str) -> npt.NDArray[np.float32]:
    """A depth map -> its numbers as they are (H,W) float32.

    It is grayscale of 8 or 16 bits; a TIFF file of floats; or an `.npy` file of any numbers, (H,W), (1,H,W) or (H,W,1).
    The four channels of a transparent image are the four bytes of a float32, least significant first, as the original's
    data set stores the inverse depths of MiDaS.

    Raises `DamagedImage` for colors (three equal channels are gray), NaN and infinite numbers, and damaged files.
    """
    numbers = _gray(read_any(source, name=name), name)
    with np.errstate(over="ignore"):  # what is too large becomes infinite
        depth = numbers.astype(np.float32)
    if not np.isfinite(depth).all():
        raise DamagedImage(name, "holds infinite numbers or NaN, and a depth is finite everywhere")
    return depth


def read_any(source: Path | BinaryIO, *, name: str) -> npt.NDArray[Any]:
    """An image file or an `.npy` file -> its numbers as they are, (H,W) or (H,W,C). Raises `DamagedImage`."""
    numbers = _array(source, name)
    return read_numbers(source, name=name) if numbers is None else numbers


def normalize_depth(depth: Tensor) -> Tensor:
    """Numbers of any range -> of the same shape in [-1,1], the least of them -1 and the greatest 1 (all -1 where all
    are equal).

    So the original makes depths comparable from image to image, before it crops or scales them.
    """
    least, most = depth.min(), depth.max()
    return (depth - least) / (most - least).clamp(min=_NARROWEST) * 2 - 1


def depth_levels(depth: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Depths (H,W) -> `normalize_depth` over 16 bits, (H,W,1): what a grayscale image of 16 bits would hold."""
    from_black = normalize_depth(torch.from_numpy(depth)).double() + 1  # (H,W) in [0,2]
    levels: npt.NDArray[np.uint16] = (from_black * (65535 / 2)).round().numpy().astype(np.uint16)[:, :, None]
    return levels


def _gray(numbers: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """The numbers of an image file, (H,W) or (H,W,C) -> depths (H,W)."""
    if numbers.ndim == 2:
        return numbers
    # The last byte of an opaque pixel is 255: as a float that is beyond -1e38 or no number at all, and never a depth.
    if numbers.shape[2] == 4 and not (numbers[:, :, 3] == 255).all():
        depth: npt.NDArray[Any] = np.ascontiguousarray(numbers).view("<f4")[:, :, 0]
        if not (np.abs(depth) < _NO_DEPTH).all():  # no number fails too
            raise DamagedImage(name, "is transparent, and its bytes are not depths; save it as grayscale")
        return depth
    if (numbers[:, :, :3] != numbers[:, :, :1]).any():
        raise DamagedImage(
            name, "holds colors, and a depth one number per pixel; save it as grayscale, a TIFF of floats or .npy"
        )
    first: npt.NDArray[Any] = numbers[:, :, 0]
    return first


def _array(source: Path | BinaryIO, name: str) -> npt.NDArray[Any] | None:
    """The numbers of an `.npy` file, (H,W); None for a file of another kind."""
    with opened(source, name=name) as stream:
        begin = stream.read(len(_NUMPY))
        stream.seek(0)
        if begin != _NUMPY:
            return None
        array: npt.NDArray[Any] = np.load(stream, allow_pickle=False)
        shape = array.shape
        if array.ndim == 3 and 1 in (shape[0], shape[2]):
            array = array[0] if shape[0] == 1 else array[:, :, 0]
        if array.ndim != 2 or not array.size or array.dtype.kind not in "biuf":
            raise DamagedImage(name, f"holds {array.dtype} of shape {shape}, and a depth is numbers of shape (H, W)")
        return array
