"""Progress of tiled encoding and decoding, in rows of the image.

Nearly all of the time passes before the first strip of an image is done, so progress counts multiplications instead of
strips. They are counted: of each convolution its weights, once for each position of what it makes, and of attention its
scores and sums.
"""

from __future__ import annotations

from typing import final

from torch import nn

from smalti.core.progress_callback import Progress
from smalti.tokenizer.blocks import AttentionBlock
from smalti.tokenizer.decoder import Decoder
from smalti.tokenizer.encoder import Encoder


def image_progress(progress: Progress, number: int, count: int) -> Progress:
    """Progress of all images -> progress of image `number` (from 0) of `count`, all of one size."""
    return lambda done, total: progress(number * total + done, count * total)


def multiplications(layers: nn.Module, positions: int, *, keys: int) -> int:
    """Layers that make `positions` positions of a map, those of attention looking at `keys` positions each
    -> multiplications."""
    count = 0
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d):
            count += layer.weight.numel() * positions
        elif isinstance(layer, AttentionBlock):
            count += 2 * layer.out.out_channels * keys * positions
    return count


def decoder_multiplications(decoder: Decoder, codes: int) -> int:
    """Multiplications of the decoder for a grid of this many codes."""
    count, positions = multiplications(nn.ModuleList([decoder.conv_in, decoder.middle]), codes, keys=codes), codes
    for stage, upsample in zip(reversed(decoder.stages), reversed(decoder.upsamples), strict=True):
        count += multiplications(stage, positions, keys=positions)
        if not isinstance(upsample, nn.Identity):
            positions *= 4
        count += multiplications(upsample, positions, keys=positions)
    positions *= (decoder.stem // decoder.folded) ** 2
    return count + multiplications(decoder.conv_out, positions, keys=positions)


def encoder_multiplications(encoder: Encoder, squares: int) -> int:
    """Multiplications of the encoder for an image of this many squares of stem x stem pixels."""
    count, positions = multiplications(encoder.conv_in, squares, keys=squares), squares
    for stage, downsample in zip(encoder.stages, encoder.downsamples, strict=True):
        count += multiplications(stage, positions, keys=positions)
        if not isinstance(downsample, nn.Identity):
            positions //= 4
        count += multiplications(downsample, positions, keys=positions)
    return count + multiplications(nn.ModuleList([encoder.middle, encoder.conv_out]), positions, keys=positions)


@final
class MultiplicationCounter:
    """Sums up the multiplications done of a `total`, and reports them in `rows`."""

    def __init__(self, total: int, *, rows: int, progress: Progress) -> None:
        self._total, self._rows, self._progress = total, rows, progress
        self._done = 0

    def add(self, layers: nn.Module, positions: int, *, keys: int) -> None:
        """Layers have made so many positions of their map."""
        self._done += multiplications(layers, positions, keys=keys)
        self._progress(self._rows * self._done // self._total, self._rows)
