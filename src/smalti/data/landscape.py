"""A composition and a grid -> the painted landscape, with what and how far each point of it is.

Painted from far to near, each thing over what stands behind it, so that colour, identity and distance always agree. Colours
lie as planes, (3, h, w). Letters: h w points of the grid, which is finer than the picture.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from smalti.data import flora, houses
from smalti.data.composition import EYE, Band, Composition, Home, Lake, Range, Tree
from smalti.data.palettes import SEASON, TIME, plane
from smalti.data.textures import Floats, profile, texture

FAR = 6500.0  # metres; the sky is that far, and nothing is farther

SKY, SUN, MOON, CLOUD, MOUNTAIN, GROUND, WATER, TREE, HOUSE = range(9)


class Standing(NamedTuple):
    """A thing with a box: its identity on the canvas, how many grid points it covers whole, its distance in metres, and for a
    house its keypoints in grid points (x, y)."""

    identity: int
    label: int
    whole: int
    distance: float
    keypoints: tuple[tuple[float, float], ...]


class Canvas:
    """The grid being painted on. `colour` (3,h,w), `depth` (h,w) metres, `identity` (h,w): whose point it is; `labels`: identity -> label."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.rows = ((np.arange(height) + 0.5) / height).astype(np.float32)
        self.columns = ((np.arange(width) + 0.5 - width / 2) / height).astype(np.float32)
        self.colour = np.zeros((3, height, width), dtype=np.float32)
        self.depth = np.full((height, width), FAR, dtype=np.float32)
        self.identity = np.zeros((height, width), dtype=np.int16)
        self.labels = [SKY]
        self.standing: list[Standing] = []

    def below(self, curve: Floats) -> tuple[slice, Floats, Floats]:
        """A line (w,) of v -> the rows it touches or leaves above, how far each point is below it, and its soft cover."""
        top = int(np.clip(np.floor(curve.min() * self.height) - 1, 0, self.height))
        rows = slice(top, self.height)
        under = self.rows[rows, None] - curve[None, :]
        return rows, under, np.clip(under * np.float32(self.height) + np.float32(0.5), 0, 1)

    def lay(self, rows: slice, columns: slice, cover: Floats, colour: Floats, depth: Floats | float, label: int) -> int:
        """Paint `colour` where `cover` says; where it covers half or more, the point is the new thing's. Returns its identity."""
        under = self.colour[:, rows, columns]
        under += cover * (colour - under)
        mine = cover >= 0.5
        self.labels.append(label)
        identity = len(self.labels) - 1
        np.copyto(self.identity[rows, columns], identity, where=mine, casting="unsafe")
        np.copyto(self.depth[rows, columns], depth, where=mine, casting="same_kind")
        return identity


def mixed(first: Floats, second: Floats, share: Floats | float) -> Floats:
    """From `first` (share 0) to `second` (share 1)."""
    return np.asarray(first + (second - first) * share, dtype=np.float32)


class Air(NamedTuple):
    """The light of a landscape, as arrays to paint with: (3,1,1) each, and how far one sees."""

    ambient: Floats
    direct: Floats
    haze: Floats
    reach: float
    side: int

    def lit(self, colour: Floats, shade: Floats | float) -> Floats:
        """A surface's own colour, and how far it faces the light, 0 to 1 -> what is seen of it."""
        return np.asarray(colour * (self.ambient + self.direct * shade), dtype=np.float32)

    def veiled(self, colour: Floats, distance: Floats | float) -> Floats:
        """Aerial perspective: what is far is paler, towards the colour of the sky above the horizon."""
        share = 1 - np.exp(-np.asarray(distance, dtype=np.float32) / np.float32(self.reach))
        return mixed(colour, self.haze, share * np.float32(0.92))


