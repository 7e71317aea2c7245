"""A random generator -> everything that is decided about a landscape before a pixel is painted.

Places: u runs to the right with 0 in the middle, v down from the top edge, both in image heights, so that a wider image
shows more of the same land. Nothing here knows how many pixels the image has.

The ground is a level plane seen from `EYE` meters above it: what lies `s` below the horizon is `EYE / s` meters away,
and a meter there is `s / EYE` high. Hills are bands that stand before each other, each with a crest that rises above
its plane.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from smalti.scenes import palettes
from smalti.scenes.flora import VARIANTS
from smalti.scenes.houses import House
from smalti.scenes.textures import Floats, lattice

EYE = 5.0

_CELL = 1.0  # width of the stretch of land whose trees and houses are drawn together


class Range(NamedTuple):
    """A range of mountains; heights and the foot in image heights."""

    distance: float
    foot: float
    height: float
    lattice: Floats
    frequency: float
    tint: Floats
    offset: Floats  # (2,) where it reads its textures


class Band(NamedTuple):
    """A fold of the ground, from its crest down. `drop` is how far its plane lies below the horizon at the crest."""

    crest: float
    rise: float  # how high the crest's waves are
    tilt: float
    drop: float
    frequency: float
    lattice: Floats
    meadow: tuple[Floats, Floats]
    woods: float  # how much of the crest a far wood covers, 0 to 1
    offset: Floats


class Lake(NamedTuple):
    """Level water between the bands: its far shore's v, and the color of deep water."""

    shore: float
    tint: Floats
    ripple: float
    frozen: float  # 0 open water, 1 covered with ice
    offset: Floats


class Sky(NamedTuple):
    """The sky. `disc` is the sun's or moon's position (u, v) and radius."""

    stops: Floats  # (3, 3): zenith, middle, horizon
    disc: tuple[float, float, float]
    phase: float  # how far the moon's shadow is shifted, in its radii
    clouds: float  # how much of the sky they cover, about 0 to 1
    streaks: bool
    offset: Floats
    stars: Floats  # (n, 3): position in [0, 1) twice, brightness


class Tree(NamedTuple):
    """A tree standing in band `band`, `along` of the way down it."""

    u: float
    band: int
    along: float
    meters: float
    kind: str
    variant: int
    stretch: float
    leaves: tuple[palettes.Leaf, palettes.Leaf]  # two colorings that mix tuft by tuft
    shift: palettes.Color  # added to both
    snow: float


class Home(NamedTuple):
    """A house standing in band `band`, `along` of the way down it; `smoke` over its chimney where above 0."""

    u: float
    band: int
    along: float
    meters: float
    house: House
    smoke: float


class Composition(NamedTuple):
    """A landscape, decided. The lake lies before the last band where there is one."""

    season: str
    time: str
    horizon: float
    sky: Sky
    ranges: tuple[Range, ...]
    bands: tuple[Band, ...]
    lake: tuple[Lake, ...]  # none or one
    homes: int  # about how many houses stand on each stretch
    groves: float  # how wooded the land is
    exposure: float

    @property
    def side(self) -> int:
        """Where the light comes from: 1 right, -1 left."""
        return 1 if self.sky.disc[0] > 0 else -1


def _jittered(generator: np.random.Generator, color: palettes.Color, amount: float) -> Floats:
    shift = generator.normal(0, amount * 0.6) + generator.normal(0, amount * 0.6, 3)
    return np.clip(np.asarray(color) + shift, 0, 1).astype(np.float32)


def compose(generator: np.random.Generator, season: str, time: str) -> Composition:
    """Decide a landscape of that season and time of day; the same draws in the same order whatever is chosen."""
    horizon = float(generator.uniform(0.40, 0.60))
    sky = _sky(generator, season, time, horizon)
    ranges = _ranges(generator, season, horizon)
    lake_drawn, has_lake = _lake(generator, season, horizon), generator.uniform() < 0.6
    bands = _bands(generator, season, horizon, lake_drawn.shore if has_lake else 0.0)
    homes = int(generator.choice([0, 1, 2, 3], p=[0.18, 0.42, 0.27, 0.13]))
    groves = float(generator.uniform(0.3, 1.0))
    exposure = float(generator.uniform(0.94, 1.06))
    lake = (lake_drawn,) if has_lake else ()
    return Composition(season, time, horizon, sky, ranges, bands, lake, homes, groves, exposure)


