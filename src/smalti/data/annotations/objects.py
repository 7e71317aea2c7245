"""What is known of the objects in pictures: their classes, boxes and keypoints, and which picture they belong to.

The files that hold it are read by `smalti.data.annotations.annotation_files`.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeAlias, final

from smalti.core.errors import SmaltiError, suggestion
from smalti.core.files import normalized
from smalti.data.sources import Picture

Place: TypeAlias = tuple[float, float]
"""x and y in shares of a picture's width and height, from the left top."""


class Thing(NamedTuple):
    """One object of a picture.

    `name` is that of its class, `box` its left, top, width and height in shares of the picture, within 0 to 1. `group`: the box
    holds several. `occluded`: something hides a part. `depiction`: it is a picture of the thing. `inside`: it is seen from
    within. `keypoints`: the places of `Annotated.keypoints`, which may lie outside the picture, None where one is not seen;
    empty for a class that has none.
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
    """All that a file or folder says of pictures.

    `classes`: their names, in the order of their numbers. `keypoints`: the names of the points, none where there are none.
    `pictures`: the objects of each by its name, the path below the folder of the pictures without suffix: `street/04`. `sizes`:
    what the file says of the pictures' (height, width) in pixels, by name; empty where it counts in shares.
    """

    path: Path
    classes: tuple[str, ...]
    keypoints: tuple[str, ...]
    pictures: Mapping[str, tuple[Thing, ...]]
    sizes: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def stem(key: str) -> str:
    """The key of a picture in its source -> its name for what lies beside it: `street/04.jpg` -> `street/04`.

    It is in the form NFC, so that files belong together which macOS and Linux wrote.
    """
    return normalized(PurePosixPath(key).with_suffix("").as_posix())


def stems(pictures: Sequence[Picture], known: Container[str]) -> list[str]:
    """The names of pictures for what lies beside them, as `stem` has them: by their keys, or by their paths below the root of
    their list where these are all `known`."""
    below = [stem(picture.portable_name) for picture in pictures]
    return below if all(name in known for name in below) else [stem(picture.key) for picture in pictures]


def beside(pictures: Sequence[Picture], annotated: Annotated) -> tuple[tuple[Thing, ...], ...]:
    """For each picture its objects, in the order of the pictures.

    Where no name in the file has a folder (COCO, Open Images), pictures are looked for by the last part of theirs also, as long
    as it is that of one picture. Raises `SmaltiError` for pictures of which the file says nothing; a picture without any
    object has an entry without any.
    """
    names = _names(pictures, annotated)
    missing = [picture.key for picture, name in zip(pictures, names, strict=True) if name not in annotated.pictures]
    if missing:
        more = f", nor of {len(missing) - 1} more" if len(missing) > 1 else ""
        example = next(iter(annotated.pictures), "street/04")
        raise SmaltiError(
            f"{annotated.path} says nothing of the picture {missing[0]}{more}; it names pictures by their paths below the folder "
            f"of all, without suffix, such as {example}: add an entry without objects for a picture that has none"
        )
    return tuple(annotated.pictures[name] for name in names)


def sizes_beside(pictures: Sequence[Picture], annotated: Annotated) -> tuple[tuple[float, float] | None, ...]:
    """For each picture the (height, width) that its annotations are for, None where the file says nothing of it."""
    return tuple(annotated.sizes.get(name) for name in _names(pictures, annotated))


def check_annotated_size(key: str, full: tuple[int, int], annotated: tuple[float, float], path: Path) -> None:
    """A picture's (height, width) upright, and the one that its annotations are for -> nothing.

    Raises `SmaltiError` unless one is the other, larger or smaller: boxes are then read as shares of the wrong sides, and lie
    elsewhere in the picture. Sides of a copy may be rounded to whole pixels.
    """
    (height, width), (rows, columns) = full, annotated
    turned = (height, width) == (columns, rows) != (rows, columns)
    if turned or abs(height * columns - width * rows) > rows + columns:
        hint = "; its EXIF orientation turns it by a quarter, and the file means it as it is stored" if turned else ""
        raise SmaltiError(
            f"{path} says that {key} is {rows:g}x{columns:g} pixels (height x width), and it is {height}x{width}{hint}; annotate "
            "the picture as it is seen, or save it with the sides that the file says"
        )


def _names(pictures: Sequence[Picture], annotated: Annotated) -> list[str]:
    """What the pictures are called in the file."""
    names = stems(pictures, annotated.pictures)
    if any("/" in name for name in annotated.pictures):
        return names
    whole: dict[str, str] = {}
    for name in names:
        last = name.rpartition("/")[2]
        if whole.setdefault(last, name) != name and last in annotated.pictures:
            raise SmaltiError(
                f"the pictures {whole[last]} and {name} have the same entry {last} in {annotated.path}; give the folder of "
                "one of them"
            )
    return [name.rpartition("/")[2] for name in names]


def only(annotated: Annotated, *, classes: Sequence[str], smallest: float) -> Annotated:
    """Annotations -> the same of some classes, and of objects whose boxes take at least a share `smallest` of their picture.

    A picture without any of them stays. Raises `SmaltiError` for a class that there is not, and where no object is left.
    """
    for name in map(normalized, classes):
        if name not in annotated.classes:
            raise SmaltiError(f"{annotated.path} has no class {name!r}; {suggestion(name, annotated.classes)}")
    wanted = frozenset(map(normalized, classes))
    pictures = {
        picture: tuple(thing for thing in things if thing.name in wanted and area(thing) >= smallest)
        for picture, things in annotated.pictures.items()
    }
    if any(annotated.pictures.values()) and not any(pictures.values()):
        raise SmaltiError(
            f"no object in {annotated.path} is left: none of the {len(wanted)} classes to keep takes {smallest:g} of its picture "
            "or more; keep more classes, or smaller objects"
        )
    return replace(annotated, classes=tuple(name for name in annotated.classes if name in wanted), pictures=pictures)


def area(thing: Thing) -> float:
    """The share of its picture that a thing's box takes."""
    return thing.box[2] * thing.box[3]
