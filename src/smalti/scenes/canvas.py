"""What a landscape is painted on: a grid of points that know their color, whose they are and how far they are.

Colors lie as planes, (3, h, w), sRGB in [0, 1]. Notation: h w points of the grid, which is finer than the image.
"""

from __future__ import annotations

from typing import NamedTuple, final

import numpy as np

from smalti.scenes.composition import Home, Tree
from smalti.scenes.textures import Floats, clamp

FAR = 6500.0  # meters; the sky is that far, and nothing is farther

SKY, SUN, MOON, CLOUD, MOUNTAIN, GROUND, WATER, TREE, HOUSE = range(9)


class Standing(NamedTuple):
    """A thing with a box: its identity on the canvas, how many grid points it covers whole, its distance in meters, for
    a house its keypoints in grid points (x, y), and the plan of a tree or a house."""

    identity: int
    label: int
    whole: int
    distance: float
    keypoints: tuple[tuple[float, float], ...]
    plan: Tree | Home | None = None


@final
class Canvas:
    """The grid being painted on.

    `color` is (3,h,w), `depth` (h,w) in meters, `identity` (h,w) says whose a point is, and `labels` what that is.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.rows = ((np.arange(height) + 0.5) / height).astype(np.float32)
        self.columns = ((np.arange(width) + 0.5 - width / 2) / height).astype(np.float32)
        self.color = np.zeros((3, height, width), dtype=np.float32)
        self.depth = np.full((height, width), FAR, dtype=np.float32)
        self.identity = np.zeros((height, width), dtype=np.int16)
        self.labels = [SKY]
        self.standing: list[Standing] = []

    def below(self, curve: Floats) -> tuple[slice, Floats, Floats]:
        """A line (w,) of v -> the rows it touches or leaves above, how far each point is below it, and its soft
        cover."""
        top = int(clamp(np.floor(curve.min() * self.height) - 1, 0, self.height))
        rows = slice(top, self.height)
        under = self.rows[rows, None] - curve[None, :]
        return rows, under, clamp(under * self.height + 0.5, 0, 1)

    def composite(
        self, rows: slice, columns: slice, cover: Floats, color: Floats, depth: Floats | float, label: int
    ) -> int:
        """Paint `color` where `cover` says; where it covers half or more, the point is the new thing's.
        Returns its identity."""
        under = self.color[:, rows, columns]
        under += _multiplied(color - under, cover)
        covered = cover >= 0.5
        self.labels.append(label)
        identity = len(self.labels) - 1
        np.copyto(self.identity[rows, columns], identity, where=covered, casting="unsafe")
        np.copyto(self.depth[rows, columns], depth, where=covered, casting="same_kind")
        return identity


def mixed(first: Floats, second: Floats, share: Floats | float) -> Floats:
    """From `first` (share 0) to `second` (share 1)."""
    step = _multiplied(np.asarray(second - first, dtype=np.float32), share)
    step += first
    return step


def _multiplied(values: Floats, factor: Floats | float) -> Floats:
    """The product, in the memory of `values` where it has their shape: new memory costs as much as multiplying."""
    if np.broadcast(values, factor).shape == values.shape:
        values *= factor
        return values
    return np.asarray(values * factor, dtype=np.float32)


class Air(NamedTuple):
    """The light of a landscape, as arrays to paint with: (3,1,1) each, and how far one sees."""

    ambient: Floats
    direct: Floats
    haze: Floats
    reach: float
    side: int

    def lit(self, color: Floats, shade: Floats | float) -> Floats:
        """A surface's own color, and how far it faces the light, 0 to 1 -> what is seen of it."""
        light = np.asarray(self.direct * shade, dtype=np.float32)
        light += self.ambient
        return _multiplied(light, color)

    def veiled(self, color: Floats, distance: Floats | float) -> Floats:
        """Aerial perspective: what is far is paler, toward the color of the sky above the horizon."""
        share = np.asarray(1 - np.exp(-np.asarray(distance, dtype=np.float32) / self.reach))
        share *= 0.92
        return mixed(color, self.haze, share)
