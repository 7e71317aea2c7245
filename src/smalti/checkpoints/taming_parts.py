"""The original's settings and names of weights <-> smalti's (CompVis/taming-transformers, and latent-diffusion's first
stages).

Its YAML names classes by import path. Those strings are looked up in literal tables here and never imported. Keys that
its programs read and that do not concern the model (learning rates, monitors) are listed as such; any other unknown
key is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from smalti.checkpoints.renaming import Renaming, Rule
from smalti.core.errors import SmaltiError, suggestion
from smalti.core.network_building import build_network, number_count
from smalti.core.settings import parse
from smalti.prior.gpt import GPT, GPTSettings
from smalti.prior.order import Order
from smalti.tokenizer.encoder import AutoencoderSettings
from smalti.tokenizer.quantizers import GumbelSettings, RemapSettings, VQSettings
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings

SEGMENTATION = "taming.models.vqgan.VQSegmentationModel"

TOKENIZERS: dict[str, str] = {
    "taming.models.vqgan.VQModel": "vq",
    SEGMENTATION: "vq",
    "taming.models.vqgan.VQNoDiscModel": "vq",
    "taming.models.vqgan.EMAVQ": "vq",
    "taming.models.vqgan.GumbelVQ": "gumbel",
    "ldm.models.autoencoder.VQModel": "vq",
    "ldm.models.autoencoder.VQModelInterface": "vq",
}
"""The original's classes of first stages -> smalti's quantizer."""

TRANSFORMERS = ("taming.models.cond_transformer.Net2NetTransformer",)
GPTS = ("taming.modules.transformer.mingpt.GPT",)

ORDERS: dict[str, Order] = {
    "taming.modules.transformer.permuter.Identity": "raster",
    "taming.modules.transformer.permuter.Subsample": "subsample",
    "taming.modules.transformer.permuter.ZCurve": "z_curve",
    "taming.modules.transformer.permuter.SpiralOut": "spiral_out",
    "taming.modules.transformer.permuter.SpiralIn": "spiral_in",
    "taming.modules.transformer.permuter.Random": "random",
    "taming.modules.transformer.permuter.AlternateParsing": "alternate",
}
"""The original's permuters -> smalti's code orders."""

IGNORED = (
    r"(loss\.|model_ema\.|optimizer).*|colorize|quantize\.embedding\.(cluster_size|embed_avg)|quantize\.temperature"
)
"""Names in checkpoints that are no weights of the tokenizer: the losses' networks, averages kept beside the
weights, the random projection that colors label maps, statistics of a codebook."""

NOMINAL = 256
"""Side of the images, where a model does not say what it was trained on; the original's settings place attention by
it."""

_READ_ELSEWHERE = {
    *("ckpt_path", "ignore_keys", "image_key", "lossconfig", "monitor", "colorize_nlabels", "n_labels"),
    *("sane_index_shape", "batch_resize_range", "scheduler_config", "lr_g_factor", "use_ema", "base_learning_rate"),
    *("learning_rate", "decay", "temperature_scheduler_config", "kl_weight"),
}
"""Keys of a first stage that do not concern the tokenizer itself."""
_DDCONFIG_IGNORED = {"use_linear_attn", "give_pre_end", "use_timestep", "temb_ch"}


class Part(NamedTuple):
    """One `target` and `params` of the YAML."""

    target: str
    params: dict[str, Any]

    @classmethod
    def of(cls, config: Any, *, where: str, known: Mapping[str, Any] | tuple[str, ...]) -> Part:
        """A section of the YAML -> its two parts. Raises `SmaltiError` for another shape and for targets not in
        `known`."""
        if not isinstance(config, Mapping) or not isinstance(config.get("target"), str):
            raise SmaltiError(f"{where}: a section with 'target' and 'params' is needed here, found {config!r:.60}")
        target, params = config["target"], config.get("params") or {}
        if target not in known:
            raise SmaltiError(f"{where}: the target {target!r} is not known here; {suggestion(target, tuple(known))}")
        return cls(target, dict(params))


def take(values: Mapping[str, Any], key: str, *, where: str) -> Any:
    """The value of a required key. Raises `SmaltiError` if it is missing."""
    if key not in values:
        raise SmaltiError(f"{where}: the key {key!r} is missing")
    return values[key]


def resolution(part: Part, *, where: str) -> int:
    """A first stage's section -> the side of the images it was made for, in pixels."""
    return int(take(take(part.params, "ddconfig", where=where), "resolution", where=where))


