"""What is known of the objects in images: their classes, boxes and keypoints, and which image they belong to.

The files that hold it are read by `smalti.data.annotations.annotation_files`.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeAlias, final

from smalti.core.errors import SmaltiError, suggestion
from smalti.core.files import normalized
from smalti.data.image_entries import ImageEntry

Place: TypeAlias = tuple[float, float]
"""x and y as fractions of an image's width and height, from the left top."""


class ObjectAnnotation(NamedTuple):
    """One object of an image.

    `name` is that of its class, `box` its left, top, width and height as fractions of the image, within 0 to 1.
    `group`: the box holds several. `occluded`: something hides a part. `depiction`: it is an image of the thing.
    `inside`: it is seen from within. `keypoints`: the places of `Annotated.keypoints`, which may be outside the image,
    None where one is not seen; empty for a class that has none.
    """

    name: str
    box: tuple[float, float, float, float]
    group: bool = False
    occluded: bool = False
    depiction: bool = False
    inside: bool = False
    keypoints: tuple[Place | None, ...] = ()


@final
@dataclass(frozen=True)
class Annotated:
    """All that a file or folder says about images.

    `classes`: their names, in the order of their numbers. `keypoints`: the names of the points, none where there are
    none. `images`: the objects of each by its name, the path below the folder of the images without suffix:
    `street/04`. `sizes`: what the file says about the images' (height, width) in pixels, by name; empty where it counts
    as fractions.
    """

    path: Path
    classes: tuple[str, ...]
    keypoints: tuple[str, ...]
    images: Mapping[str, tuple[ObjectAnnotation, ...]]
    sizes: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def stem(key: str) -> str:
    """The key of an image in its source -> its name for what is beside it: `street/04.jpg` -> `street/04`.

    It is in the form NFC, so that files belong together which macOS and Linux wrote.
    """
    path = PurePosixPath(key)
    return normalized((path.with_suffix("") if path.name else path).as_posix())  # "." and "/" have no name


def stems(images: Sequence[ImageEntry], known: Container[str]) -> list[str]:
    """The names of images for what is beside them, as `stem` has them: by their keys, or by their paths below the root
    of their list where these are all `known`."""
    below = [stem(image.portable_name) for image in images]
    return below if all(name in known for name in below) else [stem(image.key) for image in images]


def paired_annotations(images: Sequence[ImageEntry], annotated: Annotated) -> tuple[tuple[ObjectAnnotation, ...], ...]:
    """For each image its objects, in the order of the images.

    Where no name in the file has a folder (COCO, Open Images), images are also found by the last part of their key,
    if it is unique. Raises `SmaltiError` for images that the file does not contain; an image without
    any object has an entry without any.
    """
    names = _names(images, annotated)
    missing = [image.key for image, name in zip(images, names, strict=True) if name not in annotated.images]
    if missing:
        more = f", nor of {len(missing) - 1} more" if len(missing) > 1 else ""
        example = next(iter(annotated.images), "street/04")
        raise SmaltiError(
            f"{annotated.path} says nothing about the image {missing[0]}{more}; it names images by their paths below "
            f"the folder of all, without suffix, such as {example}: add an entry without objects for an image that has "
            "none"
        )
    return tuple(annotated.images[name] for name in names)


def paired_sizes(images: Sequence[ImageEntry], annotated: Annotated) -> tuple[tuple[float, float] | None, ...]:
    """For each image the (height, width) that its annotations are for, None if the file does not contain it."""
    return tuple(annotated.sizes.get(name) for name in _names(images, annotated))


def check_annotated_size(key: str, full: tuple[int, int], annotated: tuple[float, float], path: Path) -> None:
    """An image's (height, width) upright, and the one that its annotations are for -> nothing.

    Raises `SmaltiError` unless one is the other, larger or smaller: boxes are then read as fractions of the wrong
    sides, and lie elsewhere in the image. Sides of a copy may be rounded to whole pixels.
    """
    (height, width), (rows, columns) = full, annotated
    turned = (height, width) == (columns, rows) != (rows, columns)
    if turned or abs(height * columns - width * rows) > rows + columns:
        hint = "; its EXIF orientation turns it by a quarter, and the file means it as it is stored" if turned else ""
        raise SmaltiError(
            f"{path} says that {key} is {rows:g}x{columns:g} pixels (height x width), and it is "
            f"{height}x{width}{hint}; annotate the image as it is seen, or save it with the sides that the file says"
        )


def _names(images: Sequence[ImageEntry], annotated: Annotated) -> list[str]:
    """What the images are called in the file."""
    names = stems(images, annotated.images)
    if any("/" in name for name in annotated.images):
        return names
    whole: dict[str, str] = {}
    for name in names:
        last = name.rpartition("/")[2]
        if whole.setdefault(last, name) != name and last in annotated.images:
            raise SmaltiError(
                f"the images {whole[last]} and {name} have the same entry {last} in {annotated.path}; give the folder "
                "of one of them"
            )
    return [name.rpartition("/")[2] for name in names]


def only(annotated: Annotated, *, classes: Sequence[str], smallest: float) -> Annotated:
    """Annotations -> the same of some classes, and of objects whose boxes take at least a fraction `smallest` of their
    image.

    An image without any of them stays. Raises `SmaltiError` for a class that there is not, and where no object is left.
    """
    for name in map(normalized, classes):
        if name not in annotated.classes:
            raise SmaltiError(f"{annotated.path} has no class {name!r}; {suggestion(name, annotated.classes)}")
    wanted = frozenset(map(normalized, classes))
    images = {
        image: tuple(annotation for annotation in objects if annotation.name in wanted and area(annotation) >= smallest)
        for image, objects in annotated.images.items()
    }
    if any(annotated.images.values()) and not any(images.values()):
        raise SmaltiError(
            f"no object in {annotated.path} is left: none of the {len(wanted)} classes to keep takes {smallest:g} of "
            "its image or more; keep more classes, or smaller objects"
        )
    return replace(annotated, classes=tuple(name for name in annotated.classes if name in wanted), images=images)


def area(annotation: ObjectAnnotation) -> float:
    """The share of its image that a thing's box takes."""
    return annotation.box[2] * annotation.box[3]