def _sky(generator: np.random.Generator, season: str, time: str, horizon: float) -> Sky:
    choice = generator.uniform()
    skies = palettes.skies(season, time)
    chosen = skies[int(choice * len(skies))]
    stops = np.stack([_jittered(generator, color, 0.03 if time != "night" else 0.012) for color in chosen])
    u = float(generator.uniform(0.10, 0.42) * generator.choice([-1, 1]))
    high, low = float(generator.uniform(0.07, 0.22)), float(generator.uniform(0.66, 0.92)) * horizon
    radius = float(generator.uniform(0.034, 0.05))
    disc = (u, low if time == "dusk" else high, radius * {"day": 0.9, "dusk": 1.25, "night": 1.05}[time])
    phase = float(generator.choice([2.2, 0.55, 0.9, -0.7]))
    clouds = float(generator.choice([0.0, 0.3, 0.5, 0.7], p=[0.12, 0.33, 0.35, 0.2]) + generator.uniform(0, 0.12))
    streaks = generator.uniform() < (0.65 if time == "dusk" else 0.25)
    offset = generator.uniform(0, 1, 2).astype(np.float32)
    stars = generator.uniform(0, 1, (190, 3)).astype(np.float32)
    return Sky(stops, disc, phase, clouds, bool(streaks), offset, stars)


def _ranges(generator: np.random.Generator, season: str, horizon: float) -> tuple[Range, ...]:
    count = int(generator.choice([1, 2, 3], p=[0.3, 0.45, 0.25]))
    tallest = float(generator.uniform(0.14, 0.34)) * horizon / 0.5
    distances = (4900.0, 3500.0, 2300.0)[3 - count :]
    found = []
    for i, distance in enumerate(distances):
        height = tallest * (1.0, 0.68, 0.42)[i] * float(generator.uniform(0.85, 1.1))
        tint = _jittered(generator, (0.44, 0.42, 0.43), 0.04)
        frequency = float(generator.uniform(1.5, 2.6)) * (1 + 0.25 * i)
        offset = generator.uniform(0, 1, 2).astype(np.float32)
        found.append(Range(distance, horizon + 0.015, height, lattice(generator, 7), frequency, tint, offset))
    return tuple(found)


def _lake(generator: np.random.Generator, season: str, horizon: float) -> Lake:
    shore = horizon + float(generator.uniform(0.045, 0.10))
    tint = _jittered(generator, (0.10, 0.26, 0.34), 0.05)
    ripple = float(generator.uniform(0.4, 1.3))
    frozen = float(generator.uniform(0.25, 0.8)) if generator.uniform() < 0.5 and season == "winter" else 0.0
    return Lake(shore, tint, ripple, frozen, generator.uniform(0, 1, 2).astype(np.float32))


def _bands(generator: np.random.Generator, season: str, horizon: float, shore: float) -> tuple[Band, ...]:
    """Far hills, the middle ground, and near ground: behind the lake's far `shore` and before it, or without a lake
    (0)."""
    meadows = palettes.SEASON[season].meadows

    def band(below: float, rise: float, tilt: float, frequency: float, woods: float, *, forest: float) -> Band:
        first, second = meadows[int(generator.integers(len(meadows)))]
        amount = 0.02 if season == "winter" else 0.035
        pair = [_jittered(generator, color, amount) for color in (first, second)]
        wood = np.asarray(palettes.SEASON[season].forest, dtype=np.float32)
        meadow = (pair[0] + (wood - pair[0]) * np.float32(forest), pair[1] + (wood - pair[1]) * np.float32(forest))
        offset = generator.uniform(0, 1, 2).astype(np.float32)
        return Band(
            horizon + below, rise, tilt, max(below, 0.006), frequency, lattice(generator, 6), meadow, woods, offset
        )

    draw = generator.uniform(0, 1, 12).tolist()
    sign = 1.0 if draw[11] < 0.5 else -1.0
    far = band(0.004, 0.02 + 0.055 * draw[0], 0.0, 1.6, 0.3 + 0.7 * draw[1], forest=0.75)
    if shore:
        drop = shore - horizon
        middle = band(drop * 0.45, 0.012 + 0.02 * draw[2], 0.0, 1.3, 0.8 * draw[3] - 0.1, forest=0.15)
        near = drop + 0.14 + 0.16 * draw[4]
        return far, middle, band(near, 0.05 + 0.05 * draw[5], sign * (0.05 + 0.3 * draw[6]), 1.1, 0.0, forest=0.0)
    middle = band(0.025 + 0.02 * draw[2], 0.02 + 0.03 * draw[3], 0.0, 1.3, 0.8 * draw[7] - 0.2, forest=0.2)
    third = band(0.09 + 0.04 * draw[4], 0.03 + 0.03 * draw[5], sign * 0.12 * draw[8], 1.2, 0.0, forest=0.05)
    return (
        far,
        middle,
        third,
        band(0.25 + 0.08 * draw[6], 0.04 + 0.03 * draw[9], -sign * 0.2 * draw[10], 1.0, 0.0, forest=0.0),
    )


