"""The decoder G: latents on the code grid -> pictures.

Letters: B batch, C channels, H W pixels, h w code grid, f = H/h, Z latent channels.
Source: arXiv 2012.09841, appendix A, table 7.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.tokenizer.blocks import Stage, Upsample, group_norm, middle, start_as_shortcuts, swish
from smalti.tokenizer.encoder import PyramidSettings


@final
class Decoder(nn.Module):
    """(B,Z,h,w) -> (B,C,H,W); nothing clamps the result to [-1,1]."""

    def __init__(self, pyramid: PyramidSettings) -> None:
        super().__init__()
        widths, last = pyramid.decoder_widths, len(pyramid.multipliers) - 1
        self.stem = pyramid.stem
        self.conv_in = nn.Conv2d(pyramid.latent_channels, widths[-1], 3, padding=1)
        self.middle = middle(widths[-1], attention=pyramid.middle_attention, dropout=pyramid.dropout)
        # Level 0 is the highest resolution here as in the encoder; they run from the last to the first.
        self.stages = nn.ModuleList(
            Stage(
                widths[min(level + 1, last)],
                widths[level],
                blocks=pyramid.decoder_blocks_per_level,
                attention=level in pyramid.attention,
                dropout=pyramid.dropout,
            )
            for level in range(len(widths))
        )
        self.upsamples = nn.ModuleList(
            Upsample(widths[level], convolution=pyramid.convolutional_resampling) if level > 0 else nn.Identity()
            for level in range(len(widths))
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], pyramid.channels * pyramid.stem**2, 3, padding=1)
        _start_even(self.conv_out, pyramid.stem)
        if pyramid.zero_residuals:
            start_as_shortcuts(self)

    @property
    def last_layer(self) -> Tensor:
        """The weight whose gradients balance reconstruction against the discriminator (Eq. 7)."""
        return self.conv_out.weight

    def forward(self, latents: Tensor) -> Tensor:
        x = self.middle(self.conv_in(latents))  # (B, width m, h, w)
        for stage, upsample in zip(reversed(self.stages), reversed(self.upsamples), strict=True):
            x = upsample(stage(x))  # (B, width m, .., ..)
        x = self.conv_out(swish(self.norm_out(x)))  # (B, C s^2, H/s, W/s)
        return F.pixel_shuffle(x, self.stem)  # (B, C, H, W)


@torch.no_grad()
def _start_even(last: nn.Conv2d, stem: int) -> None:
    """Give the stem x stem pixels of one square the same weights, in place.

    The picture then begins smooth; independent weights for each pixel of a square would begin as a checkerboard that training
    is slow to remove (Aitken et al. 2017, "Checkerboard artifact free sub-pixel convolution"). With stem 1 nothing changes.
    """
    for parameter in (last.weight, last.bias):
        assert parameter is not None
        squares = parameter.view(-1, stem**2, *parameter.shape[1:])  # (C, s^2, ...)
        squares.copy_(squares[:, :1].clone().expand_as(squares))
