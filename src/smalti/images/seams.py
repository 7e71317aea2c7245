"""Kept pixels of a completed image: the given ones again, with a seam to the generated part that cannot be seen.

A decoder does not give back the kept pixels exactly. So the given ones replace them, and what the decoder made
different along the seam (mostly brightness and color) is taken out of the generated pixels as well: their correction
is the difference on the kept side, smoothed, and fades with the distance from it.

Notation: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.core.arguments import center_offset
from smalti.core.errors import SmaltiError


def with_kept_pixels(completed: Tensor, given: Tensor, known: Tensor, *, reach: int) -> Tensor:
    """Completed and given images (B,C,H,W) in [-1,1] and a mask (H,W) bool, True for kept pixels -> (B,C,H,W).

    Kept pixels are those of `given`, to the bit. The correction of the others fades over about `reach` pixels; take
    the downsampling factor. Raises `SmaltiError` for a mask of another size.
    """
    if known.shape != completed.shape[2:] or given.shape[1:] != completed.shape[1:]:
        raise SmaltiError(
            f"a mask of {tuple(known.shape)} and given images of {tuple(given.shape[1:])} do not fit completed images "
            f"of {tuple(completed.shape[1:])}; all have one size"
        )
    kept = known.to(completed)[None, None]  # (1,1,H,W)
    kept_fraction = _blurred(kept, reach)  # of the surroundings, 1/2 at a straight seam
    difference = _blurred((given - completed) * kept, reach) / kept_fraction.clamp(min=1e-4)
    corrected = completed + difference * (2 * kept_fraction).clamp(max=1)
    return torch.where(known.to(completed.device), given, corrected.clamp(-1, 1))


def _blurred(images: Tensor, reach: int) -> Tensor:
    """(B,C,H,W) -> a Gaussian blur with a standard deviation of half of `reach`; pixels outside count as zeros."""
    offsets = torch.arange(-2 * reach, 2 * reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / (0.5 * reach)).square())
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    rows = F.conv2d(images, kernel, padding=(0, 2 * reach), groups=images.shape[1])
    return F.conv2d(rows, kernel.transpose(2, 3), padding=(2 * reach, 0), groups=images.shape[1])


def on_canvas(given: Tensor, known: Tensor, grid: tuple[int, int], *, factor: int) -> tuple[Tensor, Tensor]:
    """A given image (1,C,H,W) and its mask (H,W) bool -> both in the center of a canvas of `grid` (h,w) codes.

    They lie where `center_on_canvas` puts their codes; around them nothing is kept.
    """
    height, width = known.shape
    top, left = (factor * codes for codes in center_offset((height // factor, width // factor), grid))
    image = given.new_zeros(1, given.shape[1], grid[0] * factor, grid[1] * factor)
    mask = known.new_zeros(image.shape[2:])
    image[:, :, top : top + height, left : left + width] = given
    mask[top : top + height, left : left + width] = known
    return image, mask
