"""The convolutional blocks that encoder and decoder are made of.

Notation: B batch, C channels, H W height and width of the feature map. Source: Esser, Rombach, Ommer, "Taming
Transformers for High-Resolution Image Synthesis" (arXiv 2012.09841), appendix A, table 7.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.kernels.group_norm import GroupNorm
from smalti.tokenizer.convolutions import Convolution, Geometry, convolve


def swish(x: Tensor) -> Tensor:
    """x * sigmoid(x), in the memory of `x` if no gradient needs it: `x` must be the caller's own."""
    return F.silu(x, inplace=not x.requires_grad)


def plus(branch: Tensor, shortcut: Tensor) -> Tensor:
    """The sum of two maps, in the memory of `branch` if no gradient needs it: `branch` must be the caller's own."""
    # Under autocast one of them may be in half precision, and the sum then is in the other's.
    needs_copy = branch.requires_grad or shortcut.requires_grad or branch.dtype != shortcut.dtype
    return branch + shortcut if needs_copy else branch.add_(shortcut)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm as in the paper's code: 32 groups (fewer where 32 does not divide `channels`), epsilon 1e-6."""
    return GroupNorm(math.gcd(channels, 32), channels, eps=1e-6)


@final
class ResidualBlock(nn.Module):
    """(B,C,H,W) -> (B,C',H,W): two 3x3 convolutions behind GroupNorm and swish, around a shortcut."""

    def __init__(self, channels: int, out_channels: int, *, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(channels)
        self.convolution1 = Convolution(channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.convolution2 = Convolution(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.convolution1(swish(self.norm1(x)))  # (B,C',H,W)
        h = self.convolution2(self.dropout(swish(self.norm2(h))))  # (B,C',H,W)
        return plus(h, self.shortcut(x))


@final
class AttentionBlock(nn.Module):
    """(B,C,H,W) -> (B,C,H,W): single-head self-attention over all H x W positions, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)  # (B,C,H,W)
        B, C, H, W = h.shape
        # With channels last, both changes of shape are views.
        query, key, value = (
            projection(h).permute(0, 2, 3, 1).reshape(B, 1, H * W, C)  # (B,1,HW,C)
            for projection in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(query, key, value)  # (B,1,HW,C)
        attended = attended.reshape(B, H, W, C).permute(0, 3, 1, 2)  # (B,C,H,W)
        return plus(self.out(attended), x)


@final
class Downsample(nn.Module):
    """(B,C,H,W) -> (B,C,H/2,W/2): a strided 3x3 convolution (padded right and below only, as the paper's code), or a
    2x2 mean."""

    def __init__(self, channels: int, *, convolution: bool) -> None:
        super().__init__()
        self.resample = (
            nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), Convolution(channels, channels, 3, stride=2))
            if convolution
            else nn.AvgPool2d(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x)  # type: ignore[no-any-return]


UPSAMPLED_TAPS = ((0, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 0))
"""Row u says which of the three taps of a kernel, along one side, are summed into tap u of its upsampled kernel."""


def upsampling_sums() -> Tensor:
    """(16,9): which taps of a kernel are summed into which of its upsampled kernel, both in raster order."""
    taps = torch.tensor(UPSAMPLED_TAPS, dtype=torch.get_default_dtype())  # (4,3)
    return torch.kron(taps, taps)


def upsampled_kernel(weight: Tensor, sums: Tensor) -> Tensor:
    """A 3x3 kernel (O,I,3,3) -> the 4x4 kernel (I,O,4,4) with which a transposed convolution of stride 2 and padding 1
    does what repeating each value 2x2 and then convolving with the 3x3 kernel does. `sums` are those of
    `upsampling_sums`.

    The nine taps of an output pixel fall on only 2 x 2 different values of the smaller map, so 4 products replace 9.
    The sums of taps are rounded in another order; nothing else differs.
    """
    O, I = weight.shape[:2]  # noqa: E741
    return (weight.reshape(O, I, 9) @ sums.T).view(O, I, 4, 4).transpose(0, 1)


@final
class Upsample(nn.Module):
    """(B,C,H,W) -> (B,C,2H,2W): each value repeated 2x2, then (with `convolution`) a 3x3 convolution, in one step."""

    sums: Tensor

    def __init__(self, channels: int, *, convolution: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1) if convolution else nn.Identity()
        # On the device from the start, so that no step waits for it; no weight.
        self.register_buffer("sums", upsampling_sums(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.convolution, nn.Identity):
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        kernel = upsampled_kernel(self.convolution.weight, self.sums)
        return convolve(x, kernel, self.convolution.bias, Geometry(stride=2, padding=1, transposed=True))


def zero_init_residuals(module: nn.Module) -> None:
    """Set the last convolution of every residual and attention block in `module` to zero, in place.

    Each block then begins as its shortcut and the network as a shallow one, which learns faster in the first thousands
    of images (Goyal et al. 2017, section 5.1; measured in docs/log.md). The original begins with PyTorch's own values.
    """
    for block in module.modules():
        if isinstance(block, ResidualBlock | AttentionBlock):
            last = block.convolution2 if isinstance(block, ResidualBlock) else block.out
            nn.init.zeros_(last.weight)
            assert last.bias is not None
            nn.init.zeros_(last.bias)


def middle(channels: int, *, attention: bool, dropout: float) -> nn.Sequential:
    """The blocks at the lowest resolution: residual, attention (optional), residual."""
    return nn.Sequential(
        ResidualBlock(channels, channels, dropout=dropout),
        AttentionBlock(channels) if attention else nn.Identity(),
        ResidualBlock(channels, channels, dropout=dropout),
    )


@final
class ResolutionLevel(nn.Module):
    """(B,C,H,W) -> (B,C',H,W): the residual blocks of one resolution, each followed by attention where the settings
    have it."""

    def __init__(self, channels: int, out_channels: int, *, blocks: int, attention: bool, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(channels if i == 0 else out_channels, out_channels, dropout=dropout) for i in range(blocks)
        )
        self.attentions = nn.ModuleList(
            AttentionBlock(out_channels) if attention else nn.Identity() for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x = attention(block(x))  # (B,C',H,W)
        return x


def as_channels_last(module: nn.Module) -> None:
    """Store the convolution weights of `module` channels-last, in place, for GPUs; CPUs gain nothing
    (docs/decisions.md)."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
