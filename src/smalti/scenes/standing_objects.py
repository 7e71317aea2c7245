"""A composition's trees and houses -> painted on the canvas, each noted as a thing with a box."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from smalti.scenes import flora, houses
from smalti.scenes.canvas import HOUSE, TREE, Air, Canvas, Standing, mixed
from smalti.scenes.composition import EYE, Composition, Home, Tree
from smalti.scenes.palettes import Color, Leaf, column, plane
from smalti.scenes.relief import folds
from smalti.scenes.textures import Floats, clamp, texture

_TALLEST = 0.26  # image heights a house is high at most: one that stands very near would fill the image


class Foot(NamedTuple):
    """Where a thing stands: in grid points, the grid points a meter has there, and its distance in meters."""

    x: float
    y: float
    meter: float
    distance: float


def feet_of(canvas: Canvas, plan: Composition, items: list[Tree | Home]) -> list[tuple[Foot, Tree | Home]]:
    """Where each thing stands, from far to near."""
    land = folds(plan, np.array([item.u for item in items], dtype=np.float32))
    found: list[tuple[Foot, Tree | Home]] = []
    last = len(plan.bands) - 1
    for i, item in enumerate(items):
        fold = land[-1] if item.band == last else land[item.band]
        crest = float(fold.crest[i])
        if item.band == last:
            bottom = 1.0
        elif plan.lake and item.band == last - 1:
            bottom = plan.lake[0].shore - 0.012
        else:
            bottom = plan.bands[item.band + 1].crest
        v = crest + item.along * max(bottom - crest, 0.004) + 0.004
        scale = v - crest + float(fold.drop[i])
        x = item.u * canvas.height + canvas.width / 2
        found.append((Foot(x, v * canvas.height, scale / EYE * canvas.height, EYE / scale), item))
    return sorted(found, key=lambda pair: (pair[0].y, pair[0].x))


def inhabit(canvas: Canvas, plan: Composition, placed: list[tuple[Foot, Tree | Home]], air: Air) -> None:
    """Paint trees and houses, given from far to near."""
    shades = _shades(air)
    for foot, item in placed:
        if isinstance(item, Tree):
            _tree(canvas, plan, item, foot, air, shades)
        else:
            _home(canvas, plan, item, foot, air)


def _window(canvas: Canvas, left: int, top: int, height: int, width: int) -> tuple[slice, slice, slice, slice] | None:
    """Where an image of that size lands: rows and columns of the canvas, then of the image; None where it is
    outside."""
    y0, y1, x0, x1 = max(top, 0), min(top + height, canvas.height), max(left, 0), min(left + width, canvas.width)
    if y0 >= y1 or x0 >= x1:
        return None
    return slice(y0, y1), slice(x0, x1), slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)


def _cast_shadow(canvas: Canvas, plan: Composition, foot: Foot, half: float, air: Air) -> None:
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
    canvas.color[:, rows, columns] *= 1 - dark * plane((0.50, 0.44, 0.34) if plan.time != "night" else (0.4, 0.4, 0.3))


class _Shades(NamedTuple):
    """By tone 0 to 255, (3, 256) each: the light that falls there, and bark and snow seen in it."""

    share: Floats
    light: Floats
    bark: Floats
    snow: Floats


def _shades(air: Air) -> _Shades:
    share = np.linspace(0, 1, 256, dtype=np.float32)[None, :]
    light = (air.ambient + air.direct * (0.15 + share * 0.95))[:, 0, :]
    bark = (column((0.20, 0.15, 0.12)) + column((0.38, 0.32, 0.26)) * share) * light
    snow = (column((0.80, 0.85, 0.94)) + column((0.18, 0.14, 0.06)) * share) * light
    return _Shades(share, light, bark, snow)


def _leaf(leaf: Leaf, shift: Color, shades: _Shades) -> Floats:
    """The colors of leaves by tone, (3, 256)."""
    dark, bright = column(leaf[0]), column(leaf[1])
    return clamp(dark + column(shift) + (bright - dark) * shades.share, 0, 1) * shades.light


def _tree(canvas: Canvas, plan: Composition, tree: Tree, foot: Foot, air: Air, shades: _Shades) -> None:
    height = max(round(tree.meters * foot.meter), 3)
    if abs(foot.x - canvas.width / 2) > canvas.width / 2 + 1.5 * height:
        return  # nothing that grows is three times as wide as it is high
    image = flora.scaled(tree.kind, tree.variant, height=height, stretch=tree.stretch, mirrored=air.side > 0)
    box = _window(canvas, round(foot.x - image.width / 2), round(foot.y) - height, height, image.width)
    if box is None:
        return
    _cast_shadow(canvas, plan, foot, image.width * 0.36, air)
    rows, columns, own_rows, own_columns = box
    whole = np.asarray(image)
    tone, wood, crown, cover = whole[own_rows, own_columns].transpose(2, 0, 1)
    tone, crowned = tone.astype(np.intp), crown * np.float32(1 / 255)
    color = _leaf(tree.leaves[0], tree.shift, shades).take(tone, axis=1)
    if tree.leaves[0] is not tree.leaves[1]:
        color = mixed(color, _leaf(tree.leaves[1], tree.shift, shades).take(tone, axis=1), crowned)
    color = mixed(color, shades.bark.take(tone, axis=1), wood * np.float32(1 / 255))
    if tree.snow:
        color = mixed(color, shades.snow.take(tone, axis=1), clamp((crowned - 0.3) * 2, 0, 1) * tree.snow)
    color = air.veiled(color, foot.distance)
    identity = canvas.composite(rows, columns, cover * np.float32(1 / 255), color, foot.distance, TREE)
    canvas.standing.append(Standing(identity, TREE, int((whole[..., 3] >= 128).sum()), foot.distance, (), tree))


def _home(canvas: Canvas, plan: Composition, home: Home, foot: Foot, air: Air) -> None:
    high = min(max(home.meters * foot.meter, 4.0), _TALLEST * canvas.height)
    reach_left, _, up = houses.extent(home.house)
    if abs(foot.x - canvas.width / 2) > canvas.width / 2 + 2 * high:
        return
    drawn = houses.draw(home.house, pixels=high, light=air.side)
    left, top = round(foot.x - reach_left * high), round(foot.y - up * high)
    box = _window(canvas, left, top, *drawn.cover.shape)
    if box is None:
        return
    _cast_shadow(canvas, plan, foot, high * 0.85, air)
    rows, columns, own_rows, own_columns = box
    own, cover, glow = (
        drawn.color[:, own_rows, own_columns],
        drawn.cover[own_rows, own_columns],
        drawn.glow[own_rows, own_columns],
    )
    y, x = canvas.rows[rows] * 40 / max(high, 1.0), canvas.columns[columns] * 40 / max(high, 1.0)
    grain = texture("grain", y * 2, x * 2)
    color = air.lit(own * (1 + 0.06 * grain), 0.72)
    color = air.veiled(mixed(color, own, glow), foot.distance)
    identity = canvas.composite(rows, columns, cover, color, foot.distance, HOUSE)
    points = tuple((left + (reach_left + px) * high, top + (up + py) * high) for px, py in houses.keypoints(home.house))
    canvas.standing.append(Standing(identity, HOUSE, int((drawn.cover >= 0.5).sum()), foot.distance, points, home))
    if home.house.lit:
        _light_around(canvas, foot, high)
    if home.smoke:
        _smoke(canvas, home, left + (reach_left + home.house.side * home.house.back * 0.62) * high, top, high, air)


def _light_around(canvas: Canvas, foot: Foot, high: float) -> None:
    """The warm light of the windows on air and ground about the house."""
    reach = high * 1.3
    box = _window(
        canvas, int(foot.x - 2 * reach), int(foot.y - 0.35 * high - 2 * reach), int(4 * reach), int(4 * reach)
    )
    if box is None:
        return
    rows, columns, _, _ = box
    y = (np.arange(rows.start, rows.stop) + 0.5 - (foot.y - 0.2 * high)) / (reach * 0.7)
    x = (np.arange(columns.start, columns.stop) + 0.5 - foot.x) / reach
    halo = (np.exp(-(y**2))[:, None] * np.exp(-(x**2))[None, :]).astype(np.float32)
    canvas.color[:, rows, columns] += plane((0.20, 0.11, 0.03)) * halo


def _smoke(canvas: Canvas, home: Home, x: float, y: float, high: float, air: Air) -> None:
    """A plume from the chimney that widens and thins as it rises and leans with the wind."""
    tall = high * (0.7 + 0.6 * home.smoke)
    box = _window(canvas, int(x - tall), int(y - tall), int(tall), int(2 * tall))
    if box is None:
        return
    rows, columns, _, _ = box
    up = clamp((y - np.arange(rows.start, rows.stop) - 0.5) / tall, 0, 1).astype(np.float32)[:, None]
    lean = (home.smoke - 0.5) * 1.6
    middle = x + tall * (lean * up**1.4 + 0.05 * np.sin(9 * up + 6 * home.smoke))
    wide = tall * (0.035 + 0.13 * up)
    across = (np.arange(columns.start, columns.stop)[None, :] + 0.5 - middle) / wide
    puffs = texture("billow", canvas.rows[rows], canvas.columns[columns])
    cover = np.exp(-(across**2)) * clamp(0.42 + 0.12 * puffs, 0, 0.49) * (1 - up) ** 0.8
    color = air.lit(plane((0.86, 0.87, 0.90)), 0.8)
    under = canvas.color[:, rows, columns]
    under += cover.astype(np.float32) * (color - under)
