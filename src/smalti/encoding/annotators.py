"""Annotators: conditions of an image, or of a crop of it, that need no tokenizer: label, caption, coordinates, boxes,
keypoints.

Notation: P prefix codes, h w grid of codes, H W pixels.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor

from smalti.conditions.base import Condition, Grid
from smalti.conditions.condition_registry import build_condition
from smalti.conditions.coordinates import Coordinates, CoordinatesSettings, ImageCrop
from smalti.conditions.keypoints import Keypoints, KeypointsSettings, encode_keypoints
from smalti.conditions.labels import Labels
from smalti.conditions.layout import Layout
from smalti.conditions.layout_codes import Annotation, LayoutSettings, encode_layout, shuffle_objects
from smalti.conditions.location_codes import Box
from smalti.conditions.text import Text, TextOptions, text_condition, train_vocabulary
from smalti.core.errors import SmaltiError, suggestion
from smalti.core.fingerprints import values_fingerprint
from smalti.core.settings import Fraction, as_mapping, parse, settings
from smalti.data.annotations.annotation_files import read_annotations
from smalti.data.annotations.objects import (
    Annotated,
    ObjectAnnotation,
    area,
    check_annotated_size,
    only,
    paired_annotations,
    paired_sizes,
)
from smalti.data.caption_files import read_captions, swap_sides
from smalti.data.crops import View, uniform_numbers
from smalti.data.loader import Crops
from smalti.data.paired import CropAnnotator
from smalti.hub.pretrained import find_model

logger = logging.getLogger("smalti")

T = TypeVar("T")

LEVELS = 1024
"""Codes between the first and the last pixel of an image, as in the original's coordinates."""
MAX_OBJECTS, MAX_FIGURES = 30, 4
"""What a layout, and an image of figures, have room for at most, by default."""
PLACES = 1025
"""Codes of a condition with places: 32 x 32 of them, and one for none."""


class Annotator(ABC):
    """A condition, and how it is said about the images of a set."""

    condition: Condition
    fingerprint: str
    """Of all that decides what a code means."""

    @abstractmethod
    def of(self, part: Crops) -> CropAnnotator:
        """The crops of some images -> what is said about them. Raises `SmaltiError` if nothing is known of one."""


def view_box(view: View) -> Box:
    """A view -> the part of the image that it shows, as fractions."""
    (height, width), (h, w) = view.whole, view.size
    return Box(view.left / width, view.top / height, w / width, h / height)


@final
@dataclass(frozen=True)
class _LabelCodes:
    """The code of each image's label."""

    codes: tuple[int, ...]

    def __call__(self, index: int, view: View, draw: int) -> Tensor:
        return torch.tensor([self.codes[index]])

    def check_size(self, index: int, key: str, full: tuple[int, int]) -> None:
        pass  # a label has no places

    def described(self) -> dict[str, Any]:
        return {"labels": values_fingerprint(self.codes)}


@final
class _Labels(Annotator):
    """The sub-folder that an image is in."""

    def __init__(self, data: Path | None, options: Mapping[str, Any], images: Crops, grid: Grid, factor: int) -> None:
        _check_no_options("labels", data, options)
        names = images.source.labels
        if not names:
            raise SmaltiError(f"the images of {images.source.path} have no labels (no sub-folders)")
        self.condition, self.fingerprint = Labels(names), values_fingerprint(names)
        self._places = {name: index for index, name in enumerate(names)}

    def of(self, part: Crops) -> CropAnnotator:
        missing = [image.key for image in part.images if image.label is None]
        if missing:
            raise SmaltiError(
                f"{missing[0]} is in no sub-folder and has no label, as {len(missing) - 1} more; move them into "
                "sub-folders"
            )
        return _LabelCodes(tuple(self._places[str(image.label)] for image in part.images))


@final
@dataclass(frozen=True)
class _CropCoordinates:
    """Where the part that is seen is in its image. A mirrored part is in a mirrored image."""

    condition: Coordinates

    def __call__(self, index: int, view: View, draw: int) -> Tensor:
        return self.condition.encode([ImageCrop(view.top, view.left_when_mirrored, view.whole)])[0]

    def check_size(self, index: int, key: str, full: tuple[int, int]) -> None:
        pass  # the view itself says where it lies

    def described(self) -> dict[str, Any]:
        return as_mapping(self.condition.settings)


@final
class _Coordinates(Annotator):
    """Where the part that is seen is in its image; settings: levels."""

    def __init__(self, data: Path | None, options: Mapping[str, Any], images: Crops, grid: Grid, factor: int) -> None:
        _check_no_options("coordinates", data, {})
        values = {
            "levels": LEVELS,
            "codebook_size": options.get("levels", LEVELS),
            **options,
            "factor": factor,
            "grid": grid,
        }
        settings = parse(CoordinatesSettings, values, where="the condition coordinates")
        self._coordinates = Coordinates(settings)
        self.condition, self.fingerprint = self._coordinates, values_fingerprint(as_mapping(settings))

    def of(self, part: Crops) -> CropAnnotator:
        return _CropCoordinates(self._coordinates)


