"""Images of codes for the page: partial images, code mosaics, and previews as data URLs.

B batch, C channels, H W pixels, h w code grid, f = H/h.
"""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from smalti.images.io import Array, to_array

Pixels = npt.NDArray[np.uint8]

GROUT = 0.82  # brightness of the grid lines of a mosaic relative to its tiles
_BEGIN = "data:image/png;base64,"


def colors(image: Tensor) -> Pixels:
    """An image (C,H,W) in [-1,1] -> (H,W,3 or 4); gray becomes color."""
    array = to_array(image)
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array


def masked_image(image: Tensor, codes: Tensor) -> Pixels:
    """An image (C,H,W) in [-1,1] and its codes (h,w), -1 where not generated -> (H,W,4), transparent there."""
    pixels = colors(image)[:, :, :3]
    f = image.shape[1] // codes.shape[0]
    known = (codes >= 0).repeat_interleave(f, 0).repeat_interleave(f, 1).cpu().numpy()
    return np.dstack([pixels, known.astype(np.uint8) * 255])


def mosaic(codes: Tensor, image: Tensor) -> Pixels:
    """Codes (h,w) and the image (C,H,W) in [-1,1] that they decode to -> their mosaic (H,W,3).

    Each code has one color, the mean of all its tiles. Grid lines separate the tiles.
    """
    pixels = torch.from_numpy(colors(image)[:, :, :3].copy()).double()
    f = image.shape[1] // codes.shape[0]
    tiles = pixels.unfold(0, f, f).unfold(1, f, f).mean((3, 4)).flatten(0, 1)  # (h w, 3)
    place = torch.from_numpy(np.unique(codes.cpu().flatten().numpy(), return_inverse=True)[1])  # (h w,)
    sums = torch.zeros(int(place.max()) + 1, 3, dtype=tiles.dtype).index_add_(0, place, tiles)
    means = sums / place.bincount().unsqueeze(1)
    levels = means[place].view(*codes.shape, 3).repeat_interleave(f, 0).repeat_interleave(f, 1)  # (H,W,3)
    for axis in (0, 1) if f > 3 else ():
        levels.index_fill_(axis, torch.arange(f - 1, levels.shape[axis], f), -1)
    filled: Pixels = levels.round().clamp(min=0).byte().numpy()
    grout = (levels < 0).any(2).numpy()
    filled[grout] = np.uint8(255 * GROUT)
    return filled


def data_url(pixels: Array, *, side: int) -> str:
    """Pixels (H,W,3 or 4) -> a PNG as a `data:` URL, scaled down to a longer side of at most `side`."""
    image = Image.fromarray(pixels)
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.BILINEAR)
    stream = io.BytesIO()
    image.save(stream, format="PNG", compress_level=1)  # fast; previews are replaced within a second
    return _BEGIN + base64.b64encode(stream.getvalue()).decode("ascii")
