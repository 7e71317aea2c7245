"""Files of segmentations and depths as conditions; how label maps look, and how alike they are.

B batch, n labels, H W pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from smalti import numbers
from smalti.conditions.drawing import palette
from smalti.images import to_tensor
from smalti.numbers import spread


def read_segmentation(path: Path) -> Tensor:
    """A picture file with one number a pixel (palette, greyscale of 8 or 16 bits) -> labels (H,W) int64.

    Raises `DamagedImage` for colour pictures, and for what is no picture.
    """
    return torch.from_numpy(numbers.read_labels(path, name=str(path))[:, :, 0].astype(np.int64))


def read_depth(path: Path) -> Tensor:
    """A depth map, as `smalti.numbers.read_depth` knows it -> (1,H,W) float32, its least and its greatest depth spread to
    -1 and 1. Raises `DamagedImage`.
    """
    return spread(torch.from_numpy(numbers.read_depth(path, name=str(path))))[None]


def label_colours(scores: Tensor) -> Tensor:
    """Label maps (B,n,H,W), one-hot or as a tokenizer gives them -> the colours of the likeliest labels (B,3,H,W) in [-1,1]."""
    colours = to_tensor(palette(scores.shape[1])[None]).to(scores.device)  # (3,1,n)
    return colours[:, 0, scores.argmax(dim=1)].movedim(0, 1)


def right_labels(maps: Tensor, others: Tensor) -> Tensor:
    """Label maps (B,n,H,W) and what a tokenizer makes of them -> the share of pixels (B,) whose likeliest labels are the same."""
    return (maps.argmax(dim=1) == others.argmax(dim=1)).float().mean((1, 2))
