"""DiffAugment: random changes of the images that a discriminator sees, the same for real and generated ones.

Zhao, Liu, Lin, Zhu and Han 2020, "Differentiable Augmentation for Data-Efficient GAN Training" (arXiv 2006.10738). The
changes are differentiable, so the generator learns through them, and one draw serves an image and its reconstruction,
so that the two differ in nothing else.

Notation: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Policy = Literal["color", "translation", "cutout"]

TRANSLATION = 1 / 8
"""Largest shift, as a fraction of the side."""
CUTOUT = 1 / 2
"""Side of the square that is cut out, as a fraction of the side."""


@dataclass(frozen=True)
class Augmentation:
    """What was drawn for a batch: numbers in [0,1) for each image, by the name of their policy."""

    color: Tensor | None
    """(B,3): brightness, saturation, contrast."""
    translation: Tensor | None
    """(B,2): down, right."""
    cutout: Tensor | None
    """(B,2): the corner of the square."""

    def part(self, chosen: slice) -> Augmentation:
        """Those of some of the images."""
        return Augmentation(*(None if each is None else each[chosen] for each in self._all))

    @property
    def _all(self) -> tuple[Tensor | None, ...]:
        return (self.color, self.translation, self.cutout)

    def __call__(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [-1,1] -> the images changed, differentiable."""
        if self.color is not None:
            images = change_color(images, self.color)
        if self.translation is not None:
            images = translate(images, self.translation)
        if self.cutout is not None:
            images = cut_out(images, self.cutout)
        return images


def draw_augmentation(policies: Sequence[Policy], batch: int, *, generator: torch.Generator) -> Augmentation:
    """Policies and how many images -> a draw for each of them."""
    counts = {"color": 3, "translation": 2, "cutout": 2}
    drawn = {name: torch.rand(batch, count, generator=generator) for name, count in counts.items() if name in policies}
    return Augmentation(drawn.get("color"), drawn.get("translation"), drawn.get("cutout"))


def change_color(images: Tensor, draw: Tensor) -> Tensor:
    """(B,C,H,W), (B,3) in [0,1) -> brightness moved by up to 0.5 either way, saturation times 0 to 2, contrast times
    0.5 to 1.5."""
    brightness, saturation, contrast = draw.to(images).view(-1, 3, 1, 1, 1).unbind(1)  # (B,1,1,1) each
    images = images + (brightness - 0.5)
    gray = images.mean(1, keepdim=True)
    images = (images - gray) * (2 * saturation) + gray
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean


def translate(images: Tensor, draw: Tensor) -> Tensor:
    """(B,C,H,W), (B,2) in [0,1) -> each image moved by up to an eighth of its sides, zeros where nothing is."""
    height, width = images.shape[2:]
    down, right = (max(round(side * TRANSLATION), 1) for side in (height, width))
    padded = F.pad(images, (right, right, down, down))
    moved = []
    for image, (vertical, horizontal) in zip(padded, draw.tolist(), strict=True):
        top, left = int(vertical * (2 * down + 1)), int(horizontal * (2 * right + 1))
        moved.append(image[:, top : top + height, left : left + width])
    return torch.stack(moved).contiguous(memory_format=torch.channels_last)


def cut_out(images: Tensor, draw: Tensor) -> Tensor:
    """(B,C,H,W), (B,2) in [0,1) -> a square of half the sides set to zero, anywhere, partly outside too."""
    height, width = images.shape[2:]
    tall, wide = (max(round(side * CUTOUT), 1) for side in (height, width))
    mask = images.new_ones(len(images), 1, height, width)
    for kept, (vertical, horizontal) in zip(mask, draw.tolist(), strict=True):
        top, left = int(vertical * (height + 1)) - tall // 2, int(horizontal * (width + 1)) - wide // 2
        kept[:, max(top, 0) : max(top + tall, 0), max(left, 0) : max(left + wide, 0)] = 0
    return images * mask
