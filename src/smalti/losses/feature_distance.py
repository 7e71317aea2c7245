"""A perceptual distance on EfficientNet-Lite0's features, whose weights come with the installation.

At every position of four feature maps the vector is divided by the root of its mean square; absolute differences are
averaged over channels, positions and maps. Unlike LPIPS it has no learned weights, and unlike a squared distance its
gradient does not fade where two images are already close, which is where texture is decided.

Notation: B batch, C channels of the image (1 or 3), H W pixels, D h w width and grid of one feature map.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from smalti.core.errors import SmaltiError
from smalti.losses.checks import check_same_shape
from smalti.losses.efficientnet import EfficientNetLite0, efficientnet_lite0

EPSILON = 1e-6
MIN_SIDE = 16
"""Pixels each way that give the deepest map a position of its own."""


def unit_rms(features: Tensor) -> Tensor:
    """(B,D,h,w) -> the same vectors, each with a root mean square of 1 over its channels, float32 at least."""
    precise = features.to(torch.promote_types(features.dtype, torch.float32))
    return precise * (precise.square().mean(1, keepdim=True) + EPSILON).rsqrt()


@final
class FeatureDistance(nn.Module):
    """Images and reconstructions (B,C,H,W), in [-1, 1], C 1 or 3 -> their distances (B,), 0 for equal ones.

    An image of one channel is seen as gray. Only the second argument gets a gradient; all parameters are frozen; the
    network runs under the caller's autocast, the rest in float32 or better.

    Raises `SmaltiError` for images of another channel count, smaller than 16 pixels, or of unequal shapes.
    """

    def __init__(self, network: EfficientNetLite0) -> None:
        super().__init__()
        self.network = network
        self.requires_grad_(False)

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        check_same_shape(images, reconstructions, what="the perceptual distance")
        with torch.no_grad():
            targets = self.features(images)
        distances = [
            (features - target).abs().mean((1, 2, 3))
            for features, target in zip(self.features(reconstructions), targets, strict=True)
        ]
        return torch.stack(distances).mean(0)

    def features(self, images: Tensor) -> list[Tensor]:
        """Images (B,C,H,W) in [-1,1] -> maps (B,D,h,w) at strides 2, 4, 8 and 16 of root mean square 1 at every
        position."""
        channels, height, width = images.shape[1:]
        if channels not in (1, 3):
            raise SmaltiError(
                f"the perceptual distance takes images of 1 or 3 channels, these have {channels}; set its weight to 0"
            )
        if min(height, width) < MIN_SIDE:
            raise SmaltiError(
                f"images of {height}x{width} are too small for the perceptual distance, which needs {MIN_SIDE} pixels "
                "each way; use larger images or set its weight to 0"
            )
        color = images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        return [unit_rms(each) for each in self.network(color)]


def efficientnet_distance() -> FeatureDistance:
    """The distance with ImageNet weights, on the CPU. Raises `SmaltiError` if the package of weights is missing."""
    return FeatureDistance(efficientnet_lite0())
