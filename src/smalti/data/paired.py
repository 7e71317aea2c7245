"""Images paired with conditions: a file that is cropped in the same way (a label map, a depth map, a smaller image), or
an annotation of the crop.

C channels, H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, final

from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.data.annotations.objects import stem, stems
from smalti.data.crops import View
from smalti.data.image_entries import ImageEntry
from smalti.data.loader import Crops
from smalti.data.sources import Source


class PairedCrops(ABC):
    """A condition of each image of a set."""

    @abstractmethod
    def example(self, index: int, draw: int) -> Tensor:
        """The condition of the example of image `index` by draw number `draw`. Raises `DamagedImage`."""

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """What decides the examples, as plain values."""


@final
class AlignedCrops(PairedCrops):
    """Crops of files that are aligned with the images: both are cropped at the same position, as fractions
    of their sizes.

    Both sets of crops have the same seed. Reading raises `SmaltiError` for a file of another size than its image.
    """

    def __init__(self, images: Crops, files: Crops) -> None:
        assert len(images) == len(files), f"{len(images)} images and {len(files)} files"
        self.images, self.files = images, files

    def example(self, index: int, draw: int) -> Tensor:
        condition = self.files.example(index, draw).image
        (height, width), (h, w) = self.images.full_size(index), self.files.full_size(index)
        if (height, width) != (h, w):
            other = self.files.source.path / self.files.images[index].key
            raise SmaltiError(
                f"{other} is {h}x{w} pixels (height x width), and its image {self.images.images[index].key} is "
                f"{height}x{width}; scale one of them, so that both are aligned"
            )
        return condition

    def described(self) -> dict[str, Any]:
        return self.files.described()


class CropAnnotator(Protocol):
    """Annotates a crop of an image. It can be pickled for other processes."""

    def __call__(self, index: int, view: View, draw: int) -> Tensor:
        """The codes of image `index` in a `view`; `draw` seeds random choices."""

    def check_size(self, index: int, key: str, full: tuple[int, int]) -> None:
        """Raise `SmaltiError` if the annotations of image `index`, called `key`, are for another (height, width)."""

    def described(self) -> dict[str, Any]:
        """What decides it, as plain values."""


@final
class AnnotatedCrops(PairedCrops):
    """The annotation of each crop, such as its position in the image."""

    def __init__(self, images: Crops, annotator: CropAnnotator) -> None:
        self.images, self.annotator = images, annotator

    def example(self, index: int, draw: int) -> Tensor:
        self.annotator.check_size(index, self.images.images[index].key, self.images.full_size(index))
        return self.annotator(index, self.images.view(index, draw), draw)

    def described(self) -> dict[str, Any]:
        return self.annotator.described()


@final
class PairedExamples:
    """Crops of images and their conditions -> examples: image, label, and a tensor for each condition.

    An example is damaged where one of its parts is.
    """

    def __init__(self, images: Crops, conditions: Sequence[PairedCrops]) -> None:
        self.images, self.conditions = images, tuple(conditions)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return self.images.size

    def __len__(self) -> int:
        return len(self.images)

    def example(self, index: int, draw: int) -> tuple[Tensor, ...]:
        """One example. Raises `DamagedImage`."""
        return (*self.images.example(index, draw), *(each.example(index, draw) for each in self.conditions))

    def described(self) -> dict[str, Any]:
        """What decides the examples, as plain values."""
        conditions = {str(index): each.described() for index, each in enumerate(self.conditions)}
        return {**self.images.described(), "conditions": conditions}


def paired_entries(images: Sequence[ImageEntry], source: Source) -> tuple[ImageEntry, ...]:
    """Images of one source -> those of another with the same names, apart from the suffix, in that order.

    Names are paths below each of the two sources: `street/04.jpg` goes with `street/04.png`. Raises `SmaltiError` if
    there is none, or more than one.
    """
    named: dict[str, list[ImageEntry]] = {}
    for image in source.images:
        named.setdefault(stem(image.key), []).append(image)
    names = stems(images, named)
    missing = [image.key for image, name in zip(images, names, strict=True) if name not in named]
    if missing:
        more = f", and {len(missing) - 1} more have none" if len(missing) > 1 else ""
        raise SmaltiError(
            f"there is no {stem(missing[0])}.* in {source.path} for the image {missing[0]}{more}; give it the name "
            "of its image, in the same sub-folder"
        )
    found = [named[name] for name in names]
    for several in found:
        if len(several) > 1:
            raise SmaltiError(
                f"{several[0].key} and {several[1].key} in {source.path} belong to one image; remove one of them"
            )
    return tuple(several[0] for several in found)
