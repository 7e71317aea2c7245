"""Scaling and cropping of images.

An array is (H, W, C), uint8 or uint16; sizes are (height, width). H W pixels, C channels.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from smalti.core.capacity import check_memory
from smalti.images.large_planes import resize_plane
from smalti.images.pixel_formats import Array

Filter: TypeAlias = Literal["lanczos", "nearest"]
PixelBox: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of an image, in pixels."""
MAX_COVERING_PIXELS = 2**24
"""Pixels of an image that covers a size, above which it may be no larger than its file's image or 8 times the size."""


def resize_shorter(array: Array, size: int) -> Array:
    """(H, W, C) -> the same image with its shorter side `size` pixels long, by Lanczos with antialiasing."""
    return resize_to_cover(array, (size, size))


def resize_to_cover(array: Array, size: tuple[int, int], *, filter: Filter = "lanczos") -> Array:
    """(H, W, C) -> the smallest image of the same aspect that covers `size` (height, width); one side fits
    exactly.

    "lanczos" antialiases, and weighs colors by their opacity where there are 4 channels; "nearest" takes each pixel
    from the nearest one, which labels need.
    """
    return resize(array, covering_size((array.shape[0], array.shape[1]), size), filter=filter)


def resize(array: Array, size: tuple[int, int], *, filter: Filter) -> Array:
    """(H, W, C) -> (height, width, C); the filters are those of `resize_to_cover`."""
    height, width = array.shape[:2]
    whole = (0.0, 0.0, float(width), float(height))
    if filter == "nearest":
        return _nearest(array, size, whole)
    return array if (height, width) == size else _lanczos(array, size, whole)


def covering_size(full: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The size of an image and one that is to be covered, both (height, width)
    -> the image's size when it just covers it."""
    scale = max(size[0] / full[0], size[1] / full[1])
    return max(size[0], round(full[0] * scale)), max(size[1], round(full[1] * scale))


def is_excessive(full: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether an image of size `full` is so long and thin that covering `size` takes a multiple of the memory of
    either.

    A file of 1 x 6000 pixels has a hundred bytes, and covers 256 x 256 as 256 x 1,536,000.
    """
    covering = math.prod(covering_size(full, size))
    return covering > max(math.prod(full), MAX_COVERING_PIXELS, 8 * math.prod(size))


def covered_middle(array: Array, size: tuple[int, int], *, filter: Filter = "lanczos") -> Array:
    """(H, W, C) -> (height, width, C): as `resize_to_cover` and then `center_crop`, in memory for the image and the
    result."""
    full = (array.shape[0], array.shape[1])
    if not is_excessive(full, size):
        return center_crop(resize_to_cover(array, size, filter=filter), size)
    return (
        _nearest(array, size, middle_box(full, size))
        if filter == "nearest"
        else _lanczos(array, size, middle_box(full, size))
    )


def middle_box(full: tuple[int, int], size: tuple[int, int]) -> PixelBox:
    """What `covered_middle` shows of an image of size `full`, in its pixels."""
    rows, columns = covering_size(full, size)
    top, left = (rows - size[0]) // 2, (columns - size[1]) // 2
    high, wide = full[0] / rows, full[1] / columns  # pixels of the image that make one
    return left * wide, top * high, (left + size[1]) * wide, (top + size[0]) * high


def _check_room(array: Array, size: tuple[int, int]) -> None:
    """Raise `SmaltiError` for a size that an image cannot be scaled to in this machine's memory."""
    if math.prod(size) > MAX_COVERING_PIXELS:
        needed = math.prod(size) * array.shape[2] * array.dtype.itemsize
        check_memory(needed, f"an image of {size[0]:,} x {size[1]:,} pixels (height x width)")


def _nearest(array: Array, size: tuple[int, int], box: PixelBox) -> Array:
    _check_room(array, size)
    (height, width), (left, top, right, bottom) = size, box
    rows = (top + (np.arange(height) + 0.5) * ((bottom - top) / height)).astype(np.intp)
    columns = (left + (np.arange(width) + 0.5) * ((right - left) / width)).astype(np.intp)
    chosen: Array = array[rows.clip(max=array.shape[0] - 1)[:, None], columns.clip(max=array.shape[1] - 1)]
    return chosen


def _lanczos(array: Array, size: tuple[int, int], box: PixelBox) -> Array:
    """The pixels around the box count as they do where all of the image is scaled."""
    _check_room(array, size)
    height, width = size

    def lanczos(image: Image.Image) -> npt.NDArray[Any]:
        return np.array(image.resize((width, height), Image.Resampling.LANCZOS, box=box))

    if array.dtype == np.uint8 and array.shape[2] in (3, 4):
        colors: Array = lanczos(Image.fromarray(array))
        return colors
    limit = np.iinfo(array.dtype).max  # Lanczos overshoots at edges

    def plane(channel: int) -> npt.NDArray[np.float32]:
        def rows(first: int, last: int) -> npt.NDArray[np.float32]:
            values: npt.NDArray[np.float32] = array[first:last, :, channel].astype(np.float32)
            if array.shape[2] == 4 and channel < 3:
                values *= array[first:last, :, 3].astype(np.float32) / limit
            return values

        return resize_plane(rows, (array.shape[0], array.shape[1]), size, box)

    planes = np.stack([plane(channel) for channel in range(array.shape[2])], axis=2)
    if array.shape[2] == 4:
        planes[:, :, :3] /= np.maximum(planes[:, :, 3:], 0.5) / limit
    resized: Array = planes.round().clip(0, limit).astype(array.dtype)
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
