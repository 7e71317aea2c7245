"""What the readers of annotation files share: errors that say where an object stands, and what they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from smalti.core.errors import SmaltiError
from smalti.data.annotations.objects import Annotated, ObjectAnnotation
from smalti.images.boxes import Size

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


def collected(
    path: Path,
    classes: Sequence[str],
    keypoints: Sequence[str],
    images: Mapping[str, Sequence[ObjectAnnotation]],
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


def other_number(count: int, names: Sequence[str]) -> str:
    """What is wrong with keypoints that are not as many as their names."""
    return f"it has {count} keypoints, and {len(names)} have names ({', '.join(names)}); give as many places as names"
