"""A composition -> the painted landscape, with what and how far each point of it is.

Painted from far to near, each thing over what stands behind it, so that color, identity and distance always agree.
"""

from __future__ import annotations

import numpy as np

from smalti.scenes.canvas import CLOUD, FAR, GROUND, MOON, MOUNTAIN, SUN, TREE, WATER, Air, Canvas, Standing, mixed
from smalti.scenes.composition import EYE, Band, Composition, Home, Lake, Range, Tree
from smalti.scenes.palettes import SEASON, TIME, plane
from smalti.scenes.relief import Fold, distance, folds
from smalti.scenes.standing_objects import feet_of, inhabit
from smalti.scenes.textures import Floats, clamp, profile, texture


def paint_landscape(plan: Composition, items: list[Tree | Home], height: int, width: int) -> Canvas:
    """The landscape `plan` with its trees and houses on a grid of `height` x `width` points."""
    canvas = Canvas(height, width)
    time = TIME[plan.time]
    haze = mixed(plan.sky.stops[2], plan.sky.stops[1], 0.35)
    air = Air(plane(time.ambient), plane(time.direct), plane(haze), time.reach, plan.side)
    _sky(canvas, plan)
    for mountains in plan.ranges:
        _mountains(canvas, plan, mountains, air)
    land = folds(plan, canvas.columns)
    feet = feet_of(canvas, plan, items)
    for i, band in enumerate(plan.bands):
        nearest = i == len(plan.bands) - 1
        if plan.lake and nearest:
            _water(canvas, plan, plan.lake[0], land[-2], air)
        _ground(canvas, plan, band, land[-1] if nearest else land[i], air, nearest=nearest)
        inhabit(canvas, plan, [pair for pair in feet if pair[1].band == i], air)
    canvas.color *= plan.exposure
    return canvas


# --- sky
# ----------------------------------------------------------------------------------------------------------------


def _sky(canvas: Canvas, plan: Composition) -> None:
    sky, time = plan.sky, TIME[plan.time]
    u, v, radius = sky.disc
    stops = np.array([0.0, 0.62 * plan.horizon, plan.horizon])
    for channel in range(3):
        canvas.color[channel] = np.interp(canvas.rows, stops, sky.stops[:, channel])[:, None]
    across, down = canvas.columns - u, canvas.rows - v
    for spread, strength in ((0.30, 0.55), (0.09, 0.85)):
        wide = spread * (1.6 if plan.time == "dusk" else 1.0)
        halo = np.exp(-((down / spread) ** 2))[:, None] * np.exp(-((across / wide) ** 2))[None, :]
        halo = (halo * strength).astype(np.float32)
        for channel in range(3):
            canvas.color[channel] += np.float32(time.glow[channel]) * halo
    if plan.time == "night":
        _stars(canvas, plan)
    _disc(canvas, plan, across, down, radius)
    if sky.clouds > 0.05:
        _clouds(canvas, plan)


def _stars(canvas: Canvas, plan: Composition) -> None:
    """Stars repeat every two image heights; a star is a point of the grid, on fine grids a small cross."""
    stars = plan.sky.stars
    period = 2.0
    first = np.floor(canvas.columns[0] / period)
    for repeat in range(int(np.floor(canvas.columns[-1] / period) - first) + 1):
        x = ((stars[:, 0] + first + repeat) * period * canvas.height + canvas.width / 2).astype(int)
        y = (stars[:, 1] ** 1.3 * plan.horizon * canvas.height).astype(int)
        bright = 0.25 + 1.1 * stars[:, 2] ** 4
        size = canvas.height // 256  # extra arms
        steps = [(0, 0, 1.0)] + [
            (dx * k, dy * k, 0.55 / k) for k in range(1, size + 1) for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1))
        ]
        for dx, dy, share in steps:
            seen = (x + dx >= 0) & (x + dx < canvas.width) & (y + dy >= 0)
            canvas.color[:, (y + dy)[seen], (x + dx)[seen]] += (bright[seen] * share).astype(np.float32)