def paint(plan: Composition, things: list[Tree | Home], height: int, width: int) -> Canvas:
    """The landscape `plan` with its trees and houses on a grid of `height` x `width` points."""
    canvas = Canvas(height, width)
    time = TIME[plan.time]
    haze = mixed(plan.sky.stops[2], plan.sky.stops[1], 0.35)
    air = Air(plane(time.ambient), plane(time.direct), plane(haze), time.reach, plan.side)
    _sky(canvas, plan)
    for mountains in plan.ranges:
        _mountains(canvas, plan, mountains, air)
    for i, band in enumerate(plan.bands):
        if plan.lake and i == len(plan.bands) - 1:
            _water(canvas, plan, plan.lake[0], air)
        crest = _crest(canvas, band)
        _ground(canvas, plan, band, crest, air, nearest=i == len(plan.bands) - 1)
        _inhabit(canvas, plan, i, crest, [thing for thing in things if thing.band == i], air)
    canvas.colour *= np.float32(plan.exposure)
    return canvas


# --- sky ----------------------------------------------------------------------------------------------------------------


def _sky(canvas: Canvas, plan: Composition) -> None:
    sky, time = plan.sky, TIME[plan.time]
    u, v, radius = sky.disc
    stops = np.array([0.0, 0.62 * plan.horizon, plan.horizon])
    for channel in range(3):
        canvas.colour[channel] = np.interp(canvas.rows, stops, sky.stops[:, channel])[:, None]
    across, down = canvas.columns - u, canvas.rows - v
    for spread, strength in ((0.30, 0.55), (0.09, 0.85)):
        wide = spread * (1.6 if plan.time == "dusk" else 1.0)
        halo = np.exp(-((down / spread) ** 2))[:, None] * np.exp(-((across / wide) ** 2))[None, :]
        canvas.colour += plane(time.glow) * (halo * np.float32(strength)).astype(np.float32)
    if plan.time == "night":
        _stars(canvas, plan)
    _disc(canvas, plan, across, down, radius)
    if sky.clouds > 0.05:
        _clouds(canvas, plan)


def _stars(canvas: Canvas, plan: Composition) -> None:
    """Stars repeat every two picture heights; a star is a point of the grid, on fine grids a small cross."""
    stars = plan.sky.stars
    period = 2.0
    first = np.floor(canvas.columns[0] / period)
    for repeat in range(int(np.floor(canvas.columns[-1] / period) - first) + 1):
        x = ((stars[:, 0] + first + repeat) * period * canvas.height + canvas.width / 2).astype(int)
        y = (stars[:, 1] ** 1.3 * plan.horizon * canvas.height).astype(int)
        bright = 0.25 + 1.1 * stars[:, 2] ** 4
        size = canvas.height // 256  # extra arms
        steps = [(0, 0, 1.0)] + [(dx * k, dy * k, 0.55 / k) for k in range(1, size + 1) for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1))]
        for dx, dy, share in steps:
            seen = (x + dx >= 0) & (x + dx < canvas.width) & (y + dy >= 0)
            canvas.colour[:, (y + dy)[seen], (x + dx)[seen]] += (bright[seen] * share).astype(np.float32)


def _disc(canvas: Canvas, plan: Composition, across: Floats, down: Floats, radius: float) -> None:
    reach = radius + 2 / canvas.height
    rows, columns = (slice(*np.searchsorted(line, (-reach, reach)).tolist()) for line in (down, across))
    if rows.start == rows.stop or columns.start == columns.stop:
        return
    x, y = across[None, columns], down[rows, None]
    sharp = np.float32(canvas.height)
    cover = np.clip((radius - np.hypot(x, y)) * sharp + np.float32(0.5), 0, 1)
    colour = plane(TIME[plan.time].disc)
    if plan.time == "night":
        shift = plan.sky.phase * radius
        shadow = np.clip((np.hypot(x - shift, y + 0.3 * shift) - radius * 0.98) * sharp + np.float32(0.5), 0, 1)
        cover = cover * (1 - (1 - shadow) * (1.0 if abs(plan.sky.phase) < 2 else 0.0))
        seas = texture("billow", down[rows] / radius * 0.12 + plan.sky.offset[0], across[columns] / radius * 0.12)
        colour = colour * (np.float32(0.93) - np.float32(0.09) * np.clip(seas, 0, 2))
    elif plan.time == "dusk":
        colour = mixed(colour, plane((1.0, 0.62, 0.30)), np.clip((y / radius + 0.6) * 0.5, 0, 1))
    label = MOON if plan.time == "night" else SUN
    identity = canvas.lay(rows, columns, cover, colour, FAR, label)
    whole = int((cover >= 0.5).sum())
    if whole:
        canvas.standing.append(Standing(identity, label, whole, FAR, ()))


