"""How strongly a hatch lies over images: the energy at the frequencies of a period, relative to that of the frequencies
around.

A decoder that makes squares of pixels by weights of their own leaves a pattern that repeats with the square. In the
spectrum it is a lattice of peaks over what real images have there, which falls off smoothly.

The score is `hatch` of the reconstructions divided by that of the originals.

Notation: B batch, C channels, H W pixels, p period.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from smalti.core.errors import SmaltiError

PEAK = 1.5
"""Frequencies up to this far (in steps of the spectrum) belong to a peak: its own, and those that the window smears it
over."""
RING = (3.0, 7.0)
"""Frequencies this far belong to its surroundings."""


@final
class PowerSpectrum:
    """Batches of images of one size -> the mean power of their gray values at each frequency.

    Each image is multiplied by a Hann window, without which its borders would add a cross to the spectrum.
    """

    def __init__(self) -> None:
        self.count = 0
        self._total = torch.zeros(())

    def update(self, images: Tensor) -> None:
        """Images (B,C,H,W) that were not counted yet; those of another size than the first are left out."""
        if self.count and images.shape[2:] != self._total.shape:
            return
        gray = images.double().mean(1)  # (B,H,W)
        rows, columns = (torch.hann_window(side, periodic=False, dtype=torch.float64) for side in gray.shape[1:])
        windowed = (gray - gray.mean((1, 2), keepdim=True)) * torch.outer(rows, columns).to(gray.device)
        self._total = self._total + torch.fft.fft2(windowed).abs().square().sum(0).cpu()
        self.count += len(images)

    def mean(self) -> Tensor:
        """(H,W) float64. Raises `SmaltiError` if there was no image."""
        if not self.count:
            raise SmaltiError("there are no images to measure a hatch in; name a folder that holds some")
        return self._total / self.count


def is_measurable(size: tuple[int, int], *, period: int) -> bool:
    """Whether images of this size (H,W) are large enough that rings of neighboring peaks do not overlap."""
    return period > 1 and min(size) >= period * 2 * RING[1]


def hatch(spectrum: Tensor, *, period: int) -> float:
    """A spectrum (H,W) of `PowerSpectrum` -> the energy at the lattice of a period over that around, 1 where nothing
    repeats.

    It is the geometric mean over all peaks of the lattice of mean power near the peak / mean power in a ring around it.
    Raises `SmaltiError` for a period below 2, and for images so small that rings of neighboring peaks overlap.
    """
    height, width = spectrum.shape
    if not is_measurable((height, width), period=period):
        raise SmaltiError(
            f"a hatch of period {period} cannot be measured in images of {height}x{width}; a period is 2 or more, and "
            f"the images need {period * 2 * RING[1]:.0f} pixels each way"
        )
    ratios = [
        math.log(float(spectrum[near].mean()) / float(spectrum[around].mean()))
        for near, around in _peaks(height, width, period)
    ]
    return math.exp(sum(ratios) / len(ratios))


def _peaks(height: int, width: int, period: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each peak of the lattice but the mean: masks (H,W) of what is near it and of the ring around it."""
    rows = torch.arange(height, dtype=torch.float64)[:, None]
    columns = torch.arange(width, dtype=torch.float64)[None]
    for down in range(period):
        for right in range(period):
            if (down, right) == (0, 0):
                continue
            # Frequencies wrap around: the distance is the shorter way.
            vertical = (rows - down * height / period).remainder(height)
            horizontal = (columns - right * width / period).remainder(width)
            distance = torch.hypot(
                torch.minimum(vertical, height - vertical), torch.minimum(horizontal, width - horizontal)
            )
            yield distance <= PEAK, (distance >= RING[0]) & (distance <= RING[1])
