"""Scene layouts as codes: each object as two or three codes for its class and box, and two codes for the crop.

The format is that of the original's scene models. A position is one code (see `location_codes`), and n is the root
of the number of codes. An object is the code of its class, followed by the codes of its box's two corners, or of
its center. The list is padded with the last code, which means "none".
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, TypeVar, final

from pydantic import Field, field_validator

from smalti.conditions.location_codes import (
    FULL_IMAGE,
    Box,
    box_from_codes,
    check_crop,
    check_unique,
    corner_codes,
    flipped,
    point_code,
    point_from_code,
    rasterize,
    relative_to_crop,
)
from smalti.core.errors import SmaltiError
from smalti.core.settings import Natural, Positive, settings

Codes = tuple[int, ...]
T = TypeVar("T")

_MAX_COORDINATE = 2.0  # a box may reach beyond its image, but not that far: then its numbers are pixels


@final
@dataclass(frozen=True)
class Annotation:
    """An object in an image: its class index, its box and its properties.

    `group`: the box holds several objects. `occluded`: a part is hidden. `depiction`: it is an image of the object.
    `inside`: it is seen from within. Raises `SmaltiError` for an invalid class or box.
    """

    category: int
    box: Box
    group: bool = False
    occluded: bool = False
    depiction: bool = False
    inside: bool = False

    def __post_init__(self) -> None:
        if self.category < 0:
            raise SmaltiError(f"the class {self.category} of an object is negative; classes are counted from 0")
        if len(self.box) != 4 or not all(abs(number) <= _MAX_COORDINATE for number in self.box):  # NaN fails too
            raise SmaltiError(
                f"{tuple(self.box)} is not a box: give left, top, width, height as fractions of the image, from 0 to "
                "1, not in pixels"
            )
        if self.box[2] < 0 or self.box[3] < 0:
            raise SmaltiError(
                f"the box {tuple(self.box)} has a negative width or height; give left, top, width, height"
            )


@settings
class LayoutSettings:
    """The encoding of layouts.

    `classes`: the names of the object classes, in order. `max_objects`: the maximum number of objects.
    `codebook_size`: the number of codes. `geometry`: an object's `boxes` (two codes) or `centers` (one).
    `encode_crop`: boxes are relative to the whole image, and the visible crop takes two more codes; otherwise boxes
    are relative to the crop. `group` and `flags`: whether an object's code contains the group property, and the
    three other properties of `Annotation`. `drawn`: rows and columns of an additional map, in which each position
    has the code of the smallest object whose box contains it; (0, 0) for none. The original has no such map: its
    prior learns the meaning of the position codes.
    """

    name: Literal["layout"] = "layout"
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    max_objects: Positive = 30
    codebook_size: Annotated[int, Field(ge=4)]
    geometry: Literal["boxes", "centers"] = "boxes"
    encode_crop: bool = True
    group: bool = False
    flags: bool = False
    drawn: tuple[Natural, Natural] = (0, 0)

    @field_validator("classes")
    @classmethod
    def _names_differ(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return check_unique(names, what="class")

    @property
    def none(self) -> int:
        """The padding code."""
        return self.codebook_size - 1

    @property
    def sections(self) -> int:
        """n: points along one side of an image."""
        return math.isqrt(self.codebook_size)

    @property
    def codes_per_object(self) -> int:
        """One for the class, and the codes of the box or center."""
        return 1 + _CODES_PER_BOX[self.geometry]

    @property
    def list_length(self) -> int:
        """Number of codes of the list of objects and of the crop."""
        return self.max_objects * self.codes_per_object + 2 * self.encode_crop

    @property
    def length(self) -> int:
        """Number of codes per layout."""
        return self.list_length + self.drawn[0] * self.drawn[1]


_CODES_PER_BOX = {"boxes": 2, "centers": 1}
_BITS = {"group": 1, "occluded": 2, "depiction": 4, "inside": 8}
"""Property of an object -> its part of a number that is multiplied with the number of classes and added to the
class."""


def truncate_objects(annotations: Sequence[Annotation], settings: LayoutSettings) -> list[Annotation]:
    """The first `max_objects` objects. Warns if objects are dropped."""
    if len(annotations) > settings.max_objects:
        warnings.warn(
            f"a layout of {len(annotations)} objects; there is room for {settings.max_objects}, and the last ones are "
            "left out",
            stacklevel=2,
        )
    return list(annotations[: settings.max_objects])


def shuffle_objects(annotations: Sequence[T], rng: random.Random) -> list[T]:
    """A copy of the objects in random order.

    The order has no meaning, and training shows a prior many of them. Truncate first.
    """
    order = list(annotations)
    rng.shuffle(order)
    return order


def encode_layout(
    annotations: Sequence[Annotation], settings: LayoutSettings, *, crop: Box = FULL_IMAGE, flip: bool = False
) -> Codes:
    """Objects in an image -> their `settings.length` codes, in order, for the part of the image in `crop`.

    The list is truncated first; then objects outside the crop are dropped. `flip` mirrors the image left to right.
    Raises `SmaltiError` for a crop that is not a part of the image, and for an object whose class or properties
    have no code.
    """
    check_crop(crop)
    visible = [
        annotation for annotation in truncate_objects(annotations, settings) if _overlap(annotation.box, crop) > 0
    ]
    view = FULL_IMAGE if settings.encode_crop else crop
    codes: list[int] = []
    for annotation in visible:
        box = _to_view(annotation.box, view)
        codes += (_object_code(annotation, settings), *_place_codes(flipped(box) if flip else box, settings))
    codes += [settings.none] * (settings.max_objects - len(visible)) * settings.codes_per_object
    if settings.encode_crop:
        codes += corner_codes(flipped(crop) if flip else crop, sections=settings.sections)
    shapes = [
        (relative_to_crop(crop, annotation.box, flip=flip), _object_code(annotation, settings))
        for annotation in visible
    ]
    codes += rasterize(shapes, settings.drawn, empty=settings.none)
    assert len(codes) == settings.length
    return tuple(codes)


def _object_code(annotation: Annotation, settings: LayoutSettings) -> int:
    count = len(settings.classes)
    if annotation.category >= count:
        raise SmaltiError(f"there is no object class {annotation.category}; classes are 0 to {count - 1}")
    bits = sum(
        bit
        for (name, bit), encoded in zip(_BITS.items(), _encoded_properties(settings), strict=True)
        if encoded and getattr(annotation, name)
    )
    code = annotation.category + count * bits
    if code >= settings.none:
        raise SmaltiError(
            f"an object of the class {annotation.category} of {count} with the properties {bits} has the code {code}, "
            f"and codes of objects are 0 to {settings.none - 1}; raise size to {code + 2}, or turn flags or group off"
        )
    return code


def _encoded_properties(settings: LayoutSettings) -> tuple[bool, bool, bool, bool]:
    """Which properties, in the order of `_BITS`, an object's code contains."""
    return settings.group, settings.flags, settings.flags, settings.flags


