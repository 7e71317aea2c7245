"""Patch discriminators: an image -> a grid of logits, one for each overlapping patch, high where the patch looks real.

Notation: B batch, C channels, H W pixels, s patch size (the factor of space-to-depth), h w grid of patch logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple, final

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from smalti.core.distributed import all_gather, broadcast
from smalti.core.errors import SmaltiError
from smalti.core.settings import Positive, settings
from smalti.losses.base import Discriminator, spectrally_normalized


@final
class ActNorm(nn.Module):
    """(B,C,h,w) -> scale * (x + loc), with a `loc` and a `scale` for each channel, which no batch moves after the
    first.

    Kingma and Dhariwal 2018, "Glow", section 3.1. The first forward in training mode sets both so that its own result
    has mean 0 and deviation 1 in every channel; from then on they are learned like any weight, and a logit depends on
    its image alone. In evaluation before that, they are used as they are. `initialized`, uint8 (), is kept with the
    weights.

    Several processes start from the batches of all, as one process would, so that their copies stay alike.
    """

    initialized: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.initialized:
            self._start(x)
        return self.scale * (x + self.loc)  # (B,C,h,w)

    @torch.no_grad()
    def _start(self, x: Tensor) -> None:
        precise = all_gather(x.to(torch.promote_types(x.dtype, torch.float32)))
        deviation, mean = torch.std_mean(precise, (0, 2, 3), correction=1, keepdim=True)  # (1,C,1,1)
        self.loc.copy_(-mean)
        self.scale.copy_(1.0 / (deviation + 1e-6))  # the original's constant
        for parameter in (self.loc, self.scale):
            broadcast(parameter)  # machines that differ may have rounded differently
        self.initialized.fill_(1)


class Norm(NamedTuple):
    """How to make a normalization layer for this many channels, and whether the convolution before it keeps its
    bias."""

    build: Callable[[int], nn.Module]
    bias: bool


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(32, channels), channels)


# BatchNorm subtracts the mean of every channel, so a bias before it would have no effect; GroupNorm subtracts only the
# mean of a group of channels. Before ActNorm the original keeps the bias, although `loc` could do its work.
NORMS: dict[str, Norm] = {
    "batch": Norm(build=nn.BatchNorm2d, bias=False),
    "group": Norm(build=_group_norm, bias=True),
    "act": Norm(build=ActNorm, bias=True),
    "none": Norm(build=lambda channels: nn.Identity(), bias=True),
}


@settings
class PatchSettings:
    """The settings of `PatchDiscriminator`.

    - `channels`: of the images. A conditional discriminator has the condition's channels too: it is given both, joined
      along the channels.
    - `width`: channels after the first convolution; doubled by each later one, at most eightfold.
    - `layers`: how many convolutions halve the resolution. 3 looks at patches of 70 x 70 pixels, 2 at 34 x 34 (the
      paper's ImageNet model with 16384 codes has 2).
    - `norm`: "batch" is the reference: its statistics, and so every logit, depend on the rest of the batch, and are not
      shared between devices. "group" scores each image by itself, alike in training and evaluation. "act" too, once the
      first training batch has set its scales; it is an option of the original. "none" goes with `spectral` or with R1.
    - `spectral`: every convolution's weight is divided by its largest singular value, see `spectrally_normalized`.
    - `patch_size`: squares of that many pixels a side are first folded into channels, without loss, so that every
      convolution works on 1/patch_size of the resolution and sees a patch that many times as wide. 1 is the
      reference; 2 suits small machines.
    """

    name: Literal["patch"] = "patch"
    channels: Positive = 3
    base_channels: Positive = 64
    layers: Annotated[int, Field(ge=1, le=6)] = 3
    norm: Literal["batch", "group", "act", "none"] = "group"
    spectral: bool = False
    patch_size: Annotated[int, Field(ge=1, le=8)] = 1

    @property
    def mixes_batch(self) -> bool:
        """Whether the logits of an image depend on the rest of the batch."""
        return self.norm == "batch"


@final
class PatchDiscriminator(Discriminator):
    """Images (B,C,H,W) in [-1, 1] -> patch logits (B,1,h,w), where h = floor(H / (patch_size * 2**layers)) - 2, and w
    alike.

    PatchGAN (Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks", section 3.2.2), as
    used by VQGAN (Esser et al. 2021). Convolution weights begin as N(0, 0.02), the scales of the norms as N(1, 0.02).

    Raises `SmaltiError` for images of other channels, too small for one logit, or not divisible by the patch size.
    """

    def __init__(self, settings: PatchSettings) -> None:
        super().__init__()
        self.settings = settings
        norm = NORMS[settings.norm]
        width = settings.base_channels
        layers: list[nn.Module] = [
            nn.Conv2d(settings.channels * settings.patch_size**2, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for depth in range(1, settings.layers + 1):
            wider = settings.base_channels * min(2**depth, 8)
            stride = 2 if depth < settings.layers else 1
            layers += [
                nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=norm.bias),
                norm.build(wider),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            width = wider
        layers.append(nn.Conv2d(width, 1, 4, stride=1, padding=1))
        self.main = nn.Sequential(*layers)  # indices as in the original, so that its checkpoints need no key table
        self.main.apply(_initialize)
        if settings.spectral:
            spectrally_normalized(self.main)

    @property
    def smallest(self) -> int:
        """The smallest height and width, in pixels, that give a logit."""
        return 3 * self.settings.patch_size << self.settings.layers

    def forward(self, images: Tensor) -> Tensor:
        _check(images, self.settings, smallest=self.smallest)
        folded = F.pixel_unshuffle(images, self.settings.patch_size)  # (B,C*s*s,H/s,W/s)
        logits: Tensor = self.main(folded)  # (B,1,h,w)
        return logits


@final
class BlurPool(nn.Module):
    """(B,C,H,W) -> (B,C,H/2,W/2), rounded down: blurred by (1,3,3,1) each way, then every second pixel.

    Zhang 2019, "Making Convolutional Networks Shift-Invariant Again": what a plain stride throws away folds back as
    false patterns, and a discriminator that sees them teaches them. As in StyleGAN2, images are continued with zeros.
    """

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        line = torch.tensor((1.0, 3.0, 3.0, 1.0)) / 8
        self.register_buffer("kernel", torch.outer(line, line).view(1, 1, 4, 4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernels = self.kernel.expand(channels, -1, -1, -1)
        return F.conv2d(x, kernels, stride=2, padding=1, groups=channels)  # (B,C,H/2,W/2)


@settings
class BlurSettings:
    """The settings of `BlurDiscriminator`.

    - `channels`, `base_channels`, `spectral` and `patch_size`: as in `PatchSettings`.
    - `layers`: how many times the resolution is halved after that. It looks at patches of 9 * 2**layers - 4 pixels,
      times the patch size: 64 x 64 for 2 and patch size 2, which has an eighth of the resolution in all, as the
      reference with 3 layers.
    - `norm`: "group" or "none"; there is none whose logits depend on other images.
    """

    name: Literal["blur"] = "blur"
    channels: Positive = 3
    base_channels: Positive = 128
    layers: Annotated[int, Field(ge=1, le=6)] = 2
    norm: Literal["group", "none"] = "group"
    spectral: bool = False
    patch_size: Annotated[int, Field(ge=1, le=8)] = 2

    @property
    def mixes_batch(self) -> bool:
        """Whether the logits of an image depend on the rest of the batch."""
        return False


@final
class BlurDiscriminator(Discriminator):
    """Images (B,C,H,W) in [-1, 1] -> patch logits (B,1,h,w), where h = floor(H / (patch_size * 2**layers)),
    and w alike.

    After MaskBit's (Weber et al. 2024, arXiv 2409.16211): 3x3 convolutions, GroupNorm, blurred subsampling. The
    convolution that widens comes after the subsampling and not before it, which costs a quarter of the products, and
    the logits are not pooled to a fixed grid. Convolution weights keep PyTorch's initial values; each adds its bias.

    Raises `SmaltiError` for images of other channels, too small for 2 x 2 logits, or not divisible by the patch size.
    """

    def __init__(self, settings: BlurSettings) -> None:
        super().__init__()
        self.settings = settings
        width = settings.base_channels
        layers: list[nn.Module] = [
            nn.Conv2d(settings.channels * settings.patch_size**2, width, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for depth in range(1, settings.layers + 1):
            wider = settings.base_channels * min(2**depth, 8)
            layers += [
                BlurPool(),
                nn.Conv2d(width, wider, 3, padding=1),
                NORMS[settings.norm].build(wider),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            width = wider
        layers.append(nn.Conv2d(width, 1, 3, padding=1))
        self.main = nn.Sequential(*layers)
        if settings.spectral:
            spectrally_normalized(self.main)

    @property
    def smallest(self) -> int:
        """The smallest height and width, in pixels: 2 x 2 logits, since a single position cannot be normalized."""
        return 2 * self.settings.patch_size << self.settings.layers

    def forward(self, images: Tensor) -> Tensor:
        _check(images, self.settings, smallest=self.smallest)
        folded = F.pixel_unshuffle(images, self.settings.patch_size)  # (B,C*s*s,H/s,W/s)
        logits: Tensor = self.main(folded)  # (B,1,h,w)
        return logits


def _check(images: Tensor, settings: PatchSettings | BlurSettings, *, smallest: int) -> None:
    channels, height, width = images.shape[1:]
    if channels != settings.channels:
        raise SmaltiError(
            f"the discriminator was made for images of {settings.channels} channels, these have {channels}; "
            f"set its channels to {channels}"
        )
    if height % settings.patch_size or width % settings.patch_size:
        raise SmaltiError(
            f"the discriminator's patch_size {settings.patch_size} does not divide images of {height}x{width}; "
            f"use patch_size 1 or images of another size"
        )
    if min(height, width) < smallest:
        raise SmaltiError(
            f"images of {height}x{width} are too small for a discriminator with {settings.layers} layers and "
            f"patch_size {settings.patch_size}, which needs {smallest} pixels each way; use fewer layers, a smaller "
            "patch_size or larger images"
        )


@torch.no_grad()
def _initialize(module: nn.Module) -> None:
    """DCGAN's initialization (Radford et al. 2016), as in the original; convolution biases keep PyTorch's default."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
