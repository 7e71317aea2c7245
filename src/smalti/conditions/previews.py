"""Preview images of text and classes.

H W pixels.
"""

from __future__ import annotations

import colorsys

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Pixels = npt.NDArray[np.uint8]

_GOLDEN_ANGLE = 0.3819660112501051  # as a fraction of a full turn; multiples of it never come close to each other


def render_text(text: str) -> Pixels:
    """Lines of text -> (H,W,3), black on white."""
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), text)
    image = Image.new("RGB", (int(right - left) + 8, int(bottom - top) + 8), "white")
    ImageDraw.Draw(image).text((4 - left, 4 - top), text, fill="black")
    return np.asarray(image)


def palette(count: int) -> Pixels:
    """`count` classes -> their colors (count,3), always the same ones.

    Hues of adjacent classes differ by the golden angle, so they are easy to tell apart.
    """
    colors = [colorsys.hsv_to_rgb(index * _GOLDEN_ANGLE % 1, 0.8, 0.85) for index in range(count)]
    levels: Pixels = (np.array(colors).reshape(count, 3) * 255).round().astype(np.uint8)
    return levels
