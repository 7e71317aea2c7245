"""diffusers' VQModel: read and written name for name, and the same numbers as an independent forward pass and as the
package."""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from smalti.checkpoints.diffusers import read, write
from smalti.conditions.labels import Labels
from smalti.core.errors import SmaltiError
from smalti.prior import Transformer, TransformerSettings
from smalti.tokenizer.encoder import AutoencoderSettings
from smalti.tokenizer.quantizers import GumbelSettings, RemapSettings, VQSettings
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings

Weights = dict[str, Tensor]


def config_of(*widths: int, attention: tuple[int, ...] = (), **others: Any) -> dict[str, Any]:
    """Their `config.json` of a model with so many channels a level, and attention at some levels."""
    levels = range(len(widths))
    values = {
        "_class_name": "VQModel",
        "_diffusers_version": "0.30.0",
        "act_fn": "silu",
        "block_out_channels": list(widths),
        "down_block_types": ["AttnDownEncoderBlock2D" if i in attention else "DownEncoderBlock2D" for i in levels],
        "up_block_types": ["AttnUpDecoderBlock2D" if i in attention else "UpDecoderBlock2D" for i in levels][::-1],
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 1,
        "mid_block_add_attention": True,
        "norm_num_groups": 32,
        "num_vq_embeddings": 24,
        "sample_size": 32,
        "scaling_factor": 0.18215,
        "vq_embed_dim": None,
    }
    return {**values, **others}


