"""The tokenizer against numbers of the original: features, codes, latents, gradients, decoder, Gumbel noise,
used codes, labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smalti.checkpoints.taming_parts import Part, gpt_names, read_first_stage, tokenizer_names
from smalti.conditions.spatial import colorize_labels
from smalti.core.settings import parse
from smalti.images.io import to_array
from smalti.losses.patch_discriminator import PatchDiscriminator, PatchSettings
from smalti.losses.pixel import PIXEL_LOSSES
from smalti.prior.gpt import GPT, GPTSettings
from smalti.tokenizer.encoder import AutoencoderSettings
from smalti.tokenizer.quantizers import Gumbel, GumbelSettings, Quantized, VQSettings
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings
from tests.golden import FOLDER, Golden, fixtures

pytestmark = pytest.mark.golden


def tokenizer_of(golden: Golden, **changed: Any) -> VQGAN:
    """The fixture's model, ready for gradients."""
    part = Part(golden.facts["target"], {**golden.facts["params"], **changed})
    return read_first_stage(part, golden.weights(), prefix="", where=golden.path.name).requires_grad_(True)


def with_beta_on(tokenizer: VQGAN, place: str) -> VQGAN:
    """The same weights with the other codebook loss, which the original's models cannot be asked for."""
    settings = tokenizer.settings
    other = VQGAN(replace(settings, quantizer=replace(settings.quantizer, beta_on=place)))  # type: ignore[arg-type]
    other.load_state_dict(tokenizer.state_dict())
    return other.eval()


@pytest.mark.parametrize(
    "path", fixtures("01a") if fixtures("01b")[0].id == "01b" else [*fixtures("01a"), *fixtures("01b")]
)
def test_autoencoder(path: Path) -> None:
    golden = Golden.read(path)
    tokenizer = tokenizer_of(golden)
    tags = sorted({key.split("_", 1)[1] for key in golden.tensors if key.startswith("in.x_")})
    assert tags
    for tag in tags:
        images = golden[f"in.x_{tag}"].float()
        h = tokenizer.encoder(images)
        golden.check(f"out.{tag}.h", h)
        golden.check(f"out.{tag}.z", tokenizer.to_codes(h))
        quantized = tokenizer.encode(images)
        golden.check(f"out.{tag}.quant", quantized.latents)
        golden.check(f"out.{tag}.indices", quantized.codes.flatten())
        golden.check(f"out.{tag}.dec", tokenizer.decode(quantized.latents))
        codes = golden[f"in.codes_{tag}"].long()
        golden.check(f"out.{tag}.entry", tokenizer.quantizer.lookup(codes))
        golden.check(f"out.{tag}.entry_dec", tokenizer.decode_codes(codes))
        for variant, place in (("legacy", "codebook"), ("fixed", "commitment")):
            _check_gradients(golden, with_beta_on(tokenizer, place), tag, variant)


def _check_gradients(golden: Golden, tokenizer: VQGAN, tag: str, variant: str) -> None:
    h = tokenizer.encoder(golden[f"in.x_{tag}"].float())
    z = tokenizer.to_codes(h)
    for value in (h, z):
        value.retain_grad()
    quantized: Quantized = tokenizer.quantizer(z)
    (quantized.loss + (tokenizer.decode(quantized.latents) * golden[f"in.wdec_{tag}"].float()).mean()).backward()  # type: ignore[no-untyped-call]
    found: dict[str, Tensor | None] = {
        "codebook_loss": quantized.loss,
        "grad_h": h.grad,
        "grad_z": z.grad,
        "grad_embedding": tokenizer.quantizer.get_parameter("codebook").grad,
        "grad_encoder_conv_in": tokenizer.encoder.conv_in.weight.grad,
        "grad_decoder_conv_in": tokenizer.decoder.conv_in.weight.grad,
        "grad_quant_conv": tokenizer.to_codes.weight.grad,
    }
    checked = 0
    for name, value in found.items():
        key = f"out.{tag}.{variant}.{name}"
        if key in golden:
            assert value is not None
            golden.check(key, value)
            checked += 1
    assert checked >= 4


