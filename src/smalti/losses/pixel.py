"""Pixel losses: images and their reconstructions -> how far apart they are, one number for each image.

One number for each image, as the perceptual distance has: mean(pixel + weight * perceptual) is the original's
`nll_loss`.

Notation: B batch, C channels (of a label map: one for each label), H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from smalti.core.errors import SmaltiError


def l1(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Images (B,C,H,W) twice -> (B,): the mean absolute difference of each; the pixel loss of the original's code."""
    return F.l1_loss(reconstructions, images, reduction="none").mean((1, 2, 3))


def l2(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Images (B,C,H,W) twice -> (B,): the mean squared difference of each; the pixel loss of the paper's text."""
    return F.mse_loss(reconstructions, images, reduction="none").mean((1, 2, 3))


def bce(images: Tensor, reconstructions: Tensor) -> Tensor:
    """One-hot label maps (B,C,H,W) in [0, 1] and logits (B,C,H,W) -> (B,): binary cross entropy in nats,
    mean over C,H,W.

    Each channel predicts by itself whether the pixel has its label, so labels may also overlap. The original's loss for
    segmentations. The logits are unbounded; targets outside [0, 1], such as images in [-1, 1], make it fall without
    end.
    """
    return F.binary_cross_entropy_with_logits(reconstructions, images, reduction="none").mean((1, 2, 3))


def cross_entropy(images: Tensor, reconstructions: Tensor) -> Tensor:
    """One-hot label maps (B,C,H,W) in [0, 1] and logits (B,C,H,W) -> (B,): cross entropy in nats, mean over H,W.

    The channels of a pixel compete: it has one label out of C. Soft maps, whose channels sum to 1, are allowed; a pixel
    whose channels are all 0 has no label and costs nothing.

    Raises `SmaltiError` for a single channel, where there is nothing to choose from.
    """
    if images.shape[1] == 1:
        raise SmaltiError(
            "cross entropy chooses between labels, and these label maps have 1 channel; use the pixel loss bce for a "
            "single one"
        )
    return F.cross_entropy(reconstructions, images, reduction="none").mean((1, 2))


LABEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"bce": bce, "cross_entropy": cross_entropy}
PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": l1, "l2": l2, **LABEL_LOSSES}
