"""What an image is here.

A tensor is float in [-1, 1], shaped (C, H, W) or (B, C, H, W); C is 1 (grayscale, depth) or 3 (colour) when it
comes from a file. An array is (H, W, C), uint8, or uint16 where a file with 16 bits is read as one channel. Heights
come before widths.

B batch, C channels, H W pixels.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Literal, TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile, PngInfo
from torch import Tensor

from smalti.errors import SmaltiError
from smalti.files import write_atomically

Array: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

IMAGE_SUFFIXES = (
    ".avif",
    ".bmp",
    ".gif",
    ".jfif",
    ".jpeg",
    ".jpg",
    ".pbm",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)

NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})
SETTINGS_KEY = "smalti"  # the keyword of the PNG text chunk that holds the settings of a picture we made


@final
class DamagedImage(SmaltiError):  # noqa: N818 - named after what is wrong
    """A picture that cannot be used: `name`, and `reason` as the rest of a sentence that begins with the name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name} {self.reason}"


def read_image(source: Path | BinaryIO, *, channels: int, name: str) -> Array:
    """A picture file -> its pixels (H, W, C), upright.

    The EXIF orientation is applied. Transparent pixels are laid over white, as on a page. Palettes, CMYK and
    one-bit files are converted; colour profiles are not applied. Of an animation the first frame is taken.
    Grayscale files with 16 bits stay uint16 when one channel is asked for, and are scaled (not clipped) to 8 bits
    for three; all else is uint8.

    Raises `DamagedImage` with `name` and the reason for whatever is not a whole picture of a kind in
    `IMAGE_SUFFIXES`, or has more pixels than Pillow holds to be safe; and `SmaltiError` when `channels` is neither
    1 nor 3.
    """
    if channels not in (1, 3):
        raise SmaltiError(f"a picture file gives 1 channel (grayscale) or 3 (colour), not {channels}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd but readable metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with source.open("rb") if isinstance(source, Path) else nullcontext(source) as stream:
                if stream.seek(0, os.SEEK_END) == 0:
                    raise DamagedImage(name, "is empty (0 bytes)")
                stream.seek(0)
                with Image.open(stream, formats=_formats()) as image:
                    image.load()
                    return _pixels(_upright(image), channels)
        except SmaltiError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            most = f"{Image.MAX_IMAGE_PIXELS:,}"
            raise DamagedImage(name, f"has more than {most} pixels, the most that is read; scale it down") from error
        except UnidentifiedImageError as error:
            raise DamagedImage(name, "is not a picture of any kind that is read") from error
        except FileNotFoundError as error:
            raise DamagedImage(name, "is missing") from error
        except Exception as error:  # decoders answer damage with every kind of exception
            raise DamagedImage(name, f"cannot be read ({_lower(str(error)) or type(error).__name__})") from error


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _formats() -> list[str]:
    """Only the kinds we name: Pillow would otherwise hand a file that claims to be PostScript to a foreign program."""
    known = Image.registered_extensions()
    return sorted({known[suffix] for suffix in IMAGE_SUFFIXES if suffix in known})


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return image


def _pixels(image: Image.Image, channels: int) -> Array:
    if image.mode == "F":
        raise ValueError("its numbers are 32-bit floats, which have no agreed range; save it with 8 or 16 bits")
    if image.mode.startswith(
        "I"
    ):  # 16 bits: "I;16" and its byte orders; "I" from older versions of Pillow and from PGM
        return _wide_pixels(image, channels)
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
    if channels == 3 or image.mode not in ("1", "L"):
        image = image.convert("RGB")  # also on the way to grayscale: not every mode has a direct way
    if channels == 1:
        image = image.convert("L")
    return np.array(image, dtype=np.uint8).reshape(image.height, image.width, channels)


def _wide_pixels(image: Image.Image, channels: int) -> Array:
    wide = np.array(image)
    if wide.min() < 0 or wide.max() > 65535:
        raise ValueError("its numbers have 32 bits, which have no agreed range; save it with 8 or 16 bits")
    values: npt.NDArray[np.uint16] = wide.astype(np.uint16)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        values[values == transparent] = 65535
    if channels == 1:
        return values[:, :, None]
    narrow = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 257 * 255, rounded to nearest
    return np.repeat(narrow[:, :, None], 3, axis=2)


def resize_shorter(array: Array, size: int) -> Array:
    """(H, W, C) -> the same picture with its shorter side `size` pixels long, by Lanczos with antialiasing."""
    return resize_to_cover(array, (size, size))


def resize_to_cover(array: Array, size: tuple[int, int]) -> Array:
    """(H, W, C) -> the smallest picture of the same aspect that covers `size` (height, width); one side fits
    exactly.
    """
    height, width = array.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    return _resize(array, max(size[0], round(height * scale)), max(size[1], round(width * scale)))


def _resize(array: Array, height: int, width: int) -> Array:
    if array.shape[:2] == (height, width):
        return array

    def lanczos(picture: Image.Image) -> npt.NDArray[Any]:
        return np.array(picture.resize((width, height), Image.Resampling.LANCZOS))

    if array.dtype == np.uint8 and array.shape[2] == 3:
        colours: Array = lanczos(Image.fromarray(array))
        return colours
    limit = np.iinfo(array.dtype).max  # Lanczos overshoots at edges
    planes = [lanczos(Image.fromarray(array[:, :, c].astype(np.float32))) for c in range(array.shape[2])]
    resized: Array = np.stack(planes, axis=2).round().clip(0, limit).astype(array.dtype)
    return resized


def crop(array: Array, *, top: int, left: int, height: int, width: int) -> Array:
    """(H, W, C) -> the (height, width, C) window whose upper left pixel is (top, left); a view, not a copy."""
    assert 0 <= top <= array.shape[0] - height, f"rows {top}..{top + height} of {array.shape[0]}"
    assert 0 <= left <= array.shape[1] - width, f"columns {left}..{left + width} of {array.shape[1]}"
    return array[top : top + height, left : left + width]


def center_crop(array: Array, size: tuple[int, int]) -> Array:
    """(H, W, C) -> the (height, width, C) window in the middle; of two middles the upper and left one."""
    top, left = (array.shape[0] - size[0]) // 2, (array.shape[1] - size[1]) // 2
    return crop(array, top=top, left=left, height=size[0], width=size[1])


def to_tensor(array: Array) -> Tensor:
    """(H, W, C) uint8 or uint16, or a batch of them -> (C, H, W) float32 in [-1, 1]; black is -1, white is 1."""
    half = np.iinfo(array.dtype).max / 2
    values = array.astype(np.float32) / np.float32(half) - np.float32(1)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, -3)))


