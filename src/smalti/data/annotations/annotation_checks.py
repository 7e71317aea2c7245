"""What is true of the objects in all files of annotations: checks, and numbers as shares of the image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from smalti.core.errors import SmaltiError
from smalti.core.files import normalized
from smalti.data.annotations.objects import Annotated, ObjectAnnotation
from smalti.images.boxes import Size, is_number
from smalti.images.io import IMAGE_SUFFIXES

Plain: TypeAlias = Mapping[str, Any]
"""A mapping as it stands in a JSON file."""

NO_SIZES: Mapping[str, Size] = MappingProxyType({})


class At(NamedTuple):
    """An object: where it stands, for errors."""

    path: Path
    image: str
    kind: str
    number: int | str

    def error(self, problem: str) -> SmaltiError:
        """What is wrong with it, to be raised."""
        return SmaltiError(f"{self.path}: {self.kind} {self.number} of the image {self.image}: {problem}")


def image_name(text: Any, path: Path) -> str:
    """What a file calls an image -> its name: with forward slashes, without the suffix of images, in the form NFC.

    Raises `SmaltiError` for what is no name.
    """
    if not isinstance(text, str) or not text.strip("./\\ "):
        raise SmaltiError(f"{path}: {text!r} is no name of an image; write its path, such as street/04.jpg")
    name = PurePosixPath(normalized(text).replace("\\", "/"))
    return (name.with_suffix("") if name.suffix.lower() in IMAGE_SUFFIXES else name).as_posix()


def items(path: Path, value: Any, what: str) -> list[dict[str, Any]]:
    """A list of mappings, as it is. Raises `SmaltiError`, where it is called `what`, for anything else."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise SmaltiError(f"{path}: {what} is no list of mappings; write [{{...}}, ...]")
    return value


def different_names(path: Path, value: Any, what: str) -> tuple[str, ...]:
    """A list of different names -> the same in the form NFC.

    Raises `SmaltiError`, where they are called `what`, for anything else.
    """
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise SmaltiError(f"{path}: {what} is no list of names but {value!r}")
    names = tuple(normalized(name) for name in value)
    several = [name for name, count in Counter(names).items() if count > 1]
    if several:
        raise SmaltiError(f"{path}: {what}: {several[0]!r} is there twice; give each a name of its own")
    return names


def whole_number(value: Any) -> Any:
    """The number of an image or a class -> the same, where it is whole as an int; other values stay what they are.

    Programs write 1.0 for 1 where a column of their table has gaps.
    """
    return int(value) if isinstance(value, float) and value.is_integer() else value


def size_of(one: Plain, path: Path, name: str) -> Size:
    """What is said of an image -> its width and height. Raises `SmaltiError` where they are not said."""
    width: Any = one.get("width")
    height: Any = one.get("height")
    if not all(is_number(side) and side > 0 for side in (width, height)):
        raise SmaltiError(
            f"{path}: the image {name} has no size (width {width!r}, height {height!r}), and its boxes are in pixels; add both"
        )
    return float(width), float(height)


def collected(
    path: Path,
    classes: Sequence[str],
    keypoints: Sequence[str],
    images: Plain,
    *,
    sizes: Mapping[str, Size] = NO_SIZES,
) -> Annotated:
    """What a file says, with the lists that grew while it was read; `sizes` by the names of images."""
    listed_ = {name: tuple(listed) for name, listed in images.items()}
    upright = {name: (height, width) for name, (width, height) in sizes.items()}
    return Annotated(path, tuple(classes), tuple(keypoints), listed_, upright)


def occurring(images: Mapping[str, Sequence[ObjectAnnotation]]) -> list[str]:
    """The classes of things, in alphabetical order."""
    return sorted({annotation.name for listed_ in images.values() for annotation in listed_})


def twice(path: Path, name: str) -> SmaltiError:
    """What is wrong where an image has two entries, to be raised."""
    return SmaltiError(f"{path} holds the image {name} twice; join its objects to one entry, or remove one")


def other_number(places: Any, names: Sequence[str]) -> str:
    """What is wrong with keypoints that are not as many as their names."""
    number = f"{len(places)} keypoints" if isinstance(places, list) else f"the keypoints {places!r}"
    return f"it has {number}, and {len(names)} have names ({', '.join(names)}); give as many places as names"
