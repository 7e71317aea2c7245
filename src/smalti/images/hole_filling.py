"""A hole filled by its surroundings, before an image with erased pixels is encoded.

An encoder's attention and group statistics see the whole image, so the codes of kept pixels depend on what was erased
(docs/inpainting.md has the figures). With the hole filled they depend on kept pixels alone.

Notation: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def filled_hole(images: Tensor, known: Tensor) -> Tensor:
    """Images (B,C,H,W) in [-1,1] and a mask (H,W) bool, True for kept pixels -> the same images with a smooth hole.

    Pull-push interpolation (Gortler et al., The Lumigraph, SIGGRAPH 1996, section 3.4): each level has half the
    resolution and the means of the kept pixels; holes are filled from the level below by bilinear interpolation. A
    pixel near the border of the hole follows its neighbors, one in the middle the mean of the surroundings. Without
    any kept pixel the images are mid-gray, 0.
    """
    known = known.to(images.device)
    if known.all():
        return images
    if not known.any():
        return torch.zeros_like(images)
    kept = known.to(images)[None, None]  # (1,1,H,W)
    share = F.avg_pool2d(kept, 2, ceil_mode=True)  # (1,1,H/2,W/2)
    means = F.avg_pool2d(images * kept, 2, ceil_mode=True) / share.clamp(min=1e-6)
    coarse = filled_hole(means, share[0, 0] > 0)
    surroundings = F.interpolate(coarse, size=known.shape, mode="bilinear", align_corners=False)
    return torch.where(known, images, surroundings)
