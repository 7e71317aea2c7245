"""The perceptual distance LPIPS: two images -> how different they look to a network trained on ImageNet.

Zhang, Isola, Efros, Shechtman and Wang 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric";
here version 0.1 of its published weights. The networks are our own small definitions in torchvision's key names.

Notation: B batch, C channels of the image (1 or 3), H W pixels, D h w width and grid of one feature map.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.core.errors import SmaltiError, suggestion
from smalti.core.published_weights import load_strictly, load_weights
from smalti.kernels.winograd import FrozenConvolution
from smalti.losses.checks import check_same_shape

# LPIPS's own constants: ImageNet's mean and deviation of each color, carried over from [0, 1] to [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10
LINEAR_KEY = re.compile(r"^lin(\d+)\.model\.1\.weight$")


@final
class Fire(nn.Module):
    """(B,D,h,w) -> (B,2E,h,w): squeezed to a few channels, then expanded by 1x1 and by 3x3 kernels side by side.

    Iandola et al. 2016, "SqueezeNet", section 3.1.
    """

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.squeeze(x).relu_()
        return torch.cat((self.expand1x1(squeezed), self.expand3x3(squeezed)), dim=1).relu_()


@final
class Backbone(nn.Module):
    """Scaled color images (B,3,H,W) -> the feature maps (B,D,h,w) after the layers numbered `taps`, shallow to deep.

    `features` is numbered as in torchvision, so `features.{index}.weight` are the keys of the published weights.
    `widths` are the D of the maps; `smallest` is the least height and width, in pixels, that reaches the last one.
    """

    def __init__(
        self, features: nn.Sequential, *, taps: tuple[int, ...], widths: tuple[int, ...], smallest: int
    ) -> None:
        super().__init__()
        self.features = features
        self.taps = taps
        self.widths = widths
        self.smallest = smallest

    def forward(self, images: Tensor) -> list[Tensor]:
        x = images
        maps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                maps.append(x)
        return maps


def vgg16() -> Backbone:
    """VGG16 (Simonyan and Zisserman 2014, configuration D) up to relu5_3, with PyTorch's initial weights."""
    blocks = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
    layers: list[nn.Module] = []
    channels = 3
    for block in blocks:
        if layers:
            layers.append(nn.MaxPool2d(2))
        for width in block:
            layers += [FrozenConvolution(channels, width), nn.ReLU(inplace=True)]
            channels = width
    return Backbone(nn.Sequential(*layers), taps=(3, 8, 15, 22, 29), widths=(64, 128, 256, 512, 512), smallest=16)


def squeezenet() -> Backbone:
    """SqueezeNet 1.1 (Iandola et al. 2016) up to its last Fire module, with PyTorch's initial weights."""
    layers = nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Fire(64, 16, 64),
        Fire(128, 16, 64),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Fire(128, 32, 128),
        Fire(256, 32, 128),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Fire(256, 48, 192),
        Fire(384, 48, 192),
        Fire(384, 64, 256),
        Fire(512, 64, 256),
    )
    widths = (64, 128, 256, 384, 384, 512, 512)
    return Backbone(layers, taps=(1, 4, 7, 9, 10, 11, 12), widths=widths, smallest=17)


def squeezenet_classifier() -> nn.Sequential:
    """SqueezeNet's last feature map (B,512,h,w) -> a map of its logits (B,1000,h,w), in torchvision's numbers (dropout
    is 0)."""
    return nn.Sequential(nn.Identity(), nn.Conv2d(512, 1000, 1), nn.ReLU())


