"""diffusers' `VQModel` <-> smalti's tokenizer: a folder with `config.json` and `diffusion_pytorch_model.safetensors`.

Pipelines keep it in a folder `vqvae` or `vae`. The network is that of the original, under other names; its attention is
made of linear maps where smalti's is made of 1x1 convolutions, which is the same.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from smalti.checkpoints.base import Imported
from smalti.checkpoints.pickles import read_tensors
from smalti.checkpoints.renaming import Renaming, Rule
from smalti.conditions.base import Condition, Grid
from smalti.core.errors import SmaltiError, suggestion
from smalti.core.files import folder_written_atomically, read_json
from smalti.core.network_building import build_network, number_count
from smalti.core.settings import LayerCount, Positive, as_mapping, parse, settings
from smalti.prior import Prior
from smalti.tokenizer.encoder import AutoencoderSettings
from smalti.tokenizer.quantizers import VQSettings
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings

CONFIG = "config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_STEM = "diffusion_pytorch_model"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\b")
"""In the name of a file that holds a part of the weights."""
INDEX = "model_index.json"
SUBFOLDERS = ("vqvae", "vae", "movq")
"""Where diffusers' pipelines keep a tokenizer."""

_DOWN = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
_UP = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}
"""Their blocks of one resolution -> whether attention follows each residual block."""


@settings
class Config:
    """diffusers' `config.json`, with the defaults of its class, which older files leave out."""

    in_channels: Positive = 3
    out_channels: Positive = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=30)] = (64,)
    layers_per_block: LayerCount = 1
    act_fn: str = "silu"
    latent_channels: Positive = 3
    sample_size: Positive = 32
    num_vq_embeddings: Positive = 256
    norm_num_groups: Positive = 32
    vq_embed_dim: Positive | None = None
    scaling_factor: float = 0.18215
    norm_type: str = "group"
    mid_block_add_attention: bool = True
    lookup_from_codebook: bool = False
    force_upcast: bool = False


def _kept(config: Config) -> dict[str, Any]:
    """Keys that do not concern the network but are used by diffusers' pipelines: kept in `about` and written again."""
    return {
        "sample_size": config.sample_size,
        "scaling_factor": config.scaling_factor,
        "lookup_from_codebook": config.lookup_from_codebook,
        "force_upcast": config.force_upcast,
    }


def read(path: Path, *, grid: Grid | None = None, prior: bool = True) -> Imported | None:
    """A folder of a `VQModel` or of a pipeline with one, or a file in it -> smalti's tokenizer; None if `path` is not
    one.

    Raises `SmaltiError` for diffusers' other models, for settings that smalti's tokenizer does not have, for damaged
    files, and for weights that do not fit, with names.
    """
    folder = _folder(path)
    if folder is None:
        return None
    named = path if path.is_file() and path.name != CONFIG and not _SHARD.search(path.name) else None
    where = str(folder / CONFIG)
    plain = {key: value for key, value in read_json(folder / CONFIG).items() if not key.startswith("_")}
    config = parse(Config, plain, where=where)
    weights = read_tensors(named or _weights_in(folder))
    settings = _settings(config, where=where)
    tokenizer = build_network(lambda: VQGAN(settings), stored=number_count(weights), where=where)
    _names(tokenizer).read_into(tokenizer, _with_new_names(weights), where=str(folder))
    about: dict[str, Any] = {"imported_from": "diffusers VQModel", "diffusers": _kept(config)}
    if config.sample_size != Config().sample_size:  # which is what all files have that never said
        about["size"] = [config.sample_size, config.sample_size]
    return Imported("diffusers", tokenizer.eval().requires_grad_(False), None, None, about)


def write(
    tokenizer: VQGAN | None, prior: Prior | None, condition: Condition | None, folder: Path, *, about: Mapping[str, Any]
) -> None:
    """A tokenizer -> a folder that `diffusers.VQModel.from_pretrained` takes, which must not exist yet.

    `about` is what `read` gave, or a model's own. Raises `SmaltiError` for what diffusers' class has no place for,
    naming the setting.
    """
    if tokenizer is None or prior is not None or condition is not None:
        raise SmaltiError(
            "diffusers' VQModel holds a tokenizer alone; convert the folder of the tokenizer, not of the prior"
        )
    config = _config(tokenizer.settings, about=about)
    plain = {"_class_name": "VQModel", **as_mapping(config)}
    weights = _names(tokenizer).written_from(tokenizer)
    with folder_written_atomically(folder) as temporary:
        save_file(weights, temporary / WEIGHTS[0], metadata={"format": "pt"})
        (temporary / CONFIG).write_text(json.dumps(plain, indent=2) + "\n", "utf-8")


