"""Keypoints of figures as a condition: poses of persons, or corners of houses.

Notation: B batch, P prefix codes, h w grid of codes, n x n points of an image (see `location_codes`). The paper
(Esser et al., arXiv 2012.09841, section 4.2) generates persons from poses that are drawn as images; here the points
themselves are the codes, one each, so no separate tokenizer is needed.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, final

import numpy as np
import torch
from PIL import Image, ImageDraw
from pydantic import Field, field_validator
from torch import Tensor

from smalti.conditions.base import Grid, UnsizedCondition, WindowPrefix
from smalti.conditions.location_codes import (
    FULL_IMAGE,
    ROUNDING,
    Box,
    box_from_codes,
    check_crop,
    check_unique,
    corner_codes,
    flipped,
    outline,
    point_code,
    point_from_code,
    rasterize,
    relative_to_crop,
    window_crop,
)
from smalti.conditions.previews import palette
from smalti.core.errors import SmaltiError, suggestion
from smalti.core.files import normalized, read_json
from smalti.core.settings import Natural, Positive, as_mapping, settings
from smalti.images.boxes import is_number
from smalti.images.io import Array
from smalti.prior.window import Window, before_middle

Point: TypeAlias = tuple[float, float]
"""x and y as fractions of the image's width and height, from the left top."""
Figure: TypeAlias = tuple[Point | None, ...]
"""One position per point of the settings, None if it is not visible."""

_MAX_COORDINATE = 10.0  # points may be outside the image, but not that far: larger numbers are pixels
_SIDE = 256  # height and width of a preview in pixels
_GRAY = (160, 160, 160)


