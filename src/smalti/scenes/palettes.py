"""Season and time of day -> the colors and the light of a landscape. Colors are sRGB in [0, 1]."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from smalti.scenes.textures import Floats

Color = tuple[float, float, float]

Leaf = tuple[Color, Color]  # in shade, in light

SEASONS = ("spring", "summer", "autumn", "winter")
TIMES = ("day", "dusk", "night")


class Season(NamedTuple):
    """What the season colors."""

    leaves: tuple[Leaf, ...]
    bushes: tuple[Leaf, ...]
    fir: Leaf
    meadows: tuple[tuple[Color, Color], ...]  # two colors that mix in one meadow
    forest: Color  # hills and mountainsides seen from afar
    flowers: tuple[Color, ...]
    snow: float  # how far down the mountains snow reaches, 0 none, 1 to the foot
    bare: float  # share of broad-leaved trees without leaves


class Time(NamedTuple):
    """Skies are (zenith, middle, horizon); light falls as `ambient + direct * how far a surface faces it`."""

    skies: tuple[tuple[Color, Color, Color], ...]
    ambient: Color
    direct: Color
    disc: Color  # the sun or the moon
    glow: Color
    cloud: tuple[Color, Color]  # in shade, in light
    reach: float  # meters over which the air swallows two thirds of what is seen


SEASON: dict[str, Season] = {
    "spring": Season(
        leaves=(
            ((0.22, 0.42, 0.12), (0.66, 0.86, 0.32)),
            ((0.62, 0.36, 0.44), (1.0, 0.84, 0.90)),
            ((0.26, 0.46, 0.14), (0.74, 0.90, 0.40)),
            ((0.66, 0.60, 0.56), (1.0, 0.99, 0.95)),
        ),
        bushes=(
            ((0.24, 0.46, 0.14), (0.62, 0.84, 0.34)),
            ((0.70, 0.56, 0.10), (1.0, 0.92, 0.40)),
            ((0.30, 0.50, 0.16), (0.70, 0.86, 0.40)),
        ),
        fir=((0.06, 0.20, 0.13), (0.34, 0.56, 0.30)),
        meadows=(((0.44, 0.72, 0.24), (0.62, 0.84, 0.34)), ((0.40, 0.68, 0.26), (0.72, 0.86, 0.36))),
        forest=(0.34, 0.52, 0.26),
        flowers=((1.0, 0.92, 0.30), (0.98, 0.98, 0.98), (0.94, 0.50, 0.72), (0.62, 0.42, 0.86)),
        snow=0.42,
        bare=0.0,
    ),
    "summer": Season(
        leaves=(
            ((0.07, 0.22, 0.06), (0.36, 0.60, 0.16)),
            ((0.09, 0.26, 0.08), (0.44, 0.64, 0.20)),
            ((0.10, 0.24, 0.05), (0.48, 0.60, 0.16)),
        ),
        bushes=(((0.09, 0.26, 0.08), (0.42, 0.62, 0.20)), ((0.12, 0.30, 0.08), (0.52, 0.66, 0.24))),
        fir=((0.04, 0.16, 0.10), (0.24, 0.44, 0.22)),
        meadows=(((0.30, 0.52, 0.14), (0.50, 0.62, 0.20)), ((0.34, 0.54, 0.16), (0.80, 0.70, 0.30))),
        forest=(0.16, 0.34, 0.16),
        flowers=((0.90, 0.24, 0.16), (0.96, 0.84, 0.24), (0.40, 0.44, 0.90)),
        snow=0.16,
        bare=0.0,
    ),
    "autumn": Season(
        leaves=(
            ((0.46, 0.16, 0.04), (0.98, 0.58, 0.14)),
            ((0.42, 0.08, 0.05), (0.90, 0.28, 0.14)),
            ((0.52, 0.32, 0.05), (1.0, 0.82, 0.24)),
            ((0.36, 0.20, 0.06), (0.80, 0.50, 0.18)),
        ),
        bushes=(
            ((0.46, 0.14, 0.06), (0.88, 0.36, 0.16)),
            ((0.44, 0.34, 0.08), (0.86, 0.68, 0.26)),
            ((0.24, 0.28, 0.08), (0.54, 0.54, 0.22)),
        ),
        fir=((0.06, 0.17, 0.11), (0.28, 0.42, 0.22)),
        meadows=(((0.62, 0.50, 0.22), (0.76, 0.58, 0.26)), ((0.52, 0.48, 0.22), (0.74, 0.46, 0.20))),
        forest=(0.56, 0.32, 0.14),
        flowers=((0.86, 0.40, 0.12), (0.72, 0.20, 0.10), (0.94, 0.72, 0.20)),
        snow=0.24,
        bare=0.15,
    ),
    "winter": Season(
        leaves=(((0.30, 0.24, 0.22), (0.52, 0.44, 0.40)),),
        bushes=(((0.34, 0.27, 0.24), (0.60, 0.52, 0.47)), ((0.26, 0.28, 0.22), (0.50, 0.50, 0.42))),
        fir=((0.05, 0.14, 0.13), (0.26, 0.38, 0.30)),
        meadows=(((0.80, 0.86, 0.95), (0.97, 0.98, 1.0)), ((0.84, 0.88, 0.95), (0.95, 0.97, 1.0))),
        forest=(0.42, 0.50, 0.56),
        flowers=(),
        snow=0.94,
        bare=1.0,
    ),
}

# The sky of a day differs by season; dusk and night have their own moods in any season.
_DAY: dict[str, tuple[tuple[Color, Color, Color], ...]] = {
    "spring": (
        ((0.32, 0.60, 0.92), (0.58, 0.80, 0.96), (0.88, 0.94, 0.94)),
        ((0.40, 0.66, 0.90), (0.66, 0.84, 0.94), (0.94, 0.95, 0.90)),
    ),
    "summer": (
        ((0.12, 0.40, 0.82), (0.36, 0.64, 0.94), (0.76, 0.88, 0.96)),
        ((0.10, 0.44, 0.80), (0.38, 0.70, 0.92), (0.84, 0.92, 0.92)),
    ),
    "autumn": (
        ((0.36, 0.54, 0.76), (0.62, 0.74, 0.82), (0.94, 0.90, 0.80)),
        ((0.30, 0.50, 0.74), (0.64, 0.74, 0.80), (0.97, 0.89, 0.74)),
    ),
    "winter": (
        ((0.42, 0.60, 0.82), (0.68, 0.80, 0.92), (0.93, 0.95, 0.97)),
        ((0.54, 0.64, 0.76), (0.74, 0.81, 0.88), (0.92, 0.93, 0.95)),
    ),
}

TIME: dict[str, Time] = {
    "day": Time(
        skies=(),
        ambient=(0.44, 0.49, 0.57),
        direct=(0.66, 0.61, 0.50),
        disc=(1.06, 1.05, 0.97),
        glow=(0.36, 0.33, 0.22),
        cloud=((0.74, 0.79, 0.87), (1.0, 1.0, 0.99)),
        reach=6500.0,
    ),
    "dusk": Time(
        skies=(
            ((0.22, 0.20, 0.46), (0.74, 0.38, 0.50), (1.0, 0.70, 0.36)),
            ((0.26, 0.26, 0.54), (0.88, 0.48, 0.42), (1.0, 0.80, 0.46)),
            ((0.34, 0.22, 0.48), (0.86, 0.36, 0.38), (1.0, 0.58, 0.28)),
            ((0.20, 0.28, 0.52), (0.62, 0.48, 0.62), (1.0, 0.72, 0.52)),
        ),
        ambient=(0.34, 0.25, 0.36),
        direct=(0.62, 0.33, 0.15),
        disc=(1.0, 0.86, 0.52),
        glow=(0.36, 0.27, 0.10),
        cloud=((0.50, 0.30, 0.46), (1.0, 0.62, 0.40)),
        reach=5500.0,
    ),
    "night": Time(
        skies=(
            ((0.02, 0.03, 0.11), (0.05, 0.09, 0.22), (0.14, 0.22, 0.38)),
            ((0.03, 0.03, 0.14), (0.08, 0.09, 0.26), (0.20, 0.22, 0.42)),
            ((0.01, 0.05, 0.12), (0.04, 0.12, 0.22), (0.12, 0.27, 0.36)),
        ),
        ambient=(0.12, 0.17, 0.28),
        direct=(0.20, 0.24, 0.33),
        disc=(0.98, 0.97, 0.88),
        glow=(0.15, 0.18, 0.26),
        cloud=((0.08, 0.11, 0.22), (0.28, 0.33, 0.46)),
        reach=8000.0,
    ),
}

WALLS: tuple[Color, ...] = (
    (0.66, 0.18, 0.14), (0.92, 0.88, 0.78), (0.94, 0.93, 0.92), (0.58, 0.42, 0.28),
    (0.90, 0.76, 0.46), (0.60, 0.60, 0.58), (0.42, 0.52, 0.62), (0.82, 0.62, 0.48),
)  # fmt: skip
ROOFS: tuple[Color, ...] = (
    (0.62, 0.26, 0.18), (0.34, 0.30, 0.32), (0.46, 0.30, 0.22), (0.30, 0.36, 0.44), (0.72, 0.38, 0.24),
)  # fmt: skip


def skies(season: str, time: str) -> tuple[tuple[Color, Color, Color], ...]:
    """The skies that the season has at that time of day, (zenith, middle, horizon) each."""
    return _DAY[season] if time == "day" else TIME[time].skies


def plane(color: Color | Floats) -> Floats:
    """A color as an array (3,1,1), to be painted with."""
    return np.asarray(color, dtype=np.float32).reshape(3, 1, 1)


def column(color: Color) -> Floats:
    """A color as an array (3,1), for tables of colors (3, n)."""
    return np.asarray(color, dtype=np.float32).reshape(3, 1)