def inhabitants(plan: Composition, generator: np.random.Generator, cell: int) -> list[Tree | Home]:
    """The trees and houses of the stretch of land `cell` (0 is in the middle of the image)."""
    left = (cell - 0.5) * _CELL
    near = len(plan.bands) - 1
    homes: list[Home] = []
    for home in [_home(plan, generator, left) for _ in range(3)][: plan.homes]:
        if not any(home.band == other.band and abs(home.u - other.u) < 0.3 for other in homes):
            homes.append(home)
    stands = [_Stand(1, 12, 0.85, False), _Stand(near, 4, 0.4, False), _Stand(near, 6, 0.75, True)]
    if not plan.lake:
        stands += [_Stand(2, 8, 0.8, False), _Stand(2, 4, 0.8, True)]
    trees = []
    for stand in stands:
        count = round(stand.most * plan.groves * float(generator.uniform(0.35, 1.0)))
        groves = generator.uniform(0.05, 0.95, 3).tolist()
        draws = generator.uniform(0, 1, (stand.most, 16))[:count].tolist()
        if stand.band == near and not stand.bushes:  # large trees frame the image rather than stand in its middle
            groves[:2] = [0.08, 0.92]
        drawn = [_tree(plan, draw, left, stand, groves) for draw in draws]
        trees += [tree for tree in drawn if not any(_hides(tree, home) for home in homes)]
    return [*homes, *trees]


class _Stand(NamedTuple):
    """Up to `most` trees or bushes in a band, down to `reach` of the way from its crest."""

    band: int
    most: int
    reach: float
    bushes: bool


def _hides(tree: Tree, home: Home) -> bool:
    near = 0.35 if tree.band != home.band else 0.14
    reach = near * (0.5 if home.band == 1 and tree.band == 1 else 1.0)
    return (
        tree.band >= home.band and abs(tree.u - home.u) < reach and (tree.band, tree.along) >= (home.band, home.along)
    )


def _home(plan: Composition, generator: np.random.Generator, left: float) -> Home:
    draw = generator.uniform(0, 1, 16).tolist()
    # by a lake mostly on the far shore, where it mirrors itself; else on the third fold
    last = len(plan.bands) - 1
    band = (1 if draw[0] < 0.7 else last) if plan.lake else (2 if draw[0] < 0.75 else 1)
    along = 0.25 + 0.6 * draw[1] if band != last else 0.05 + 0.2 * draw[1]
    lit = plan.time != "day" and draw[2] < 0.93
    wall = palettes.WALLS[int(draw[3] * len(palettes.WALLS))]
    roof = palettes.ROOFS[int(draw[4] * len(palettes.ROOFS))]
    house = House(
        gable=0.78 + 0.3 * draw[5],
        eave=0.46 + 0.14 * draw[6],
        back=0.6 + 0.7 * draw[7],
        side=1 if draw[8] < 0.5 else -1,
        wall=wall,
        roof=roof,
        style=int(draw[9] * 4),
        chimney=draw[10] < 0.75,
        windows=2 + int(draw[11] * 2),
        snow=plan.season == "winter",
        lit=lit,
    )
    smoke = float(draw[12]) if house.chimney and plan.season in ("winter", "autumn") and draw[13] < 0.7 else 0.0
    meters = 5.6 + 2.2 * draw[14]
    if band == 1:  # far houses are drawn larger than life, or they would be a dot
        meters *= 1.5
    return Home(left + 0.12 + 0.76 * float(draw[15]), band, float(along), float(meters), house, smoke)


def _tree(plan: Composition, draw: list[float], left: float, stand: _Stand, groves: list[float]) -> Tree:
    """A tree from 16 numbers in [0, 1)."""
    season = palettes.SEASON[plan.season]
    scatter = 0.42 if stand.bushes else 0.2
    u = left + groves[int(draw[0] * len(groves))] + scatter * (draw[1] + draw[2] - 1)
    fir = draw[3] < 0.42
    kind = "fir" if fir else "bare" if draw[4] < season.bare else "poplar" if draw[5] < 0.22 else "leafy"
    if stand.bushes:
        fir, kind = False, "bush"
    meters = _METERS[kind] * (0.65 + 0.55 * draw[6])
    if stand.band == 1:  # like the far houses
        meters *= 1.35
    if stand.band == len(plan.bands) - 1:
        meters *= 0.85
    choices = season.bushes if stand.bushes else season.leaves
    first = choices[int(draw[7] * len(choices))]
    second = first if draw[8] < 0.7 else choices[int(draw[9] * len(choices))]
    if fir:
        first = second = season.fir
    snow = 0.5 + 0.5 * draw[10] if plan.season == "winter" else 0.0
    shift = (0.09 * draw[11] - 0.045, 0.09 * draw[12] - 0.045, 0.06 * draw[13] - 0.03)
    variant, stretch = int(draw[14] * VARIANTS), 0.85 + 0.35 * draw[15]
    along = draw[1] if stand.bushes else (draw[1] + draw[6]) % 1.0
    return Tree(u, stand.band, along * stand.reach, meters, kind, variant, stretch, (first, second), shift, snow)


_METERS = {"fir": 8.0, "bare": 7.0, "poplar": 9.5, "leafy": 7.4, "bush": 1.7}
