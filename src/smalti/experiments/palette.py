"""The tokenizer of f = 1: a palette of K colors. The code of a pixel is the color nearest to it.

It has the methods of a `VQGAN` and is none: there is nothing to its encoder and decoder. It is what section 4.4 of the
paper compares with, transformers on pixels, as in Chen et al. 2020 (iGPT).

Notation: B batch, H W pixels, K colors, n pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from smalti.core.settings import as_mapping, parse
from smalti.hub.pretrained import find_model, load_weights_into, save_model
from smalti.tokenizer.encoder import AutoencoderSettings
from smalti.tokenizer.quantizers import VQ, Quantized, VQSettings
from smalti.tokenizer.vqgan import VQGANSettings

PIXELS_A_COLOR = 64
"""Pixels for each color, drawn evenly from the images, on which k-means places it."""


@final
class Palette(nn.Module):
    """Images (B,3,H,W) in [-1,1] <-> codes (B,H,W) int64 in [0,K)."""

    factor = 1

    def __init__(self, settings: VQSettings) -> None:
        super().__init__()
        self.quantizer = VQ(settings)
        autoencoder = AutoencoderSettings(patch_size=1, channel_multipliers=(1,))
        self.settings = VQGANSettings(autoencoder=autoencoder, quantizer=settings)  # of the sizes that callers read

    @property
    def size(self) -> int:
        """K."""
        return self.quantizer.size

    def encode(self, images: Tensor) -> Quantized:
        """Images (B,3,H,W) -> colors (B,3,H,W), codes (B,H,W), loss ()."""
        quantized: Quantized = self.quantizer(images)
        return quantized

    def latents_of(self, codes: Tensor) -> Tensor:
        """Codes (B,H,W) -> colors (B,3,H,W)."""
        return self.quantizer.lookup(codes)

    def decode(self, latents: Tensor) -> Tensor:
        """Colors (B,3,H,W) -> images (B,3,H,W): colors are pixels."""
        return latents

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Codes (B,H,W) -> images (B,3,H,W)."""
        return self.decode(self.latents_of(codes))

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Images (B,3,H,W) -> what their codes keep of them (B,3,H,W), and the codes."""
        quantized = self.encode(images)
        return quantized.latents, quantized

    def fingerprint(self) -> str:
        """A short hash of the colors, as `VQGAN.fingerprint`."""
        colors = self.quantizer.vectors().detach().float().cpu().contiguous()
        return hashlib.sha256(b"palette" + colors.numpy().tobytes()).hexdigest()[:16]

    def save(self, folder: Path, *, about: Mapping[str, Any]) -> None:
        """Write a model folder."""
        settings = as_mapping(self.quantizer.settings)
        save_model(folder, kind="palette", settings=settings, about=about, weights=self.state_dict())


def load_palette(folder: Path) -> Palette:
    """What `Palette.save` wrote -> the palette. Raises `SmaltiError` for another model, and for damage."""
    saved = find_model(folder, kind="palette")
    palette = Palette(parse(VQSettings, saved.settings, where=str(saved.folder)))
    load_weights_into(palette, saved)
    return palette.eval().requires_grad_(False)


@torch.no_grad()
def fitted_palette(images: Iterable[Tensor], *, size: int, rounds: int, count: int, seed: int) -> Palette:
    """Batches of images (B,3,H,W), of which so many `images` are looked at in all -> a palette of `size` colors, by
    `rounds` of k-means on pixels of all of them."""
    palette = Palette(
        VQSettings(
            codebook_size=size,
            codebook_dim=3,
            l2_normalize=False,
            kmeans_iterations=rounds,
            dead_code_threshold=0.0,
            commitment=0.0,
        )
    )
    generator = torch.Generator().manual_seed(seed)
    wanted = -(-PIXELS_A_COLOR * size // count)  # of each
    some = []
    for batch in images:
        for image in batch:
            pixels = image.flatten(1)  # (3,n)
            some.append(pixels[:, torch.randint(pixels.shape[1], (wanted,), generator=generator)])
    palette.quantizer.init_codebook(torch.cat(some, 1)[None, :, :, None], generator=generator)
    return palette.eval().requires_grad_(False)