def _disc(canvas: Canvas, plan: Composition, across: Floats, down: Floats, radius: float) -> None:
    reach = radius + 2 / canvas.height
    rows, columns = (slice(*np.searchsorted(line, (-reach, reach)).tolist()) for line in (down, across))
    if rows.start == rows.stop or columns.start == columns.stop:
        return
    x, y = across[None, columns], down[rows, None]
    sharp = canvas.height
    cover = clamp((radius - np.hypot(x, y)) * sharp + 0.5, 0, 1)
    color = plane(TIME[plan.time].disc)
    if plan.time == "night":
        shift = plan.sky.phase * radius
        shadow = clamp((np.hypot(x - shift, y + 0.3 * shift) - radius * 0.98) * sharp + 0.5, 0, 1)
        cover = cover * (1 - (1 - shadow) * (1.0 if abs(plan.sky.phase) < 2 else 0.0))
        seas = texture("billow", down[rows] / radius * 0.12 + plan.sky.offset[0], across[columns] / radius * 0.12)
        color = color * (0.93 - 0.09 * clamp(seas, 0, 2))
    elif plan.time == "dusk":
        color = mixed(color, plane((1.0, 0.62, 0.30)), clamp((y / radius + 0.6) * 0.5, 0, 1))
    label = MOON if plan.time == "night" else SUN
    identity = canvas.composite(rows, columns, cover, color, FAR, label)
    whole = int((cover >= 0.5).sum())
    if whole:
        canvas.standing.append(Standing(identity, label, whole, FAR, ()))


def _clouds(canvas: Canvas, plan: Composition) -> None:
    sky = plan.sky
    shadow, light = (plane(color) for color in TIME[plan.time].cloud)
    bottom = int(np.ceil((plan.horizon + 0.02) * canvas.height))
    rows = slice(0, bottom)
    # Clouds lie in a level sheet: toward the horizon they close up.
    closing = np.log(plan.horizon + 0.16 - canvas.rows[rows]).astype(np.float32)
    stretch, scale = (-0.85, 0.16) if sky.streaks else (-0.42, 0.34)
    down, across = (
        closing * (stretch * 0.55) + sky.offset[0],
        canvas.columns * scale + sky.offset[1],
    )
    sheet = texture("billow", down, across)
    threshold = 1.05 - 1.7 * sky.clouds
    fine = 0.10 * texture("rough", down * 3, across * 3)
    cover = clamp((sheet + fine - threshold) * (1.5 if sky.streaks else 2.2), 0, 1)
    cover = cover * cover * (3 - 2 * cover) * (0.8 if sky.streaks else 0.95)
    nudge = 0.022
    lifted = texture("billow", down - nudge * 0.8, across + nudge * plan.side * 0.8)
    shade = clamp(0.62 + (sheet - lifted) * 0.9 + fine - 0.16 * (sheet - threshold), 0, 1)
    u, v, _ = sky.disc
    close = (
        np.exp(-(((canvas.rows[rows] - v) / 0.25) ** 2))[:, None]
        * np.exp(-(((canvas.columns - u) / 0.4) ** 2))[None, :]
    )
    color = mixed(shadow, light, shade) + plane(TIME[plan.time].glow) * (close * 0.6).astype(np.float32)
    low = clamp((canvas.rows[rows] / plan.horizon - 0.55) * 1.1, 0, 0.6)[:, None].astype(np.float32)
    color = mixed(color, plane(sky.stops[2]), low)
    canvas.composite(rows, slice(None), cover, color, FAR, CLOUD)


# --- mountains and ground
# -------------------------------------------------------------------------------------------------


