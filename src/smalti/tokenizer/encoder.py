"""The encoder E: images -> features on the code grid; and the settings it shares with the decoder.

Notation: B batch, C channels, H W pixels, h w code grid, f = H/h, Z latent channels. Source: arXiv 2012.09841, appendix
A, table 7.
"""

from __future__ import annotations

from typing import Annotated, final

from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.core.settings import LayerCount, Natural, Positive, ProperFraction, settings
from smalti.tokenizer.blocks import Downsample, ResolutionLevel, group_norm, middle, swish, zero_init_residuals
from smalti.tokenizer.convolutions import Convolution

MIN_WIDTH = 8
"""Channels at the highest resolution, at least."""


@settings
class AutoencoderSettings:
    """Encoder and decoder; the factor f is `patch_size` times 2 for each multiplier after the first."""

    channels: Positive = 3
    """Channels of an image: 3 color, 1 grayscale or depth, n one-hot labels."""
    patch_size: Positive = 1
    """Space-to-depth before the first convolution: 2 does all work at half resolution (about 4 times less of it)."""
    output_channels: Natural = 0
    """Channels at full resolution, to which the decoder goes by smooth doublings of twice as many channels each, for a
    patch size of 2, 4 or 8; 1 needs none. 0: the last convolution works at 1/patch_size of the resolution and makes
    each pixel of a square by weights of its own, which costs less and shows as a hatch with the period of the patch."""
    base_channels: Annotated[int, Field(ge=MIN_WIDTH)] = 64
    """Channels at the highest resolution."""
    channel_multipliers: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=30)] = (1, 2, 2)
    """Width of each resolution, from the highest to the lowest, as a multiple of `base_channels`."""
    res_blocks: LayerCount = 2
    """Residual blocks a resolution in the encoder; the decoder has one more, as in the paper."""
    decoder_base_channels: Natural = 0
    """Channels of the decoder at the highest resolution, which `channel_multipliers` multiply too; 0:
    `base_channels`."""
    decoder_res_blocks: Natural = 0
    """Residual blocks per resolution in the decoder; 0: one more than `res_blocks`."""
    attention_levels: tuple[int, ...] = ()
    """Levels (0 is the highest resolution) with attention after each block."""
    middle_attention: bool = True
    """Attention between the last two blocks of the lowest resolution; latent-diffusion's f4-noattn models have none."""
    latent_channels: Positive = 64
    """Channels Z of the features at the code grid."""
    dropout: ProperFraction = 0.0
    zero_residuals: bool = True
    """Residual blocks begin as their shortcuts; False begins as the original does."""
    convolutional_resampling: bool = True
    """False: average pooling down and plain repetition up, without convolutions."""

    @field_validator("decoder_base_channels")
    @classmethod
    def _wide_enough(cls, width: int) -> int:
        if 0 < width < MIN_WIDTH:
            raise ValueError(f"a width is {MIN_WIDTH} channels or more; 0 takes the encoder's")
        return width

    @field_validator("attention_levels")
    @classmethod
    def _attention_has_a_place(cls, attention: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        levels = len(info.data.get("channel_multipliers", ()))
        if levels and not all(0 <= level < levels for level in attention):
            raise ValueError(f"there are the levels 0 to {levels - 1}, one for each multiplier")
        return attention

    @field_validator("output_channels")
    @classmethod
    def _the_stem_is_made_of_doublings(cls, output_channels: int, info: ValidationInfo) -> int:
        stem = info.data.get("patch_size", 2)
        if output_channels and stem & (stem - 1):
            raise ValueError(
                f"patch_size is {stem}, and smooth doublings lead to patch sizes of 2, 4 and 8; set it to 0"
            )
        return output_channels

    @property
    def factor(self) -> int:
        """f = H/h."""
        return self.patch_size << (len(self.channel_multipliers) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level of the encoder."""
        return tuple(self.base_channels * multiplier for multiplier in self.channel_multipliers)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of each level of the decoder."""
        return tuple(
            (self.decoder_base_channels or self.base_channels) * multiplier for multiplier in self.channel_multipliers
        )

    @property
    def decoder_blocks_per_level(self) -> int:
        """Residual blocks of each level of the decoder."""
        return self.decoder_res_blocks or self.res_blocks + 1

    @property
    def decoder_differences(self) -> dict[str, bool]:
        """What formats with one width and depth for both networks cannot express: setting and value
        -> whether it is there."""
        return {
            f"model.autoencoder.decoder_base_channels = {self.decoder_base_channels}": self.decoder_widths
            != self.widths,
            f"model.autoencoder.decoder_res_blocks = {self.decoder_res_blocks}": self.decoder_blocks_per_level
            != self.res_blocks + 1,
        }


@final
class Encoder(nn.Module):
    """(B,C,H,W) in [-1,1] -> (B,Z,h,w) features; H and W are multiples of f."""

    def __init__(self, autoencoder: AutoencoderSettings) -> None:
        super().__init__()
        widths, last = autoencoder.widths, len(autoencoder.widths) - 1
        self.stem = autoencoder.patch_size
        self.conv_in = Convolution(autoencoder.channels * autoencoder.patch_size**2, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            ResolutionLevel(
                widths[max(level - 1, 0)],
                widths[level],
                blocks=autoencoder.res_blocks,
                attention=level in autoencoder.attention_levels,
                dropout=autoencoder.dropout,
            )
            for level in range(len(widths))
        )
        self.downsamples = nn.ModuleList(
            Downsample(widths[level], convolution=autoencoder.convolutional_resampling)
            if level < last
            else nn.Identity()
            for level in range(len(widths))
        )
        self.middle = middle(widths[-1], attention=autoencoder.middle_attention, dropout=autoencoder.dropout)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = Convolution(widths[-1], autoencoder.latent_channels, 3, padding=1)
        if autoencoder.zero_residuals:
            zero_init_residuals(self)

    def forward(self, images: Tensor) -> Tensor:
        x = F.pixel_unshuffle(images, self.stem)  # (B, C s^2, H/s, W/s)
        x = self.conv_in(x)  # (B, width, H/s, W/s)
        for stage, downsample in zip(self.stages, self.downsamples, strict=True):
            x = downsample(stage(x))  # (B, width m, .., ..)
        x = self.middle(x)  # (B, width m, h, w)
        return self.conv_out(swish(self.norm_out(x)))  # type: ignore[no-any-return]  # (B, Z, h, w)
