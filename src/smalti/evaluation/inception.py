"""InceptionV3 as used for FID: uint8 images -> features at several depths, and logits.

The network is that of Szegedy et al. 2015, "Rethinking the Inception Architecture for Computer Vision", in the form of
TensorFlow's published graph of 2015-12-05, which every published FID was computed with (Heusel et al. 2017, "GANs
Trained by a Two Time-Scale Update Rule"). It differs from torchvision's network of the same name: average pooling
leaves the padding out of the mean, the last block pools by maximum, there are 1008 classes, and images are resized as
TensorFlow 1 did. Keys are those of the published state dict.

Notation: B batch, C channels, H W pixels, h w grid, D channels of a feature map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 299  # pixels each way that the network sees
CLASSES = 1008  # of the TensorFlow graph; the last ones are unused
SPATIAL_CHANNELS = 7  # that sFID takes of the 17x17 map
EPSILON = 0.001  # of the batch normalization


class Taps(NamedTuple):
    """What the network says about a batch of images; all float32. The number in a name is its width D."""

    pool64: Tensor
    """(B, 64), after the first max pooling, averaged over positions, like the next two."""
    pool192: Tensor
    """(B, 192), after the second max pooling."""
    pool768: Tensor
    """(B, 768), before the last grid reduction."""
    pool2048: Tensor
    """(B, 2048), the last features: those of FID and KID."""
    spatial: Tensor
    """(B, 2023): 7 channels of a 17x17 map, not averaged: those of sFID. In the order (h, w, D), as in the statistics
    that ADM's authors published."""
    logits_unbiased: Tensor
    """(B, 1008), without the last layer's bias: those of the Inception Score."""
    logits: Tensor
    """(B, 1008), with it."""