def _mountains(canvas: Canvas, plan: Composition, mountains: Range, air: Air) -> None:
    season = SEASON[plan.season]
    noise = profile(mountains.lattice, canvas.columns + 9, frequency=mountains.frequency, gain=0.5, smooth=False)
    ridge = mountains.foot - mountains.height * clamp(0.55 + 0.62 * noise, 0.08, 1.3)
    rows, under, cover = canvas.below(ridge.astype(np.float32))
    stop = min(
        rows.start + int(np.ceil((mountains.foot + 0.03 - canvas.rows[rows.start]) * canvas.height)) + 1, canvas.height
    )
    rows, under, cover = slice(rows.start, stop), under[: stop - rows.start], cover[: stop - rows.start]
    v = canvas.rows[rows]
    size = 0.24 + 0.10 / mountains.height * 0.2
    down, across = v * size * 0.8 + mountains.offset[0], canvas.columns * size * air.side + mountains.offset[1]
    facets = texture("slope", down, across)
    rough = texture("rough", down * 1.7, across * 1.7)
    # Spurs run down from the ridge: a point is lit as the ridge above it leans,
    # the place above it wandering with the depth.
    lean = np.gradient(ridge, canvas.columns).astype(np.float32) * -air.side
    wander = (0.35 * rough * under * canvas.height).astype(np.intp)
    above = np.minimum(np.maximum(np.arange(canvas.width)[None, :] + wander, 0), canvas.width - 1)
    half = max(round(0.024 * canvas.height), 1)  # one spur spans about a twentieth of the image's height
    mean = np.ones(2 * half + 1) / (2 * half + 1)
    spurs = np.convolve(np.pad(lean, half, mode="edge"), mean, mode="valid").astype(np.float32)[above]
    fade = np.exp(-under / (0.5 * mountains.height))
    shade = clamp(0.46 + 0.24 * facets + 0.30 * clamp(spurs, -1, 1) * fade, 0.0, 1.1)
    high = (mountains.foot - v)[:, None] / mountains.height
    rock = plane(mountains.tint) * (1 + 0.10 * rough)
    green = plane(season.forest) * (0.9 + 0.10 * rough)
    wooded = clamp((0.52 - high + 0.10 * rough) * 5, 0, 1)
    own = mixed(rock, green, wooded * 0.85)
    line = 1.12 - season.snow
    snow = clamp((high - line + 0.09 * rough + 0.10 * facets) * 9, 0, 1)
    color = air.lit(mixed(own, plane((0.95, 0.97, 1.0)), snow), shade)
    color = air.veiled(color, mountains.distance)
    mist = clamp(0.45 - high, 0, 1) * 0.75
    color = mixed(color, air.haze, mist)
    depth = clamp(mountains.distance * (1 + 0.25 * clamp(high, -0.1, 1.2)), 0, FAR).astype(np.float32)
    canvas.composite(rows, slice(None), cover, color, depth, MOUNTAIN)


def _ground(canvas: Canvas, plan: Composition, band: Band, fold: Fold, air: Air, *, nearest: bool) -> None:
    season = SEASON[plan.season]
    if band.woods > 0:
        _woods(canvas, plan, band, fold.crest, air)
    crest = fold.crest
    rows, under, cover = canvas.below(crest)
    if rows.start >= rows.stop:
        return
    far = distance(under + fold.drop)
    level = np.log(np.maximum(canvas.rows[rows] - (band.crest - band.rise), 0) + (band.drop + 0.02))
    down, across = level * 0.16 + band.offset[0], canvas.columns + band.offset[1]
    broad = texture("billow", down, across * 0.22)
    rough = texture("rough", down * 1.6, across * 0.30)
    blades = texture("grain", canvas.rows[rows] * 0.17, across * 0.6)
    field = clamp(0.5 + 0.55 * broad + 0.12 * rough, 0, 1)
    own = mixed(plane(band.meadow[0]), plane(band.meadow[1]), field)
    lean = np.gradient(crest, canvas.columns).astype(np.float32) * np.float32(-air.side)
    waves = clamp(lean, -0.5, 0.5)[None, :] * np.exp(-under / 0.12)
    winter = plan.season == "winter"
    relief = 0.07 if winter else 0.11
    shade = 0.66 + relief * rough + 0.55 * waves - 0.16 * clamp(-broad, 0, 1.5)
    shade += (0.03 if winter else 0.10) * blades
    shade += 0.16 * np.exp(-np.abs(under) / 0.02)  # the crest catches the light
    if winter:
        tufts = clamp((0.55 * rough + blades - 2.1) * 2, 0, 1) * 0.5
        own = mixed(own, plane((0.50, 0.42, 0.34)), tufts)
    elif nearest or band.drop > 0.06:
        own = _flowers(
            own,
            season.flowers,
            broad,
            blades,
            texture("grain", canvas.rows[rows] * 0.5, across * 0.37),
        )
    color = air.veiled(air.lit(own, clamp(shade, 0, 1.25)), far)
    canvas.composite(rows, slice(None), cover, color, far, GROUND)


def _flowers(
    own: Floats, flowers: tuple[tuple[float, float, float], ...], broad: Floats, blades: Floats, other: Floats
) -> Floats:
    """Flowers, or fallen leaves, in drifts: the second grain says where, the first which."""
    here = clamp((other + 0.55 * clamp(broad, -1.5, 1.5) - 1.5) * 3, 0, 1)
    for i, flower in enumerate(flowers):
        share = i / len(flowers)
        turn = clamp((blades - (share * 2.4 - 1.2)) * 4, 0, 1)
        own = mixed(own, plane(flower), here * turn * 0.85)
    return own