def _place_codes(box: Box, settings: LayoutSettings) -> Codes:
    if settings.geometry == "boxes":
        return corner_codes(box, sections=settings.sections)
    return (point_code(box.left + box.width / 2, box.top + box.height / 2, sections=settings.sections),)


def _overlap(first: Box, second: Box) -> float:
    """The area that two boxes share."""
    width = min(first.left + first.width, second.left + second.width) - max(first.left, second.left)
    height = min(first.top + first.height, second.top + second.height) - max(first.top, second.top)
    return max(width, 0.0) * max(height, 0.0)


def _to_view(box: Box, view: Box) -> Box:
    """A box in an image -> in a part of it, moved and scaled.

    A box that begins outside the part is moved to its border and keeps its width or height, as in the training of the
    original's models. What reaches beyond the part on the other side is cut off.
    """
    left = min(max((box.left - view.left) / view.width, 0.0), 1.0)
    top = min(max((box.top - view.top) / view.height, 0.0), 1.0)
    return Box(left, top, min(box.width / view.width, 1 - left), min(box.height / view.height, 1 - top))


class DecodedObject(NamedTuple):
    """A decoded object. `geometry` is (left, top, width, height), or (x, y) if only centers are encoded."""

    code: int
    category: int
    group: bool
    occluded: bool
    depiction: bool
    inside: bool
    geometry: tuple[float, ...]


class DecodedLayout(NamedTuple):
    """A decoded layout. If the crop is not encoded, it is the whole visible part."""

    objects: tuple[DecodedObject, ...]
    crop: Box


def decode_layout(codes: Sequence[int], settings: LayoutSettings) -> DecodedLayout:
    """The codes of a layout -> the layout: the inverse of `encode_layout`, up to rounding.

    Raises `SmaltiError` for a number of codes other than `settings.length`.
    """
    if len(codes) != settings.length:
        raise SmaltiError(f"a layout of this kind has {settings.length} codes, and {len(codes)} were given")
    step, crop = settings.codes_per_object, codes[settings.list_length - 2 : settings.list_length]
    objects = [codes[start : start + step] for start in range(0, settings.max_objects * step, step)]
    decoded = tuple(
        _decode_object(object_codes, settings) for object_codes in objects if object_codes[0] != settings.none
    )
    return DecodedLayout(
        decoded, box_from_codes(*crop, sections=settings.sections) if settings.encode_crop else FULL_IMAGE
    )


def _decode_object(codes: Sequence[int], settings: LayoutSettings) -> DecodedObject:
    bits, category = divmod(codes[0], len(settings.classes))
    properties = {
        name: bool(bits & bit) and encoded
        for (name, bit), encoded in zip(_BITS.items(), _encoded_properties(settings), strict=True)
    }
    n = settings.sections
    has_boxes = settings.geometry == "boxes"
    geometry = box_from_codes(codes[1], codes[2], sections=n) if has_boxes else point_from_code(codes[1], sections=n)
    return DecodedObject(codes[0], category, **properties, geometry=tuple(geometry))
