"""Large images strip by strip, in little more memory than the result needs: how many rows a strip has, and the scaling
of a single channel.

H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

WHOLE = 2**24
"""Pixels up to which a plane is scaled as a whole."""
MAX_PIXELS_AT_ONCE = 2**22
"""Pixels of a strip."""
REACH = 4
"""Pixels of the larger of both planes beyond which no pixel counts: Lanczos has three lobes, and one is for
rounding."""


def resize_plane(
    rows: Callable[[int, int], npt.NDArray[np.float32]],
    full: tuple[int, int],
    size: tuple[int, int],
    box: tuple[float, float, float, float],
) -> npt.NDArray[np.float32]:
    """One channel of an image of size `full`, of which `rows` gives some rows -> its `box`, scaled by Lanczos.

    Of a large one rows are made narrower strip by strip, and then fewer. Pillow does the same with all of them, or the
    other way round where that is less work, which differs by rounding.
    """
    (height, width), (left, top, right, bottom), several = size, box, strip_of(full)
    if math.prod(full) <= WHOLE:
        whole = Image.fromarray(rows(0, full[0]))
        return np.array(whole.resize((width, height), Image.Resampling.LANCZOS, box=box))
    reach = REACH * max(1, (bottom - top) / height)
    above, below = max(0, math.floor(top - reach)), min(full[0], math.ceil(bottom + reach))
    narrow = np.empty((below - above, width), np.float32)
    for first in range(above, below, several):
        last = min(first + several, below)
        strip = Image.fromarray(rows(first, last))
        shape, part = (width, last - first), (left, 0, right, last - first)
        narrow[first - above : last - above] = np.asarray(strip.resize(shape, Image.Resampling.LANCZOS, box=part))
    within = (0, top - above, width, bottom - above)
    scaled = Image.fromarray(narrow).resize((width, height), Image.Resampling.LANCZOS, box=within)
    return np.array(scaled)


def strip_of(full: tuple[int, int]) -> int:
    """The size (H, W) of an image -> how many rows are worked on at once where the work takes several times their
    memory."""
    return max(1, MAX_PIXELS_AT_ONCE // full[1])