def _woods(canvas: Canvas, plan: Composition, band: Band, crest: Floats, air: Air) -> None:
    """A far wood on a crest: three rows of tree tops, each a comb of its own pitch, where a slow wave lets them
    stand."""
    rng_row = band.lattice[0]
    gate = profile(band.lattice[1:4], canvas.columns - 3, frequency=2.3, gain=0.5, smooth=True)
    stand = clamp((gate - (0.55 - 1.15 * band.woods)) * 3.5, 0, 1)
    meter = (band.drop + 0.02) / EYE
    tops = np.zeros_like(crest)
    for comb, pitch in enumerate((1.6, 2.3, 3.1)):
        along = canvas.columns / (pitch * meter) + 1000 * comb
        tree = np.floor(along).astype(int)
        tall = 4.2 + 2.6 * rng_row[(tree * 7 + 13 * comb) % len(rng_row)]
        tops = np.maximum(tops, tall * (1 - np.abs(along - tree - 0.5) * 1.7) * meter)
    line = (crest - tops * stand + np.where(stand > 0, -0.002, 0.02)).astype(np.float32)
    rows, under, cover = canvas.below(line)
    stop = min(int(np.ceil((float(crest.max()) + 0.01) * canvas.height)) + 1, canvas.height)
    size = max(stop - rows.start, 0)
    if size < 1:
        return
    rows, under, cover = slice(rows.start, stop), under[:size], cover[:size]
    cover = cover * (canvas.rows[rows, None] < crest[None, :] + 0.01)
    season = SEASON[plan.season]
    grain = texture("grain", canvas.rows[rows] * 0.4, canvas.columns * 0.8 + band.offset[0])
    own = mixed(plane(season.fir[0]), plane(season.fir[1]), clamp(0.3 + 0.22 * grain, 0, 1))
    own = mixed(own, plane(season.forest), 0.55)
    if plan.season == "winter":
        own = mixed(own, plane((0.92, 0.95, 1.0)), clamp(0.35 + 0.35 * grain, 0, 1) * 0.8)
    shade = clamp(0.55 - under * 5 + 0.12 * grain, 0.1, 1)
    far = EYE / max(band.drop, EYE / 1600)
    canvas.composite(rows, slice(None), cover, air.veiled(air.lit(own, shade), far), far, TREE)


# --- water
# ----------------------------------------------------------------------------------------------------------------


def _water(canvas: Canvas, plan: Composition, lake: Lake, fold: Fold, air: Air) -> None:
    shore = fold.crest
    rows, under, cover = canvas.below(shore)
    v = canvas.rows[rows]
    drop = lake.shore - plan.horizon
    level = np.log(np.maximum(v - lake.shore, 0) + drop)
    waves = texture("rough", level * 1.1 + lake.offset[0], canvas.columns * 0.09 + lake.offset[1])
    ripples = texture("grain", level * 0.75 + lake.offset[1], canvas.columns * 0.10 + lake.offset[0])
    shaken = (waves * 0.012 + ripples * 0.010) * lake.ripple * clamp(under / drop + 0.25, 0.0, 1.6)
    source = shore[None, :] - under + shaken
    above = np.minimum(np.maximum((source * canvas.height).astype(np.intp), 0), canvas.height - 1)
    index = above * canvas.width + np.arange(canvas.width)
    mirrored = canvas.color.reshape(3, -1).take(index, axis=1)
    # More sky near the far shore, more of the water's own color underfoot (Schlick's rule, loosely).
    clear = 0.80 - 0.42 * clamp(under / 0.42, 0, 1)
    deep = air.lit(plane(lake.tint), 0.75)
    color = mixed(deep, mirrored, clear)
    color *= 1 + 0.05 * (waves + ripples) * lake.ripple
    if lake.frozen:
        ice = air.lit(plane((0.80, 0.88, 0.95)), 0.75 + 0.05 * waves)
        patches = clamp(lake.frozen + 0.3 * waves - 0.05, 0, 1) * 0.8
        color = mixed(color, ice, patches)
    u = plan.sky.disc[0]
    broad = 0.035 + under * 0.10
    path = np.exp(-(((canvas.columns[None, :] - u) / broad) ** 2)) * clamp(ripples + 0.1, 0, 1.2)
    glitter = {"day": 0.30, "dusk": 0.45, "night": 0.35}[plan.time]
    color += plane(TIME[plan.time].disc) * (path * glitter).astype(np.float32)
    edge = np.exp(-np.abs(under) * 250.0).astype(np.float32)
    bank = air.lit(plane((0.92, 0.95, 1.0) if plan.season == "winter" else (0.50, 0.44, 0.34)), 0.6)
    color = mixed(color, bank, edge * 0.55)
    canvas.composite(rows, slice(None), cover, color, distance(under + fold.drop), WATER)