def _folder(path: Path) -> Path | None:
    """A path -> the folder of the tokenizer in it, or None. Raises `SmaltiError` if there is another model of
    diffusers alone."""
    if path.is_file():
        path = path.parent if path.name == CONFIG or path.name.startswith(_STEM) else path
    name = _class_name(path)
    if name is not None and name != "VQModel":
        raise SmaltiError(f"{path} holds the class {name} of diffusers; of its classes VQModel is read")
    if name == "VQModel":
        return path
    inside = {folder: _class_name(path / folder) for folder in SUBFOLDERS}
    found = [path / folder for folder, name in inside.items() if name == "VQModel"]
    if len(found) > 1:
        raise SmaltiError(f"{path} holds {len(found)} VQModels of diffusers; name one of {', '.join(map(str, found))}")
    if not found and (path / INDEX).is_file():
        there = (
            ", ".join(f"{folder}: {name}" for folder, name in inside.items() if name)
            or "there is none of these folders"
        )
        raise SmaltiError(f"{path} is a pipeline of diffusers without a VQModel in {', '.join(SUBFOLDERS)} ({there})")
    return found[0] if found else None


def _class_name(folder: Path) -> str | None:
    """The class that a folder's `config.json` names, None where there is no such file or it names none."""
    if not (folder / CONFIG).is_file():
        return None
    config = read_json(folder / CONFIG)
    name = config.get("_class_name") if isinstance(config, dict) else None
    return name if isinstance(name, str) else None


def _weights_in(folder: Path) -> Path:
    """The file of weights in a folder, or the index of its shards; a variant, such as `fp16`, where there is nothing
    else."""
    for name in WEIGHTS:
        for file in (folder / name, folder / f"{name}.index.json"):
            if file.is_file():
                return file
    unsharded = [file for file in sorted(folder.glob(f"{_STEM}*")) if not _SHARD.search(file.name)]
    variants: dict[str, list[Path]] = {}
    for file in unsharded:
        parts = file.name.removeprefix(_STEM).split(".")
        if parts[-1] in ("safetensors", "bin") or (parts[-1] == "json" and "index" in parts):
            name = ".".join(part for part in parts if part not in ("", "safetensors", "bin", "index", "json"))
            variants.setdefault(name, []).append(file)
    if len(variants) > 1:
        names = ", ".join(files[-1].name for files in variants.values())
        raise SmaltiError(f"{folder} holds several variants of its weights ({names}); name one of these files")
    for files in variants.values():
        return files[-1]  # .safetensors comes behind .bin
    shards = [file.name for file in folder.glob(f"{_STEM}*") if _SHARD.search(file.name)]
    if shards:
        index = f"{WEIGHTS[0] if shards[0].endswith('.safetensors') else WEIGHTS[1]}.index.json"
        raise SmaltiError(
            f"{folder} holds {len(shards)} shards of weights without their index; put {index} beside them"
        )
    raise SmaltiError(f"{folder} has the settings of a VQModel but no weights; put {WEIGHTS[0]} beside its {CONFIG}")


def _attention(types: tuple[str, ...], known: Mapping[str, bool], *, key: str, where: str) -> tuple[bool, ...]:
    """Their names of blocks, from the first to the last -> whether there is attention in each."""
    for name in types:
        if name not in known:
            raise SmaltiError(f"{where}: {key}: the block {name!r} is not supported; {suggestion(name, known)}")
    return tuple(known[name] for name in types)


def _check(config: Config, *, where: str) -> None:
    """Raises `SmaltiError` for what smalti's tokenizer does not have."""
    widths, groups = config.block_out_channels, config.norm_num_groups
    # Ours are 32, and fewer where 32 does not divide the channels.
    other = next((width for width in widths if math.gcd(width, 32) != groups), None)
    refused = {
        f"in_channels = {config.in_channels} but out_channels = {config.out_channels}": (
            config.in_channels != config.out_channels
        ),
        f"act_fn = {config.act_fn!r}": config.act_fn not in ("silu", "swish"),
        f"norm_type = {config.norm_type!r} (the decoder of MoVQ)": config.norm_type != "group",
        f"norm_num_groups = {groups} with {other} channels (block_out_channels)": other is not None,
        f"{len(config.down_block_types)} down_block_types and {len(config.up_block_types)} up_block_types for "
        f"{len(widths)} block_out_channels": not len(widths)
        == len(config.down_block_types)
        == len(config.up_block_types),
    }
    for what, there in refused.items():
        if there:
            raise SmaltiError(f"{where}: {what} is not supported")


