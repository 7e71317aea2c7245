"""Decoding and encoding strip by strip: images of any size in bounded memory, as from the whole image up to float
rounding.

Each convolution is one walk over a map, from top to bottom, in strips of rows. A strip is read with the row above and
below it that the kernel reaches; the rows at a border of the strip that is not a border of the map are computed and
dropped. GroupNorm's statistics are those of the whole map, gathered in float64 while the map was written. Attention has
its keys and values whole, and its queries in pieces. Where a map is read for the last time, the result is written in
its place.

A map larger than `memory_limit` bytes is in a temporary file, written once and read once or twice; nothing is computed
again. Costs, for strips of r rows:

    operations   (r + 2) / r times those of the whole image
    on disk      two maps of the highest level, B x H/s x W/s x width numbers each, with patch size s and the width
                 of the first two levels that is larger; three where they differ
    in memory    up to three maps of `memory_limit` bytes, about ten strips, and keys and values of one attention:
                 two maps of its level

Nearly all the time of a large image goes by before the decoder gives its first strip, since each GroupNorm waits for
the whole of its map.

Notation: B batch, C channels, H W pixels, h w code grid, f = H/h, s patch size, r rows of a strip, D dimension of a
code, T positions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.core.arguments import check_finite
from smalti.core.errors import SmaltiError
from smalti.core.progress_callback import Progress, no_progress
from smalti.tokenizer.blocks import AttentionBlock, Downsample, ResidualBlock, ResolutionLevel, Upsample, plus, swish
from smalti.tokenizer.decoder import SmoothOutput
from smalti.tokenizer.quantizers import Quantized
from smalti.tokenizer.tiled.feature_maps import FeatureMap, MapStorageSettings, Rows, gathered
from smalti.tokenizer.tiled.tiled_progress import (
    MultiplicationCounter,
    decoder_multiplications,
    encoder_multiplications,
)
from smalti.tokenizer.vqgan import VQGAN

KEPT = 2**26
"""Bytes of a map that is kept in memory: 64 MiB, as of 512 x 512 positions with 64 channels."""
SCORES = 2**25
"""Scores of queries and keys that are taken at a time, where PyTorch holds them: 128 MiB of float32."""


def decode_tiled(
    model: VQGAN,
    latents: Tensor,
    *,
    rows: int,
    memory_limit: int = KEPT,
    folder: Path | None = None,
    progress: Progress = no_progress,
) -> Iterator[Tensor]:
    """Latents (B,D,h,w) -> what `model.decode` makes of them, in strips (B,C,r,W) from top to bottom.

    Each strip has `rows` rows (a multiple of the stem: the next smaller, but at least the stem), the last what remains.
    The first comes late: all maps but the last are computed before it, and `progress` reports them. Without gradients.
    `model` is in evaluation mode: dropout would be drawn again for each strip. Temporary files are in `folder`, or in
    the system's folder for them.

    Raises `SmaltiError` for fewer than 1 row, and where there is no room for a file.
    """
    h, w = latents.shape[2:]
    counter = MultiplicationCounter(
        decoder_multiplications(model.decoder, h * w), rows=h * model.factor, progress=progress
    )
    return _decoded(model, latents, _Walk.of(model, rows, memory_limit, folder, counter))


@torch.no_grad()
def _decoded(model: VQGAN, latents: Tensor, walk: _Walk) -> Iterator[Tensor]:
    decoder = model.decoder
    x = walk.through(decoder.conv_in, lambda first, last: model.from_codes(latents[:, :, first:last]), latents.shape[2])
    x = walk.along(decoder.middle, x)  # (B, width m, h, w)
    for stage, upsample in zip(reversed(decoder.stages), reversed(decoder.upsamples), strict=True):
        x = walk.along(upsample, walk.along(stage, x))  # (B, width m, .., ..)
    last = walk.finer(decoder.stem // decoder.folded)
    for strip in last.strips(decoder.conv_out, activated(decoder.norm_out, x), x.height):  # (B, C t^2, r/t, W/t)
        yield F.pixel_shuffle(strip, decoder.folded)  # (B, C, r, W)


def encode_tiled(
    model: VQGAN,
    read: Rows,
    height: int,
    *,
    rows: int,
    memory_limit: int = KEPT,
    folder: Path | None = None,
    progress: Progress = no_progress,
) -> Quantized:
    """Images of `height` rows in [-1,1] -> what `model.encode` makes of them: latents (B,D,h,w), codes (B,h,w), loss
    ().

    `read(first, last)` gives rows first to last - 1 of the images, (B,C,last-first,W): about `rows` at a time, from top
    to bottom, each time with a row or two (of the stem's squares) of the time before, and the first row once more
    before all, to see how wide it is. What lies on the code grid is held whole. The rest as in `decode_tiled`.

    Raises `SmaltiError` for fewer than 1 row, images that f does not divide, strips of another shape than requested,
    weights that are not finite, and where there is no room for a file.
    """
    features = features_tiled(
        model, read, height, rows=rows, memory_limit=memory_limit, folder=folder, progress=progress
    )
    check_finite(features, what="the features that the encoder gives")
    with torch.no_grad():
        quantized: Quantized = model.quantizer(features)
    check_finite(quantized.latents, what="the vectors of the codebook")
    return quantized


@torch.no_grad()
def features_tiled(
    model: VQGAN,
    read: Rows,
    height: int,
    *,
    rows: int,
    memory_limit: int = KEPT,
    folder: Path | None = None,
    progress: Progress = no_progress,
) -> Tensor:
    """Images as in `encode_tiled` -> what `model.features` makes of them: (B,D,h,w) before quantization.
    Errors as there."""
    if height < 1 or height % model.factor:
        raise SmaltiError(f"an image of {height} rows cannot be cut into tiles of {model.factor}; crop or pad it")
    encoder = model.encoder
    first_row = read(0, encoder.stem)
    _check_strip(model, first_row, encoder.stem)
    positions = height // encoder.stem * (first_row.shape[3] // encoder.stem)
    counter = MultiplicationCounter(encoder_multiplications(encoder, positions), rows=height, progress=progress)
    walk = _Walk.of(model, rows, memory_limit, folder, counter)

    def squares(first: int, last: int) -> Tensor:
        images = read(first * encoder.stem, last * encoder.stem)
        _check_strip(model, images, (last - first) * encoder.stem)
        return F.pixel_unshuffle(images, encoder.stem)  # (B, C s^2, r/s, W/s)

    x = walk.through(encoder.conv_in, squares, height // encoder.stem)  # (B, width, H/s, W/s)
    for stage, downsample in zip(encoder.stages, encoder.downsamples, strict=True):
        x = walk.along(downsample, walk.along(stage, x))  # (B, width m, .., ..)
    x = walk.along(encoder.middle, x)  # (B, width m, h, w)
    strips = walk.strips(encoder.conv_out, activated(encoder.norm_out, x), x.height)  # (B, Z, r, w)
    return torch.cat([model.to_codes(strip) for strip in strips], 2)  # (B, D, h, w)


def _check_strip(model: VQGAN, images: Tensor, rows: int) -> None:
    channels = model.settings.autoencoder.channels
    if images.dim() != 4 or images.shape[1] != channels or images.shape[2] != rows:
        raise SmaltiError(f"a strip of shape (B, {channels}, {rows}, W) was requested, and got {tuple(images.shape)}")
    width = images.shape[3]
    if not width or width % model.factor:
        raise SmaltiError(f"an image {width} pixels wide cannot be cut into tiles of {model.factor}; crop or pad it")


def normed(norm: nn.GroupNorm, x: FeatureMap) -> Rows:
    """Rows of `norm` of the whole map, the caller's own."""
    scale, shift = x.moments.affine(norm)  # (B,C,1,1)

    def read(first: int, last: int) -> Tensor:
        strip = x.read(first, last)
        wide = torch.promote_types(strip.dtype, torch.float32)  # half precision is computed in float32, as in GroupNorm
        return torch.addcmul(shift.to(wide), strip.to(wide), scale.to(wide)).to(strip.dtype)

    return read


def activated(norm: nn.GroupNorm, x: FeatureMap) -> Rows:
    """Rows of swish(norm(x)), the caller's own."""
    read = normed(norm, x)
    return lambda first, last: swish(read(first, last))


class _Reach(NamedTuple):
    """Which rows a layer makes of which."""

    takes: int = 1
    """Of so many rows ..."""
    gives: int = 1
    """... it makes so many."""
    above: int = 0
    """Rows before them that it also looks at."""
    below: int = 0
    """Rows after them that it also looks at."""


def _reach(layer: nn.Module) -> _Reach:
    if isinstance(layer, Upsample):
        return _Reach(gives=2, above=1, below=1)
    if isinstance(layer, Downsample):
        return _Reach(takes=2, below=1)
    if isinstance(layer, SmoothOutput):
        return _Reach(gives=2 ** len(layer.narrowing), above=layer.REACH, below=layer.REACH)
    assert isinstance(layer, nn.Conv2d)
    assert (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
    return _Reach(above=1, below=1)


@final
class _Walk:
    """Layers of a network over maps in strips of at most `rows` rows, what is between them in `storage`,
    counted as `counter`."""

    def __init__(self, rows: int, storage: MapStorageSettings, counter: MultiplicationCounter) -> None:
        self._rows = rows
        self._storage = storage
        self._counter = counter

    @classmethod
    def of(
        cls, model: VQGAN, rows: int, memory_limit: int, folder: Path | None, counter: MultiplicationCounter
    ) -> _Walk:
        if rows < 1:
            raise SmaltiError(f"strips of {rows} rows hold nothing; ask for 1 or more")
        # A row of the highest map is a row of squares of stem x stem pixels.
        within = max(1, rows // model.settings.autoencoder.patch_size)
        folder = Path(tempfile.gettempdir()) if folder is None else folder
        return cls(within, MapStorageSettings(memory_limit=memory_limit, folder=folder), counter)

    def finer(self, times: int) -> _Walk:
        """The same over maps of this many times the rows."""
        return _Walk(self._rows * times, self._storage, self._counter)

    def bounds(self, height: int, reach: _Reach) -> Iterator[tuple[int, int]]:
        """(first, last) of each strip of what a layer makes, `height` rows; neither it nor its input has more than
        `rows`."""
        step = max(self._rows // max(reach.takes, reach.gives), 1) * reach.gives
        return pairwise([*range(0, height, step), height])

    def strips(self, layer: nn.Module, read: Rows, height: int) -> Iterator[Tensor]:
        """What `layer` makes of a map of `height` rows, from top to bottom."""
        reach = _reach(layer)
        takes, gives, above, below = reach
        for first, last in self.bounds(height * gives // takes, reach):
            begin, end = first * takes // gives, last * takes // gives
            top = max(begin - above, 0)
            strip = layer(read(top, min(end + below, height)))
            # The layer pads at all borders; what it made of the padding is right at the borders of the map alone.
            dropped = (begin - top) * gives // takes
            yield strip[:, :, dropped : dropped + last - first]
            self._counter.add(layer, (last - first) * strip.shape[3], keys=0)

    def through(self, layer: nn.Module, read: Rows, height: int) -> FeatureMap:
        """The map that one layer makes of another map's rows."""
        takes, gives, *_ = _reach(layer)
        return gathered(self.strips(layer, read, height), height * gives // takes, self._storage)

    def along(self, layers: nn.Module, x: FeatureMap) -> FeatureMap:
        """What some layers make of a map, which may be overwritten."""
        if isinstance(layers, nn.Identity):
            return x
        if isinstance(layers, ResidualBlock):
            return self._residual(layers, x)
        if isinstance(layers, AttentionBlock):
            return self._attention(layers, x)
        if isinstance(layers, ResolutionLevel):
            for block, attention in zip(layers.blocks, layers.attentions, strict=True):
                x = self.along(attention, self.along(block, x))
            return x
        if isinstance(layers, nn.Sequential):
            for layer in layers:
                x = self.along(layer, x)
            return x
        return self.through(layers, x.read, x.height)

    def _residual(self, block: ResidualBlock, x: FeatureMap) -> FeatureMap:
        h = self.through(block.convolution1, activated(block.norm1, x), x.height)  # (B,C',H,W)
        inside = activated(block.norm2, h)

        def sums() -> Iterator[Tensor]:
            strips = self.strips(
                block.convolution2, lambda first, last: block.dropout(inside(first, last)), x.height
            )  # (B,C',r,W)
            for (first, last), strip in zip(self.bounds(x.height, _Reach()), strips, strict=True):
                yield plus(strip, block.shortcut(x.read(first, last)))
                self._counter.add(block.shortcut, (last - first) * strip.shape[3], keys=0)

        if isinstance(block.shortcut, nn.Identity):
            return x.overwritten(sums())
        return gathered(sums(), x.height, self._storage)

    def _attention(self, block: AttentionBlock, x: FeatureMap) -> FeatureMap:
        read, bounds = normed(block.norm, x), list(self.bounds(x.height, _Reach()))
        key, value = (
            torch.cat([_sequence(projection(read(first, last))) for first, last in bounds], 2)  # (B,1,T,C)
            for projection in (block.key, block.value)
        )
        queries = max(1, SCORES // (key.shape[0] * key.shape[2]))

        def sums() -> Iterator[Tensor]:
            for first, last in bounds:
                strip = x.read(first, last)
                query = _sequence(block.query(read(first, last)))  # (B,1,rW,C)
                attended = torch.cat(
                    [F.scaled_dot_product_attention(some, key, value) for some in torch.split(query, queries, 2)], 2
                )  # (B,1,rW,C)
                B, C, r, W = strip.shape
                yield plus(block.out(attended.reshape(B, r, W, C).permute(0, 3, 1, 2)), strip)
                self._counter.add(block, r * W, keys=key.shape[2])

        return x.overwritten(sums())


def _sequence(x: Tensor) -> Tensor:
    """(B,C,r,W) -> (B,1,rW,C), in raster order."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)[:, None]