def _clouds(canvas: Canvas, plan: Composition) -> None:
    sky = plan.sky
    shadow, light = (plane(colour) for colour in TIME[plan.time].cloud)
    bottom = int(np.ceil((plan.horizon + 0.02) * canvas.height))
    rows = slice(0, bottom)
    # Clouds lie in a level sheet: towards the horizon they close up.
    closing = np.log(plan.horizon + 0.16 - canvas.rows[rows]).astype(np.float32)
    stretch, scale = (-0.85, 0.16) if sky.streaks else (-0.42, 0.34)
    down, across = closing * np.float32(stretch * 0.55) + sky.offset[0], canvas.columns * np.float32(scale) + sky.offset[1]
    sheet = texture("billow", down, across)
    threshold = np.float32(1.05 - 1.7 * sky.clouds)
    fine = np.float32(0.10) * texture("rough", down * 3, across * 3)
    cover = np.clip((sheet + fine - threshold) * np.float32(1.5 if sky.streaks else 2.2), 0, 1)
    cover = cover * cover * (3 - 2 * cover) * np.float32(0.8 if sky.streaks else 0.95)
    nudge = np.float32(0.022)
    lifted = texture("billow", down - nudge * np.float32(0.8), across + nudge * plan.side * np.float32(0.8))
    shade = np.clip(np.float32(0.62) + (sheet - lifted) * np.float32(0.9) + fine - np.float32(0.16) * (sheet - threshold), 0, 1)
    u, v, _ = sky.disc
    close = np.exp(-(((canvas.rows[rows] - v) / 0.25) ** 2))[:, None] * np.exp(-(((canvas.columns - u) / 0.4) ** 2))[None, :]
    colour = mixed(shadow, light, shade) + plane(TIME[plan.time].glow) * (close * np.float32(0.6)).astype(np.float32)
    low = np.clip((canvas.rows[rows] / plan.horizon - 0.55) * 1.1, 0, 0.6)[:, None].astype(np.float32)
    colour = mixed(colour, plane(sky.stops[2]), low)
    canvas.lay(rows, slice(None), cover, colour, FAR, CLOUD)


# --- mountains and ground -------------------------------------------------------------------------------------------------


