"""Images: what a tensor and an array of pixels are here, and reading and writing image files.

A tensor is float in [-1, 1], shaped (C, H, W) or (B, C, H, W); C is 1 (grayscale), 3 (color) or 4 (color and
opacity) when it comes from an image file. An array is (H, W, C), uint8, or uint16 where a file has 16 bits. Heights
come before widths. Files whose pixels are numbers and not colors are read by `smalti.images.label_maps`.

B batch, C channels, H W pixels.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Literal, NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile, PngInfo
from torch import Tensor

from smalti.core.errors import SmaltiError, printable
from smalti.core.files import open_file, parse_json, write_atomically
from smalti.images.pixel_formats import Array as Array
from smalti.images.pixel_formats import as_floats, levels_of, orientation, pixels_of, stored_numbers, upright
from smalti.images.resizing import center_crop, covered_middle, covering_size, is_excessive, resize_to_cover

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
SPARE = 2.0  # what a JPEG decoder gives stays this many times larger than what is requested
SETTINGS_KEY = "smalti"  # the keyword of the PNG text chunk that holds the settings of an image we made


@final
class DamagedImage(SmaltiError):  # noqa: N818 - named after what is wrong
    """An image that cannot be used: `name`, and `reason` as the rest of a sentence that begins with the name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return printable(f"{self.name} {self.reason}")


