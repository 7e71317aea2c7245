"""Pictures, each with something beside it that is cut in the same way: a label map, a depth, another or a smaller picture.

C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple, final

from torch import Tensor

from smalti.data.loading import Crops
from smalti.data.sources import Picture, Source
from smalti.errors import SmaltiError


class PairedExample(NamedTuple):
    """As `smalti.data.loading.Example`, and what lies `beside` the picture: what an example of its kind holds, of its own size."""

    image: Tensor
    label: Tensor
    beside: Tensor


@final
class Paired:
    """Crops of pictures, and crops of what lies beside them, picture for picture with the same seed -> examples of both.

    Both are cut by the same chances, in shares of their sizes, so that they show the same part. A pair is damaged where one of
    the two is. Reading raises `SmaltiError` for a pair of different sizes.
    """

    def __init__(self, pictures: Crops, beside: Crops) -> None:
        assert len(pictures) == len(beside), f"{len(pictures)} pictures and {len(beside)} beside them"
        self.pictures, self.beside = pictures, beside

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the pictures."""
        return self.pictures.size

    def __len__(self) -> int:
        return len(self.pictures)

    def example(self, index: int, draw: int) -> PairedExample:
        """One pair. Raises `DamagedImage`."""
        image, label = self.pictures.example(index, draw)
        beside = self.beside.example(index, draw).image
        (height, width), (h, w) = self.pictures.full_size(index), self.beside.full_size(index)
        if (height, width) != (h, w):
            other = self.beside.source.path / self.beside.pictures[index].key
            raise SmaltiError(
                f"{other} is {h}x{w} pixels (height x width), and its picture {self.pictures.pictures[index].key} is "
                f"{height}x{width}; scale one of them, so that both show the same at the same place"
            )
        return PairedExample(image, label, beside)

    def described(self) -> dict[str, Any]:
        """What decides the examples, as plain values."""
        return {**self.pictures.described(), "beside": self.beside.described()}


def beside(pictures: Sequence[Picture], source: Source) -> tuple[Picture, ...]:
    """Pictures of one source -> those of another that have the same names but for what follows the last dot, in that order.

    Names are paths below each of the two sources: `street/04.jpg` goes with `street/04.png`. Raises `SmaltiError` where there is
    none, or more than one.
    """
    named: dict[str, list[Picture]] = {}
    for picture in source.pictures:
        named.setdefault(_stem(picture.key), []).append(picture)
    missing = [picture.key for picture in pictures if _stem(picture.key) not in named]
    if missing:
        more = f", and {len(missing) - 1} more have none" if len(missing) > 1 else ""
        raise SmaltiError(
            f"there is no {_stem(missing[0])}.* in {source.path} for the picture {missing[0]}{more}; what belongs to a picture "
            "has its name, in a folder laid out as that of the pictures"
        )
    found = [named[_stem(picture.key)] for picture in pictures]
    for several in found:
        if len(several) > 1:
            raise SmaltiError(
                f"{several[0].key} and {several[1].key} in {source.path} belong to one picture; remove one of them"
            )
    return tuple(several[0] for several in found)


def _stem(key: str) -> str:
    return PurePosixPath(key).with_suffix("").as_posix()