def _mountains(canvas: Canvas, plan: Composition, mountains: Range, air: Air) -> None:
    season = SEASON[plan.season]
    noise = profile(mountains.lattice, canvas.columns + 9, frequency=mountains.frequency, gain=0.5, smooth=False)
    ridge = mountains.foot - mountains.height * np.clip(0.55 + 0.62 * noise, 0.08, 1.3)
    rows, under, cover = canvas.below(ridge.astype(np.float32))
    stop = min(rows.start + int(np.ceil((mountains.foot + 0.03 - canvas.rows[rows.start]) * canvas.height)) + 1, canvas.height)
    rows, under, cover = slice(rows.start, stop), under[: stop - rows.start], cover[: stop - rows.start]
    v = canvas.rows[rows]
    size = np.float32(0.24 + 0.10 / mountains.height * 0.2)
    down, across = v * size * 0.8 + mountains.offset[0], canvas.columns * size * air.side + mountains.offset[1]
    facets = texture("slope", down, across)
    rough = texture("rough", down * 1.7, across * 1.7)
    # Spurs run down from the ridge: a point is lit as the ridge above it leans, the place above it wandering with the depth.
    lean = np.gradient(ridge, canvas.columns).astype(np.float32) * -air.side
    wander = (np.float32(0.35) * rough * under * canvas.height).astype(np.int32)
    above = np.clip(np.arange(canvas.width)[None, :] + wander, 0, canvas.width - 1)
    spurs = np.convolve(np.pad(lean, 3, mode="edge"), np.ones(7) / 7, mode="valid").astype(np.float32)[above]
    fade = np.exp(-under / np.float32(0.5 * mountains.height))
    shade = np.clip(np.float32(0.46) + np.float32(0.24) * facets + np.float32(0.30) * np.clip(spurs, -1, 1) * fade, 0.0, 1.1)
    high = (np.float32(mountains.foot) - v)[:, None] / np.float32(mountains.height)
    rock = plane(mountains.tint) * (1 + np.float32(0.10) * rough)
    green = plane(season.forest) * (np.float32(0.9) + np.float32(0.10) * rough)
    wooded = np.clip((np.float32(0.52) - high + np.float32(0.10) * rough) * 5, 0, 1)
    own = mixed(rock, green, wooded * np.float32(0.85))
    line = np.float32(1.12 - season.snow)
    snow = np.clip((high - line + np.float32(0.09) * rough + np.float32(0.10) * facets) * 9, 0, 1)
    colour = air.lit(mixed(own, plane((0.95, 0.97, 1.0)), snow), shade)
    colour = air.veiled(colour, mountains.distance)
    mist = np.clip(np.float32(0.45) - high, 0, 1) * np.float32(0.75)
    colour = mixed(colour, air.haze, mist)
    depth = np.clip(mountains.distance * (1 + 0.25 * np.clip(high, -0.1, 1.2)), 0, FAR).astype(np.float32)
    canvas.lay(rows, slice(None), cover, colour, depth, MOUNTAIN)


def _crest(canvas: Canvas, band: Band) -> Floats:
    waves = profile(band.lattice, canvas.columns + 5, frequency=band.frequency, gain=0.38, smooth=True)
    leaning = band.tilt * 0.5 * np.tanh(2 * canvas.columns)
    return np.asarray(band.crest - leaning - band.rise * waves, dtype=np.float32)


def _ground(canvas: Canvas, plan: Composition, band: Band, crest: Floats, air: Air, *, nearest: bool) -> None:
    season = SEASON[plan.season]
    if band.woods > 0:
        _woods(canvas, plan, band, crest, air)
    rows, under, cover = canvas.below(crest)
    if rows.start >= rows.stop:
        return
    scale = under + np.float32(band.drop)
    distance = EYE / np.maximum(scale, np.float32(EYE / 1600))
    level = np.log(np.maximum(canvas.rows[rows] - np.float32(band.crest - band.rise), 0) + np.float32(band.drop + 0.02))
    down, across = level * np.float32(0.16) + band.offset[0], canvas.columns + band.offset[1]
    broad = texture("billow", down, across * np.float32(0.22))
    rough = texture("rough", down * np.float32(1.6), across * np.float32(0.30))
    blades = texture("grain", canvas.rows[rows] * np.float32(0.35), across * np.float32(0.42))
    field = np.clip(np.float32(0.5) + np.float32(0.55) * broad + np.float32(0.12) * rough, 0, 1)
    own = mixed(plane(band.meadow[0]), plane(band.meadow[1]), field)
    lean = np.gradient(crest, canvas.columns).astype(np.float32) * np.float32(-air.side)
    waves = np.clip(lean, -0.5, 0.5)[None, :] * np.exp(-under / np.float32(0.12))
    winter = plan.season == "winter"
    relief = 0.07 if winter else 0.11
    shade = np.float32(0.66) + np.float32(relief) * rough + np.float32(0.55) * waves - np.float32(0.16) * np.clip(-broad, 0, 1.5)
    shade += np.float32(0.03 if winter else 0.075) * blades
    shade += np.float32(0.16) * np.exp(-np.abs(under) / np.float32(0.02))  # the crest catches the light
    if winter:
        tufts = np.clip((rough + np.float32(0.5) * blades - np.float32(1.75)) * 3, 0, 1) * np.float32(0.55)
        own = mixed(own, plane((0.50, 0.42, 0.34)), tufts)
    elif nearest or band.drop > 0.06:
        own = _flowers(own, season.flowers, broad, blades, texture("grain", canvas.rows[rows] * np.float32(0.5), across * np.float32(0.37)))
    colour = air.veiled(air.lit(own, np.clip(shade, 0, 1.25)), distance)
    canvas.lay(rows, slice(None), cover, colour, distance.astype(np.float32), GROUND)


