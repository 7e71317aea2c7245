"""Pixel formats of image files: bit depth, byte order, alpha, orientation, white as zero; and the range of values.

Pillow hides most of this, but not all: for 16 and 12 bits it reports neither the range nor whether zero is white, and
it spreads levels of 2 and 4 bits over 8, which changes labels.

H W pixels, C channels.
"""

from __future__ import annotations

import sys
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile
from torch import Tensor

from smalti.images.large_planes import strip_of

Array: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Wide: TypeAlias = npt.NDArray[np.uint16]

_WHITE = 65535  # of 16 bits


class GrayStorage(NamedTuple):
    """How a file holds single levels of gray."""

    most: int = 0
    """The largest level that can be stored; 0 if levels need no correction."""
    given: int = 0
    """The number that Pillow gives for it."""
    inverted: bool = False
    """Whether Pillow turns levels around, because 0 is white in the file: it does so up to 8 bits."""
    white_is_zero: bool = False
    """Whether 0 is white in the file and Pillow does not turn it around, beyond 8 bits."""


AS_GIVEN = GrayStorage()
"""Of an image that comes from no file."""


def storage(image: Image.Image) -> GrayStorage:
    """An opened file whose pixels are not read yet -> how it holds levels of gray."""
    tile = image.tile[0] if isinstance(image, ImageFile.ImageFile) and image.tile else None
    args = () if tile is None else (tile.args,) if isinstance(tile.args, str) else tuple(tile.args or ())
    wide = image.mode.startswith("I")
    if image.format == "PPM" and len(args) > 1 and isinstance(args[1], int):  # the file names its largest level
        return GrayStorage(most=args[1], given=_WHITE if wide else 255)
    mode, _, how = (args[0] if args and isinstance(args[0], str) else "").partition(";")
    if mode in ("1", "L"):
        most = {"2": 3, "4": 15}.get(how[:1], 255) if mode == "L" else 1
        return GrayStorage(most=most, given=255 if mode == "L" else 1, inverted="I" in how)
    zero = isinstance(image, TiffImageFile) and wide and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0
    most = 4095 if (mode, how) == ("I", "12") else 0
    return GrayStorage(most=most, given=most, white_is_zero=bool(zero))


