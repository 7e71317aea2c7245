"""The structural similarity of two images: SSIM, and MS-SSIM over five scales.

Notation: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.evaluation.metrics import levels

WINDOW = 11  # pixels each way
SIGMA = 1.5  # pixels
K1, K2 = 0.01, 0.03
LEVELS = 255.0
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of MS-SSIM, from the finest scale to the coarsest: section 4 of its paper, found there by asking people."""
MIN_SIDE = (WINDOW - 1) * 2 ** (len(SCALE_WEIGHTS) - 1) + 1
"""The least height and width, in pixels, of which the coarsest scale still holds one window."""


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Two batches of images (B,C,H,W) in [-1,1] -> structural similarity (B,), in [-1,1], 1 for equal images.

    Wang, Bovik, Sheikh and Simoncelli 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity",
    equation 13 with their 11x11 Gaussian window of 1.5 pixels, which stays inside the image; the mean over positions
    and channels. It is taken of the 8-bit levels 0 to 255, as in the paper: the measure depends on where black is, and
    of the same images given in [-1,1] it would be another number.

    Raises `SmaltiError` for batches of unequal shapes and for images smaller than the window.
    """
    _check(images, others, smallest=WINDOW, name="SSIM", hint="compare larger ones, or use PSNR")
    return _compare(_precise(images), _precise(others)).whole.mean(1)


def ms_ssim(images: Tensor, others: Tensor) -> Tensor:
    """Two batches of images (B,C,H,W) in [-1,1] -> multi-scale structural similarity (B,), in [0,1], 1 for equal ones.

    Wang, Simoncelli and Bovik 2003, "Multi-scale Structural Similarity for Image Quality Assessment", equation 7:
    contrast and structure at five scales, luminance at the coarsest only, of each channel; the mean over channels.
    Between scales each 2x2 pixels become their mean; an odd last row or column is doubled first. A scale whose
    structure is inverted on the whole counts as 0, where the formula has no real value. Levels and window are those of
    `ssim`.

    Raises `SmaltiError` for batches of unequal shapes, and for images under 161 pixels either way.
    """
    _check(images, others, smallest=MIN_SIDE, name="MS-SSIM", hint="compare larger ones, or use SSIM")
    a, b = _precise(images), _precise(others)
    result = torch.ones_like(a[:, :, 0, 0])  # (B,C)
    for weight in SCALE_WEIGHTS[:-1]:
        result = result * _compare(a, b).structure.clamp(min=0) ** weight
        a, b = _halved(a), _halved(b)
    return (result * _compare(a, b).whole.clamp(min=0) ** SCALE_WEIGHTS[-1]).mean(1)


class _Comparison(NamedTuple):
    """Means over positions, (B,C) each."""

    whole: Tensor
    """Luminance, contrast and structure."""
    structure: Tensor
    """Contrast and structure alone."""


def _compare(a: Tensor, b: Tensor) -> _Comparison:
    """Two batches of levels (B,C,H,W), at one scale."""
    mean_a, mean_b, squares, product = _blurred(torch.stack((a, b, a * a + b * b, a * b)))
    variances = squares - mean_a**2 - mean_b**2  # of a and of b together
    covariance = product - mean_a * mean_b
    c1, c2 = (K1 * LEVELS) ** 2, (K2 * LEVELS) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return _Comparison((luminance * structure).mean((2, 3)), structure.mean((2, 3)))


def _blurred(maps: Tensor) -> Tensor:
    """(4,B,C,H,W) -> (4,B,C,H-10,W-10), under the Gaussian window wherever it is inside."""
    rows, columns = (_window(length, maps) for length in maps.shape[3:])
    return rows @ maps @ columns.T


def _window(length: int, like: Tensor) -> Tensor:
    """The window at each of its positions along a side: (length-10,length). As a product with this matrix of bands it
    takes a quarter of the time of a convolution in float64 (64 to 256 pixels, one CPU core).
    """
    positions = torch.arange(length, dtype=like.dtype, device=like.device)
    offsets = positions - positions[: length - WINDOW + 1, None] - WINDOW // 2
    bands = torch.exp(-(offsets**2) / (2 * SIGMA**2)) * (offsets.abs() <= WINDOW // 2)
    return bands / bands.sum(1, keepdim=True)


def _halved(images: Tensor) -> Tensor:
    """(B,C,H,W) -> (B,C,ceil(H/2),ceil(W/2))"""
    height, width = images.shape[2:]
    return F.avg_pool2d(F.pad(images, (0, width % 2, 0, height % 2), mode="replicate"), 2)


def _precise(images: Tensor) -> Tensor:
    """Levels in double precision, since variances are small differences of squares; Apple's GPUs know only single."""
    return levels(images).to(torch.float32 if images.device.type == "mps" else torch.float64)


def _check(images: Tensor, others: Tensor, *, smallest: int, name: str, hint: str) -> None:
    if images.shape != others.shape:
        raise SmaltiError(
            f"{name} compares images of one shape, these are {tuple(images.shape)} and {tuple(others.shape)}"
        )
    height, width = images.shape[2:]
    if min(height, width) < smallest:
        raise SmaltiError(
            f"{name} needs images of {smallest} pixels or more each way, these have {height}x{width}; {hint}"
        )