@contextmanager
def damage_explained(name: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes `DamagedImage` with `name` and the reason;
    a `SmaltiError` stays what it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd but readable metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except SmaltiError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            most = f"{Image.MAX_IMAGE_PIXELS:,}"
            raise DamagedImage(name, f"has more than {most} pixels, the most that is read; scale it down") from error
        except UnidentifiedImageError as error:
            raise DamagedImage(name, "is not an image of any kind that is read") from error
        except FileNotFoundError as error:
            raise DamagedImage(name, "is missing") from error
        except Exception as error:  # decoders answer damage with every kind of exception
            raise DamagedImage(name, f"cannot be read ({_lower(str(error)) or type(error).__name__})") from error


@contextmanager
def opened(source: Path | BinaryIO, *, name: str) -> Iterator[BinaryIO]:
    """A file, or what one holds -> its stream, at the beginning. Damage of every kind, also damage found inside the
    `with`, raises what `damage_explained` raises, and so does an empty file.
    """
    with damage_explained(name), open_file(source) if isinstance(source, Path) else nullcontext(source) as stream:
        if stream.seek(0, os.SEEK_END) == 0:
            raise DamagedImage(name, "is empty (0 bytes)")
        stream.seek(0)
        yield stream


def read_image(source: Path | BinaryIO, *, channels: int, name: str, bits: Literal[8, 16] = 8) -> Array:
    """An image file -> its pixels (H, W, C), upright, for C `channels`: 1 (grayscale), 3 (color),
    4 (color and opacity).

    The EXIF orientation is applied. Gray becomes color, and color gray. For 1 and 3 channels transparent pixels are
    composited over white, as on a page; for 4 a file without opacity is opaque. Palettes, CMYK and one-bit files are
    converted; color profiles are not applied. Of an animation the first frame is taken.

    Arrays are uint8, except for files with 16 bits: gray for one channel stays uint16, and so does everything if `bits`
    is 16 (gray and color from PNG and TIFF; of gray with opacity Pillow gives the upper 8). Else they are scaled to 8.

    Raises `DamagedImage` with `name` and the reason for whatever is not a whole image of a kind in
    `IMAGE_SUFFIXES`, or has more pixels than Pillow holds to be safe; and `SmaltiError` for other `channels`.
    """
    _check_channels(channels)
    with opened(source, name=name) as stream, Image.open(stream, formats=_formats()) as image:
        return pixels_of(image, stream, channels=channels, bits=bits)


def read_size(source: Path | BinaryIO, *, name: str) -> tuple[int, int]:
    """An image file -> its (height, width) upright. Raises `DamagedImage`."""
    with opened(source, name=name) as stream, Image.open(stream, formats=_formats()) as image:
        return _full_size(image)


class Covering(NamedTuple):
    """An image scaled until it covers a size; `full` is the (height, width) that its file has."""

    pixels: Array
    full: tuple[int, int]


def read_covering(
    source: Path | BinaryIO, size: tuple[int, int], *, channels: int, name: str, window: tuple[int, int] = (1, 1)
) -> Covering:
    """An image file -> the smallest image of the same aspect that covers `size` (height, width), with up to 16 bits.

    As `read_image` and then `resize_to_cover`, except that the decoder of a JPEG file scales it to 1/2, 1/4 or 1/8
    first (it leaves out the finest waves, and the work they make) where it stays `SPARE` times larger than what is
    requested. That depends on the size of the file's image and on `size` alone. Raises as `read_image`, and as
    `check_covering`.
    """
    _check_channels(channels)
    with opened(source, name=name) as stream, Image.open(stream, formats=_formats()) as image:
        if image.format in ("JPEG", "MPO"):
            height, width = _full_size(image)
            check_covering((height, width), size, window=window, name=name)
            lies = orientation(image) > 4
            rows, columns = covering_size((height, width), size)
            spare = min(height / rows, width / columns) / SPARE
            step = next((step for step in (8, 4, 2) if step <= spare), 1)
            if step > 1 and (drafted := image.draft(None, (image.width // step, image.height // step))):
                # The last column and row may stand for fewer pixels than the others: the box says where the image ends.
                shape = (rows, columns) if lies else (columns, rows)
                small = image.resize(shape, Image.Resampling.LANCZOS, box=drafted[1])
                return Covering(levels_of(upright(small), channels=channels, bits=8), (height, width))
        array = pixels_of(image, stream, channels=channels, bits=16)
        full = (array.shape[0], array.shape[1])  # of other files known only now: in PNG the orientation may come last
        check_covering(full, size, window=window, name=name)
        return Covering(resize_to_cover(array, size), full)


def read_middle(source: Path | BinaryIO, size: tuple[int, int], *, channels: int, name: str) -> Array:
    """An image file -> (height, width, C) for `size`: scaled as by `read_covering`, and the middle cut out, however
    long and thin the image is. Raises as `read_image`.
    """
    full = read_size(source, name=name)
    if is_excessive(full, size):
        return covered_middle(read_image(source, channels=channels, name=name, bits=16), size)
    return center_crop(read_covering(source, size, channels=channels, name=name).pixels, size)


def _full_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an opened file, upright."""
    width, height = image.size if orientation(image) <= 4 else reversed(image.size)
    return height, width


def _check_channels(channels: int) -> None:
    if channels not in (1, 3, 4):
        raise SmaltiError(
            f"an image file gives 1 channel (grayscale), 3 (color) or 4 (color and opacity), not {channels}; "
            "label maps, which have a channel for each label, are read with images.file_type=labels"
        )


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _formats() -> list[str]:
    """Only the kinds we name: Pillow would otherwise hand a file that claims to be PostScript to a foreign program."""
    known = Image.registered_extensions()
    return sorted({known[suffix] for suffix in IMAGE_SUFFIXES if suffix in known})


def read_numbers(source: Path | BinaryIO, *, name: str) -> npt.NDArray[Any]:
    """An image file -> its numbers as they are stored, upright, (H, W) or (H, W, C).

    Those of a palette are its indices; opacity beside a single channel is left out. Raises `DamagedImage`.
    """
    with opened(source, name=name) as stream, Image.open(stream, formats=_formats()) as image:
        return stored_numbers(image)


def check_covering(full: tuple[int, int], size: tuple[int, int], *, window: tuple[int, int], name: str) -> None:
    """Sizes (height, width) of an image, of what it is to cover, and of the window that is cut out of that -> nothing.

    Raises `DamagedImage` for an image that would be enlarged more than twice to cover the window, and for one that is
    too thin (`is_excessive`). To be called before pixels are scaled.
    """
    (height, width), (h, w) = window, full
    if max(height / h, width / w) > 2:
        raise DamagedImage(
            name,
            f"is {h}x{w} pixels, too small for size {height}x{width}; "
            f"use images of at least {-(-height // 2)}x{-(-width // 2)} pixels or a smaller size",
        )
    if is_excessive(full, size):
        rows, columns = covering_size(full, size)
        raise DamagedImage(
            name, f"is {h}x{w} pixels, too thin for size {size[0]}x{size[1]}: it covers it as {rows}x{columns}; crop it"
        )


def to_tensor(array: Array) -> Tensor:
    """(H, W, C) uint8 or uint16, or a batch of them -> (C, H, W) float32 in [-1, 1]; black is -1, white is 1."""
    return as_floats(array)


def to_array(images: Tensor, *, rounding: Literal["nearest", "down"] = "nearest") -> npt.NDArray[np.uint8]:
    """(C, H, W) or (B, C, H, W), of any float type and device -> (H, W, C) or (B, H, W, C) uint8.

    Values are cut to [-1, 1] and rounded to the nearest level, so `to_array(to_tensor(a))` is `a`; NaN becomes black.
    `rounding` "down" cuts fractions off, as the original's image writers do: half a level darker on average.
    """
    levels = (images.detach().float().nan_to_num(nan=-1.0).clamp(-1, 1) + 1) * 127.5
    levels = levels.round() if rounding == "nearest" else levels.floor()
    array: npt.NDArray[np.uint8] = levels.to(torch.uint8).movedim(-3, -1).cpu().numpy()
    return array


def make_image_grid(images: Tensor, *, columns: int, gap: int) -> Tensor:
    """(B, C, H, W) -> one image (C, H', W') of the images in rows of `columns`, `gap` white pixels between
    neighbors.
    """
    B, C, H, W = images.shape
    columns = max(1, min(columns, B))
    rows = -(-B // columns)
    sheet = images.new_ones(C, rows * (H + gap) - gap, columns * (W + gap) - gap)
    for b in range(B):
        top, left = (b // columns) * (H + gap), (b % columns) * (W + gap)
        sheet[:, top : top + H, left : left + W] = images[b]
    return sheet


def png_bytes(image: Tensor | Array, *, settings: Mapping[str, Any] = NO_SETTINGS) -> bytes:
    """A (C, H, W) tensor in [-1, 1] or an (H, W, C) array -> a PNG file of it, as `save_png` writes it."""
    array = to_array(image) if isinstance(image, Tensor) else image
    assert array.shape[2] in (1, 3, 4), f"an image file holds 1, 3 or 4 channels, not {array.shape[2]}"
    text, stream = PngInfo(), io.BytesIO()
    text.add_text(SETTINGS_KEY, json.dumps(dict(settings)))
    file = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else np.ascontiguousarray(array))
    file.save(stream, format="PNG", pnginfo=text)
    return stream.getvalue()


def save_png(path: str | Path, image: Tensor | Array, *, settings: Mapping[str, Any] = NO_SETTINGS) -> None:
    """Write a (C, H, W) tensor in [-1, 1] or an (H, W, C) array as a PNG file, with the settings (plain values) it
    was made by.

    The settings stand as JSON in the PNG text under the keyword "smalti"; `read_settings` reads them back.
    Raises `SmaltiError` if writing fails.
    """
    data = png_bytes(image, settings=settings)
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(data))


def read_settings(source: Path | BinaryIO, *, name: str = "") -> dict[str, Any] | None:
    """An image file, called `name` in errors -> the settings `save_png` wrote into it; None when it carries none.

    Raises `DamagedImage`.
    """
    name = name or str(source)
    read_image(source, channels=3, name=name)  # the text may be behind the pixels, and damage is reported in one place
    with opened(source, name=name) as stream, Image.open(stream, formats=_formats()) as image:
        text = image.text.get(SETTINGS_KEY) if isinstance(image, PngImageFile) else None
    try:
        found = parse_json(text) if text is not None else None
    except ValueError:  # another program's text under our keyword
        return None
    return found if isinstance(found, dict) else None
