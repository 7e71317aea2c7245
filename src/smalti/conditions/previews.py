"""Small pictures of things that are no pictures: lines of text, classes as colours.

H W pixels.
"""

from __future__ import annotations

import colorsys

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Pixels = npt.NDArray[np.uint8]

_GOLDEN_ANGLE = 0.3819660112501051  # of a whole turn; no two multiples come close, however many there are


def written(text: str) -> Pixels:
    """A line of text -> (H,W,3), black on white."""
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), text)
    picture = Image.new("RGB", (int(right - left) + 8, int(bottom - top) + 8), "white")
    ImageDraw.Draw(picture).text((4 - left, 4 - top), text, fill="black")
    return np.asarray(picture)


def palette(count: int) -> Pixels:
    """-> `count` colours (count,3) that differ, most of all those of classes with close numbers. They are always the same.

    Hues follow one another by the golden angle.
    """
    colours = [colorsys.hsv_to_rgb(place * _GOLDEN_ANGLE % 1, 0.8, 0.85) for place in range(count)]
    levels: Pixels = (np.array(colours).reshape(count, 3) * 255).round().astype(np.uint8)
    return levels
