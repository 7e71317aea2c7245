"""The tokenizer: images <-> codes. Encoder, codebook and decoder, joined.

Notation: B batch, C channels, H W pixels, h w code grid, f = H/h, Z latent channels, D dimension of a code, K number of
codes: the size of the codebook, or of its code table. Source: arXiv 2012.09841, section 3.1 and figure 2.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from smalti.core.arguments import check_finite
from smalti.core.errors import SmaltiError
from smalti.core.fingerprints import weights_fingerprint
from smalti.core.settings import as_mapping, parse, settings
from smalti.hub.model_cards import Sources, publish
from smalti.hub.pretrained import build_saved, find_model, save_model
from smalti.tokenizer.batches import Codes, Images, code_batch, image_batch
from smalti.tokenizer.decoder import Decoder
from smalti.tokenizer.encoder import AutoencoderSettings, Encoder
from smalti.tokenizer.quantizers import QUANTIZERS, Quantized, Quantizer, QuantizerSettings, VQSettings


@settings
class VQGANSettings:
    """All that is needed to build a tokenizer."""

    autoencoder: AutoencoderSettings = AutoencoderSettings()
    quantizer: QuantizerSettings = VQSettings()


@final
class VQGAN(nn.Module):
    """Images (B,C,H,W) in [-1,1] <-> codes (B,h,w) int64 in [0,K), with h = H/f and w = W/f."""

    def __init__(self, settings: VQGANSettings) -> None:
        super().__init__()
        autoencoder, dimension = settings.autoencoder, settings.quantizer.codebook_dim
        self.settings = settings
        self.encoder = Encoder(autoencoder)
        self.to_codes = nn.Conv2d(autoencoder.latent_channels, dimension, 1)
        self.quantizer: Quantizer = QUANTIZERS[settings.quantizer.name](settings.quantizer)
        self.from_codes = nn.Conv2d(dimension, autoencoder.latent_channels, 1)
        self.decoder = Decoder(autoencoder)

    @property
    def factor(self) -> int:
        """f = H/h."""
        return self.settings.autoencoder.factor

    @property
    def size(self) -> int:
        """K, the number of codes."""
        return self.quantizer.size

    def features(self, images: Tensor) -> Tensor:
        """Images (B,C,H,W) -> features (B,D,h,w) before quantization.

        Raises `SmaltiError` when the images have another number of channels than the tokenizer, or sides
        that f does not divide.
        """
        channels, factor = self.settings.autoencoder.channels, self.factor
        if images.dim() != 4 or images.shape[1] != channels:
            raise SmaltiError(f"the tokenizer takes images of shape (B, {channels}, H, W), got {tuple(images.shape)}")
        height, width = images.shape[2:]
        if height % factor or width % factor or not height or not width:
            raise SmaltiError(
                f"an image of {height} x {width} (height x width) cannot be cut into tiles of {factor} pixels; "
                f"crop it to {max(height // factor, 1) * factor} x {max(width // factor, 1) * factor}"
            )
        return self.to_codes(self.encoder(images))  # type: ignore[no-any-return]

    def batch(self, images: Images) -> Tensor:
        """Images in any form -> (B,C,H,W) floats in [-1,1] of the weights' type. Raises `SmaltiError` as
        `inputs.image_batch`."""
        return image_batch(images, channels=self.settings.autoencoder.channels, dtype=next(self.parameters()).dtype)

    def encode(self, images: Images) -> Quantized:
        """Images -> latents (B,D,h,w), codes (B,h,w), loss ().

        Images are (B,C,H,W), floats in [-1,1] or uint8 from 0 to 255, or one or several of Pillow's, all of one size.
        Raises `SmaltiError` as `features`, as `inputs.image_batch`, and where weights are not finite.
        """
        features = self.features(self.batch(images).to(next(self.parameters()).device))
        check_finite(features, what="the features that the encoder gives")
        quantized: Quantized = self.quantizer(features)
        check_finite(quantized.latents, what="the vectors of the codebook")
        return quantized

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B,D,h,w) -> images (B,C,H,W), about [-1,1] but not clamped."""
        return self.decoder(self.from_codes(latents))  # type: ignore[no-any-return]

    def latents_of(self, codes: Codes) -> Tensor:
        """Codes (B,h,w), whole numbers in [0,K) -> latents (B,D,h,w). Raises `SmaltiError` as `inputs.code_batch`."""
        return self.quantizer.lookup(code_batch(codes, size=self.size).to(next(self.parameters()).device))

    def decode_codes(self, codes: Codes) -> Tensor:
        """Codes (B,h,w), whole numbers in [0,K) -> images (B,C,H,W).

        At once, with gradients; `strips.decode_of_any_size` takes bounded memory. Raises `SmaltiError` as
        `inputs.code_batch`, and where weights are not finite.
        """
        images = self.decode(self.latents_of(codes))
        check_finite(images, what="the images that the decoder gives")
        return images

    def forward(self, images: Images) -> tuple[Tensor, Quantized]:
        """Images, as `encode` takes them -> their reconstructions (B,C,H,W) and what the quantizer made of them."""
        quantized = self.encode(images)
        return self.decode(quantized.latents), quantized

    def fingerprint(self) -> str:
        """A short hash of all that codes depend on: codes of two tokenizers mix only if it is equal.

        It is made of the weights, their names, and the quantizer's `identity`; not of the settings, which may gain
        fields.
        """
        training_statistics = ("quantizer.use",)
        weights = {name: value for name, value in self.state_dict().items() if name not in training_statistics}
        return weights_fingerprint(weights, identity=self.quantizer.identity)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> VQGAN:
        """A model folder, a run folder or a Hub id -> the tokenizer, in evaluation mode, on the CPU.

        Raises `SmaltiError` when there is none, it is another kind of model, or its files are damaged.
        """
        saved = find_model(name, kind="tokenizer")
        settings = parse(VQGANSettings, saved.settings, where=str(saved.folder))
        tokenizer = build_saved(lambda: cls(settings), saved)
        return tokenizer.eval().requires_grad_(False)

    def save_pretrained(self, folder: str | Path, *, about: Mapping[str, Any]) -> None:
        """Write `config.json` and `model.safetensors` into `folder`; `about` is stored with the settings."""
        settings, weights = as_mapping(self.settings), self.state_dict()
        save_model(Path(folder), kind="tokenizer", settings=settings, about=about, weights=weights)

    def push_to_hub(
        self, name: str, *, license: str, about: Mapping[str, Any], private: bool = False, results: Sequence[Path] = ()
    ) -> str:
        """Send the tokenizer and a model card to the Hub's repository `name`, owner/name -> its address.

        `license` as the Hub names it ("mit", "other"), `about` as in `save_pretrained`; `results` are files
        `result.json` for the card. Raises `SmaltiError` when the Hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, about={**about, "fingerprint": self.fingerprint()})
            return publish(Path(folder), name, Sources(license, results=results), private=private)
