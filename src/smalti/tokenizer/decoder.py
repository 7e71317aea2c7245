"""The decoder G: latents on the code grid -> images.

Notation: B batch, C channels, H W pixels, h w code grid, f = H/h, Z latent channels. Source: arXiv 2012.09841, appendix
A, table 7.
"""

from __future__ import annotations

from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.tokenizer.blocks import ResolutionLevel, Upsample, group_norm, middle, plus, swish, zero_init_residuals
from smalti.tokenizer.convolutions import Convolution
from smalti.tokenizer.encoder import AutoencoderSettings


@final
class SmoothOutput(nn.Module):
    """(B,D,H/s,W/s) -> (B,C,H,W): a 3x3 convolution before each doubling, another after it, and a last one at full
    resolution.

    Maps are doubled by bilinear interpolation, whose weights vanish at the frequencies of the coarser grid. Where each
    pixel of a square of the stem has weights of its own instead, pixels differ by their position in it: a hatch with
    the stem's period.
    """

    REACH = 4
    """Rows of the input above and below a row that have a part in it, for a stem of 2 or more."""

    def __init__(self, channels: int, output_channels: int, image_channels: int, *, stem: int) -> None:
        super().__init__()
        widths = [output_channels << level for level in reversed(range(stem.bit_length() - 1))]  # from coarse to fine
        self.narrowing = nn.ModuleList(
            Convolution(before, after, 3, padding=1) for before, after in pairwise([channels, *widths])
        )
        self.refining = nn.ModuleList(Convolution(width, width, 3, padding=1) for width in widths)
        self.last = nn.Conv2d(output_channels, image_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for narrow, refine in zip(self.narrowing, self.refining, strict=True):
            x = F.interpolate(narrow(x), scale_factor=2.0, mode="bilinear", align_corners=False)
            x = plus(refine(F.silu(x)), x)  # twice the height and width, half the channels
        return self.last(F.silu(x))  # type: ignore[no-any-return]


@final
class Decoder(nn.Module):
    """(B,Z,h,w) -> (B,C,H,W); nothing clamps the result to [-1,1]."""

    def __init__(self, autoencoder: AutoencoderSettings) -> None:
        super().__init__()
        widths, last = autoencoder.decoder_widths, len(autoencoder.channel_multipliers) - 1
        self.stem = autoencoder.patch_size
        self.conv_in = Convolution(autoencoder.latent_channels, widths[-1], 3, padding=1)
        self.middle = middle(widths[-1], attention=autoencoder.middle_attention, dropout=autoencoder.dropout)
        # Level 0 is the highest resolution here as in the encoder; they run from the last to the first.
        self.stages = nn.ModuleList(
            ResolutionLevel(
                widths[min(level + 1, last)],
                widths[level],
                blocks=autoencoder.decoder_blocks_per_level,
                attention=level in autoencoder.attention_levels,
                dropout=autoencoder.dropout,
            )
            for level in range(len(widths))
        )
        self.upsamples = nn.ModuleList(
            Upsample(widths[level], convolution=autoencoder.convolutional_resampling) if level > 0 else nn.Identity()
            for level in range(len(widths))
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out: nn.Module
        if autoencoder.output_channels and autoencoder.patch_size > 1:
            self.folded = 1
            self.conv_out = SmoothOutput(
                widths[0], autoencoder.output_channels, autoencoder.channels, stem=autoencoder.patch_size
            )
        else:
            self.folded = autoencoder.patch_size
            squares = Convolution(widths[0], autoencoder.channels * autoencoder.patch_size**2, 3, padding=1)
            _start_even(squares, autoencoder.patch_size)
            self.conv_out = squares
        if autoencoder.zero_residuals:
            zero_init_residuals(self)

    @property
    def last_layer(self) -> Tensor:
        """The weight whose gradients balance reconstruction against the discriminator (Eq. 7)."""
        last = self.conv_out.last if isinstance(self.conv_out, SmoothOutput) else self.conv_out
        assert isinstance(last, nn.Conv2d)
        return last.weight

    def forward(self, latents: Tensor) -> Tensor:
        x = self.middle(self.conv_in(latents))  # (B, width m, h, w)
        for stage, upsample in zip(reversed(self.stages), reversed(self.upsamples), strict=True):
            x = upsample(stage(x))  # (B, width m, .., ..)
        x = self.conv_out(swish(self.norm_out(x)))  # (B, C t^2, H/t, W/t), t = `folded`
        return F.pixel_shuffle(x, self.folded)  # (B, C, H, W)


@torch.no_grad()
def _start_even(last: nn.Conv2d, stem: int) -> None:
    """Give the stem x stem pixels of one square the same weights, in place.

    The image then begins smooth; independent weights for each pixel of a square would begin as a checkerboard that
    training is slow to remove (Aitken et al. 2017, "Checkerboard artifact free sub-pixel convolution").
    With stem 1 nothing changes.
    """
    for parameter in (last.weight, last.bias):
        assert parameter is not None
        squares = parameter.view(-1, stem**2, *parameter.shape[1:])  # (C, s^2, ...)
        squares.copy_(squares[:, :1].clone().expand_as(squares))