def stored_numbers(image: Image.Image) -> npt.NDArray[Any]:
    """An opened file -> its numbers as they are stored, upright, (H,W) or (H,W,C): palette indices, levels
    of 1 to 16 bits.

    Of one bit, white is 1, as every program gives it. Opacity beside a single channel is left out.
    """
    stored = storage(image)
    image.load()
    image = upright(image)
    numbers: npt.NDArray[Any] = np.array(image.getchannel(0) if image.mode in ("LA", "PA") else image)
    if stored.most != stored.given:
        numbers = ((numbers.astype(np.int64) * stored.most + stored.given // 2) // stored.given).astype(numbers.dtype)
    if stored.inverted and numbers.dtype != bool:
        numbers = stored.most - numbers
    return numbers


def as_floats(levels: Array) -> Tensor:
    """(H,W,C) uint8 or uint16, or a batch of them -> (C,H,W) float32 in [-1,1]; black is -1, white is 1."""
    half = np.iinfo(levels.dtype).max / 2
    planes = np.ascontiguousarray(np.moveaxis(levels, -1, -3))  # first, while there is the least to move
    return torch.from_numpy(planes.astype(np.float32)).div_(half).sub_(1)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8: 1 is upright, and the upper four are turned by a quarter."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a damaged EXIF block does not mean damaged pixels
        return 1


def upright(image: Image.Image) -> Image.Image:
    """An image -> the same upright, by its EXIF orientation."""
    if orientation(image) == 1:  # most are, and are not copied
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # as above
        return image


def pixels_of(image: Image.Image, stream: BinaryIO, *, channels: int, bits: Literal[8, 16]) -> Array:
    """A file that was opened and its stream -> its pixels (H,W,C) upright, as `smalti.images.read_image` says.

    Raises `ValueError` for numbers without an agreed range, and whatever decoders raise.
    """
    stored = storage(image)
    tiles = _other_bytes(image) if bits == 16 else None
    image.load()
    if tiles is None:
        return levels_of(upright(image), channels=channels, bits=bits, stored=stored)
    stream.seek(0)
    with Image.open(stream, formats=[str(image.format)]) as other:
        assert isinstance(other, ImageFile.ImageFile)
        other.tile = tiles
        other.load()
        levels = np.array(upright(image)).astype(np.uint16) << 8 | np.array(upright(other))  # (H, W, 3 or 4)
    transparent = image.info.get("transparency")
    opacity = levels[:, :, 3:] if levels.shape[2] == 4 else None
    if isinstance(transparent, tuple):
        opacity = np.where((levels == transparent).all(2, keepdims=True), 0, _WHITE).astype(np.uint16)
    return _wide_channels(levels[:, :, :3], opacity, channels)


def _other_bytes(image: Image.Image) -> list[ImageFile._Tile] | None:
    """How to read the lower bytes of colors with 16 bits, of which Pillow gives the upper ones; None for other files.

    Pillow's unpacker takes one of two bytes according to their order. With the wrong order it takes the other one.
    """
    others = []
    for tile in image.tile if isinstance(image, ImageFile.ImageFile) else ():
        mode, *rest = (tile.args,) if isinstance(tile.args, str) else tile.args or ("",)
        if mode not in _WRONG_ORDER:
            return None
        args = _WRONG_ORDER[mode] if isinstance(tile.args, str) else (_WRONG_ORDER[mode], *rest)
        others.append(tile._replace(args=args))
    return others or None


_NATIVE_WRONG = {"little": "B", "big": "L"}[sys.byteorder]
_WRONG_ORDER = {
    f"{colors};16{order}": f"{colors};16{wrong}"
    for colors in ("RGB", "RGBA")
    for order, wrong in (("B", "L"), ("L", "B"), ("N", _NATIVE_WRONG))
}


def levels_of(image: Image.Image, *, channels: int, bits: Literal[8, 16], stored: GrayStorage = AS_GIVEN) -> Array:
    """An image in memory -> its pixels (H,W,C), as `smalti.images.read_image` says. `stored`: how its file held
    them."""
    if image.mode == "F":
        raise ValueError(
            "its numbers are 32-bit floats, which have no agreed range; save it with 8 or 16 bits, or read depths "
            "with images.file_type=depth"
        )
    if image.mode.startswith("I"):
        # 16 bits: "I;16" and its byte orders; "I" from older versions of Pillow and from PGM.
        wide = _wide_pixels(image, channels, stored)
        return wide if channels == 1 or bits == 16 else _narrow(wide)
    rows = strip_of((image.height, image.width))
    if image.height <= rows:
        return _strip_levels(image, channels)
    levels = np.empty((image.height, image.width, channels), dtype=np.uint8)
    for top in range(0, image.height, rows):  # the copies that conversions make stay small
        bottom = min(top + rows, image.height)
        levels[top:bottom] = _strip_levels(image.crop((0, top, image.width, bottom)), channels)
    return levels


def _strip_levels(image: Image.Image, channels: int) -> Array:
    """Some rows of an image of 8 bits -> their pixels (H,W,C)."""
    if channels == 4:
        # Not every mode has a direct way.
        image = image if image.has_transparency_data else image.convert("RGB")
        return np.array(image.convert("RGBA"), dtype=np.uint8)
    if image.has_transparency_data:
        colored = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colored.size, "white"), colored)
    if channels == 3 or image.mode not in ("1", "L"):
        image = image.convert("RGB")  # also on the way to grayscale: not every mode has a direct way
    if channels == 1:
        image = image.convert("L")
    return np.array(image, dtype=np.uint8).reshape(image.height, image.width, channels)


def _wide_pixels(image: Image.Image, channels: int, stored: GrayStorage) -> Wide:
    wide = np.array(image)
    if wide.min() < 0 or wide.max() > _WHITE:
        raise ValueError("its numbers have 32 bits, which have no agreed range; save it with 8 or 16 bits")
    values = wide.astype(np.uint16)[:, :, None]
    if stored.given not in (0, _WHITE):  # 12 bits
        values = ((values.astype(np.uint32) * _WHITE + stored.given // 2) // stored.given).astype(np.uint16)
    if stored.white_is_zero:
        values = _WHITE - values
    transparent = image.info.get("transparency")
    opacity = np.where(values == transparent, 0, _WHITE).astype(np.uint16) if isinstance(transparent, int) else None
    return _wide_channels(values, opacity, channels)


def _wide_channels(colors: Wide, opacity: Wide | None, channels: int) -> Wide:
    """Colors (H, W, 1 or 3) and their opacity (H, W, 1), if there is any -> (H, W, channels), as `read_image` says."""
    values = colors.astype(np.int64)
    if channels == 4:
        three = np.broadcast_to(colors, (*colors.shape[:2], 3))
        return np.concatenate([three, np.full_like(colors[:, :, :1], _WHITE) if opacity is None else opacity], axis=2)
    if opacity is not None:
        values = (values * opacity + _WHITE * (_WHITE - opacity.astype(np.int64)) + _WHITE // 2) // _WHITE
    if channels == 1 and values.shape[2] == 3:
        values = (values @ np.array([[299], [587], [114]]) + 500) // 1000  # ITU-R 601, as Pillow has it
    return np.broadcast_to(values, (*values.shape[:2], channels)).astype(np.uint16)


def _narrow(wide: Wide) -> npt.NDArray[np.uint8]:
    return ((wide.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 257 * 255, rounded to nearest