CONFIGS = {
    "one level": config_of(32),
    "narrow codes": config_of(32, 64, layers_per_block=2, vq_embed_dim=2),
    "attention": config_of(32, 64, 32, attention=(1, 2), latent_channels=6),
    "no attention": config_of(64, 96, mid_block_add_attention=False, in_channels=1, out_channels=1, vq_embed_dim=8),
    "16 groups": config_of(16, 48, norm_num_groups=16, layers_per_block=2, attention=(0,)),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def published(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The names and shapes in the state dict of their class."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, weight[:1]

    def resnet(name: str, ins: int, out: int) -> None:
        layer(f"{name}.norm1", ins)
        layer(f"{name}.conv1", out, ins, 3, 3)
        layer(f"{name}.norm2", out)
        layer(f"{name}.conv2", out, out, 3, 3)
        if ins != out:
            layer(f"{name}.conv_shortcut", out, ins, 1, 1)

    def attention(name: str, width: int) -> None:
        layer(f"{name}.group_norm", width)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            layer(f"{name}.{part}", width, width)

    def half(name: str, types: list[str], widths: list[int], blocks: int, resample: str, ins: int) -> None:
        for i, (kind, out) in enumerate(zip(types, widths, strict=True)):
            for j in range(blocks):
                resnet(f"{name}.{i}.resnets.{j}", ins if j == 0 else out, out)
                if kind.startswith("Attn"):
                    attention(f"{name}.{i}.attentions.{j}", out)
            if i + 1 < len(widths):
                layer(f"{name}.{i}.{resample}.0.conv", out, out, 3, 3)
            ins = out

    widths, latent, blocks = config["block_out_channels"], config["latent_channels"], config["layers_per_block"]
    codes = config["vq_embed_dim"] or latent
    layer("encoder.conv_in", widths[0], config["in_channels"], 3, 3)
    half("encoder.down_blocks", config["down_block_types"], widths, blocks, "downsamplers", widths[0])
    layer("decoder.conv_in", widths[-1], latent, 3, 3)
    half("decoder.up_blocks", config["up_block_types"], widths[::-1], blocks + 1, "upsamplers", widths[-1])
    for name, width, out in (("encoder", widths[-1], latent), ("decoder", widths[0], config["out_channels"])):
        resnet(f"{name}.mid_block.resnets.0", widths[-1], widths[-1])
        resnet(f"{name}.mid_block.resnets.1", widths[-1], widths[-1])
        if config["mid_block_add_attention"]:
            attention(f"{name}.mid_block.attentions.0", widths[-1])
        layer(f"{name}.conv_norm_out", width)
        layer(f"{name}.conv_out", out, width, 3, 3)
    layer("quant_conv", codes, latent, 1, 1)
    layer("post_quant_conv", latent, codes, 1, 1)
    shapes["quantize.embedding.weight"] = (config["num_vq_embeddings"], codes)
    return shapes


def random_weights(config: dict[str, Any], *, seed: int = 0) -> Weights:
    """Weights of a size at which nothing vanishes, norms and biases with values of their own."""
    chance = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(shape, generator=chance)
        if name.endswith("bias") or len(shape) == 1:
            return 0.1 * values + ("norm" in name and name.endswith("weight"))
        return values if "embedding" in name else values / math.sqrt(math.prod(shape[1:]))

    return {name: draw(name, shape) for name, shape in published(config).items()}


def forward(weights: Weights, half: str, x: Tensor, *, groups: int) -> Tensor:
    """The encoder, or the decoder, of their class in plain functions: what each name means, and nothing of ours."""

    def layer(name: str, x: Tensor, **options: int) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    def norm(name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, groups, weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    def resnet(name: str, x: Tensor) -> Tensor:
        h = layer(f"{name}.conv1", F.silu(norm(f"{name}.norm1", x)), padding=1)
        h = layer(f"{name}.conv2", F.silu(norm(f"{name}.norm2", h)), padding=1)
        return h + (layer(f"{name}.conv_shortcut", x) if f"{name}.conv_shortcut.weight" in weights else x)

    def attention(name: str, x: Tensor) -> Tensor:
        if f"{name}.group_norm.weight" not in weights:
            return x
        flat = norm(f"{name}.group_norm", x).flatten(2).transpose(1, 2)  # (B,HW,C)
        query, key, value = (
            F.linear(flat, weights[f"{name}.{part}.weight"], weights[f"{name}.{part}.bias"])
            for part in ("to_q", "to_k", "to_v")
        )
        seen = (query @ key.transpose(1, 2) / math.sqrt(x.shape[1])).softmax(-1) @ value
        out = F.linear(seen, weights[f"{name}.to_out.0.weight"], weights[f"{name}.to_out.0.bias"])
        return x + out.transpose(1, 2).reshape(x.shape)

    def middle(x: Tensor) -> Tensor:
        x = attention(f"{half}.mid_block.attentions.0", resnet(f"{half}.mid_block.resnets.0", x))
        return resnet(f"{half}.mid_block.resnets.1", x)

    blocks = "down_blocks" if half == "encoder" else "up_blocks"
    x = layer(f"{half}.conv_in", x, padding=1)
    x = middle(x) if half == "decoder" else x
    level = 0
    while f"{half}.{blocks}.{level}.resnets.0.norm1.weight" in weights:
        name, place = f"{half}.{blocks}.{level}", 0
        while f"{name}.resnets.{place}.norm1.weight" in weights:
            x = attention(f"{name}.attentions.{place}", resnet(f"{name}.resnets.{place}", x))
            place += 1
        if f"{name}.downsamplers.0.conv.weight" in weights:
            x = layer(f"{name}.downsamplers.0.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
        if f"{name}.upsamplers.0.conv.weight" in weights:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = layer(f"{name}.upsamplers.0.conv", x, padding=1)
        level += 1
    x = middle(x) if half == "encoder" else x
    return layer(f"{half}.conv_out", F.silu(norm(f"{half}.conv_norm_out", x)), padding=1)


def save(folder: Path, config: dict[str, Any], weights: Weights) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    return folder


def imported(path: Path) -> VQGAN:
    result = read(path)
    assert result is not None
    assert result.tokenizer is not None
    return result.tokenizer


def random_images(config: dict[str, Any]) -> Tensor:
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    generator = torch.Generator().manual_seed(5)
    return torch.rand(2, config["in_channels"], 4 * factor, 6 * factor, generator=generator) * 2 - 1


@each_config
@torch.no_grad()
def test_the_numbers_are_those_of_an_independent_forward_pass(config: dict[str, Any], tmp_path: Path) -> None:
    weights, images = random_weights(config), random_images(config)
    tokenizer = imported(save(tmp_path / "vq", config, weights))
    groups = config["norm_num_groups"]
    features = F.conv2d(
        forward(weights, "encoder", images, groups=groups), weights["quant_conv.weight"], weights["quant_conv.bias"]
    )
    torch.testing.assert_close(tokenizer.features(images), features, rtol=1e-5, atol=1e-5)
    codebook = weights["quantize.embedding.weight"]
    codes = torch.cdist(features.permute(0, 2, 3, 1).flatten(1, 2), codebook).argmin(2).view(len(images), 4, 6)
    quantized = tokenizer.encode(images)
    assert torch.equal(quantized.codes, codes)
    assert len(set(codes.flatten().tolist())) > 3
    latents = codebook[codes].permute(0, 3, 1, 2)
    torch.testing.assert_close(quantized.latents, latents, rtol=1e-5, atol=1e-5)
    entering = F.conv2d(latents, weights["post_quant_conv.weight"], weights["post_quant_conv.bias"])
    decoded = forward(weights, "decoder", entering, groups=groups)
    torch.testing.assert_close(tokenizer.decode_codes(codes), decoded, rtol=1e-5, atol=1e-5)


@each_config
def test_the_round_trip_is_exact(config: dict[str, Any], tmp_path: Path) -> None:
    weights = random_weights(config)
    first = read(save(tmp_path / "theirs", {**config, "sample_size": 64, "scaling_factor": 0.5}, weights))
    assert first is not None
    assert first.about["size"] == [64, 64]
    write(first.tokenizer, None, None, tmp_path / "again", about=first.about)
    again = load_file(tmp_path / "again" / "diffusion_pytorch_model.safetensors")
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    values = json.loads((tmp_path / "again" / "config.json").read_text())
    expected = {**config, "sample_size": 64, "scaling_factor": 0.5}
    expected["vq_embed_dim"] = expected["vq_embed_dim"] or expected["latent_channels"]
    del expected["_diffusers_version"]
    assert {key: values[key] for key in expected} == expected
    second = imported(tmp_path / "again")
    assert first.tokenizer is not None
    assert second.settings == first.tokenizer.settings
    assert second.fingerprint() == first.tokenizer.fingerprint()


def test_old_names_and_shapes_of_attention_are_read(tmp_path: Path) -> None:
    config = CONFIGS["attention"]
    weights = random_weights(config)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def aged(name: str) -> str:
        return re.sub(r"\.(to_q|to_k|to_v|to_out\.0)\.", lambda m: f".{old[m[1]]}.", name)

    linear = {aged(name): weight for name, weight in weights.items()}
    assert sum("proj_attn.weight" in name for name in linear) == 8
    convolutions = {
        name: weight[:, :, None, None] if weight.dim() == 2 and "attentions" in name else weight
        for name, weight in weights.items()
    }
    wanted = imported(save(tmp_path / "new", config, weights)).fingerprint()
    assert imported(save(tmp_path / "linear", config, linear)).fingerprint() == wanted
    assert imported(save(tmp_path / "convolutions", config, convolutions)).fingerprint() == wanted


def test_it_is_found_in_pipelines_and_by_its_files(tmp_path: Path) -> None:
    config, weights = CONFIGS["one level"], random_weights(CONFIGS["one level"])
    folder = save(tmp_path / "pipeline" / "vqvae", config, weights)
    (tmp_path / "pipeline" / "model_index.json").write_text('{"_class_name": "LDMPipeline"}')
    wanted = imported(folder).fingerprint()
    for path in (tmp_path / "pipeline", folder / "config.json", folder / "diffusion_pytorch_model.safetensors"):
        assert imported(path).fingerprint() == wanted
    torch.save(weights, folder / "diffusion_pytorch_model.bin")
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "other")
    assert imported(folder).fingerprint() == wanted
    (folder / "diffusion_pytorch_model.bin").unlink()
    (folder / "other").rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    assert imported(folder).fingerprint() == wanted


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    config, weights = CONFIGS["one level"], random_weights(CONFIGS["one level"])
    tokenizer = imported(save(tmp_path / "half", config, {name: weight.half() for name, weight in weights.items()}))
    assert torch.equal(
        tokenizer.quantizer.lookup(torch.tensor([[[3]]])).flatten(), weights["quantize.embedding.weight"][3].half()
    )
    assert {parameter.dtype for parameter in tokenizer.parameters()} == {torch.float32}


def test_defaults_stand_in_for_what_a_config_leaves_out(tmp_path: Path) -> None:
    whole = config_of(64, latent_channels=3, num_vq_embeddings=256)
    short = {"_class_name": "VQModel"}
    result = read(save(tmp_path / "short", short, random_weights(whole)))
    assert result is not None
    assert "size" not in result.about  # the default says nothing about the images
    tokenizer = imported(tmp_path / "short")
    assert tokenizer.settings.autoencoder.widths == (64,)
    assert tokenizer.size == 256


def test_other_paths_are_left_to_others(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"smalti": 1}')
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path, tmp_path / "config.json", tmp_path / "notes.txt", tmp_path / "empty", tmp_path / "none"):
        assert read(path) is None


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: weight for key, weight in weights.items() if key != name}


DAMAGES: dict[str, tuple[dict[str, Any], Callable[[Weights], Weights], str]] = {
    "missing layer": (
        {},
        without("encoder.mid_block.attentions.0.to_q.weight"),
        r"mid_block\.attentions\.0\.to_q\.weight is missing",
    ),
    "extra layer": ({}, lambda w: {**w, "encoder.more.weight": torch.ones(1)}, r"encoder\.more\.weight is not known"),
    "other shape": ({"num_vq_embeddings": 25}, dict, r"quantize\.embedding\.weight has the shape \(24, 4\).*\(25, 4\)"),
    "unknown key": ({"block_out_chanels": [32]}, dict, "'block_out_chanels'.*'block_out_channels'"),
    "wrong type": ({"layers_per_block": "two"}, dict, "layers_per_block = 'two'"),
    "MoVQ": ({"norm_type": "spatial"}, dict, "norm_type = 'spatial'.*not supported"),
    "activation": ({"act_fn": "gelu"}, dict, "act_fn = 'gelu'"),
    "groups": ({"norm_num_groups": 16}, dict, "norm_num_groups = 16 with 32 channels"),
    "channels": ({"out_channels": 1}, dict, "in_channels = 3 but out_channels = 1"),
    "block": ({"down_block_types": ["DownBlock2D"] * 2}, dict, "'DownBlock2D' is not supported; did you mean"),
    "levels": (
        {"up_block_types": ["UpDecoderBlock2D"]},
        dict,
        "2 down_block_types and 1 up_block_types for 2 block_out_channels",
    ),
    "attention": ({"up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]}, dict, "attention at other levels"),
    "class": (
        {"_class_name": "AutoencoderKL"},
        dict,
        "holds the class AutoencoderKL of diffusers; of its classes VQModel is read",
    ),
}


@pytest.mark.parametrize(("values", "change", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_what_does_not_fit_is_reported_by_name(
    values: dict[str, Any], change: Callable[[Weights], Weights], message: str, tmp_path: Path
) -> None:
    config = config_of(32, 64)
    folder = save(tmp_path / "vq", {**config, **values}, change(random_weights(config)))
    with pytest.raises(SmaltiError, match=message):
        read(folder)


def test_damaged_files_are_reported_by_name(tmp_path: Path) -> None:
    config, weights = CONFIGS["one level"], random_weights(CONFIGS["one level"])
    folder = save(tmp_path / "vq", config, weights)
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SmaltiError, match=r"diffusion_pytorch_model\.safetensors is damaged"):
        read(folder)
    file.unlink()
    with pytest.raises(SmaltiError, match="no weights; put diffusion_pytorch_model"):
        read(folder)
    (folder / "config.json").write_text('{"_class_name": ')
    with pytest.raises(SmaltiError, match=r"cannot read .*config\.json"):
        read(folder)


def test_a_pipeline_without_a_tokenizer_is_reported(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(SmaltiError, match=r"without a VQModel in vqvae, vae, movq \(vae: AutoencoderKL\)"):
        read(tmp_path)


BY_DISTANCE = VQSettings(codebook_size=16, l2_normalize=False)
REFUSED: dict[str, tuple[dict[str, Any], Any, str]] = {
    "l2_normalize": ({}, VQSettings(codebook_size=16), r"model\.quantizer\.l2_normalize = true"),
    "gumbel": ({}, GumbelSettings(codebook_size=16), r"model\.quantizer\.name = 'gumbel'"),
    "remap": ({}, VQSettings(codebook_size=16, l2_normalize=False, remap=RemapSettings(used=3)), r"remap\.used = 3"),
    "patch_size": ({"patch_size": 2}, BY_DISTANCE, r"model\.autoencoder\.patch_size = 2"),
    "resampling": ({"convolutional_resampling": False}, BY_DISTANCE, "convolutional_resampling = false"),
    "groups": ({"base_channels": 8, "channel_multipliers": (1, 2)}, BY_DISTANCE, "the widths 8, 16"),
    **{name: ({name: 16}, BY_DISTANCE, f"{name} = 16") for name in ("decoder_base_channels", "decoder_res_blocks")},
}


@pytest.mark.parametrize(("autoencoder", "quantizer", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_their_class_has_no_place_for_is_refused(
    autoencoder: dict[str, Any], quantizer: Any, message: str, tmp_path: Path
) -> None:
    values = {"base_channels": 32, "channel_multipliers": (1, 1), "res_blocks": 1, "latent_channels": 4, **autoencoder}
    tokenizer = VQGAN(VQGANSettings(autoencoder=AutoencoderSettings(**values), quantizer=quantizer))
    with pytest.raises(SmaltiError, match=message):
        write(tokenizer, None, None, tmp_path / "out", about={})
    assert not (tmp_path / "out").exists()


def test_a_prior_has_no_place_there(tmp_path: Path) -> None:
    prior = Transformer(TransformerSettings(codebook_size=4, condition_size=1, embed_dim=16, heads=2, layers=1))
    with pytest.raises(SmaltiError, match="holds a tokenizer alone"):
        write(None, prior, Labels(["a"]), tmp_path / "out", about={})


def test_a_tokenizer_of_ours_is_written_in_their_names(tmp_path: Path) -> None:
    quantizer = VQSettings(codebook_size=16, codebook_dim=4, l2_normalize=False)
    autoencoder = AutoencoderSettings(
        base_channels=32, channel_multipliers=(1, 3), res_blocks=2, attention_levels=(1,), latent_channels=8
    )
    tokenizer = VQGAN(VQGANSettings(autoencoder=autoencoder, quantizer=quantizer)).eval()
    write(tokenizer, None, None, tmp_path / "out", about={"size": [48, 64]})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    weights = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == published(config)
    assert (config["sample_size"], config["scaling_factor"]) == (64, 1.0)
    images = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(imported(tmp_path / "out")(images)[0], tokenizer(images)[0])


def package() -> Any:
    try:
        return importlib.import_module("diffusers")
    except Exception as error:  # a package that is half installed can raise anything
        pytest.skip(f"diffusers cannot be imported: {error}".split("\n")[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@each_config
@torch.no_grad()
def test_the_numbers_are_those_of_the_package(config: dict[str, Any], tmp_path: Path) -> None:
    model = package().VQModel(**{key: value for key, value in config.items() if not key.startswith("_")}).eval()
    assert {name: tuple(weight.shape) for name, weight in model.state_dict().items()} == published(config)
    model.load_state_dict(random_weights(config, seed=1))
    model.save_pretrained(tmp_path / "theirs")
    images, tokenizer = random_images(config), imported(tmp_path / "theirs")
    features = model.encode(images).latents
    latents, _, (_, _, codes) = model.quantize(features)
    ours = tokenizer.encode(images)
    torch.testing.assert_close(tokenizer.features(images), features, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.codes.flatten(), codes)
    torch.testing.assert_close(ours.latents, latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokenizer.decode_codes(ours.codes), model.decode(features).sample, rtol=1e-5, atol=1e-5)
    write(tokenizer, None, None, tmp_path / "ours", about={})
    again, info = package().VQModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(again.eval()(images).sample, model(images).sample)
