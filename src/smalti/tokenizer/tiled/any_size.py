"""Codes <-> images of any size in bounded memory: a small image whole, a large one strip by strip.

Notation: B batch, C channels, H W pixels, h w code grid, D dimension of a code, r rows of a strip.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from smalti.core.arguments import check_finite
from smalti.core.progress_callback import Progress, no_progress
from smalti.tokenizer.batches import Images
from smalti.tokenizer.quantizers import Quantized
from smalti.tokenizer.tiled.tiled_layers import decode_tiled, encode_tiled
from smalti.tokenizer.tiled.tiled_progress import image_progress
from smalti.tokenizer.vqgan import VQGAN

MAX_UNTILED_PIXELS = 2**20
"""Pixels of an image above which it goes by strips: 1024 x 1024. Whole, that takes 1.6 GiB with a tokenizer of usual
width, and four times as much for each doubling of both sides; strips take a third of it, and a sixth more
of time (docs/log.md)."""
STRIP = 2**26
"""Bytes of a strip of the widest map, of float32: 64 MiB. About ten are in memory."""


def tile_rows(model: VQGAN, width: int) -> int:
    """Pixels of a row of an image -> how many rows make a strip of about `STRIP` bytes; 8 of the highest map at
    least."""
    autoencoder = model.settings.autoencoder
    # The first block of the decoder's highest level has the width of the level below.
    widest = max(*autoencoder.widths[:2], *autoencoder.decoder_widths[:2])
    return max(STRIP // (4 * widest * (width // autoencoder.patch_size)), 8) * autoencoder.patch_size


def is_large(model: VQGAN, grid: Tensor) -> bool:
    """Whether codes or latents (.., h, w) are those of images of more than `MAX_UNTILED_PIXELS` pixels."""
    return grid.shape[-2] * grid.shape[-1] * model.factor**2 > MAX_UNTILED_PIXELS


@torch.no_grad()
def encode_of_any_size(model: VQGAN, images: Images, *, progress: Progress = no_progress) -> Quantized:
    """Images, on any device, as `model.encode` takes them -> what it makes of them, without gradients.

    Images of more than `MAX_UNTILED_PIXELS` pixels are encoded one by one. Errors as in `encode_tiled`, and as in
    `VQGAN.encode`.
    """
    images, device = model.batch(images), next(model.parameters()).device
    if images.shape[2] * images.shape[3] <= MAX_UNTILED_PIXELS:
        return model.encode(images)
    (height, width), each = images.shape[2:], []
    for number in range(len(images)):

        def read(first: int, last: int, image: Tensor = images[number : number + 1]) -> Tensor:
            return image[:, :, first:last].to(device)

        report = image_progress(progress, number, len(images))
        each.append(encode_tiled(model, read, height, rows=tile_rows(model, width), progress=report))
    latents, codes, losses = zip(*each, strict=True)
    return Quantized(torch.cat(latents), torch.cat(codes), torch.stack(losses).mean())


def decode_of_any_size(model: VQGAN, latents: Tensor, *, progress: Progress = no_progress) -> Tensor:
    """Latents (B,D,h,w) -> images (B,C,H,W) on the CPU, as of `model.decode`, without gradients.

    Images of more than `MAX_UNTILED_PIXELS` pixels are decoded one by one. Raises `SmaltiError` if there is no room for
    a temporary file.
    """
    parts = torch.split(latents, 1 if is_large(model, latents) else max(len(latents), 1))
    images = [
        torch.cat(
            [strip.cpu() for strip in decode_tiles(model, part, progress=image_progress(progress, number, len(parts)))],
            2,
        )
        for number, part in enumerate(parts)
    ]
    return torch.cat(images)


@torch.no_grad()
def decode_tiles(model: VQGAN, latents: Tensor, *, progress: Progress = no_progress) -> Iterator[Tensor]:
    """Latents (B,D,h,w) -> their images in strips (B,C,r,W) from top to bottom, on the model's device.

    Images of at most `MAX_UNTILED_PIXELS` pixels are one strip. Raises `SmaltiError` if there is no room for a
    temporary file, and where weights are not finite.
    """
    height, width = latents.shape[2] * model.factor, latents.shape[3] * model.factor
    if is_large(model, latents):
        for strip in decode_tiled(model, latents, rows=tile_rows(model, width), progress=progress):
            check_finite(strip, what="the images that the decoder gives")
            yield strip
    else:
        images = model.decode(latents)
        check_finite(images, what="the images that the decoder gives")
        yield images
        progress(height, height)