@pytest.mark.parametrize("path", fixtures("02"))
def test_gumbel(path: Path) -> None:
    golden = Golden.read(path)
    images = golden["in.x"].float()
    noise = -golden["in.exponential"].float().log()
    variants = sorted({key.split(".")[1] for key in golden.tensors if key.startswith("out.") and key.count(".") > 1})
    assert variants
    for variant in variants:
        tokenizer = tokenizer_of(golden)
        assert isinstance(tokenizer.quantizer, Gumbel)
        # The name says the mode, whether the one-hot is hard, and ten times the temperature; evaluation is always hard.
        hard, digits = "soft" not in variant or variant.startswith("eval"), variant.rpartition("_T")[2]
        temperature = float(digits) if digits in ("1", "2") else float(f"{digits[0]}.{digits[1:]}")
        z = tokenizer.features(images)
        z.retain_grad()
        golden.check("out.z", z)
        quantized = tokenizer.quantizer.sample(z, noise, temperature=temperature, hard=hard)
        decoded = tokenizer.decode(quantized.latents)
        (quantized.loss + (decoded * golden["in.wdec"].float()).mean()).backward()  # type: ignore[no-untyped-call]
        golden.check("out.kl", quantized.loss)
        golden.check("out.logits", tokenizer.quantizer.projection(z))
        assert z.grad is not None
        found = {
            "quant": quantized.latents,
            "indices": quantized.codes,
            "dec": decoded,
            "kl": quantized.loss,
            "grad_z": z.grad,
            "grad_embed": tokenizer.quantizer.codebook.grad,
            "grad_proj": tokenizer.quantizer.projection.weight.grad,
        }
        for name, value in found.items():
            if f"out.{variant}.{name}" in golden:
                assert value is not None
                golden.check(f"out.{variant}.{name}", value)
        assert f"out.{variant}.quant" in golden


@pytest.mark.parametrize("path", fixtures("03"))
def test_used_codes(path: Path) -> None:
    golden = Golden.read(path)
    tokenizer = tokenizer_of(golden)
    images = golden["in.x"].float()
    quantized = tokenizer.encode(images)
    golden.check("out.full.indices", quantized.codes.reshape(-1, 1))
    golden.check("out.full.quant", quantized.latents)
    golden.check("out.full.loss", quantized.loss)
    golden.check("out.full.dec", tokenizer.decode(quantized.latents))
    golden.check("out.full.entry", tokenizer.quantizer.lookup(golden["in.codes_small"].long()))


@pytest.mark.parametrize("path", fixtures("04"))
def test_segmentation(path: Path) -> None:
    golden = Golden.read(path)
    tokenizer = tokenizer_of(golden)
    maps = golden["in.segmentation"].float().permute(0, 3, 1, 2)
    decoded, quantized = tokenizer(maps)
    golden.check("out.dec", decoded)
    golden.check("out.indices", quantized.codes.flatten())
    weight = golden.facts["params"]["lossconfig"]["params"]["codebook_weight"]
    distance = PIXEL_LOSSES["bce"](maps, decoded).mean()
    loss = distance + weight * quantized.loss
    loss.backward()
    for name, value in (("total_loss", loss), ("bce_loss", distance), ("quant_loss", quantized.loss)):
        golden.check(f"out.log.train.{name}", value)
    golden.check("out.loss", loss)
    for name, place in (
        ("grad_conv_out", "decoder.conv_out.weight"),
        ("grad_conv_in", "encoder.conv_in.weight"),
        ("grad_embedding", "quantizer.codebook"),
    ):
        gradient = tokenizer.get_parameter(place).grad
        assert gradient is not None
        golden.check(f"out.{name}", gradient)
    colors = golden.weights()["colorize"]
    best = torch.zeros_like(decoded).scatter_(1, decoded.argmax(1, keepdim=True), 1.0)
    golden.check("out.rgb_in", colorize_labels(maps, colors))
    golden.check("out.rgb_rec", colorize_labels(best, colors))