def _settings(config: Config, *, where: str) -> VQGANSettings:
    """diffusers' settings -> smalti's."""
    _check(config, where=where)
    down = _attention(config.down_block_types, _DOWN, key="down_block_types", where=where)
    up = _attention(config.up_block_types, _UP, key="up_block_types", where=where)
    if down != up[::-1]:
        raise SmaltiError(
            f"{where}: attention at other levels in up_block_types than in down_block_types is not supported"
        )
    width = math.gcd(*config.block_out_channels)
    autoencoder = {
        "channels": config.in_channels,
        "base_channels": width,
        "channel_multipliers": tuple(channels // width for channels in config.block_out_channels),
        "res_blocks": config.layers_per_block,
        "attention_levels": tuple(level for level, there in enumerate(down) if there),
        "middle_attention": config.mid_block_add_attention,
        "latent_channels": config.latent_channels,
        "zero_residuals": False,
    }
    # The loss is the original's: beta scales the term that moves the codes, which matters only in training.
    quantizer = {
        "codebook_size": config.num_vq_embeddings,
        "codebook_dim": config.vq_embed_dim or config.latent_channels,
        "l2_normalize": False,
        "commitment": 0.25,
        "beta_on": "codebook",
        "kmeans_iterations": 0,
        "dead_code_threshold": 0.0,
    }
    return VQGANSettings(
        autoencoder=parse(AutoencoderSettings, autoencoder, where=where),
        quantizer=parse(VQSettings, quantizer, where=where),
    )


def _config(settings: VQGANSettings, *, about: Mapping[str, Any]) -> Config:
    """smalti's settings -> diffusers'. Raises `SmaltiError` for what those cannot express."""
    autoencoder, quantizer = settings.autoencoder, settings.quantizer
    groups = math.gcd(autoencoder.widths[0], 32)
    used = quantizer.remap.used if isinstance(quantizer, VQSettings) else 0
    other_groups = (
        f"the widths {', '.join(map(str, autoencoder.widths))} (model.autoencoder.base_channels and "
        "channel_multipliers), whose GroupNorms differ in their number of groups,"
    )
    refused = {
        f"model.quantizer.name = {quantizer.name!r}": not isinstance(quantizer, VQSettings),
        "model.quantizer.l2_normalize = true": isinstance(quantizer, VQSettings) and quantizer.l2_normalize,
        f"model.quantizer.remap.used = {used}": used > 0,
        f"model.autoencoder.patch_size = {autoencoder.patch_size}": autoencoder.patch_size != 1,
        "model.autoencoder.convolutional_resampling = false": not autoencoder.convolutional_resampling,
        other_groups: any(math.gcd(width, 32) != groups for width in autoencoder.widths),
        **autoencoder.decoder_differences,
    }
    for what, there in refused.items():
        if there:
            raise SmaltiError(
                f"diffusers' VQModel has no place for {what.rstrip(',')}; this tokenizer cannot be written as one"
            )
    attention = [level in autoencoder.attention_levels for level in range(len(autoencoder.widths))]
    saved = about.get("diffusers")
    side = max(about.get("size") or (Config().sample_size,))
    values = {
        "sample_size": side,
        "scaling_factor": 1.0,  # read by diffusion models alone, and 1 leaves latents as they are
        **({key: saved[key] for key in _kept(Config()) if key in saved} if isinstance(saved, Mapping) else {}),
        "in_channels": autoencoder.channels,
        "out_channels": autoencoder.channels,
        "down_block_types": [_name(_DOWN, there) for there in attention],
        "up_block_types": [_name(_UP, there) for there in reversed(attention)],
        "block_out_channels": autoencoder.widths,
        "layers_per_block": autoencoder.res_blocks,
        "latent_channels": autoencoder.latent_channels,
        "num_vq_embeddings": quantizer.codebook_size,
        "norm_num_groups": groups,
        "vq_embed_dim": quantizer.codebook_dim,
        "mid_block_add_attention": autoencoder.middle_attention,
    }
    return parse(Config, values, where="what the model says about itself (about)")


def _name(blocks: Mapping[str, bool], attention: bool) -> str:
    return next(name for name, there in blocks.items() if there == attention)


def _as_convolution(weight: Tensor) -> Tensor:
    """A linear map (C,C), or a 1x1 convolution as some old checkpoints have it -> a 1x1 convolution (C,C,1,1)."""
    return weight[:, :, None, None] if weight.dim() == 2 else weight


def _as_linear(weight: Tensor) -> Tensor:
    """A 1x1 convolution (C,C,1,1) -> a linear map (C,C)."""
    return weight[:, :, 0, 0]


_BLOCK = {name: name for name in ("norm1", "norm2")}
_BLOCK |= {"convolution1": "conv1", "convolution2": "conv2", "shortcut": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""The names of its earlier versions."""


def _with_new_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of any age -> the same with the names of today."""
    old = re.compile(rf"(.*attentions\.\d+)\.({'|'.join(_OLD_ATTENTION)})\.(\w+)")
    return {
        old.sub(lambda m: f"{m[1]}.{_OLD_ATTENTION[m[2]]}.{m[3]}", name): weight for name, weight in weights.items()
    }


def _names(tokenizer: VQGAN) -> Renaming:
    """A tokenizer -> the table of its names there. Their decoder's levels begin at the lowest resolution."""
    last = len(tokenizer.settings.autoencoder.widths) - 1

    def level(m: re.Match[str]) -> str:
        return (
            f"encoder.down_blocks.{m['level']}"
            if m["half"] == "encoder"
            else f"decoder.up_blocks.{last - int(m['level'])}"
        )

    def attention(m: re.Match[str]) -> str:
        return f"{level(m)}.attentions.{m['place']}.{_ATTENTION[m['part']]}.{m['kind']}"

    def middle_attention(m: re.Match[str]) -> str:
        return f"{m['half']}.mid_block.attentions.0.{_ATTENTION[m['part']]}.{m['kind']}"

    half, stage = r"(?P<half>encoder|decoder)", r"stages\.(?P<level>\d+)"
    linear, part = r"(?P<part>query|key|value|out)\.(?P<kind>weight)", r"(?P<part>\w+)\.(?P<kind>\w+)"
    rules = (
        Rule(rf"{half}\.{stage}\.attentions\.(?P<place>\d+)\.{linear}", attention, _as_convolution, _as_linear),
        Rule(rf"{half}\.{stage}\.attentions\.(?P<place>\d+)\.{part}", attention),
        Rule(
            rf"{half}\.{stage}\.blocks\.(?P<place>\d+)\.{part}",
            lambda m: f"{level(m)}.resnets.{m['place']}.{_BLOCK[m['part']]}.{m['kind']}",
        ),
        Rule(
            rf"{half}\.downsamples\.(?P<level>\d+)\.resample\.1\.(\w+)",
            lambda m: f"{level(m)}.downsamplers.0.conv.{m[3]}",
        ),
        Rule(
            rf"{half}\.upsamples\.(?P<level>\d+)\.convolution\.(\w+)", lambda m: f"{level(m)}.upsamplers.0.conv.{m[3]}"
        ),
        Rule(rf"{half}\.middle\.1\.{linear}", middle_attention, _as_convolution, _as_linear),
        Rule(rf"{half}\.middle\.1\.{part}", middle_attention),
        Rule(
            rf"{half}\.middle\.(?P<place>[02])\.{part}",
            lambda m: f"{m['half']}.mid_block.resnets.{int(m['place']) // 2}.{_BLOCK[m['part']]}.{m['kind']}",
        ),
        Rule(rf"{half}\.norm_out\.(\w+)", r"\1.conv_norm_out.\2"),
        Rule(rf"{half}\.(conv_in|conv_out)\.(\w+)", r"\1.\2.\3"),
        Rule(r"to_codes\.(\w+)", r"quant_conv.\1"),
        Rule(r"from_codes\.(\w+)", r"post_quant_conv.\1"),
        Rule(r"quantizer\.codebook", "quantize.embedding.weight"),
        Rule(r"quantizer\.use", None),
    )
    return Renaming.of(tokenizer, rules)