def _autoencoder(ddconfig: Mapping[str, Any], *, where: str) -> AutoencoderSettings:
    where = f"{where}, ddconfig"
    channel_multipliers = tuple(ddconfig.get("ch_mult", (1, 2, 4, 8)))
    side = int(take(ddconfig, "resolution", where=where))
    channels, out = take(ddconfig, "in_channels", where=where), take(ddconfig, "out_ch", where=where)
    kind = ddconfig.get("attn_type", "vanilla")
    refused = {
        "double_z = true (a variational model)": ddconfig.get("double_z", True),
        f"in_channels {channels} but out_ch {out}": channels != out,
        "tanh_out = true": ddconfig.get("tanh_out", False),
        f"attn_type = {kind}": kind not in ("vanilla", "vanilla-xformers", "none"),
        f"ch = {ddconfig.get('ch')}, no multiple of 32,": int(take(ddconfig, "ch", where=where)) % 32,
    }
    for what, is_refused in refused.items():
        if is_refused:
            raise SmaltiError(f"{where}: {what} is not supported")
    known = {
        *(
            "ch",
            "out_ch",
            "ch_mult",
            "num_res_blocks",
            "attn_resolutions",
            "dropout",
            "resamp_with_conv",
            "in_channels",
        ),
        *("resolution", "z_channels", "double_z", "attn_type", "tanh_out"),
    }
    for key in ddconfig:
        if key not in known | _DDCONFIG_IGNORED:
            raise SmaltiError(f"{where}: unknown key {key!r}; {suggestion(key, known)}")
    # A level has attention if its *nominal* side is listed, whatever the size of an image.
    wanted = set(take(ddconfig, "attn_resolutions", where=where)) if kind != "none" else set()
    values = {
        "channels": channels,
        "base_channels": ddconfig["ch"],
        "channel_multipliers": channel_multipliers,
        "res_blocks": take(ddconfig, "num_res_blocks", where=where),
        "attention_levels": tuple(level for level in range(len(channel_multipliers)) if side // 2**level in wanted),
        "middle_attention": kind != "none",
        "latent_channels": take(ddconfig, "z_channels", where=where),
        "dropout": ddconfig.get("dropout", 0.0),
        "zero_residuals": False,
        "convolutional_resampling": ddconfig.get("resamp_with_conv", True),
    }
    return parse(AutoencoderSettings, values, where=where)


def tokenizer_settings(part: Part, *, used: int, where: str) -> VQGANSettings:
    """A first stage's section of the YAML -> smalti's settings. `used`: length of its table of used codes
    (`remap`), 0 for none."""
    params = part.params
    for key in params:
        if key not in _READ_ELSEWHERE | {"ddconfig", "n_embed", "embed_dim", "remap", "unknown_index"}:
            raise SmaltiError(f"{where}: unknown key {key!r} of {part.target}")
    ddconfig = take(params, "ddconfig", where=where)
    remap = {"used": used, "unknown": params.get("unknown_index", "random")} if used else {}
    common = {
        "codebook_size": take(params, "n_embed", where=where),
        "codebook_dim": take(params, "embed_dim", where=where),
        "remap": parse(RemapSettings, remap, where=where),
    }
    quantizer: VQSettings | GumbelSettings
    if TOKENIZERS[part.target] == "gumbel":
        options = {**common, "kl_weight": params.get("kl_weight", 1e-8), "noisy": True, "kmeans_iterations": 0}
        quantizer = parse(GumbelSettings, options, where=where)
    else:
        # The class never exposes the switch between the two places of beta, so every model of it was trained like this.
        quantizer = parse(VQSettings, {**common, **REFERENCE_VQ}, where=where)
    return VQGANSettings(autoencoder=_autoencoder(ddconfig, where=where), quantizer=quantizer)


REFERENCE_VQ: dict[str, Any] = {
    "l2_normalize": False,
    "commitment": 0.25,
    "beta_on": "codebook",
    "kmeans_iterations": 0,
    "dead_code_threshold": 0.0,
}
"""The original's quantizer in smalti's settings."""

_IN_BLOCK = {
    **{name: name for name in ("norm1", "norm2", "norm", "0")},
    "convolution1": "conv1",
    "convolution2": "conv2",
    "shortcut": "nin_shortcut",
    "query": "q",
    "key": "k",
    "value": "v",
    "out": "proj_out",
}
_MIDDLE = {"0": "block_1", "1": "attn_1", "2": "block_2"}


def _rules() -> tuple[Rule, ...]:
    rules = [Rule(r"(encoder|decoder)\.(conv_in|conv_out|norm_out)\.(\w+)", r"\1.\2.\3")]
    for half, level in (("encoder", "down"), ("decoder", "up")):
        rules += [
            Rule(
                rf"{half}\.stages\.(\d+)\.(block|attention)s\.(\d+)\.(\w+)\.(\w+)",
                lambda m, half=half, level=level: (  # type: ignore[misc]
                    f"{half}.{level}.{m[1]}.{'block' if m[2] == 'block' else 'attn'}.{m[3]}.{_IN_BLOCK[m[4]]}.{m[5]}"
                ),
            ),
            Rule(
                rf"{half}\.middle\.(\d)\.(\w+)\.(\w+)",
                lambda m, half=half: f"{half}.mid.{_MIDDLE[m[1]]}.{_IN_BLOCK[m[2]]}.{m[3]}",  # type: ignore[misc]
            ),
        ]
    return (
        *rules,
        Rule(r"encoder\.downsamples\.(\d+)\.resample\.1\.(\w+)", r"encoder.down.\1.downsample.conv.\2"),
        Rule(r"decoder\.upsamples\.(\d+)\.convolution\.(\w+)", r"decoder.up.\1.upsample.conv.\2"),
        Rule(r"to_codes\.(\w+)", r"quant_conv.\1"),
        Rule(r"from_codes\.(\w+)", r"post_quant_conv.\1"),
        Rule(r"quantizer\.table\.used", "quantize.used"),
        Rule(r"quantizer\.projection\.(\w+)", r"quantize.proj.\1"),
        Rule(r"quantizer\.use", None),
    )


_CODEBOOK = {"vq": "quantize.embedding.weight", "gumbel": "quantize.embed.weight"}


def tokenizer_names(tokenizer: VQGAN) -> Renaming:
    """A tokenizer -> the table of the original's names."""
    codebook = Rule(r"quantizer\.codebook", _CODEBOOK[tokenizer.settings.quantizer.name])
    return Renaming.of(tokenizer, (*_rules(), codebook))


def tokenizer_section(tokenizer: VQGAN, *, about: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer -> `target` and `params` of the original's YAML."""
    autoencoder, quantizer = tokenizer.settings.autoencoder, tokenizer.settings.quantizer
    if not isinstance(quantizer, VQSettings | GumbelSettings):
        raise SmaltiError(
            f"the original has no place for model.quantizer.name = {quantizer.name!r}; this tokenizer cannot be "
            "written as one of its own, which are 'vq' and 'gumbel'"
        )
    if isinstance(quantizer, VQSettings) and quantizer.l2_normalize:
        raise SmaltiError(
            "the original compares codes by distance, this tokenizer by direction (model.quantizer.l2_normalize = true)"
        )
    side = max(about.get("size") or (NOMINAL,))
    params: dict[str, Any] = {
        "embed_dim": quantizer.codebook_dim,
        "n_embed": quantizer.codebook_size,
        "ddconfig": _ddconfig(autoencoder, side=side),
        "lossconfig": {"target": "taming.modules.losses.DummyLoss"},
    }
    if quantizer.remap.used:
        params |= {"remap": "used.npy", "unknown_index": quantizer.remap.unknown}
    if isinstance(quantizer, GumbelSettings):
        schedule = {"warm_up_steps": 0, "max_decay_steps": 1000001, "lr_start": 0.9, "lr_max": 0.9, "lr_min": 1e-06}
        params["kl_weight"] = quantizer.kl_weight
        params["temperature_scheduler_config"] = {
            "target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler",
            "params": schedule,
        }
        return {"target": "taming.models.vqgan.GumbelVQ", "params": params}
    if about.get("imported_from") == SEGMENTATION:
        return {
            "target": SEGMENTATION,
            "params": {**params, "n_labels": autoencoder.channels, "image_key": "segmentation"},
        }
    return {"target": "taming.models.vqgan.VQModel", "params": params}


def section_weights(tokenizer: VQGAN, section: Mapping[str, Any]) -> dict[str, Tensor]:
    """A tokenizer and its section -> its weights in the original's names, with what its class keeps beside them."""
    weights = tokenizer_names(tokenizer).written_from(tokenizer)
    if section["target"] == SEGMENTATION:  # the projection that colors label maps, drawn at random in the original too
        generator = torch.Generator().manual_seed(0)
        weights["colorize"] = torch.randn(3, tokenizer.settings.autoencoder.channels, 1, 1, generator=generator)
    return weights


def _ddconfig(autoencoder: AutoencoderSettings, *, side: int) -> dict[str, Any]:
    if autoencoder.patch_size != 1:
        raise SmaltiError(
            f"the original has no stem, this tokenizer has model.autoencoder.patch_size = {autoencoder.patch_size}"
        )
    if autoencoder.base_channels % 32:
        raise SmaltiError(
            "the original's GroupNorm has 32 groups, which do not divide "
            f"model.autoencoder.base_channels = {autoencoder.base_channels}"
        )
    for what, differs in autoencoder.decoder_differences.items():
        if differs:
            raise SmaltiError(
                "the original's decoder has the encoder's widths and one residual block more, this tokenizer has "
                f"{what}"
            )
    return {
        "double_z": False,
        "z_channels": autoencoder.latent_channels,
        "resolution": side,
        "in_channels": autoencoder.channels,
        "out_ch": autoencoder.channels,
        "ch": autoencoder.base_channels,
        "ch_mult": list(autoencoder.channel_multipliers),
        "num_res_blocks": autoencoder.res_blocks,
        "attn_resolutions": [side // 2**level for level in autoencoder.attention_levels],
        "dropout": autoencoder.dropout,
        "resamp_with_conv": autoencoder.convolutional_resampling,
        **({} if autoencoder.middle_attention else {"attn_type": "none"}),
    }


def about(part: Part, *, where: str) -> dict[str, Any]:
    """What `config.json` records of a first stage besides its settings: its class in the original, and the side of
    its images."""
    side = resolution(part, where=where)
    return {"imported_from": part.target, "size": [side, side]}


def read_first_stage(part: Part, weights: Mapping[str, Tensor], *, prefix: str, where: str) -> VQGAN:
    """A first stage's section, and weights of which its own begin with `prefix` -> the tokenizer."""
    own_weights = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    used = len(own_weights["quantize.used"]) if "quantize.used" in own_weights else 0
    settings = tokenizer_settings(part, used=used, where=where)
    tokenizer = build_network(lambda: VQGAN(settings), stored=number_count(own_weights), where=where)
    prefixed = f"{where} ({prefix.rstrip('.')})" if prefix else where
    tokenizer_names(tokenizer).read_into(tokenizer, own_weights, where=prefixed, ignored=IGNORED)
    if used and not (
        int(own_weights["quantize.used"].min()) >= 0
        and int(own_weights["quantize.used"].max()) < tokenizer.settings.quantizer.codebook_size
    ):
        raise SmaltiError(
            f"{prefixed}: its table of used codes (quantize.used) names codes that the codebook does not have"
        )
    return tokenizer.eval().requires_grad_(False)


def _batched(positions: Tensor) -> Tensor:
    return positions.unsqueeze(0)


def _unbatched(positions: Tensor) -> Tensor:
    return positions.squeeze(0)


_IN_GPT = {"attention_norm": "ln1", "mlp_norm": "ln2", "up": "mlp.0", "down": "mlp.2"}
_IN_ATTENTION = {"query": "query", "key": "key", "value": "value", "out": "proj"}

_GPT_RULES = (
    Rule(r"embedding\.weight", "tok_emb.weight"),
    Rule(r"positions\.weight", "pos_emb", _unbatched, _batched),
    Rule(r"blocks\.(\d+)\.attention\.(\w+)\.(\w+)", lambda m: f"blocks.{m[1]}.attn.{_IN_ATTENTION[m[2]]}.{m[3]}"),
    Rule(r"blocks\.(\d+)\.(\w+)\.(\w+)", lambda m: f"blocks.{m[1]}.{_IN_GPT[m[2]]}.{m[3]}"),
    Rule(r"norm\.(\w+)", r"ln_f.\1"),
    Rule(r"head\.weight", "head.weight"),
)

MASKS = r"blocks\.\d+\.attn\.mask"
"""The original stores its attention masks as weights; smalti computes them when they are needed."""


def gpt_names(prior: nn.Module) -> Renaming:
    """A GPT -> the table of the original's names, relative to the transformer."""
    return Renaming.of(prior, _GPT_RULES)


def gpt_settings(
    part: Part, *, codes: int, prefix: int, grid: tuple[int, int], start: int | None, order: str, where: str
) -> GPTSettings:
    """A transformer's section of the YAML, and what surrounds it -> smalti's settings."""
    params = part.params
    values = {
        "vocab_size": take(params, "vocab_size", where=where),
        "codebook_size": codes,
        "prefix_length": prefix,
        "grid": grid,
        "block_size": take(params, "block_size", where=where),
        "layers": params.get("n_layer", 12),
        "heads": params.get("n_head", 8),
        "embed_dim": params.get("n_embd", 256),
        "embedding_dropout": params.get("embd_pdrop", 0.0),
        "residual_dropout": params.get("resid_pdrop", 0.0),
        "attention_dropout": params.get("attn_pdrop", 0.0),
        "unmasked": params.get("n_unmasked", 0),
        "start_code": start,
        "order": order,
    }
    known = {
        "vocab_size",
        "block_size",
        "n_layer",
        "n_head",
        "n_embd",
        "embd_pdrop",
        "resid_pdrop",
        "attn_pdrop",
        "n_unmasked",
    }
    for key in params:
        if key not in known:
            raise SmaltiError(f"{where}: unknown key {key!r} of the transformer; {suggestion(key, known)}")
    return parse(GPTSettings, values, where=where)


def mask(prior: GPT) -> Tensor:
    """A GPT -> the attention mask (1,1,T,T) that each layer of the original stores: 1 where a code sees another."""
    block, unmasked = prior.settings.block_size, prior.settings.unmasked
    visible = torch.tril(torch.ones(block, block))
    visible[:unmasked, :unmasked] = 1
    return visible[None, None]
