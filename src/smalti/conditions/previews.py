"""Preview images of text and classes.

H W pixels.
"""

from __future__ import annotations

import colorsys

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Pixels = npt.NDArray[np.uint8]

_GOLDEN_ANGLE = 0.3819660112501051  # of a whole turn; no two multiples come close, however many there are


def render_text(text: str) -> Pixels:
    """Lines of text -> (H,W,3), black on white."""
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), text)
    image = Image.new("RGB", (int(right - left) + 8, int(bottom - top) + 8), "white")
    ImageDraw.Draw(image).text((4 - left, 4 - top), text, fill="black")
    return np.asarray(image)


def palette(count: int) -> Pixels:
    """-> `count` different colors (count,3), most different for adjacent classes, and always the same.

    Adjacent hues differ by the golden angle.
    """
    colors = [colorsys.hsv_to_rgb(index * _GOLDEN_ANGLE % 1, 0.8, 0.85) for index in range(count)]
    levels: Pixels = (np.array(colors).reshape(count, 3) * 255).round().astype(np.uint8)
    return levels