def _flowers(own: Floats, flowers: tuple[tuple[float, float, float], ...], broad: Floats, blades: Floats, other: Floats) -> Floats:
    """Flowers, or fallen leaves, in drifts: the second grain says where, the first which."""
    here = np.clip((other + np.float32(0.55) * np.clip(broad, -1.5, 1.5) - np.float32(1.5)) * 3, 0, 1)
    for i, flower in enumerate(flowers):
        share = i / len(flowers)
        turn = np.clip((blades - np.float32(share * 2.4 - 1.2)) * 4, 0, 1)
        own = mixed(own, plane(flower), here * turn * np.float32(0.85))
    return own


def _woods(canvas: Canvas, plan: Composition, band: Band, crest: Floats, air: Air) -> None:
    """A far wood on a crest: two rows of tree tops, each a comb of its own pitch, where a slow wave lets them stand."""
    rng_row = band.lattice[0]
    gate = profile(band.lattice[1:4], canvas.columns - 3, frequency=2.3, gain=0.5, smooth=True)
    stand = np.clip((gate - (0.55 - 1.15 * band.woods)) * 3.5, 0, 1)
    metre = (band.drop + 0.02) / EYE
    tops = np.zeros_like(crest)
    for comb, pitch in enumerate((1.55, 2.35)):
        along = canvas.columns / (pitch * metre * 1.9) + 1000 * comb
        tree = np.floor(along).astype(int)
        tall = 4.2 + 2.6 * rng_row[(tree * 7 + 13 * comb) % len(rng_row)]
        tops = np.maximum(tops, tall * (1 - np.abs(along - tree - 0.5) * (1.15 - 0.5 * comb)) * metre)
    line = (crest - tops * stand + np.where(stand > 0, -0.002, 0.02)).astype(np.float32)
    rows, under, cover = canvas.below(line)
    stop = min(int(np.ceil((float(crest.max()) + 0.01) * canvas.height)) + 1, canvas.height)
    size = max(stop - rows.start, 0)
    if size < 1:
        return
    rows, under, cover = slice(rows.start, stop), under[:size], cover[:size]
    cover = cover * (canvas.rows[rows, None] < crest[None, :] + np.float32(0.01))
    season = SEASON[plan.season]
    grain = texture("grain", canvas.rows[rows] * np.float32(0.4), canvas.columns * np.float32(0.8) + band.offset[0])
    own = mixed(plane(season.fir[0]), plane(season.fir[1]), np.clip(np.float32(0.3) + np.float32(0.22) * grain, 0, 1))
    own = mixed(own, plane(season.forest), np.float32(0.55))
    if plan.season == "winter":
        own = mixed(own, plane((0.92, 0.95, 1.0)), np.clip(np.float32(0.35) + np.float32(0.35) * grain, 0, 1) * np.float32(0.8))
    shade = np.clip(np.float32(0.55) - under * np.float32(5) + np.float32(0.12) * grain, 0.1, 1)
    distance = EYE / max(band.drop, EYE / 1600)
    canvas.lay(rows, slice(None), cover, air.veiled(air.lit(own, shade), distance), float(distance), TREE)


# --- water ----------------------------------------------------------------------------------------------------------------


