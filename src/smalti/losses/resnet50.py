"""ResNet-50: scaled color images -> the logits of ImageNet's classes, in torchvision's key names.

He, Zhang, Ren and Sun 2015, "Deep Residual Learning for Image Recognition", table 1, with the stride in the 3x3
convolution (torchvision's choice, known as v1.5). Only what a frozen network needs: the norms use their stored
statistics, always.

Notation: B batch, C channels, H W pixels, h w grid of a feature map, K classes.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 1000


@final
class StoredNorm(nn.Module):
    """(B,C,h,w) -> (B,C,h,w): batch normalization by statistics stored with the weights, in training mode too."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


@final
class Bottleneck(nn.Module):
    """(B,C,h,w) -> (B,4M,h/stride,w/stride): 1x1 down to M channels, 3x3, 1x1 up to 4M, around a shortcut (figure
    5)."""

    def __init__(self, channels: int, middle: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, middle, 1, bias=False)
        self.bn1 = StoredNorm(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, bias=False)
        self.bn2 = StoredNorm(middle)
        self.conv3 = nn.Conv2d(middle, 4 * middle, 1, bias=False)
        self.bn3 = StoredNorm(4 * middle)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or channels != 4 * middle:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 4 * middle, 1, stride=stride, bias=False), StoredNorm(4 * middle)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.conv1(x)).relu_()  # (B,M,h,w)
        h = self.bn2(self.conv2(h)).relu_()  # (B,M,h/stride,w/stride)
        h = self.bn3(self.conv3(h))  # (B,4M,h/stride,w/stride)
        return h.add_(self.downsample(x)).relu_()  # type: ignore[no-any-return]


@final
class ResNet50(nn.Module):
    """Scaled color images (B,3,H,W) -> logits (B,K), with PyTorch's initial weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = StoredNorm(64)
        self.layer1 = _stage(64, 64, blocks=3, stride=1)
        self.layer2 = _stage(256, 128, blocks=4, stride=2)
        self.layer3 = _stage(512, 256, blocks=6, stride=2)
        self.layer4 = _stage(1024, 512, blocks=3, stride=2)
        self.fc = nn.Linear(2048, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.bn1(self.conv1(images)).relu_()  # (B,64,H/2,W/2)
        x = F.max_pool2d(x, 3, stride=2, padding=1)  # (B,64,H/4,W/4)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (B,2048,H/32,W/32)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]  # (B,K)


def _stage(channels: int, middle: int, *, blocks: int, stride: int) -> nn.Sequential:
    """The blocks of one resolution; the first of them gets there."""
    first = Bottleneck(channels, middle, stride=stride)
    return nn.Sequential(first, *(Bottleneck(4 * middle, middle, stride=1) for _ in range(blocks - 1)))