@final
@dataclass(frozen=True)
class _ObjectCodes(Generic[T]):
    """The codes of the objects or figures of each image, in the part of it that is seen.

    Their order has no meaning, and training shows a prior many orders.
    """

    listed: tuple[tuple[T, ...], ...]
    settings: LayoutSettings | KeypointsSettings
    codes: Callable[..., tuple[int, ...]]
    """`encode_layout` or `encode_keypoints`."""
    seed: int
    sizes: tuple[tuple[float, float] | None, ...]
    """The (height, width) of each image for which they were written down, None if it is unknown."""
    path: Path
    """Where they stand."""

    def __call__(self, index: int, view: View, draw: int) -> Tensor:
        order = shuffle_objects(self.listed[index], random.Random(uniform_numbers(self.seed, draw)[0]))
        return torch.tensor(self.codes(order, self.settings, crop=view_box(view), flip=view.mirrored))

    def check_size(self, index: int, key: str, full: tuple[int, int]) -> None:
        size = self.sizes[index]
        if size is not None:
            check_annotated_size(key, full, size, self.path)

    def described(self) -> dict[str, Any]:
        return {"things": values_fingerprint(repr(self.listed)), **as_mapping(self.settings)}


@settings
class _ObjectFilter:
    """Which objects a layout contains."""

    classes: tuple[str, ...] = ()
    """Their names; without any, all that the annotations have."""
    smallest: Fraction = 0.0
    """The least fraction of its image that the box of an object takes, as in the original; smaller ones are left
    out."""


@final
class _Objects(Annotator):
    """The objects of an image and their boxes; settings: those of `LayoutSettings`, and `smallest`.

    `classes` keeps some of those that the annotations have, and `smallest` objects of some size; all others are left
    out.
    """

    def __init__(self, data: Path | None, options: Mapping[str, Any], images: Crops, grid: Grid, factor: int) -> None:
        annotated = _annotations("layout", data)
        chosen = {name: options[name] for name in ("classes", "smallest") if name in options}
        kept = parse(_ObjectFilter, chosen, where="the condition layout")
        known = {field.name for field in dataclasses.fields(LayoutSettings)} | {"smallest"}
        for name in options:
            if name not in known:
                raise SmaltiError(f"the condition layout: unknown key {name!r}; {suggestion(name, known)}")
        self.annotated = only(annotated, classes=kept.classes or annotated.classes, smallest=kept.smallest)
        classes = self.annotated.classes
        most = min(max((len(listed) for listed in self.annotated.images.values()), default=1), MAX_OBJECTS)
        sure = {"max_objects": max(most, 1), "codebook_size": max(PLACES, 16 * len(classes) + 2), "drawn": grid}
        others = {name: value for name, value in options.items() if name not in chosen}
        settings = parse(LayoutSettings, {**sure, **others, "classes": classes}, where="the condition layout")
        _check_drawn("layout", settings.drawn, grid)
        self.settings, self.condition, self.fingerprint = (
            settings,
            Layout(settings),
            values_fingerprint(as_mapping(settings)),
        )
        self._numbers = {name: number for number, name in enumerate(classes)}

    def of(self, part: Crops) -> CropAnnotator:
        found = paired_annotations(part.images, self.annotated)
        lists = tuple(tuple(map(self._annotation, _largest(listed, self.settings.max_objects))) for listed in found)
        sizes = paired_sizes(part.images, self.annotated)
        return _ObjectCodes(lists, self.settings, encode_layout, part.seed, sizes, self.annotated.path)

    def _annotation(self, annotation: ObjectAnnotation) -> Annotation:
        properties = annotation.group, annotation.occluded, annotation.depiction, annotation.inside
        return Annotation(self._numbers[annotation.name], Box(*annotation.box), *properties)


@final
class _Figures(Annotator):
    """The keypoints of an image's figures; settings: those of `KeypointsSettings` except the names of the points."""

    def __init__(self, data: Path | None, options: Mapping[str, Any], images: Crops, grid: Grid, factor: int) -> None:
        self.annotated = _annotations("keypoints", data)
        if not self.annotated.keypoints:
            raise SmaltiError(f"{self.annotated.path} has no keypoints; give annotations that do")
        figures = (
            sum(bool(annotation.keypoints) for annotation in listed) for listed in self.annotated.images.values()
        )
        most = min(max(figures, default=1), MAX_FIGURES)
        values = {
            "max_figures": max(most, 1),
            "codebook_size": PLACES,
            "drawn": grid,
            **options,
            "points": self.annotated.keypoints,
        }
        settings = parse(KeypointsSettings, values, where="the condition keypoints")
        _check_drawn("keypoints", settings.drawn, grid)
        self.settings, self.condition, self.fingerprint = (
            settings,
            Keypoints(settings),
            values_fingerprint(as_mapping(settings)),
        )

    def of(self, part: Crops) -> CropAnnotator:
        lists = []
        for listed in paired_annotations(part.images, self.annotated):
            figures = [annotation for annotation in listed if annotation.keypoints]
            lists.append(tuple(annotation.keypoints for annotation in _largest(figures, self.settings.max_figures)))
        sizes = paired_sizes(part.images, self.annotated)
        return _ObjectCodes(tuple(lists), self.settings, encode_keypoints, part.seed, sizes, self.annotated.path)