def _water(canvas: Canvas, plan: Composition, lake: Lake, air: Air) -> None:
    wobble = profile(plan.bands[1].lattice[:4], canvas.columns + 31, frequency=3.0, gain=0.5, smooth=True)
    shore = (lake.shore + 0.006 * wobble).astype(np.float32)
    rows, under, cover = canvas.below(shore)
    v = canvas.rows[rows]
    drop = np.float32(lake.shore - plan.horizon)
    scale = np.maximum(under + drop, np.float32(0.01))
    level = np.log(np.maximum(v - np.float32(lake.shore), 0) + drop)
    waves = texture("rough", level * np.float32(1.1) + lake.offset[0], canvas.columns * np.float32(0.09) + lake.offset[1])
    ripples = texture("grain", level * np.float32(0.75) + lake.offset[1], canvas.columns * np.float32(0.10) + lake.offset[0])
    shaken = (waves * np.float32(0.012) + ripples * np.float32(0.010)) * np.float32(lake.ripple) * np.clip(under / drop + np.float32(0.25), 0.0, 1.6)
    source = shore[None, :] - under + shaken
    index = np.clip((source * canvas.height).astype(np.int32), 0, canvas.height - 1) * canvas.width + np.arange(canvas.width)
    mirrored = canvas.colour.reshape(3, -1).take(index, axis=1)
    # More sky near the far shore, more of the water's own colour underfoot (Schlick's rule, loosely).
    clear = np.float32(0.80) - np.float32(0.42) * np.clip(under / np.float32(0.42), 0, 1)
    deep = air.lit(plane(lake.tint), 0.75)
    colour = mixed(deep, mirrored, clear)
    colour *= 1 + np.float32(0.05) * (waves + ripples) * np.float32(lake.ripple)
    if lake.frozen:
        ice = air.lit(plane((0.80, 0.88, 0.95)), np.float32(0.75) + np.float32(0.05) * waves)
        patches = np.clip(np.float32(lake.frozen) + np.float32(0.3) * waves - np.float32(0.05), 0, 1) * np.float32(0.8)
        colour = mixed(colour, ice, patches)
    u = plan.sky.disc[0]
    broad = np.float32(0.035) + under * np.float32(0.10)
    path = np.exp(-(((canvas.columns[None, :] - u) / broad) ** 2)) * np.clip(ripples + np.float32(0.1), 0, 1.2)
    colour += plane(TIME[plan.time].disc) * (path * np.float32({"day": 0.30, "dusk": 0.45, "night": 0.35}[plan.time])).astype(np.float32)
    edge = np.exp(-np.abs(under) * np.float32(1 / 0.004))
    bank = air.lit(plane((0.92, 0.95, 1.0) if plan.season == "winter" else (0.50, 0.44, 0.34)), 0.6)
    colour = mixed(colour, bank, edge * np.float32(0.55))
    canvas.lay(rows, slice(None), cover, colour, (EYE / scale).astype(np.float32), WATER)


# --- trees and houses -------------------------------------------------------------------------------------------------------


class _Foot(NamedTuple):
    """Where a thing stands: in grid points, the grid points a metre has there, and its distance in metres."""

    x: float
    y: float
    metre: float
    distance: float


def _foot(canvas: Canvas, plan: Composition, index: int, crest: Floats, thing: Tree | Home) -> _Foot:
    band = plan.bands[index]
    x = thing.u * canvas.height + canvas.width / 2
    top = float(np.interp(thing.u, canvas.columns, crest))
    last = index == len(plan.bands) - 1
    if last:
        bottom = 1.0
    elif plan.lake and index == len(plan.bands) - 2:
        bottom = plan.lake[0].shore - 0.012
    else:
        bottom = plan.bands[index + 1].crest
    v = top + thing.along * max(bottom - top, 0.004) + 0.004
    scale = v - top + band.drop
    return _Foot(x, v * canvas.height, scale / EYE * canvas.height, EYE / scale)


