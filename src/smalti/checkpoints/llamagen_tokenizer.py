"""LlamaGen's tokenizers <-> smalti's: settings from the shapes of the weights, and the table of names."""

from __future__ import annotations

import re

from smalti.checkpoints.llamagen_files import IGNORED, LlamaGenFile
from smalti.checkpoints.renaming import Renaming, Rule
from smalti.core.errors import SmaltiError
from smalti.core.network_building import build_network, number_count
from smalti.core.settings import parse
from smalti.tokenizer.encoder import AutoencoderSettings
from smalti.tokenizer.quantizers import VQSettings
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings


def read_tokenizer(file: LlamaGenFile) -> VQGAN:
    """A file of a tokenizer -> the tokenizer. Raises `SmaltiError` for weights that do not fit."""
    settings = _tokenizer_settings(file)
    tokenizer = build_network(lambda: VQGAN(settings), stored=number_count(file.weights), where=str(file.path))
    tokenizer_names(tokenizer).read_into(tokenizer, file.weights, where=str(file.path), ignored=IGNORED)
    return tokenizer.eval().requires_grad_(False)


def _tokenizer_settings(file: LlamaGenFile) -> VQGANSettings:
    """Shapes -> settings. Only the lowest resolution has attention."""
    width, channels = file.shape("encoder.conv_in.weight", axes=4)[:2]
    levels = file.count(r"(?:encoder|decoder)\.conv_blocks\.(\d+)\..*")
    widths = [file.shape(f"encoder.conv_blocks.{level}.res.0.conv2.weight", axes=4)[0] for level in range(levels)]
    if any(channels % width or channels % 32 for channels in widths):
        raise file.does_not_fit(
            f"their widths are multiples of the first and of 32, these are {width} and {', '.join(map(str, widths))}"
        )
    size, dimension = file.shape("quantize.embedding.weight", axes=2)
    autoencoder = {
        "channels": channels,
        "base_channels": width,
        "channel_multipliers": tuple(channels // width for channels in widths),
        "res_blocks": file.count(r"encoder\.conv_blocks\.\d+\.res\.(\d+)\..*"),
        "attention_levels": (levels - 1,),
        "latent_channels": file.shape("encoder.conv_out.weight", axes=4)[0],
        "zero_residuals": False,
    }
    trained = {"kmeans_iterations": 0, "dead_code_threshold": 0.0}
    quantizer = {"codebook_size": size, "codebook_dim": dimension, "l2_normalize": True, **trained}
    where = str(file.path)
    return VQGANSettings(
        autoencoder=parse(AutoencoderSettings, autoencoder, where=where),
        quantizer=parse(VQSettings, quantizer, where=where),
    )


def check_tokenizer(tokenizer: VQGAN) -> None:
    """Raise `SmaltiError` for what LlamaGen's tokenizer cannot be."""
    autoencoder, quantizer = tokenizer.settings.autoencoder, tokenizer.settings.quantizer
    widths, lowest = autoencoder.widths, len(autoencoder.widths) - 1
    used = quantizer.remap.used if isinstance(quantizer, VQSettings) else 0
    other_widths = (
        f"the widths {', '.join(map(str, widths))} (model.autoencoder.base_channels and "
        "channel_multipliers), where those of LlamaGen are multiples of the first and of 32"
    )
    refused = {
        f"model.quantizer.name = {quantizer.name!r}": not isinstance(quantizer, VQSettings),
        "model.quantizer.l2_normalize = false": isinstance(quantizer, VQSettings) and not quantizer.l2_normalize,
        f"model.quantizer.remap.used = {used}": used > 0,
        f"model.autoencoder.patch_size = {autoencoder.patch_size}": autoencoder.patch_size != 1,
        "model.autoencoder.convolutional_resampling = false": not autoencoder.convolutional_resampling,
        "model.autoencoder.middle_attention = false": not autoencoder.middle_attention,
        f"model.autoencoder.attention_levels = {list(autoencoder.attention_levels)}, where LlamaGen has [{lowest}], "
        "the lowest resolution": (set(autoencoder.attention_levels) != {lowest}),
        other_widths: any(width % widths[0] or width % 32 for width in widths),
        **autoencoder.decoder_differences,
    }
    for what, is_refused in refused.items():
        if is_refused:
            raise SmaltiError(f"LlamaGen's tokenizer has no place for {what}; this one cannot be written in its format")


_BLOCK = {name: name for name in ("norm1", "norm2", "norm")}
_BLOCK |= {"convolution1": "conv1", "convolution2": "conv2", "shortcut": "nin_shortcut"}
_BLOCK |= {"query": "q", "key": "k", "value": "v", "out": "proj_out"}


def tokenizer_names(tokenizer: VQGAN) -> Renaming:
    """A tokenizer -> the table of LlamaGen's names. Its decoder's levels begin at the lowest resolution."""
    last = len(tokenizer.settings.autoencoder.widths) - 1

    def level(m: re.Match[str]) -> str:
        return f"{m['half']}.conv_blocks.{m['level'] if m['half'] == 'encoder' else last - int(m['level'])}"

    half = r"(?P<half>encoder|decoder)"
    rules = (
        Rule(
            rf"{half}\.stages\.(?P<level>\d+)\.(?P<what>block|attention)s\.(?P<place>\d+)\.(?P<part>\w+)\.(?P<kind>\w+)",
            lambda m: (
                f"{level(m)}.{'res' if m['what'] == 'block' else 'attn'}.{m['place']}.{_BLOCK[m['part']]}.{m['kind']}"
            ),
        ),
        Rule(
            rf"{half}\.downsamples\.(?P<level>\d+)\.resample\.1\.(\w+)", lambda m: f"{level(m)}.downsample.conv.{m[3]}"
        ),
        Rule(rf"{half}\.upsamples\.(?P<level>\d+)\.convolution\.(\w+)", lambda m: f"{level(m)}.upsample.conv.{m[3]}"),
        Rule(rf"{half}\.middle\.(\d)\.(\w+)\.(\w+)", lambda m: f"{m['half']}.mid.{m[2]}.{_BLOCK[m[3]]}.{m[4]}"),
        Rule(r"(encoder|decoder)\.(conv_in|conv_out|norm_out)\.(\w+)", r"\1.\2.\3"),
        Rule(r"to_codes\.(\w+)", r"quant_conv.\1"),
        Rule(r"from_codes\.(\w+)", r"post_quant_conv.\1"),
        Rule(r"quantizer\.codebook", "quantize.embedding.weight"),
        Rule(r"quantizer\.use", None),
    )
    return Renaming.of(tokenizer, rules)
