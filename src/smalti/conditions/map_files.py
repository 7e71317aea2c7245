"""Files of segmentations, depths and edges as conditions; colors and accuracy of label maps.

B batch, n labels, H W pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from smalti.conditions.previews import palette
from smalti.images import label_maps
from smalti.images.io import DamagedImage, read_image, to_tensor
from smalti.images.label_maps import normalize_depth

_MIN_DARK_SHARE = 0.7
"""Minimum fraction of pixels below half brightness in a drawing of edges: 0.76 or more in 60 photographs of houses."""


def read_segmentation(path: Path) -> Tensor:
    """An image file with one number per pixel (palette, grayscale of 8 or 16 bits) -> labels (H,W) int64.

    Raises `DamagedImage` for color images, and for files that are not images.
    """
    return torch.from_numpy(label_maps.read_labels(path, name=str(path))[:, :, 0].astype(np.int64))


def read_normalized_depth(path: Path) -> Tensor:
    """A depth map, as read by `smalti.images.label_maps.read_depth` -> (1,H,W) float32, normalized to [-1,1]. Raises
    `DamagedImage`.
    """
    return normalize_depth(torch.from_numpy(label_maps.read_depth(path, name=str(path))))[None]


def read_edges(path: Path) -> Tensor:
    """A photograph -> itself, (3,H,W) float32 in [-1,1], of which edges are still to be made; edges that are drawn,
    white on black -> the map (1,H,W) of them. What has no colors is such a drawing.

    Numbers 0 and 1 are black and white. Raises `DamagedImage` for what has no colors and is mostly light, as a
    photograph in gray, and for files that are not images.
    """
    image = read_image(path, channels=3, name=str(path), bits=16)  # (H,W,3)
    gray, white = image[:, :, :1], np.iinfo(image.dtype).max
    if (image != gray).any():
        return to_tensor(image)
    if gray.max() == 1:
        gray = gray * image.dtype.type(white)
    if (gray <= white // 2).mean() < _MIN_DARK_SHARE:
        raise DamagedImage(
            str(path),
            "has no colors and is not dark enough for edges, which are white on black; give a photograph in colors, "
            "or have its edges drawn by `smalti reconstruct`",
        )
    return to_tensor(gray)


def label_colors(scores: Tensor) -> Tensor:
    """Label maps (B,n,H,W), one-hot or decoded -> the colors of the most likely labels (B,3,H,W) in [-1,1]."""
    colors = to_tensor(palette(scores.shape[1])[None]).to(scores.device)  # (3,1,n)
    return colors[:, 0, scores.argmax(dim=1)].movedim(0, 1)


def label_accuracy(maps: Tensor, reconstructions: Tensor) -> Tensor:
    """Label maps (B,n,H,W) and their reconstructions -> the fraction of pixels (B,) with the same most likely label."""
    return (maps.argmax(dim=1) == reconstructions.argmax(dim=1)).float().mean((1, 2))