def _inhabit(canvas: Canvas, plan: Composition, index: int, crest: Floats, things: list[Tree | Home], air: Air) -> None:
    placed = [(_foot(canvas, plan, index, crest, thing), thing) for thing in things]
    for foot, thing in sorted(placed, key=lambda pair: (pair[0].y, pair[0].x)):
        if isinstance(thing, Tree):
            _tree(canvas, plan, thing, foot, air)
        else:
            _home(canvas, plan, thing, foot, air)


def _window(canvas: Canvas, left: int, top: int, height: int, width: int) -> tuple[slice, slice, slice, slice] | None:
    """Where a picture of that size lands: rows and columns of the canvas, then of the picture; None where it is outside."""
    y0, y1, x0, x1 = max(top, 0), min(top + height, canvas.height), max(left, 0), min(left + width, canvas.width)
    if y0 >= y1 or x0 >= x1:
        return None
    return slice(y0, y1), slice(x0, x1), slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)


def _cast_shadow(canvas: Canvas, plan: Composition, foot: _Foot, half: float, air: Air) -> None:
    """A soft dark ellipse at the foot, drawn away from the light; painted on the ground only."""
    long = half * (1.5 if plan.time == "dusk" else 1.15)
    x = foot.x - air.side * half * (0.8 if plan.time == "dusk" else 0.4)
    high = max(half * 0.24, 1.0)
    box = _window(canvas, int(x - 2 * long), int(foot.y - 2 * high), int(4 * high) + 1, int(4 * long) + 1)
    if box is None:
        return
    rows, columns, _, _ = box
    y = (np.arange(rows.start, rows.stop) + 0.5 - foot.y) / high
    across = (np.arange(columns.start, columns.stop) + 0.5 - x) / long
    dark = (np.exp(-(y**2))[:, None] * np.exp(-(across**2))[None, :]).astype(np.float32)
    canvas.colour[:, rows, columns] *= 1 - dark * plane((0.50, 0.44, 0.34) if plan.time != "night" else (0.4, 0.4, 0.3))


def _tree(canvas: Canvas, plan: Composition, tree: Tree, foot: _Foot, air: Air) -> None:
    height = max(round(tree.metres * foot.metre), 3)
    image = flora.scaled(tree.kind, tree.variant, height=height, stretch=tree.stretch, mirrored=air.side > 0)
    left, top = round(foot.x - image.width / 2), round(foot.y) - height
    box = _window(canvas, left, top, height, image.width)
    if box is None:
        return
    _cast_shadow(canvas, plan, foot, image.width * 0.36, air)
    rows, columns, own_rows, own_columns = box
    whole = np.asarray(image)
    tone, wood, crown, cover = whole[own_rows, own_columns].transpose(2, 0, 1)
    share = np.linspace(0, 1, 256, dtype=np.float32)[None, :]
    light = (air.ambient + air.direct * (np.float32(0.15) + share * np.float32(0.95)))[:, 0, :] if air.ambient.ndim == 3 else share
    tables = [(pair[:, :1] + (pair[:, 1:] - pair[:, :1]) * share) * light for pair in tree.leaves]
    crowned = crown.astype(np.float32) * np.float32(1 / 255)
    colour = tables[0].astype(np.float32)[:, tone]
    if tree.leaves[0] is not tree.leaves[1]:
        colour += (tables[1].astype(np.float32)[:, tone] - colour) * crowned
    bark = ((np.float32([[0.20], [0.15], [0.12]]) + np.float32([[0.38], [0.32], [0.26]]) * share) * light).astype(np.float32)
    colour += (bark[:, tone] - colour) * (wood.astype(np.float32) * np.float32(1 / 255))
    if tree.snow:
        white = (np.float32([[0.80], [0.85], [0.94]]) + np.float32([[0.18], [0.14], [0.06]]) * share) * light
        colour += (white.astype(np.float32)[:, tone] - colour) * (np.clip((crowned - 0.3) * 2, 0, 1) * np.float32(tree.snow))
    colour = air.veiled(colour, foot.distance)
    identity = canvas.lay(rows, columns, cover.astype(np.float32) * np.float32(1 / 255), colour, foot.distance, TREE)
    canvas.standing.append(Standing(identity, TREE, int((whole[..., 3] >= 128).sum()), foot.distance, ()))


