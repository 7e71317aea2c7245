"""Files of segmentations and depths: their pixels are numbers, and not colours.

H W pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from smalti.images import DamagedImage, read_image

_NARROWEST = 1e-8  # span of depths, from the original: what spans less is flat
_NO_DEPTH = 1e30


def read_segmentation(path: Path) -> Tensor:
    """A picture file with one number a pixel (palette, greyscale of 8 or 16 bits) -> labels (H,W) int64.

    Raises `DamagedImage` for colour pictures, and for what is no picture.
    """
    pixels = _numbers(path)
    if pixels.ndim != 2:
        raise DamagedImage(
            str(path), "holds colours, and a segmentation one label a pixel; save it with a palette or as greyscale"
        )
    return torch.from_numpy(pixels.astype(np.int64))


def read_depth(path: Path) -> Tensor:
    """A depth picture -> (1,H,W) float32, its least and its greatest depth spread to -1 and 1.

    A greyscale file of 8 or 16 bits is taken as it is; so is colour, made grey. The four channels of a transparent file are
    the four bytes of a float32, least significant first: so the original's data set keeps the inverse depths of MiDaS.
    """
    pixels = _numbers(path)
    # The last byte of an opaque pixel is 255: as a float that is beyond -1e38 or no number at all, and never a depth.
    if pixels.ndim == 3 and pixels.shape[2] == 4 and not (pixels[:, :, 3] == 255).all():
        depth = np.ascontiguousarray(pixels).view("<f4")[:, :, 0].astype(np.float32)
        if not (np.abs(depth) < _NO_DEPTH).all():  # no number fails too
            raise DamagedImage(str(path), "is transparent, and its bytes are no depths; save it as greyscale")
    else:
        depth = read_image(path, channels=1, name=str(path))[:, :, 0].astype(np.float32)
    return spread(torch.from_numpy(depth))[None]


def spread(depth: Tensor) -> Tensor:
    """Numbers of any range -> of the same shape in [-1,1], the least of them -1 and the greatest 1 (all -1 where all are equal).

    So the original makes depths comparable from picture to picture, before it crops or scales them.
    """
    least, most = depth.min(), depth.max()
    return (depth - least) / (most - least).clamp(min=_NARROWEST) * 2 - 1


def _numbers(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8 | np.uint16]]:
    """A picture file -> its numbers as they are stored, (H,W) or (H,W,channels); a palette's are its places."""
    read_image(path, channels=3, name=str(path))  # damage is told in one place
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        return np.array(upright.getchannel(0) if upright.mode in ("LA", "PA") else upright)