def misc() -> dict[str, Any]:
    path = FOLDER / "14_misc" / "misc.json"
    if not path.is_file():
        pytest.skip("no golden numbers 14_misc on this machine")
    facts: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return facts


def test_the_originals_image_writers_cut_off() -> None:
    levels = misc()["uint8"]
    values = torch.tensor(levels["values"])[None, None].expand(3, 1, -1)
    for writer in ("make_samples", "sample_fast"):
        assert to_array(values, rounding="down")[0, :, 0].tolist() == levels[writer]


def _fresh(name: str, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """A network of ours as it begins, of the sizes that the shapes show -> its weights in the original's names."""
    if name == "VQModel":
        levels = sorted({int(key.split(".")[2]) for key in shapes if key.startswith("encoder.down.")})
        width = shapes["encoder.conv_in.weight"][0]
        blocks = len({key.split(".")[4] for key in shapes if key.startswith("encoder.down.0.block.")})
        size, dimension = shapes["quantize.embedding.weight"]
        autoencoder = AutoencoderSettings(
            base_channels=width,
            channel_multipliers=tuple(
                shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] // width for level in levels
            ),
            res_blocks=blocks,
            attention_levels=tuple(level for level in levels if f"encoder.down.{level}.attn.0.q.weight" in shapes),
            latent_channels=shapes["encoder.conv_out.weight"][0],
            zero_residuals=False,
        )
        tokenizer = VQGAN(
            VQGANSettings(autoencoder=autoencoder, quantizer=VQSettings(codebook_size=size, codebook_dim=dimension))
        )
        return tokenizer_names(tokenizer).written_from(tokenizer)
    if name == "GumbelVQ":
        size, dimension = shapes["quantize.embed.weight"]
        model = VQGAN(VQGANSettings(quantizer=GumbelSettings(codebook_size=size, codebook_dim=dimension)))
        weights = tokenizer_names(model).written_from(model)
        return {key: value for key, value in weights.items() if key in shapes}
    if name == "GPT":
        vocabulary, width = shapes["tok_emb.weight"]
        layers = len({key.split(".")[1] for key in shapes if key.startswith("blocks.")})
        options = {
            "codebook_size": 1,
            "grid": (1, 1),
            "vocab_size": vocabulary,
            "block_size": shapes["pos_emb"][1],
            "heads": 1,
        }
        prior = GPT(parse(GPTSettings, {**options, "layers": layers, "embed_dim": width}, where="test"))
        return gpt_names(prior).written_from(prior)
    convolutions = [key for key in shapes if key.endswith("weight") and len(shapes[key]) == 4]
    channels, width = shapes["main.0.weight"][1], shapes["main.0.weight"][0]
    norm: Any = "act" if "actnorm" in name else "batch"
    settings = PatchSettings(channels=channels, base_channels=width, layers=len(convolutions) - 2, norm=norm)
    return PatchDiscriminator(settings).state_dict()


@pytest.mark.parametrize("name", ["VQModel", "GumbelVQ", "NLayerDiscriminator", "NLayerDiscriminator_actnorm", "GPT"])
def test_networks_begin_as_the_originals(name: str) -> None:
    """Means and deviations of both draws agree as far as chance allows, and what is constant is the same constant."""
    facts = misc()["init"][name]
    torch.manual_seed(0)
    found = _fresh(name, {key: value["shape"] for key, value in facts.items()})
    for key, expected in facts.items():
        if "mask" in key or key not in found or expected["std"] is None:
            continue
        ours = found[key].float()
        assert list(ours.shape) == expected["shape"], key
        if expected["std"] == 0 or ours.numel() == 1:
            if expected["std"] == 0 and ours.numel() > 1:
                assert (ours == expected["mean"]).all(), key
            continue
        deviation, count = expected["std"], ours.numel()
        assert abs(float(ours.mean()) - expected["mean"]) < 6 * deviation * (2 / count) ** 0.5, key
        assert abs(float(ours.std()) / deviation - 1) < 6 / count**0.5, key
        largest, theirs = float(ours.abs().max()), max(abs(expected["min"]), abs(expected["max"]))
        assert 0.6 < largest / theirs < 1.67 or count < 32, key
