"""Scene layouts as codes: objects with a class and a box, each written as two or three codes, and a crop as two more.

The format is that of the original's scene models. A place is one code (see `places`), n the root of the number of codes. An
object is the code of what it is, followed by the places of its box's two corners, or by that of its middle; a list is filled
up with the last code, which says "none". `Box` and `FULL_IMAGE` are named here too.
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
from smalti.core.settings import Positive, settings

Codes = tuple[int, ...]
T = TypeVar("T")

_MAX_COORDINATE = 2.0  # a box may reach beyond its image, but not that far: then its numbers are pixels


@final
@dataclass(frozen=True)
class Annotation:
    """An object in an image: the number of its class, its box, and what else is known.

    `group`: the box holds several. `occluded`: something hides a part. `depiction`: it is an image of the thing.
    `inside`: it is seen from within. Raises `SmaltiError` for a class or a box that cannot be.
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
                f"{tuple(self.box)} is not a box: give left, top, width, height as shares of the image, from 0 to 1, "
                "not in pixels"
            )
        if self.box[2] < 0 or self.box[3] < 0:
            raise SmaltiError(
                f"the box {tuple(self.box)} has a negative width or height; give left, top, width, height"
            )


@settings
class LayoutSettings:
    """How layouts are written as codes.

    `classes`: the names of the object classes, in the order of their numbers. `most`: objects a layout has room for.
    `size`: how many codes there are. `places`: an object's `boxes` (two codes) or `centers` (one). `encode_crop`: boxes are
    those in the whole image, and the part of it that is seen is two codes more; else boxes are those in the part.
    `group` and `flags`: whether an object's code tells of groups, and of the three other properties of `Annotation`.
    `rasterize`: rows and columns of a map behind all that, in which each place has the code of the smallest object whose box holds
    it, as in what is seen; (0, 0) for none. The original has none: its prior finds out from numbers which places they mean.
    """

    name: Literal["layout"] = "layout"
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    max_objects: Positive = 30
    codebook_size: Annotated[int, Field(ge=4)]
    places: Literal["boxes", "centers"] = "boxes"
    encode_crop: bool = True
    group: bool = False
    flags: bool = False
    drawn: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (0, 0)

    @field_validator("classes")
    @classmethod
    def _names_differ(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return check_unique(names, what="class")

    @property
    def none(self) -> int:
        """The code that fills up a layout with fewer objects than there is room for."""
        return self.codebook_size - 1

    @property
    def sections(self) -> int:
        """n: points along one side of an image."""
        return math.isqrt(self.codebook_size)

    @property
    def codes_per_object(self) -> int:
        """What it is, and where."""
        return 1 + _CODES_PER_BOX[self.places]

    @property
    def list_length(self) -> int:
        """Codes of the list of objects and of the crop."""
        return self.max_objects * self.codes_per_object + 2 * self.encode_crop

    @property
    def length(self) -> int:
        """Codes a layout."""
        return self.list_length + self.drawn[0] * self.drawn[1]


_CODES_PER_BOX = {"boxes": 2, "centers": 1}
_BITS = {"group": 1, "occluded": 2, "depiction": 4, "inside": 8}
"""Property of an object -> its part of a number that is multiplied with the number of classes and added to the class."""


def truncate(annotations: Sequence[Annotation], settings: LayoutSettings) -> list[Annotation]:
    """The first objects, as many as there is room for. Warns when others are left out."""
    if len(annotations) > settings.max_objects:
        warnings.warn(
            f"a layout of {len(annotations)} objects; there is room for {settings.max_objects}, and the last ones are left out",
            stacklevel=2,
        )
    return list(annotations[: settings.max_objects])


def shuffle_objects(annotations: Sequence[T], rng: random.Random) -> list[T]:
    """The objects in another order, drawn from `rng`; what was given keeps its own.

    Their order says nothing, and a prior in training is shown many of them. Shorten first.
    """
    order = list(annotations)
    rng.shuffle(order)
    return order


def encode_layout(
    annotations: Sequence[Annotation], settings: LayoutSettings, *, crop: Box = FULL_IMAGE, flip: bool = False
) -> Codes:
    """Objects in an image -> the `settings.length` codes of them, in their order, as seen in a part of it, `crop`.

    What lies outside the crop is left out, after the list was shortened to what there is room for. `flip` mirrors the
    image left to right. Raises `SmaltiError` for a crop that is no part of the image, and for an object whose class or
    properties have no code.
    """
    check_crop(crop)
    visible = [annotation for annotation in truncate(annotations, settings) if _overlap(annotation.box, crop) > 0]
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
            f"an object of the class {annotation.category} of {count} with the properties {bits} has the code {code}, and "
            f"codes of objects are 0 to {settings.none - 1}; raise size to {code + 2}, or turn flags or group off"
        )
    return code


def _encoded_properties(settings: LayoutSettings) -> tuple[bool, bool, bool, bool]:
    """Which properties, in the order of `_BITS`, an object's code tells of."""
    return settings.group, settings.flags, settings.flags, settings.flags


def _place_codes(box: Box, settings: LayoutSettings) -> Codes:
    if settings.places == "boxes":
        return corner_codes(box, sections=settings.sections)
    return (point_code(box.left + box.width / 2, box.top + box.height / 2, sections=settings.sections),)


def _overlap(first: Box, second: Box) -> float:
    """The area that two boxes share."""
    width = min(first.left + first.width, second.left + second.width) - max(first.left, second.left)
    height = min(first.top + first.height, second.top + second.height) - max(first.top, second.top)
    return max(width, 0.0) * max(height, 0.0)


def _to_view(box: Box, view: Box) -> Box:
    """A box in an image -> in a part of it, moved and scaled.

    A box that begins outside the part is moved to its border and keeps its width or height: so it was done where the
    original's models were trained. What reaches beyond the part on the other side is cut off.
    """
    left = min(max((box.left - view.left) / view.width, 0.0), 1.0)
    top = min(max((box.top - view.top) / view.height, 0.0), 1.0)
    return Box(left, top, min(box.width / view.width, 1 - left), min(box.height / view.height, 1 - top))


class DecodedObject(NamedTuple):
    """An object as its codes tell of it. `place` is (left, top, width, height), or (x, y) where only centers are written."""

    code: int
    category: int
    group: bool
    occluded: bool
    depiction: bool
    inside: bool
    place: tuple[float, ...]


class DecodedLayout(NamedTuple):
    """A layout as its codes tell of it. Where the crop is not among them, it is the whole of what is seen."""

    objects: tuple[DecodedObject, ...]
    crop: Box


def decode_layout(codes: Sequence[int], settings: LayoutSettings) -> DecodedLayout:
    """The codes of a layout -> what they say: the inverse of `encode_layout`, as far as rounding lets it be.

    Raises `SmaltiError` for another number of codes than `settings.length`.
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
    has_boxes = settings.places == "boxes"
    place = box_from_codes(codes[1], codes[2], sections=n) if has_boxes else point_from_code(codes[1], sections=n)
    return DecodedObject(codes[0], category, **properties, place=tuple(place))
