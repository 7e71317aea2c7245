"""The distance of logits: two images -> how differently a classifier of ImageNet names them.

Weber et al. 2024, "MaskBit: Embedding-free Image Generation via Bit Tokens" (arXiv 2409.16211): the mean squared
difference of the logits of a ResNet-50. It compares the content of images, not their textures.

Notation: B batch, C channels of the image (1 or 3), H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.core.errors import SmaltiError, suggestion
from smalti.core.published_weights import load_strictly, load_weights
from smalti.losses.checks import check_same_shape
from smalti.losses.perceptual import squeezenet, squeezenet_classifier
from smalti.losses.resnet50 import ResNet50

SIDE = 224  # pixels each way that the classifiers were trained on
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of each color in [0, 1], in torchvision's training
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


@final
class SqueezeNet(nn.Module):
    """Scaled color images (B,3,H,W) -> logits (B,K) of SqueezeNet 1.1, with PyTorch's initial weights.

    They are means over positions of what is left by a ReLU, as in torchvision, so none is negative.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = squeezenet().features
        self.classifier = squeezenet_classifier()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.classifier(self.features(images))  # (B,K,h,w)
        return maps.mean((2, 3))  # type: ignore[no-any-return]  # (B,K)


class ClassifierSource(NamedTuple):
    """How to build a classifier of scaled color images, and the name of its weights in
    `smalti.core.published_weights`."""

    build: Callable[[], nn.Module]
    weights: str


CLASSIFIERS: dict[str, ClassifierSource] = {
    "squeezenet": ClassifierSource(build=SqueezeNet, weights="squeezenet1_1"),
    "resnet50": ClassifierSource(build=ResNet50, weights="resnet50"),
    "resnet50-v2": ClassifierSource(build=ResNet50, weights="resnet50-v2"),
}


@final
class LogitDistance(nn.Module):
    """Two batches of images (B,C,H,W), in [-1, 1], C 1 or 3, of any size -> their distances (B,), 0 for equal ones.

    Both are resized to 224 x 224 (bilinear, antialiased, half-pixel centers; the shape is not kept) and scaled by
    ImageNet's mean and deviation of each color. The distance is the mean over the K logits of their squared
    differences. An image of one channel is seen as gray.

    As in `smalti.losses.perceptual`: only the second argument (the reconstruction) gets a gradient, all parameters are
    frozen, the network runs under the caller's autocast, the rest in float32 or better.

    Raises `SmaltiError` for images of another channel count or of unequal shapes.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_DEVIATION))
        self.register_buffer("scale", 0.5 / deviation, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / deviation, persistent=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.requires_grad_(False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        check_same_shape(images, others, what="the distance of logits")
        with torch.no_grad():
            target = self.logits(images)
        return (self.logits(others) - target).square().mean(1)

    def logits(self, images: Tensor) -> Tensor:
        """Images (B,C,H,W) in [-1, 1] -> logits (B,K), float32 at least."""
        if images.shape[1] not in (1, 3):
            raise SmaltiError(
                f"the distance of logits takes images of 1 or 3 channels, these have {images.shape[1]}; set logits to "
                "none"
            )
        resized = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)  # (B,C,224,224)
        scaled = torch.addcmul(self.shift, resized, self.scale)  # (B,3,224,224), a single channel is broadcast
        logits: Tensor = self.network(scaled.contiguous(memory_format=torch.channels_last))  # (B,K)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def logit_distance(name: str) -> LogitDistance:
    """A name in `CLASSIFIERS` -> the distance of its logits, with published weights, on the CPU.

    Raises `SmaltiError` for an unknown name, or when the weights are nowhere and cannot be downloaded.
    """
    if name not in CLASSIFIERS:
        raise SmaltiError(f"unknown classifier {name!r}; {suggestion(name, CLASSIFIERS)}")
    source = CLASSIFIERS[name]
    network = source.build()
    # torchvision's files may count the batches that a norm has seen, which is not used here.
    kept = {
        key: tensor for key, tensor in load_weights(source.weights).items() if not key.endswith("num_batches_tracked")
    }
    load_strictly(network, kept, name=source.weights)
    return LogitDistance(network)
