"""The hatch term: the part of the error that repeats with the decoder's patch.

A decoder that paints patches of pixels, and a discriminator whose network subsamples, like patterns with the period of
the patch: a hatch over textures, which pixel and perceptual terms hardly notice. In an error of natural images nothing
repeats with that period, so its mean over all patches of a block is almost zero; that of a hatch stays.

Notation: B batch, C channels, H W pixels, p period, b side of a block.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from smalti.core.errors import SmaltiError

PATCHES = 8
"""The side of a block in patches. Larger blocks average noise out better, smaller ones see a hatch that is local."""


def periodic_error(images: Tensor, reconstructions: Tensor, *, period: int) -> Tensor:
    """Images (B,C,H,W) twice -> (B,): the mean square of the part of their difference that repeats in a block.

    For each block of b x b pixels, b = `PATCHES` x period, the difference is averaged over the block's patches; of the
    resulting p x p pattern the mean is taken away, since an error of brightness is not a hatch. What lies beyond the
    last whole block is left out. Raises `SmaltiError` for images smaller than a block.
    """
    side, (height, width) = PATCHES * period, images.shape[2:]
    if min(height, width) < side:
        raise SmaltiError(
            f"images of {height}x{width} are too small for a hatch term of period {period}, which needs {side} pixels "
            "each way; use larger images, or set hatch_weight to 0"
        )
    difference = (reconstructions - images)[:, :, : height // side * side, : width // side * side]
    patches = F.pixel_unshuffle(difference, period)  # (B, C p p, H/p, W/p)
    pattern = F.avg_pool2d(patches, PATCHES)  # (B, C p p, H/b, W/b)
    pattern = pattern.view(len(images), images.shape[1], period**2, -1)  # (B, C, p p, blocks)
    error: Tensor = (pattern - pattern.mean(2, keepdim=True)).square().mean((1, 2, 3))  # (B,)
    return error