def alexnet() -> Backbone:
    """AlexNet (Krizhevsky 2014, "One weird trick", as in torchvision) up to relu5, with PyTorch's initial weights."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
    ]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2)]
    for channels, width in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
    return Backbone(nn.Sequential(*layers), taps=(1, 4, 7, 9, 11), widths=(64, 192, 384, 256, 256), smallest=31)


class BackboneSource(NamedTuple):
    """How to build a backbone, and the names of its weights and of LPIPS's weights for it in
    `smalti.core.published_weights`."""

    build: Callable[[], Backbone]
    weights: str
    linear: str


BACKBONES: dict[str, BackboneSource] = {
    "squeezenet": BackboneSource(build=squeezenet, weights="squeezenet1_1", linear="lpips-squeeze"),
    "vgg16": BackboneSource(build=vgg16, weights="vgg16", linear="lpips-vgg"),
    "alexnet": BackboneSource(build=alexnet, weights="alexnet", linear="lpips-alex"),
}


@final
class Perceptual(nn.Module):
    """Two batches of images (B,C,H,W), in [-1, 1], C 1 or 3 -> their distances (B,), 0 for equal ones.

    In each of the backbone's feature maps the vector at every position is divided by its length; the squared
    differences are weighted for each channel, summed over channels, averaged over positions, and summed over the maps
    (equation 1 of the paper). An image of one channel is seen as gray.

    The value is symmetric, the gradient is not: only the second argument (the reconstruction) gets one, since the first
    is the target. All parameters are frozen. The backbone runs under the caller's autocast, the rest in float32 or
    better.

    The two batches go through the backbone one after the other: joined in one batch, the target would be
    back-propagated through as well, in 1.6 times the time (64 pixels, batch 16, one CPU core). Convolutions are in the
    channels_last layout, which there takes 0.7 of the time of the contiguous one.

    `forward` is what a training learns along, in few passes; `distance` compares features that were kept,
    to the same values.

    `dropout`, in [0, 1), strikes out that fraction of the squared differences before the linear weights, and scales up
    the rest, while the module is in training mode. The original trains VQGAN with 0.5, by accident of `train()`: its
    training loss is noisy with the same mean. With 0, the default, `train` and `eval` are alike.

    `linear` begins as ones, the paper's unweighted distance; `perceptual` loads the learned weights.

    Raises `SmaltiError` for images of another channel count, smaller than the backbone can see, or of unequal shapes.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, backbone: Backbone, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = dropout
        self.linear = nn.ParameterList(nn.Parameter(torch.ones(1, width, 1, 1)) for width in backbone.widths)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.requires_grad_(False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        check_same_shape(images, others, what="the perceptual distance")
        total = others.new_zeros(len(others), dtype=torch.promote_types(others.dtype, torch.float32))  # (B,)
        for a, b, weight in zip(self.target(images), self._maps(others), self.linear, strict=True):
            kept = F.dropout(torch.ones_like(b), self.dropout) * weight if self.dropout and self.training else weight
            total = total + _distance_of_maps(a, b, kept)
        return total

    @torch.no_grad()
    def target(self, images: Tensor) -> list[Tensor]:
        """Images (B,C,H,W) -> their `features` without gradient, to be kept and compared with many others."""
        return self.features(images)

    def features(self, images: Tensor) -> list[Tensor]:
        """Images (B,C,H,W) in [-1, 1] -> feature maps (B,D,h,w) of length 1 at every position, float32 at least."""
        # epsilon outside the root, as in the original; where no feature is active it leaves 0, not NaN
        return [each / (torch.linalg.vector_norm(each, dim=1, keepdim=True) + EPSILON) for each in self._maps(images)]

    def distance(self, features: list[Tensor], others: list[Tensor]) -> Tensor:
        """Two results of `features` or `target` -> the distances (B,)."""
        total = features[0].new_zeros(features[0].shape[0])  # (B,)
        for a, b, weight in zip(features, others, self.linear, strict=True):
            differences = F.dropout((a - b).square(), self.dropout, self.training)  # (B,D,h,w)
            total = total + (differences * weight).sum(1).mean((1, 2))
        return total

    def _maps(self, images: Tensor) -> list[Tensor]:
        """Images (B,C,H,W) in [-1, 1] -> the backbone's feature maps (B,D,h,w), float32 at least."""
        self._check(images)
        scaled = (images - self.shift) / self.scale  # (B,3,H,W), a single channel is broadcast
        maps = self.backbone(scaled.contiguous(memory_format=torch.channels_last))
        return [each.to(torch.promote_types(each.dtype, torch.float32)) for each in maps]

    def _check(self, images: Tensor) -> None:
        channels, height, width = images.shape[1:]
        if channels not in (1, 3):
            raise SmaltiError(
                f"the perceptual distance takes images of 1 or 3 channels, these have {channels}; set its weight to 0"
            )
        smallest = self.backbone.smallest
        if min(height, width) < smallest:
            raise SmaltiError(
                f"images of {height}x{width} are too small for the perceptual distance, which needs "
                f"{smallest} pixels each way; use larger images or set its weight to 0"
            )


def _distance_of_maps(target: Tensor, features: Tensor, weight: Tensor) -> Tensor:
    """Target (B,D,h,w) of length 1 at every position, features (B,D,h,w) of any length, weight (1,D,1,1) or larger ->
    (B,)."""
    result: Tensor = _DistanceOfMaps.apply(target, features, weight)  # type: ignore[no-untyped-call]
    return result


@final
class _DistanceOfMaps(torch.autograd.Function):
    """`Perceptual.distance` in one map, the normalization of its second argument included, in a third of the passes
    over memory: large early maps took a fifth of the time of the whole distance. Differentiable once, and only with
    respect to `features`: a second derivative would be wrong without a word."""

    @staticmethod
    def forward(ctx: Any, target: Tensor, features: Tensor, weight: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(features, dim=1, keepdim=True)  # (B,1,h,w)
        difference = (features / (length + EPSILON)).sub_(target)  # (B,D,h,w), 0 where features are those of the target
        weighed = difference * weight  # (B,D,h,w)
        ctx.save_for_backward(features, weighed, length)
        total: Tensor = difference.mul_(weighed).sum((1, 2, 3))  # (B,)
        return total / (features.shape[2] * features.shape[3])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        """With u = features / (length + epsilon) and G = dL/du: G / (length + epsilon) less its part along the
        features."""
        features, weighed, length = ctx.saved_tensors
        share = gradient.reshape(-1, 1, 1, 1) * (2.0 / (features.shape[2] * features.shape[3]))
        outward = share / (length + EPSILON)  # (B,1,h,w)
        along = (weighed * features).sum(1, keepdim=True)  # (B,1,h,w)
        inward = -outward * along / (length + EPSILON) / length.clamp(min=torch.finfo(length.dtype).tiny)
        toward = (weighed * outward).addcmul_(features, inward)  # (B,D,h,w)
        return None, toward, None


def perceptual(name: str, *, dropout: float = 0.0) -> Perceptual:
    """A name in `BACKBONES` -> LPIPS with its published weights, on the CPU; `dropout` as in `Perceptual`.

    Raises `SmaltiError` for an unknown name, or when the weights are nowhere and cannot be downloaded.
    """
    if name not in BACKBONES:
        raise SmaltiError(f"unknown perceptual backbone {name!r}; {suggestion(name, BACKBONES)}")
    source = BACKBONES[name]
    distance = Perceptual(source.build(), dropout=dropout)
    trunk = {key: value for key, value in load_weights(source.weights).items() if key.startswith("features.")}
    load_strictly(distance.backbone, trunk, name=source.weights)
    linear = load_weights(source.linear)  # lin{k}.model.1.weight: in the original, dropout is model.0
    load_strictly(distance.linear, {LINEAR_KEY.sub(r"\1", key): linear[key] for key in linear}, name=source.linear)
    return distance