def _check_drawn(key: str, drawn: Grid, grid: Grid) -> None:
    """Raise `SmaltiError` for a map that has not a number for each code."""
    if drawn not in ((0, 0), grid):
        raise SmaltiError(
            f"the condition {key}: drawn = {drawn[0]} x {drawn[1]}, and images have {grid[0]} x {grid[1]} codes; leave "
            "it out, or give [0, 0] for no map"
        )


def _largest(listed: Sequence[ObjectAnnotation], most: int) -> Sequence[ObjectAnnotation]:
    """The things with the largest boxes, as many as there is room for, as they followed one another."""
    by_size = sorted(range(len(listed)), key=lambda index: -area(listed[index]))
    return [listed[index] for index in sorted(by_size[:most])]


def _annotations(key: str, data: Path | None) -> Annotated:
    if data is None:
        raise SmaltiError(f"the condition {key} is in a file of annotations; give it: --condition-data {key}=FILE")
    return read_annotations(data)


def _check_no_options(key: str, data: Path | None, options: Mapping[str, Any]) -> None:
    if data is not None:
        raise SmaltiError(f"the condition {key} needs no data of its own, {data} was given; leave it out")
    if options:
        raise SmaltiError(f"the condition {key} has no settings, {dict(options)} were given; leave them out")


@final
@dataclass(frozen=True)
class _TextCodes:
    """The codes of one of each image's captions; which one is drawn for every example."""

    captions: tuple[tuple[str, ...], ...]
    condition: Text
    swap_sides: bool
    seed: int

    def __call__(self, index: int, view: View, draw: int) -> Tensor:
        captions = self.captions[index] or ("",)
        caption = captions[random.Random(uniform_numbers(self.seed, draw)[0]).randrange(len(captions))]
        if view.mirrored and self.swap_sides:
            caption = swap_sides(caption)
        return self.condition.padded(self.condition.pieces(caption))

    def check_size(self, index: int, key: str, full: tuple[int, int]) -> None:
        pass  # a caption has no places

    def described(self) -> dict[str, Any]:
        return {
            "captions": values_fingerprint(self.captions),
            "swap_sides": self.swap_sides,
            **as_mapping(self.condition.settings),
        }


@final
class _Captions(Annotator):
    """The captions of images; settings as `TextOptions`.

    The vocabulary is learned from the captions of the training images, or is that of a model, `vocabulary_of`.
    """

    condition: Text

    def __init__(self, data: Path | None, options: Mapping[str, Any], images: Crops, grid: Grid, factor: int) -> None:
        self._options = parse(TextOptions, options, where="the condition text")
        self._captions = read_captions(images.source, data)
        all_captions = [caption for captions in self._of(images) for caption in captions]
        vocabulary = self._vocabulary(all_captions)
        self.condition = text_condition(vocabulary, length=self._options.length)
        self.fingerprint = values_fingerprint([as_mapping(self.condition.settings), self._options.swap_sides])
        counts = [len(self.condition.pieces(caption)) for caption in all_captions]
        cut = sum(count > self._options.length for count in counts)
        if cut:
            logger.warning(
                "%s of %s captions have more than %s codes, up to %s, and are cut; --condition-set text.length=%s "
                "keeps all",
                f"{cut:,}",
                f"{len(all_captions):,}",
                self._options.length,
                f"{max(counts):,}",
                max(counts),
            )

    def of(self, part: Crops) -> CropAnnotator:
        return _TextCodes(self._of(part), self.condition, self._options.swap_sides, part.seed)

    def _vocabulary(self, captions: Sequence[str]) -> str:
        """The vocabulary of another model, or the one that is learned from the captions."""
        name = self._options.vocabulary_of
        if not name:
            return train_vocabulary(captions, max_size=self._options.vocabulary)
        saved = find_model(name, kind="prior")
        condition = build_condition(saved.settings["condition"], saved.folder)
        texts = [each for each in condition.members if isinstance(each, Text)]
        if not texts:
            raise SmaltiError(
                f"--condition-set text.vocabulary_of={name}: this model is not conditioned on texts; name one that is, "
                "or leave it out"
            )
        return texts[0].vocabulary

    def _of(self, part: Crops) -> tuple[tuple[str, ...], ...]:
        """The captions of each image of a part, none where there are none."""
        return tuple(self._captions.get(image.key, ()) for image in part.images)


ANNOTATORS: dict[str, Callable[[Path | None, Mapping[str, Any], Crops, Grid, int], Annotator]] = {
    "labels": _Labels,
    "coordinates": _Coordinates,
    "layout": _Objects,
    "keypoints": _Figures,
    "text": _Captions,
}
"""Name -> its condition, from where its data lies, its settings, the images, their grid (h,w) and the pixels per
code."""
