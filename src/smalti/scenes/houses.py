"""The plan of a house -> its image, its silhouette, its lights and its keypoints.

A house is a box with a gabled roof, seen a little from one side: the gable wall in front and one long wall going back.
Places on it are in units of its own height (ground to roof apex 1, y down, the middle of the gable wall's foot at 0,
0).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from smalti.scenes.textures import Floats

_FINER = 2  # supersampling factor: drawn this much larger, then averaged, for smooth edges

Point = tuple[float, float]


class House(NamedTuple):
    """What is drawn of one house: sizes in units of its height, colors in [0, 1]."""

    gable: float  # width of the gable wall
    eave: float  # height of the walls
    back: float  # how far the long wall reaches sideways
    side: int  # on which side the long wall is seen: 1 right, -1 left
    wall: tuple[float, float, float]
    roof: tuple[float, float, float]
    style: int  # 0 planks, 1 plaster, 2 timber frame, 3 stone
    chimney: bool
    windows: int  # in the long wall
    snow: bool
    lit: bool


class Drawn(NamedTuple):
    """A house as pixels: color (3,h,w) in [0, 1] with its own shading, cover and glow (h,w) in [0, 1]."""

    color: Floats
    cover: Floats
    glow: Floats


def extent(house: House) -> tuple[float, float, float]:
    """The house's box around its foot: how far it reaches to the left, to the right and up, in units of its height."""
    near, far = house.gable / 2 + 0.09, house.gable / 2 + house.back + 0.07
    return (near, far, 1.16) if house.side > 0 else (far, near, 1.16)


def keypoints(house: House) -> tuple[Point, ...]:
    """Roof apex, then the gable wall's corners: eave left, eave right, foot right, foot left; in units of its
    height."""
    half = house.gable / 2
    return ((0.0, -1.0), (-half, -house.eave), (half, -house.eave), (half, 0.0), (-half, 0.0))


def _shade(color: tuple[float, float, float], factor: float) -> tuple[int, int, int]:
    red, green, blue = color
    strength = 255 * factor
    return min(int(red * strength), 255), min(int(green * strength), 255), min(int(blue * strength), 255)


class _Pen:
    """Draws in house units on the color, cover and glow images at once."""

    def __init__(self, house: House, width: int, height: int, pixels: float) -> None:
        self._left, _, self._up = extent(house)
        self._pixels = pixels
        self._mirror = house.side
        size = (width, height)
        self.color = Image.new("RGB", size, _shade(house.wall, 0.8))
        self.cover = Image.new("L", size, 0)
        self.glow = Image.new("L", size, 0)
        self._colors, self._covers, self._glows = (ImageDraw.Draw(i) for i in (self.color, self.cover, self.glow))

    def _project(self, points: list[Point]) -> list[Point]:
        return [((x * self._mirror + self._left) * self._pixels, (y + self._up) * self._pixels) for x, y in points]

    def shape(self, points: list[Point], fill: tuple[int, int, int], *, glow: int = 0) -> None:
        projected = self._project(points)
        self._colors.polygon(projected, fill=fill)
        self._covers.polygon(projected, fill=255)
        self._glows.polygon(projected, fill=glow)

    def line(self, points: list[Point], fill: tuple[int, int, int], width: float) -> None:
        self._colors.line(self._project(points), fill=fill, width=max(round(width * self._pixels), 1))


def draw(house: House, *, pixels: float, light: int) -> Drawn:
    """The house drawn `pixels` high (ground to apex), its light coming from the right (1) or the left (-1)."""
    left, right, up = extent(house)
    width, height = (max(int(np.ceil(span * pixels)), 1) * _FINER for span in (left + right, up + 0.02))
    pen = _Pen(house, width, height, pixels * _FINER)
    # The pen mirrors: everything below is said for a long wall on the right.
    toward = light * house.side
    front, flank = (0.86, 1.06) if toward > 0 else (1.04, 0.74)
    _long_wall(pen, house, flank, detailed=pixels > 14)
    _gable_wall(pen, house, front, detailed=pixels > 14)
    _roof(pen, house, 1.08 if toward > 0 else 0.86, detailed=pixels > 14)
    color = np.asarray(pen.color.reduce(_FINER), dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
    cover = np.asarray(pen.cover.reduce(_FINER), dtype=np.float32) / np.float32(255)
    glow = np.asarray(pen.glow.reduce(_FINER), dtype=np.float32) / np.float32(255)
    return Drawn(color, cover, glow)


def _back(house: House, x: float, y: float) -> Point:
    """A point of the long wall: x along it (0 near, 1 far), y up in units of the eave (a little shorter far away)."""
    far = 1 - 0.10 * x
    return house.gable / 2 + house.back * x, -house.eave * y * far - 0.03 * x


def _long_wall(pen: _Pen, house: House, light: float, *, detailed: bool) -> None:
    corners = [_back(house, x, y) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))]
    pen.shape(corners, _shade(house.wall, light))
    if detailed:
        _courses(pen, house, light, [_back(house, 0, y) for y in _COURSES], [_back(house, 1, y) for y in _COURSES])
    pen.shape(
        [_back(house, x, y) for x, y in ((0, 0), (1, 0), (1, 0.08), (0, 0.08))], _shade((0.45, 0.43, 0.42), light)
    )
    for i in range(house.windows):
        x0 = (i + 0.5) / house.windows - 0.12
        pane = [_back(house, x, y) for x, y in ((x0, 0.35), (x0 + 0.24, 0.35), (x0 + 0.24, 0.74), (x0, 0.74))]
        _window(pen, house, pane, light)