def resize_like_tensorflow(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Float images (B,C,H,W) -> (B,C,*size), by the bilinear rule of TensorFlow 1.

    Output pixel i is read at i * H / size, without half-pixel offsets, aligned corners or antialiasing: the image is
    shifted by part of a pixel, and details are skipped when it shrinks. Published scores contain both defects.
    """
    rows, columns = (_Requested.of(images, dim=dim, size=size[dim]) for dim in (0, 1))
    wide = _between(images[..., columns.low], images[..., columns.high], columns.share)  # (B,C,H,size)
    return _between(wide[..., rows.low, :], wide[..., rows.high, :], rows.share[:, None])  # (B,C,size,size)


def _between(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    return a + (b - a) * share


class _Requested(NamedTuple):
    """Along one side: the two source pixels of each output pixel, and the fraction of the second."""

    low: Tensor
    high: Tensor
    share: Tensor

    @classmethod
    def of(cls, images: Tensor, *, dim: int, size: int) -> _Requested:
        length = images.shape[dim - 2]
        # The scale is rounded to the images' float, as in TensorFlow's kernel.
        scale = torch.tensor(length / size, dtype=images.dtype, device=images.device)
        source = torch.arange(size, dtype=images.dtype, device=images.device) * scale
        low = source.long()
        return cls(low, (low + 1).clamp(max=length - 1), source - low)


@final
class Norm(nn.Module):
    """Batch normalization that stays as it was trained: (B,D,h,w) -> (B,D,h,w), as the scale and shift of each
    channel."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale (D,) and shift (D,)."""
        scale = self.weight * (self.running_var + EPSILON).rsqrt()
        return scale, self.bias - self.running_mean * scale


@final
class Unit(nn.Module):
    """(B,D,h,w) -> (B,width,h',w'): convolution without bias, normalization, rectifier.

    `kernel` is (height, width); `padding` "same" keeps the grid, "valid" takes no pixel beyond the border.
    """

    def __init__(
        self, channels: int, width: int, kernel: tuple[int, int], *, stride: int = 1, padding: str = "valid"
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, bias=False)
        self.bn = Norm(width)
        self.stride = stride
        self.padding = (kernel[0] // 2, kernel[1] // 2) if padding == "same" else (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        # The normalization is folded into the kernel: a pass over the kernel is cheaper than one over the map.
        scale, shift = self.bn.affine()
        kernel = self.conv.weight * scale[:, None, None, None]
        return F.conv2d(x, kernel, shift, stride=self.stride, padding=self.padding).relu_()


def _same(channels: int, width: int, height: int, length: int) -> Unit:
    return Unit(channels, width, (height, length), padding="same")


def _mean_pool(x: Tensor) -> Tensor:
    """3x3 means that keep the grid; at the border over the pixels there are, as TensorFlow does."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _max_pool(x: Tensor) -> Tensor:
    """3x3 maxima that keep the grid."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


@final
class BlockA(nn.Module):
    """(B,D,35,35) -> (B,224+pool,35,35): branches of 1x1, 5x5, twice 3x3, and pooling (figure 5 of the paper)."""

    def __init__(self, channels: int, *, pool: int) -> None:
        super().__init__()
        self.branch1x1 = _same(channels, 64, 1, 1)
        self.branch5x5_1 = _same(channels, 48, 1, 1)
        self.branch5x5_2 = _same(48, 64, 5, 5)
        self.branch3x3dbl_1 = _same(channels, 64, 1, 1)
        self.branch3x3dbl_2 = _same(64, 96, 3, 3)
        self.branch3x3dbl_3 = _same(96, 96, 3, 3)
        self.branch_pool = _same(channels, pool, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch5x5_2(self.branch5x5_1(x))
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch1x1(x), once, twice, self.branch_pool(_mean_pool(x))), dim=1)


@final
class BlockB(nn.Module):
    """(B,D,35,35) -> (B,480+D,17,17): the first grid reduction (figure 10)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = Unit(channels, 384, (3, 3), stride=2)
        self.branch3x3dbl_1 = _same(channels, 64, 1, 1)
        self.branch3x3dbl_2 = _same(64, 96, 3, 3)
        self.branch3x3dbl_3 = Unit(96, 96, (3, 3), stride=2)

    def forward(self, x: Tensor) -> Tensor:
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch3x3(x), twice, F.max_pool2d(x, 3, stride=2)), dim=1)


@final
class BlockC(nn.Module):
    """(B,768,17,17) -> (B,768,17,17): 7x7 kernels taken apart into rows and columns (figure 6). `inner` is their
    width."""

    def __init__(self, channels: int, *, inner: int) -> None:
        super().__init__()
        self.branch1x1 = _same(channels, 192, 1, 1)
        self.branch7x7_1 = _same(channels, inner, 1, 1)
        self.branch7x7_2 = _same(inner, inner, 1, 7)
        self.branch7x7_3 = _same(inner, 192, 7, 1)
        self.branch7x7dbl_1 = _same(channels, inner, 1, 1)
        self.branch7x7dbl_2 = _same(inner, inner, 7, 1)
        self.branch7x7dbl_3 = _same(inner, inner, 1, 7)
        self.branch7x7dbl_4 = _same(inner, inner, 7, 1)
        self.branch7x7dbl_5 = _same(inner, 192, 1, 7)
        self.branch_pool = _same(channels, 192, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        half = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(half))
        return torch.cat((self.branch1x1(x), once, twice, self.branch_pool(_mean_pool(x))), dim=1)


@final
class BlockD(nn.Module):
    """(B,768,17,17) -> (B,1280,8,8): the second grid reduction."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = _same(channels, 192, 1, 1)
        self.branch3x3_2 = Unit(192, 320, (3, 3), stride=2)
        self.branch7x7x3_1 = _same(channels, 192, 1, 1)
        self.branch7x7x3_2 = _same(192, 192, 1, 7)
        self.branch7x7x3_3 = _same(192, 192, 7, 1)
        self.branch7x7x3_4 = Unit(192, 192, (3, 3), stride=2)

    def forward(self, x: Tensor) -> Tensor:
        small = self.branch3x3_2(self.branch3x3_1(x))
        large = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat((small, large, F.max_pool2d(x, 3, stride=2)), dim=1)


@final
class BlockE(nn.Module):
    """(B,D,8,8) -> (B,2048,8,8): 3x3 kernels whose rows and columns stand side by side (figure 7).

    `pool` keeps the grid. The graph of 2015 takes means in the first such block and maxima in the second.
    """

    def __init__(self, channels: int, *, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = _same(channels, 320, 1, 1)
        self.branch3x3_1 = _same(channels, 384, 1, 1)
        self.branch3x3_2a = _same(384, 384, 1, 3)
        self.branch3x3_2b = _same(384, 384, 3, 1)
        self.branch3x3dbl_1 = _same(channels, 448, 1, 1)
        self.branch3x3dbl_2 = _same(448, 384, 3, 3)
        self.branch3x3dbl_3a = _same(384, 384, 1, 3)
        self.branch3x3dbl_3b = _same(384, 384, 3, 1)
        self.branch_pool = _same(channels, 192, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branches = (
            self.branch1x1(x),
            self.branch3x3_2a(once),
            self.branch3x3_2b(once),
            self.branch3x3dbl_3a(twice),
            self.branch3x3dbl_3b(twice),
            self.branch_pool(self.pool(x)),
        )
        return torch.cat(branches, dim=1)


@final
class InceptionV3(nn.Module):
    """Color images (B,3,H,W), uint8 of any size -> `Taps`; all parameters are frozen, at PyTorch's initial values.

    The network computes in the float type of its parameters. It has no training mode.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, (3, 3), stride=2)
        self.Conv2d_2a_3x3 = Unit(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = _same(32, 64, 3, 3)
        self.Conv2d_3b_1x1 = _same(64, 80, 1, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, (3, 3))
        self.Mixed_5b = BlockA(192, pool=32)
        self.Mixed_5c = BlockA(256, pool=64)
        self.Mixed_5d = BlockA(288, pool=64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(768, inner=128)
        self.Mixed_6c = BlockC(768, inner=160)
        self.Mixed_6d = BlockC(768, inner=160)
        self.Mixed_6e = BlockC(768, inner=192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b = BlockE(1280, pool=_mean_pool)
        self.Mixed_7c = BlockE(2048, pool=_max_pool)
        self.fc = nn.Linear(2048, CLASSES)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Taps:
        assert images.dtype == torch.uint8, f"the network sees levels, not {images.dtype}"
        x = resize_like_tensorflow(images.to(self.fc.weight.dtype), (SIDE, SIDE))  # (B,3,299,299)
        x = ((x - 128) / 128).contiguous(memory_format=torch.channels_last)  # black is -1, white a little below 1
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (B,64,147,147)
        x = F.max_pool2d(x, 3, stride=2)  # (B,64,73,73)
        pool64 = x.mean((2, 3))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # (B,192,71,71)
        x = F.max_pool2d(x, 3, stride=2)  # (B,192,35,35)
        pool192 = x.mean((2, 3))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # (B,288,35,35)
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))  # (B,768,17,17)
        # The 1x1 branch of this block comes first: it is `mixed_6/conv` in TensorFlow's graph.
        spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # (B,2023)
        x = self.Mixed_6e(x)  # (B,768,17,17)
        pool768 = x.mean((2, 3))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (B,2048,8,8)
        pool2048 = x.mean((2, 3))
        unbiased = pool2048 @ self.fc.weight.T  # (B,1008)
        taps = (pool64, pool192, pool768, pool2048, spatial, unbiased, unbiased + self.fc.bias)
        return Taps(*(tap.float() for tap in taps))
