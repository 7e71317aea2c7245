"""The projected discriminator: images -> logits of small heads on frozen features of a network trained on ImageNet.

Sauer, Chitta, Muller and Geiger 2021, "Projected GANs Converge Faster" (arXiv 2111.01007). Features at four strides are
mixed across channels and across scales by random convolutions that never learn (section 3.2), so that no head can rely
on a few of them; a small spectrally normalized head looks at each scale. Such a discriminator knows textures from its
first step, and has too little freedom to overpower a generator.

Notation: B batch, C channels (1 or 3), H W pixels, D h w width and grid of one feature map, M mixed channels, N logits.
"""

from __future__ import annotations

from typing import Annotated, Literal, final

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from smalti.core.errors import SmaltiError
from smalti.core.settings import Natural, Positive, settings
from smalti.kernels import winograd
from smalti.kernels.winograd import FrozenConvolution
from smalti.losses.base import Discriminator, spectrally_normalized
from smalti.losses.efficientnet import TAP_WIDTHS, TAPS, efficientnet_lite0
from smalti.losses.feature_distance import MIN_SIDE, unit_rms


@settings
class ProjectedSettings:
    """The settings of `ProjectedDiscriminator`.

    - `channels`: of the images, 1 or 3.
    - `width`: channels M after the mixing, at every scale.
    - `head_width`: channels inside a head.
    - `scales`: how many of the strides 2, 4, 8 and 16 have a head, from the finest on.
    - `mixing`: "channels_and_scales" is the paper's; "channels" mixes each scale by itself; "none" gives each head the
      features of its scale as they are.
    - `seed`: of the random mixing.
    """

    name: Literal["projected"] = "projected"
    channels: Positive = 3
    base_channels: Positive = 32
    head_channels: Positive = 32
    scales: Annotated[int, Field(ge=1, le=len(TAP_WIDTHS))] = len(TAP_WIDTHS)
    mixing: Literal["channels_and_scales", "channels", "none"] = "channels_and_scales"
    seed: Natural = 0

    @property
    def mixes_batch(self) -> bool:
        """Whether the logits of an image depend on the rest of the batch."""
        return False


@final
class RandomMixing(nn.Module):
    """Feature maps (B,D,h,w), finest first -> maps (B,M,h,w): random convolutions that never learn (section 3.2).

    Across channels a 1x1 convolution; across scales, from the deepest map to the finest, the sum of a map and of the
    deeper one doubled, through a 3x3 convolution. Weights are drawn as by Kaiming He, so that the size of features
    stays.
    """

    def __init__(self, widths: tuple[int, ...], width: int, *, scales: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.channels = nn.ModuleList(nn.Conv2d(each, width, 1, bias=False) for each in widths)
        self.scales = nn.ModuleList(FrozenConvolution(width, width) for _ in (widths if scales else ()))
        for layer in (*self.channels, *self.scales):
            assert isinstance(layer, nn.Conv2d | FrozenConvolution)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        self.requires_grad_(False)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        mixed = [layer(each) for layer, each in zip(self.channels, maps, strict=True)]  # (B,M,h,w) each
        if not len(self.scales):
            return mixed
        result: list[Tensor] = []
        for layer, finer in zip(reversed(self.scales), reversed(mixed), strict=True):
            if result:
                deeper = F.interpolate(result[-1], finer.shape[2:], mode="bilinear", align_corners=False)
                finer = (finer + deeper) * 0.5**0.5
            result.append(layer(finer))
        return result[::-1]


@final
class HeadConvolution(nn.Conv2d):
    """(B,C,h,w) -> (B,D,h,w): a 3x3 convolution with one pixel of zeros around, by Winograd's products where they
    pay."""

    def forward(self, x: Tensor) -> Tensor:
        if winograd.is_supported(x, self.weight):
            return winograd.convolve(x, self.weight, self.bias)
        return super().forward(x)


def _head(channels: int, width: int) -> nn.Sequential:
    """(B,M,h,w) -> (B,1,h,w)."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 1),
        nn.LeakyReLU(0.2),
        HeadConvolution(width, width, 3, padding=1),
        nn.LeakyReLU(0.2),
        HeadConvolution(width, width, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 1, 1),
    )


@final
class ProjectedDiscriminator(Discriminator):
    """Images (B,C,H,W) in [-1, 1] -> logits (B,N), those of all positions of all scales.

    A logit is weighed so that the mean over N is the mean over scales of each scale's mean: otherwise the finest scale,
    which has four times as many positions as the next, would outvote all others. A weight cannot be put on a logit, so
    coarse maps are repeated to the grid of the finest.

    Raises `SmaltiError` for images of another channel count or smaller than 16 pixels.
    """

    def __init__(self, settings: ProjectedSettings) -> None:
        super().__init__()
        self.settings = settings
        self.features = efficientnet_lite0()
        widths = TAP_WIDTHS[: settings.scales]
        mixed = widths if settings.mixing == "none" else (settings.base_channels,) * len(widths)
        self.mixing: nn.Module = nn.Identity()
        if settings.mixing != "none":
            self.mixing = RandomMixing(
                widths,
                settings.base_channels,
                scales=settings.mixing == "channels_and_scales",
                generator=torch.Generator().manual_seed(settings.seed),
            )
        self.heads = nn.ModuleList(_head(width, settings.head_channels) for width in mixed)
        spectrally_normalized(self.heads)

    def forward(self, images: Tensor) -> Tensor:
        self._check(images)
        color = images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)  # (B,3,H,W)
        maps = [unit_rms(each) for each in self.features(color, TAPS[: self.settings.scales])]  # (B,D,h,w) each
        logits = [head(each) for head, each in zip(self.heads, self.mixing(maps), strict=True)]  # (B,1,h,w) each
        grid = logits[0].shape[2:]
        return torch.cat([F.interpolate(each, grid, mode="nearest") for each in logits], 1).flatten(1)  # (B,N)

    def _check(self, images: Tensor) -> None:
        channels, height, width = images.shape[1:]
        if channels != self.settings.channels or channels not in (1, 3):
            raise SmaltiError(
                f"the projected discriminator was made for images of {self.settings.channels} channels, these have "
                f"{channels}; it takes 1 and 3, for others use the discriminator named patch"
            )
        if min(height, width) < MIN_SIDE:
            raise SmaltiError(
                f"images of {height}x{width} are too small for the projected discriminator, which needs {MIN_SIDE} "
                "pixels each way; use larger images"
            )