@settings
class KeypointsSettings:
    """The encoding of figures.

    `points`: the names of a figure's points, in the order of their codes. `max_figures`: the maximum number of
    figures. `codebook_size`: the number of codes, n x n positions plus one for "none". `encode_crop`: positions are
    relative to the whole image, and the visible crop takes two more codes; otherwise positions are relative to the
    crop. `drawn`: rows and columns of an additional map, in which each position has the index of a point there; (0,
    0) for none.
    """

    name: Literal["keypoints"] = "keypoints"
    points: Annotated[tuple[str, ...], Field(min_length=1)]
    max_figures: Positive = 4
    codebook_size: Annotated[int, Field(ge=5)] = 1025
    encode_crop: bool = True
    drawn: tuple[Natural, Natural] = (0, 0)

    @field_validator("points")
    @classmethod
    def _names_differ(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return check_unique(names, what="point")

    @property
    def none(self) -> int:
        """The code of an invisible point."""
        return self.codebook_size - 1

    @property
    def sections(self) -> int:
        """n: points along one side of an image."""
        return math.isqrt(self.codebook_size - 1)

    @property
    def list_length(self) -> int:
        """Number of codes of the list of figures and of the crop."""
        return self.max_figures * len(self.points) + 2 * self.encode_crop

    @property
    def length(self) -> int:
        """Number of codes per image."""
        return self.list_length + self.drawn[0] * self.drawn[1]

    @property
    def flip_permutation(self) -> tuple[int, ...]:
        """For each point the index of its counterpart in the mirrored image: left and right are exchanged."""
        index_of = {name: index for index, name in enumerate(self.points)}
        return tuple(index_of.get(_other_side(name), index) for index, name in enumerate(self.points))


def _other_side(name: str) -> str:
    """A name with left and right exchanged."""
    return re.sub("left|right|Left|Right|LEFT|RIGHT", lambda found: _SIDES[found[0]], name)


_SIDES = {"left": "right", "right": "left", "Left": "Right", "Right": "Left", "LEFT": "RIGHT", "RIGHT": "LEFT"}


class DecodedKeypoints(NamedTuple):
    """The decoded figures of an image, and the crop: `FULL_IMAGE` if the settings do not encode it."""

    figures: tuple[Figure, ...]
    crop: Box


def encode_keypoints(
    figures: Sequence[Figure], settings: KeypointsSettings, *, crop: Box = FULL_IMAGE, flip: bool = False
) -> tuple[int, ...]:
    """Figures in an image -> their `settings.length` codes, in order, for the part of the image in `crop`.

    The list is truncated first. Points outside the crop are invisible, and figures without visible points are
    dropped. `flip` mirrors the image left to right, and exchanges left and right points. Raises `SmaltiError` for a
    crop that is not a part of the image.
    """
    check_crop(crop)
    view = FULL_IMAGE if settings.encode_crop else crop
    order = settings.flip_permutation if flip else range(len(settings.points))
    codes: list[int] = []
    for figure in truncate_figures(figures, settings):
        assert len(figure) == len(settings.points), f"{len(figure)} points instead of {len(settings.points)}"
        visible = [_to_view(figure[number], crop, view) for number in order]
        if flip:
            visible = [_flipped(point) for point in visible]
        if any(visible):
            codes += [
                settings.none if point is None else point_code(*point, sections=settings.sections) for point in visible
            ]
    codes += [settings.none] * (settings.max_figures * len(settings.points) - len(codes))
    if settings.encode_crop:
        codes += corner_codes(flipped(crop) if flip else crop, sections=settings.sections)
    points = [
        (relative_to_crop(crop, Box(*point, 0.0, 0.0), flip=flip), number)
        for figure in truncate_figures(figures, settings)
        for number, point in enumerate(figure[source] for source in order)
        if point is not None and _to_view(point, crop, crop) is not None
    ]
    codes += rasterize(points, settings.drawn, empty=settings.none)
    assert len(codes) == settings.length
    return tuple(codes)


def truncate_figures(figures: Sequence[Figure], settings: KeypointsSettings) -> list[Figure]:
    """The first `max_figures` figures. Warns if figures are dropped."""
    if len(figures) > settings.max_figures:
        warnings.warn(
            f"{len(figures)} figures with keypoints; there is room for {settings.max_figures}, and the last ones are "
            "left out",
            stacklevel=2,
        )
    return list(figures[: settings.max_figures])


def _to_view(point: Point | None, crop: Box, view: Box) -> Point | None:
    """A point in an image -> relative to its part `view`; None if it is outside the crop."""
    if point is None:
        return None
    x, y = point[0] - crop.left, point[1] - crop.top
    if not (-ROUNDING <= x <= crop.width + ROUNDING and -ROUNDING <= y <= crop.height + ROUNDING):
        return None
    across, down = (point[0] - view.left) / view.width, (point[1] - view.top) / view.height
    return min(max(across, 0.0), 1.0), min(max(down, 0.0), 1.0)


def _flipped(point: Point | None) -> Point | None:
    return None if point is None else (1 - point[0], point[1])


def decode_keypoints(codes: Sequence[int], settings: KeypointsSettings) -> DecodedKeypoints:
    """The codes of keypoints -> the figures: the inverse of `encode_keypoints`, up to rounding.

    Raises `SmaltiError` for a number of codes other than `settings.length`.
    """
    if len(codes) != settings.length:
        raise SmaltiError(f"keypoints of this kind have {settings.length} codes, and {len(codes)} were given")
    positions, step = settings.sections**2, len(settings.points)
    points = [point_from_code(code, sections=settings.sections) if code < positions else None for code in codes]
    figures = [tuple(points[start : start + step]) for start in range(0, settings.max_figures * step, step)]
    crop_codes = codes[settings.list_length - 2 : settings.list_length]
    crop = box_from_codes(*crop_codes, sections=settings.sections) if settings.encode_crop else FULL_IMAGE
    return DecodedKeypoints(tuple(figure for figure in figures if any(figure)), crop)


@final
class Keypoints(UnsizedCondition):
    """Lists of figures -> (B,P): the positions of their points, and the visible crop.

    A figure is a list with (x, y), as fractions of the image, for each of `settings.points`, or None (null in JSON) if
    it is not visible; or a mapping of point names to positions without the invisible points. Points outside the
    image are invisible. The figures keep their order.
    """

    key = "keypoints"
    value_type = "json"
    middle = staticmethod(before_middle)

    def __init__(self, settings: KeypointsSettings) -> None:
        self.settings = settings
        self.size, self.length = settings.codebook_size, settings.length
        self.maps = (settings.list_length,) if math.prod(settings.drawn) else ()

    def read(self, text: str) -> tuple[Figure, ...]:
        """The path of a JSON file, a list of figures."""
        parsed = read_json(Path(text))
        if not isinstance(parsed, list):
            raise SmaltiError(f"{text} holds no list of figures; write [{self._example}, ...]")
        return self.figures(parsed)

    @property
    def _example(self) -> str:
        return f'{{"{self.settings.points[0]}": [x, y], ...}}'

    def figures(self, value: Any) -> tuple[Figure, ...]:
        """Figures as lists or mappings (see the class) -> figures. Raises `SmaltiError` for anything else."""
        if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
            raise SmaltiError(f"keypoints are a list of figures, not {value!r}")
        return tuple(self._figure(item, number) for number, item in enumerate(value, start=1))

    def _figure(self, item: Any, number: int) -> Figure:
        names = self.settings.points
        if isinstance(item, Mapping):
            named = {normalized(str(name)): point for name, point in item.items()}
            points = [normalized(name) for name in names]
            for name in named:
                if name not in points:
                    known = suggestion(name, names)
                    raise SmaltiError(f"figure {number} of the keypoints: there is no point {name!r}; {known}")
            values = [named.get(name) for name in points]
        elif isinstance(item, Sequence) and not isinstance(item, str):
            values = list(item)
        else:
            raise SmaltiError(f"figure {number} of the keypoints is {item!r}; write {self._example}")
        if len(values) != len(names):
            raise SmaltiError(
                f"figure {number} of the keypoints has {len(values)} points, and {len(names)} have names "
                f"({', '.join(names)}); give null for those that are not visible"
            )
        return tuple(_parse_point(point, name, number) for point, name in zip(values, names, strict=True))

    def encode(self, values: Sequence[Any]) -> Tensor:
        return self._codes([self.figures(value) for value in values], FULL_IMAGE)

    def encode_windows(self, values: Sequence[Any], *, grid: Grid) -> WindowPrefix:
        """As in the base class; the crop is the window."""
        images = [truncate_figures(self.figures(value), self.settings) for value in values]

        def prefix_at(window: Window) -> Tensor:
            return self._codes(images, window_crop(window, grid=grid))

        return prefix_at

    def _codes(self, images: Sequence[Sequence[Figure]], crop: Box) -> Tensor:
        rows = [encode_keypoints(figures, self.settings, crop=crop) for figures in images]
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self.length)

    def preview(self, codes: Tensor) -> Array:
        """Codes (P,) -> a colored dot for each point, lines between consecutive points, and the crop in gray."""
        decoded = decode_keypoints(codes.tolist(), self.settings)
        image = Image.new("RGB", (_SIDE, _SIDE), "white")
        draw = ImageDraw.Draw(image)
        if self.settings.encode_crop:
            draw.rectangle(outline(decoded.crop, side=_SIDE), outline=_GRAY, width=3)
        colors = palette(len(self.settings.points)).tolist()
        for figure in decoded.figures:
            pixels = [(point[0] * (_SIDE - 1), point[1] * (_SIDE - 1)) for point in figure if point is not None]
            draw.line(pixels, fill=_GRAY)
            point_colors = [tuple(color) for color, point in zip(colors, figure, strict=True) if point is not None]
            for (x, y), color in zip(pixels, point_colors, strict=True):
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=color)
        return np.asarray(image)

    def save(self, folder: Path) -> dict[str, Any]:
        return as_mapping(self.settings)


def _parse_point(value: Any, name: str, number: int) -> Point | None:
    if value is None:
        return None
    is_pair = isinstance(value, Sequence) and len(value) == 2
    if not is_pair or not all(is_number(coordinate) and abs(coordinate) <= _MAX_COORDINATE for coordinate in value):
        raise SmaltiError(
            f"figure {number} of the keypoints: {name} is at {value!r}; give x and y as fractions of the image, from 0 "
            "to 1, not in pixels, or null where it is not visible"
        )
    return float(value[0]), float(value[1])