def _home(canvas: Canvas, plan: Composition, home: Home, foot: _Foot, air: Air) -> None:
    high = max(home.metres * foot.metre, 4.0)
    reach_left, _, up = houses.extent(home.house)
    drawn = houses.draw(home.house, pixels=high, light=air.side)
    left, top = round(foot.x - reach_left * high), round(foot.y - up * high)
    box = _window(canvas, left, top, *drawn.cover.shape)
    if box is None:
        return
    _cast_shadow(canvas, plan, foot, high * 0.85, air)
    rows, columns, own_rows, own_columns = box
    own, cover, glow = drawn.colour[:, own_rows, own_columns], drawn.cover[own_rows, own_columns], drawn.glow[own_rows, own_columns]
    y, x = canvas.rows[rows] * 40 / max(high, 1.0), canvas.columns[columns] * 40 / max(high, 1.0)
    grain = texture("grain", y * np.float32(2), x * np.float32(2))
    colour = air.lit(own * (1 + np.float32(0.06) * grain), 0.72)
    colour = air.veiled(mixed(colour, own, glow), foot.distance)
    identity = canvas.lay(rows, columns, cover, colour, foot.distance, HOUSE)
    points = tuple((left + (reach_left + px * home.house.side) * high, top + (up + py) * high) for px, py in houses.keypoints(home.house))
    canvas.standing.append(Standing(identity, HOUSE, int((drawn.cover >= 0.5).sum()), foot.distance, points))
    if home.house.lit:
        _light_around(canvas, foot, high)
    if home.smoke:
        _smoke(canvas, home, left + (reach_left + home.house.side * home.house.back * 0.62) * high, top, high, air)


def _light_around(canvas: Canvas, foot: _Foot, high: float) -> None:
    """The warm light of the windows on air and ground about the house."""
    reach = high * 1.3
    box = _window(canvas, int(foot.x - 2 * reach), int(foot.y - 0.35 * high - 2 * reach), int(4 * reach), int(4 * reach))
    if box is None:
        return
    rows, columns, _, _ = box
    y = (np.arange(rows.start, rows.stop) + 0.5 - (foot.y - 0.2 * high)) / (reach * 0.7)
    x = (np.arange(columns.start, columns.stop) + 0.5 - foot.x) / reach
    halo = (np.exp(-(y**2))[:, None] * np.exp(-(x**2))[None, :]).astype(np.float32)
    canvas.colour[:, rows, columns] += plane((0.20, 0.11, 0.03)) * halo


def _smoke(canvas: Canvas, home: Home, x: float, y: float, high: float, air: Air) -> None:
    """A plume from the chimney that widens and thins as it rises and leans with the wind."""
    tall = high * (0.7 + 0.6 * home.smoke)
    box = _window(canvas, int(x - tall), int(y - tall), int(tall), int(2 * tall))
    if box is None:
        return
    rows, columns, _, _ = box
    up = np.clip((y - np.arange(rows.start, rows.stop) - 0.5) / tall, 0, 1).astype(np.float32)[:, None]
    lean = np.float32((home.smoke - 0.5) * 1.6)
    middle = x + tall * (lean * up**1.4 + 0.05 * np.sin(9 * up + 6 * home.smoke))
    wide = tall * (0.035 + 0.13 * up)
    across = (np.arange(columns.start, columns.stop)[None, :] + 0.5 - middle) / wide
    puffs = texture("billow", canvas.rows[rows], canvas.columns[columns])
    cover = np.exp(-(across**2)) * np.clip(np.float32(0.42) + np.float32(0.12) * puffs, 0, 0.49) * (1 - up) ** np.float32(0.8)
    colour = air.lit(plane((0.86, 0.87, 0.90)), 0.8)
    under = canvas.colour[:, rows, columns]
    under += cover.astype(np.float32) * (colour - under)
