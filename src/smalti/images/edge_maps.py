"""Edges of an image: how steep its brightness is.

H W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from smalti.images.pixel_formats import Array


def edges(image: Array) -> Array:
    """An image (H,W,3) uint8 or uint16 -> how steep its brightness is at each pixel (H,W,1) uint8.

    By Sobel's filter; 255 from half the slope on that the step from black to white has.
    """
    gray = torch.from_numpy(image.astype(np.float32)).mean(-1)[None, None]  # (1,1,H,W)
    across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]) / 4
    both = torch.stack([across, across.T]).unsqueeze(1) / np.iinfo(image.dtype).max  # (2,1,3,3)
    slopes = F.conv2d(F.pad(gray, (1, 1, 1, 1), mode="replicate"), both)  # (1,2,H,W)
    steepness = slopes.norm(dim=1)[0, :, :, None]  # (H,W,1)
    found: Array = (steepness * 2).clamp(max=1).mul(255).round().to(torch.uint8).numpy()
    return found