def to_array(images: Tensor, *, rounding: Literal["nearest", "down"] = "nearest") -> npt.NDArray[np.uint8]:
    """(C, H, W) or (B, C, H, W), of any float type and device -> (H, W, C) or (B, H, W, C) uint8.

    Values are cut to [-1, 1] and rounded to the nearest level, so `to_array(to_tensor(a))` is `a`; NaN becomes black.
    `rounding` "down" cuts fractions off, as the original's image writers do: half a level darker on average.
    """
    levels = (images.detach().float().nan_to_num(nan=-1.0).clamp(-1, 1) + 1) * 127.5
    levels = levels.round() if rounding == "nearest" else levels.floor()
    array: npt.NDArray[np.uint8] = levels.to(torch.uint8).movedim(-3, -1).cpu().numpy()
    return array


def grid(images: Tensor, *, columns: int, gap: int) -> Tensor:
    """(B, C, H, W) -> one picture (C, H', W') of the images in rows of `columns`, `gap` white pixels between
    neighbours.
    """
    B, C, H, W = images.shape
    columns = max(1, min(columns, B))
    rows = -(-B // columns)
    sheet = images.new_ones(C, rows * (H + gap) - gap, columns * (W + gap) - gap)
    for b in range(B):
        top, left = (b // columns) * (H + gap), (b % columns) * (W + gap)
        sheet[:, top : top + H, left : left + W] = images[b]
    return sheet


def save_png(path: str | Path, image: Tensor | Array, *, settings: Mapping[str, Any] = NO_SETTINGS) -> None:
    """Write a (C, H, W) tensor in [-1, 1] or an (H, W, C) array as a PNG file, with the settings (plain values) it
    was made by.

    The settings stand as JSON in the PNG text under the keyword "smalti"; `read_settings` reads them back.
    Raises `SmaltiError` when the disk refuses.
    """
    array = to_array(image) if isinstance(image, Tensor) else image
    assert array.shape[2] in (1, 3), f"a picture file holds 1 or 3 channels, not {array.shape[2]}"
    text = PngInfo()
    text.add_text(SETTINGS_KEY, json.dumps(dict(settings)))
    picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else np.ascontiguousarray(array))
    write_atomically(Path(path), lambda temporary: picture.save(temporary, format="PNG", pnginfo=text))


def read_settings(path: Path) -> dict[str, Any] | None:
    """A picture file -> the settings `save_png` wrote into it; None when it carries none. Raises `DamagedImage`."""
    read_image(
        path, channels=3, name=str(path)
    )  # the text may stand behind the pixels, and damage is told in one place
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=_formats()) as image:
            text = image.text.get(SETTINGS_KEY) if isinstance(image, PngImageFile) else None
    try:
        found = json.loads(text) if text is not None else None
    except ValueError:  # another program's text under our keyword
        return None
    return found if isinstance(found, dict) else None