_COURSES = (0.16, 0.28, 0.4, 0.52, 0.64, 0.76, 0.88)


def _courses(pen: _Pen, house: House, light: float, starts: list[Point], ends: list[Point]) -> None:
    """Lines on a wall: planks or rows of stone; a timber frame has its beams."""
    if house.style in (0, 3):
        for start, end in zip(starts, ends, strict=True):
            pen.line([start, end], _shade(house.wall, light * (0.84 if house.style == 0 else 0.78)), 0.012)
    if house.style == 2:
        beam = _shade((0.30, 0.2, 0.14), light)
        for i in (0, 3, 6):
            pen.line([starts[i], ends[i]], beam, 0.03)
        pen.line([starts[0], ends[6]], beam, 0.025)


def _gable_wall(pen: _Pen, house: House, light: float, *, detailed: bool) -> None:
    half, eave = house.gable / 2, house.eave
    apex, left, right, foot_right, foot_left = keypoints(house)
    pen.shape([apex, right, foot_right, foot_left, left], _shade(house.wall, light))
    if detailed:
        _courses(pen, house, light, [(-half, -eave * y) for y in _COURSES], [(half, -eave * y) for y in _COURSES])
    pen.shape([foot_left, foot_right, (half, -eave * 0.08), (-half, -eave * 0.08)], _shade((0.45, 0.43, 0.42), light))
    door = [(-0.36 * half, 0.0), (0.06 * half, 0.0), (0.06 * half, -0.66 * eave), (-0.36 * half, -0.66 * eave)]
    pen.shape(door, _shade((0.36, 0.22, 0.14), light))
    if detailed:
        pen.line([*door, door[0]], _shade((0.93, 0.91, 0.86), light), 0.016)
    x, y = 0.56 * half, -0.36 * eave
    _window(pen, house, _square(x, y, 0.23 * half, 0.38 * eave), light)
    _window(pen, house, _square(-0.72 * half, y, 0.17 * half, 0.38 * eave), light)
    _window(pen, house, _square(0.0, -eave - 0.28 * (1 - eave), 0.2 * half, 0.32 * (1 - eave)), light)


def _square(x: float, foot: float, half: float, height: float) -> list[Point]:
    return [(x - half, foot), (x + half, foot), (x + half, foot - height), (x - half, foot - height)]


def _window(pen: _Pen, house: House, pane: list[Point], light: float) -> None:
    glass = (255, 214, 120) if house.lit else _shade((0.36, 0.45, 0.55), light)
    pen.shape(pane, glass, glow=255 if house.lit else 0)
    frame = _shade((0.93, 0.91, 0.86), light)
    pen.line([*pane, pane[0]], frame, 0.014)
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = pane
    pen.line([((x0 + x1) / 2, (y0 + y1) / 2), ((x2 + x3) / 2, (y2 + y3) / 2)], frame, 0.012)
    pen.line([((x0 + x3) / 2, (y0 + y3) / 2), ((x1 + x2) / 2, (y1 + y2) / 2)], frame, 0.012)


def _roof(pen: _Pen, house: House, light: float, *, detailed: bool) -> None:
    half, eave = house.gable / 2, house.eave
    over = 0.07  # how far the roof reaches over the walls
    pitch = (1 - eave) / half
    near_apex, near_eave = (-0.02, -1.04), (half + over, -eave + over * pitch - 0.04)
    far_apex = (house.back * 0.97, -0.965)
    far_eave = (half + house.back + over * 0.8, -eave * 0.9 - 0.07 + over * pitch * 0.8)
    roof = (0.93, 0.95, 1.0) if house.snow else house.roof
    if house.chimney:
        x, top = house.back * 0.62, -1.13
        brick = (0.52, 0.32, 0.27)
        pen.shape([(x - 0.05, top), (x + 0.05, top), (x + 0.05, -0.8), (x - 0.05, -0.8)], _shade(brick, light))
        pen.shape(
            [(x - 0.065, top - 0.02), (x + 0.065, top - 0.02), (x + 0.065, top + 0.02), (x - 0.065, top + 0.02)],
            _shade(roof if house.snow else brick, 1.1),
        )
    pen.shape([near_apex, far_apex, far_eave, near_eave], _shade(roof, light))
    if detailed:
        for share in np.linspace(0.12, 0.94, 8):
            start = tuple(a + (b - a) * share for a, b in zip(near_apex, near_eave, strict=True))
            end = tuple(a + (b - a) * share for a, b in zip(far_apex, far_eave, strict=True))
            row = _shade(roof, light * (0.97 if house.snow else 0.82))
            pen.line([(start[0], start[1]), (end[0], end[1])], row, 0.012)
    board = _shade((0.95, 0.97, 1.0) if house.snow else house.roof, 1.0 if house.snow else 0.68)
    thick = 0.07 if house.snow else 0.045
    for side in (-1, 1):
        foot = (side * (half + over), near_eave[1])
        pen.shape([near_apex, foot, (foot[0], foot[1] + thick), (near_apex[0], near_apex[1] + thick * 1.3)], board)
    if house.snow:
        pen.line([near_eave, far_eave], _shade((0.72, 0.78, 0.9), 1.0), 0.02)
