"""What is true of the objects in all files of annotations: checks, and numbers as shares of the picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from smalti.data.annotations import Annotated, Place, Thing
from smalti.errors import SmaltiError
from smalti.images import IMAGE_SUFFIXES

Plain: TypeAlias = Mapping[str, Any]
"""A mapping as it stands in a JSON file."""
Size: TypeAlias = tuple[float, float]
"""Width and height, by which numbers are divided."""

NO_SIZES: Mapping[str, Size] = MappingProxyType({})
SHARES: Size = (1.0, 1.0)
"""The size of a picture in whose shares the numbers are."""

_BEYOND = 0.01  # a share of the picture; by so much rounding may carry a box beyond it
_LARGEST = 1e9  # of numbers in files; more is no place and no size
_FARTHEST = 10.0  # pictures; a keypoint may be cut off with its object, but is never so far outside


class At(NamedTuple):
    """An object: where it stands, for errors."""

    path: Path
    picture: str
    kind: str
    number: int | str

    def error(self, said: str) -> SmaltiError:
        """What is wrong with it, to be raised."""
        return SmaltiError(f"{self.path}: {self.kind} {self.number} of the picture {self.picture}: {said}")


def picture_name(text: Any, path: Path) -> str:
    """What a file calls a picture -> its name: with forward slashes, and without the suffix of pictures.

    Raises `SmaltiError` for what is no name.
    """
    if not isinstance(text, str) or not text.strip("./\\ "):
        raise SmaltiError(f"{path}: {text!r} is no name of a picture; write its path, such as street/04.jpg")
    name = PurePosixPath(text.replace("\\", "/"))
    return (name.with_suffix("") if name.suffix.lower() in IMAGE_SUFFIXES else name).as_posix()


def items(path: Path, value: Any, what: str) -> list[dict[str, Any]]:
    """A list of mappings, as it is. Raises `SmaltiError`, where it is called `what`, for anything else."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise SmaltiError(f"{path}: {what} is no list of mappings; write [{{...}}, ...]")
    return value


def different_names(path: Path, value: Any, what: str) -> tuple[str, ...]:
    """A list of different names -> the same. Raises `SmaltiError`, where they are called `what`, for anything else."""
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise SmaltiError(f"{path}: {what} is no list of names but {value!r}")
    several = [name for name, count in Counter(value).items() if count > 1]
    if several:
        raise SmaltiError(f"{path}: {what}: {several[0]!r} is there twice; give each a name of its own")
    return tuple(value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _LARGEST  # NaN is not


def box_within(numbers: Any, size: Size, at: At) -> tuple[float, float, float, float]:
    """Left, top, width and height in pixels of a picture of that size, or in shares -> in shares, within the picture.

    Raises `SmaltiError` for what is no box, for one outside the picture, and for shares that reach beyond it.
    """
    if not isinstance(numbers, list | tuple) or len(numbers) != 4 or not all(map(_is_number, numbers)):
        raise at.error(f"the box {numbers!r} is not four numbers, left, top, width, height")
    left, top, width, height = numbers[0] / size[0], numbers[1] / size[1], numbers[2] / size[0], numbers[3] / size[1]
    if width < 0 or height < 0:
        raise at.error(f"the box {numbers!r} has a negative width or height; give left, top, width, height")
    right, bottom = left + width, top + height
    if left >= 0 and top >= 0 and right <= 1 and bottom <= 1:
        return left, top, width, height
    if size == SHARES and (min(left, top) < -_BEYOND or max(right, bottom) > 1 + _BEYOND):
        raise at.error(
            f"the box {numbers!r} reaches beyond the picture; give left, top, width, height as shares of it, from 0 to 1, "
            "not in pixels"
        )
    if left > 1 or top > 1 or right < 0 or bottom < 0:
        raise at.error(
            f"the box {numbers!r} lies outside the picture, of {size[0]:g}x{size[1]:g} pixels (width x height)"
        )
    left, top = max(left, 0.0), max(top, 0.0)
    return left, top, min(right, 1.0) - left, min(bottom, 1.0) - top


def place_of(x: Any, y: Any, size: Size, at: At) -> Place:
    """x and y in pixels of a picture of that size, or in shares -> in shares. Raises `SmaltiError` for what is no place."""
    if not (_is_number(x) and _is_number(y) and abs(x / size[0]) <= _FARTHEST and abs(y / size[1]) <= _FARTHEST):
        unit = "shares of the picture, from 0 to 1, not in pixels" if size == SHARES else "pixels of the picture"
        raise at.error(f"a keypoint is at {[x, y]!r}; give x and y in {unit}")
    return x / size[0], y / size[1]


def size_of(one: Plain, path: Path, name: str) -> Size:
    """What is said of a picture -> its width and height. Raises `SmaltiError` where they are not said."""
    width: Any = one.get("width")
    height: Any = one.get("height")
    if not all(_is_number(side) and side > 0 for side in (width, height)):
        raise SmaltiError(
            f"{path}: the picture {name} has no size (width {width!r}, height {height!r}), and its boxes are in pixels; add both"
        )
    return float(width), float(height)


def collected(
    path: Path,
    classes: Sequence[str],
    keypoints: Sequence[str],
    pictures: Plain,
    *,
    sizes: Mapping[str, Size] = NO_SIZES,
) -> Annotated:
    """What a file says, with the lists that grew while it was read; `sizes` by the names of pictures."""
    things = {name: tuple(listed) for name, listed in pictures.items()}
    upright = {name: (height, width) for name, (width, height) in sizes.items()}
    return Annotated(path, tuple(classes), tuple(keypoints), things, upright)


def occurring(pictures: Mapping[str, Sequence[Thing]]) -> list[str]:
    """The classes of things, in alphabetical order."""
    return sorted({thing.name for things in pictures.values() for thing in things})


def twice(path: Path, name: str) -> SmaltiError:
    """What is wrong where a picture has two entries, to be raised."""
    return SmaltiError(f"{path} holds the picture {name} twice; join its objects to one entry, or remove one")


def other_number(places: Any, names: Sequence[str]) -> str:
    """What is wrong with keypoints that are not as many as their names."""
    number = f"{len(places)} keypoints" if isinstance(places, list) else f"the keypoints {places!r}"
    return f"it has {number}, and {len(names)} have names ({', '.join(names)}); give as many places as names"
