"""How a window of the requested size is cropped from an image, at random or in the middle.

C channels, H W pixels of the window.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from smalti.core.errors import SmaltiError
from smalti.images.io import Array
from smalti.images.resizing import Filter, covering_size, crop, resize


def uniform_numbers(seed: int, draw: int) -> tuple[float, float, float, float]:
    """(seed, draw) -> four independent numbers, uniform in [0, 1), the same on every machine and forever."""
    digest = hashlib.sha256(f"{seed} {draw}".encode()).digest()
    a, b, c, d = (int.from_bytes(digest[i : i + 8], "big") >> 11 for i in (0, 8, 16, 24))
    return a / 2**53, b / 2**53, c / 2**53, d / 2**53


class View(NamedTuple):
    """The window that an example shows: its first row and column in the scaled image, its size and that of the image,
    both (height, width) in pixels. `mirrored`: the window is then mirrored left to right.
    """

    top: int
    left: int
    size: tuple[int, int]
    whole: tuple[int, int]
    mirrored: bool

    @property
    def left_when_mirrored(self) -> int:
        """Its first column in the image as it is seen: mirrored whole where the window is."""
        return self.whole[1] - self.left - self.size[1] if self.mirrored else self.left


class Crop(ABC):
    """How a window of the requested size is cropped from an image."""

    @property
    @abstractmethod
    def margin(self) -> float:
        """How many times larger than the window the image is handed over."""

    @abstractmethod
    def view(self, whole: tuple[int, int], size: tuple[int, int], *, seed: int, draw: int) -> View:
        """An image of this many pixels (height, width), which covers margin * size -> the window of `size` in it, once
        it is scaled to the view's `whole`."""

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """The settings, as plain values."""


def crop_to_view(array: Array, view: View, *, filter: Filter) -> Array:
    """(H', W', C) -> (H, W, C), what the view shows; `filter` is how the image is scaled, if it is."""
    if (array.shape[0], array.shape[1]) != view.whole:
        array = resize(array, view.whole, filter=filter)
    window = crop(array, top=view.top, left=view.left, height=view.size[0], width=view.size[1])
    return window[:, ::-1] if view.mirrored else window


@final
@dataclass(frozen=True, kw_only=True)
class CenterCrop(Crop):
    """The window in the middle, always, of two middles the upper and left one: for validation.

    The image is first scaled so that it covers `size` times `zoom`. Raises `SmaltiError` for a zoom below 1.
    """

    zoom: float = 1.0

    def __post_init__(self) -> None:
        if self.zoom < 1:
            raise SmaltiError(f"zoom is a factor of at least 1, not {self.zoom}")

    @property
    def margin(self) -> float:
        return self.zoom

    def view(self, whole: tuple[int, int], size: tuple[int, int], *, seed: int, draw: int) -> View:
        return View((whole[0] - size[0]) // 2, (whole[1] - size[1]) // 2, size, whole, mirrored=False)

    def described(self) -> dict[str, Any]:
        return {"crop": "center", **({"zoom": self.zoom} if self.zoom > 1 else {})}  # as before there was a zoom


@final
@dataclass(frozen=True, kw_only=True)
class RandomCrop(Crop):
    """A window anywhere, every other one mirrored if `flip`: for training.

    The image is first scaled so that it covers `size` times a factor from `zoom`, drawn so that each doubling is as
    likely as another; (1, 1) means that it just fits. Raises `SmaltiError` unless 1 <= zoom[0] <= zoom[1].
    """

    zoom: tuple[float, float] = (1.0, 1.0)
    flip: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.zoom[0] <= self.zoom[1]:
            raise SmaltiError(
                f"zoom goes from a factor of at least 1 to a larger one, not {self.zoom[0]} to {self.zoom[1]}"
            )

    @property
    def margin(self) -> float:
        return self.zoom[1]

    def view(self, whole: tuple[int, int], size: tuple[int, int], *, seed: int, draw: int) -> View:
        nearness, down, right, mirror = uniform_numbers(seed, draw)
        factor = self.zoom[0] * (self.zoom[1] / self.zoom[0]) ** nearness
        if factor < self.margin:
            whole = covering_size(whole, (round(size[0] * factor), round(size[1] * factor)))
        top, left = int(down * (whole[0] - size[0] + 1)), int(right * (whole[1] - size[1] + 1))
        return View(top, left, size, whole, mirrored=self.flip and mirror < 0.5)

    def described(self) -> dict[str, Any]:
        return {"crop": "random", "zoom": list(self.zoom), "flip": self.flip}
