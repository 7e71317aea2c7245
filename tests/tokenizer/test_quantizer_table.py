"""What all quantizers of the table have in common: shapes, codes and latents, gradients, learning, precision,
and their names."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.core.errors import SmaltiError
from smalti.core.settings import as_mapping, parse
from smalti.tokenizer.quantizers import QUANTIZERS, Quantizer
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Uniform in [-1, 1]."""
    return torch.rand(*shape, generator=seeded(seed)) * 2 - 1


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SMALL: dict[str, dict[str, Any]] = {
    "vq": {"codebook_size": 8, "codebook_dim": 3},
    "ema": {"codebook_size": 8, "codebook_dim": 3},
    "simvq": {"codebook_size": 8, "codebook_dim": 3},
    "gumbel": {"codebook_size": 8, "codebook_dim": 3},
    "fsq": {"levels": [4, 3, 5]},
    "lfq": {"codebook_dim": 3},
}
"""Of each quantizer one with codes of 3 numbers."""

TABLES: list[dict[str, Any]] = [
    {},
    {"remap": {"used": 8}},
    {"remap": {"used": 6}},
    {"remap": {"used": 6, "unknown": "extra"}},
    {"remap": {"used": 6, "unknown": 1}},
]
REMAPPED = ("vq", "gumbel")
"""Quantizers that know tables of used codes."""
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "vq": [{"l2_normalize": False}, {"gradient": "rotation"}, {"gradient": "rotation", "l2_normalize": False}],
    "ema": [{"l2_normalize": False}, {"gradient": "rotation"}, {"kmeans_iterations": 0}],
    "simvq": [{"gradient": "rotation"}, {"fitted": False}],
    "gumbel": [{"straight_through": False}, {"kmeans_iterations": 0}],
    "fsq": [{"levels": [3, 4, 6]}],
    "lfq": [{"spherical": True}, {"group": 1}, {"entropy": 0.0}],
}
PLAIN = [{"name": name, **option} for name in QUANTIZERS for option in ({}, *OPTIONS[name])]
WITH_TABLE = [{"name": name, **table} for name in REMAPPED for table in TABLES[1:]]


def in_words(plain: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in plain.items()).removeprefix("name=")


each = pytest.mark.parametrize("plain", [*PLAIN, *WITH_TABLE], ids=in_words)
each_without_table = pytest.mark.parametrize("plain", PLAIN, ids=in_words)


def settings_of(plain: dict[str, Any]) -> VQGANSettings:
    autoencoder = {"base_channels": 8, "channel_multipliers": [1, 1], "res_blocks": 1, "latent_channels": 6}
    quantizer = {**SMALL.get(plain.get("name", "vq"), {}), **plain}
    return parse(VQGANSettings, {"autoencoder": autoencoder, "quantizer": quantizer}, where="here")


def any_quantizer(plain: dict[str, Any]) -> Quantizer:
    """Where there is a table, it is not in the order of the codes."""
    torch.manual_seed(0)
    settings = settings_of(plain).quantizer
    made = QUANTIZERS[settings.name](settings)
    if "remap" in plain:
        used = made.get_buffer("table.used")
        used.copy_(torch.tensor([7, 2, 0, 5, 1, 4, 3, 6])[: len(used)])
    return made


def test_every_quantizer_is_tried() -> None:
    assert set(SMALL) == set(OPTIONS) == set(QUANTIZERS)


@each
def test_codes_are_below_the_size(plain: dict[str, Any]) -> None:
    made = any_quantizer(plain)
    for features in (noise(2, 3, 4, 5), 9 * noise(1, 3, 1, 1)):
        quantized = made(features)
        assert quantized.codes.shape == (len(features), *features.shape[2:])
        assert quantized.codes.dtype == torch.int64
        assert quantized.loss.shape == ()
        assert (quantized.codes >= 0).all()
        assert (quantized.codes < made.size).all()
        assert made.lookup(quantized.codes).shape == quantized.latents.shape == features.shape


@pytest.mark.parametrize("plain", [*PLAIN, *({"name": name, **TABLES[1]} for name in REMAPPED)], ids=in_words)
def test_latents_are_those_of_their_codes(plain: dict[str, Any]) -> None:
    made = any_quantizer(plain)
    quantized = made(noise(2, 3, 4, 5))
    assert len(torch.unique(quantized.codes)) > 2
    torch.testing.assert_close(quantized.latents, made.lookup(quantized.codes))


@each_without_table
def test_every_code_is_that_of_its_own_latents(plain: dict[str, Any]) -> None:
    """codes -> latents -> codes. Not of Gumbel, whose codes are not places; FSQ's latents are taken as bounded
    features."""
    if plain["name"] == "gumbel":
        return
    made, codes = any_quantizer(plain), torch.arange(any_quantizer(plain).size).view(1, 1, -1)
    latents = made.lookup(codes)
    assert len(torch.unique(latents[0, :, 0].T, dim=0)) == made.size
    if plain["name"] == "fsq":
        assert latents.abs().max() <= 1
        levels = settings_of(plain).quantizer
        width = torch.tensor([level // 2 for level in levels.levels]).view(1, -1, 1, 1)  # type: ignore[union-attr]
        offset = torch.tensor([0.5 * (level % 2 == 0) for level in levels.levels]).view(1, -1, 1, 1)  # type: ignore[union-attr]
        reach = torch.tensor([(level - 1) / 2 for level in levels.levels]).view(1, -1, 1, 1)  # type: ignore[union-attr]
        latents = torch.atanh((0.95 * (latents * width + offset)) / reach) - torch.tan(offset / reach)
    assert torch.equal(made(latents).codes, codes)


@each
def test_everything_learns(plain: dict[str, Any]) -> None:
    """The features and every parameter have gradients: before the codes are placed and after, early and late."""
    made, features = any_quantizer(plain), noise(2, 3, 4, 5).requires_grad_()
    for quantize in (made.bypass, made.schedule(0, length=100), made.schedule(100, length=100)):
        made.zero_grad()
        quantized = quantize(features)
        assert (quantized.codes < made.size).all()
        total = (quantized.latents * noise(2, 3, 4, 5, seed=1)).sum() + quantized.loss
        (gradient,) = torch.autograd.grad(total, features, retain_graph=True)
        assert gradient.any()
        assert torch.isfinite(gradient).all()
        total.backward()  # type: ignore[no-untyped-call]
        assert all(parameter.grad is not None for parameter in made.parameters())


@each_without_table
def test_a_feature_of_zeros_does_no_harm(plain: dict[str, Any]) -> None:
    made, features = any_quantizer(plain), noise(1, 3, 1, 2)
    features[..., 0] = 0
    features.requires_grad_()
    quantized = made.schedule(0, length=10)(features)
    (quantized.latents.sum() + quantized.loss).backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()
    assert torch.isfinite(quantized.latents).all()


@each
def test_start_and_observe_leave_a_working_quantizer(plain: dict[str, Any]) -> None:
    made, features = any_quantizer(plain), noise(2, 3, 4, 5)
    assert made.init_features >= 0
    made.init_codebook(features, generator=seeded(0))
    assert 0 <= made.update_codebook(features, made(features).codes, generator=seeded(0)) <= 8
    assert all(torch.isfinite(value).all() for value in made.state_dict().values())
    assert torch.isfinite(made(features).latents).all()


@each_without_table
def test_a_small_batch_is_learned(plain: dict[str, Any]) -> None:
    """A linear encoder and decoder around the quantizer, images of 5 kinds of tiles."""
    made = any_quantizer(plain)
    torch.manual_seed(0)
    encoder, decoder = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
    variants = noise(5, 6, seed=1)
    images = variants[torch.randint(0, 5, (2, 4, 4), generator=seeded(2))].permute(0, 3, 1, 2)
    parameters = [*encoder.parameters(), *decoder.parameters(), *made.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.02)

    def error() -> float:
        return float(F.mse_loss(decoder(made(encoder(images)).latents), images).detach())

    before, length = error(), 150
    made.init_codebook(encoder(images).detach(), generator=seeded(3))
    for step in range(length):
        features = encoder(images)
        quantized = made.schedule(step, length=length)(features)
        loss = F.mse_loss(decoder(quantized.latents), images) + quantized.loss
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        made.update_codebook(features.detach(), quantized.codes, generator=seeded(step))
    assert error() < 0.3 * before


@each_without_table
def test_half_precision_changes_nothing(plain: dict[str, Any]) -> None:
    """Under autocast a feature of 16 bits is quantized as the same feature of 32 bits; drawn codes aside."""
    made, features = any_quantizer(plain), (2 * noise(2, 3, 4, 5)).bfloat16()
    made.init_codebook(features.float(), generator=seeded(0))
    expected, before = made(features.float()), made.bypass(features.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, relaxed = made(features), made.bypass(features)
        looked_up = made.lookup(found.codes)
    assert found.latents.dtype == found.loss.dtype == relaxed.latents.dtype == looked_up.dtype == torch.float32
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(looked_up, expected.latents)
    if plain["name"] != "gumbel":
        assert torch.equal(relaxed.latents, before.latents)
        assert torch.equal(relaxed.codes, before.codes)


@each_without_table
def test_float64_stays_float64(plain: dict[str, Any]) -> None:
    made, features = any_quantizer(plain).double(), noise(2, 3, 4, 5).double()
    made.init_codebook(features, generator=seeded(0))
    quantized = made(features)
    assert quantized.latents.dtype == quantized.loss.dtype == torch.float64
    assert made.bypass(features).latents.dtype == torch.float64
    torch.testing.assert_close(quantized.latents, made.lookup(quantized.codes), rtol=1e-12, atol=1e-12)
    made.update_codebook(features, quantized.codes, generator=seeded(0))
    assert all(value.dtype == torch.float64 for value in made.state_dict().values() if value.is_floating_point())


@each
def test_weights_decide_all(plain: dict[str, Any]) -> None:
    made, features = any_quantizer(plain), noise(2, 3, 4, 5)
    made.init_codebook(features, generator=seeded(0))
    made.update_codebook(features, made(features).codes, generator=seeded(0))
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    other = QUANTIZERS[plain["name"]](settings_of(plain).quantizer)
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.manual_seed(0)
    expected = made(features)
    torch.manual_seed(0)
    for a, b in zip(other(features), expected, strict=True):
        assert torch.equal(a, b)


@each
def test_every_quantizer_serves_a_tokenizer(plain: dict[str, Any]) -> None:
    settings = settings_of(plain)
    tokenizer = VQGAN(settings).eval()
    assert tokenizer.size == any_quantizer(plain).size
    reconstructions, quantized = tokenizer(noise(1, 3, 8, 6))
    assert reconstructions.shape == tokenizer.decode_codes(quantized.codes).shape == (1, 3, 8, 6)
    assert parse(VQGANSettings, as_mapping(settings), where="here") == settings
    if "remap" in plain:
        before = tokenizer.fingerprint()
        tokenizer.get_buffer("quantizer.table.used")[0] += 1
        assert tokenizer.fingerprint() != before


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", REMAPPED)
def test_sizes_are_those_of_the_tables(name: str, table: dict[str, Any]) -> None:
    remap = table.get("remap", {})
    assert any_quantizer({"name": name, **table}).size == remap.get("used", 8) + (remap.get("unknown") == "extra")


def test_identities_stay_what_they_are() -> None:
    """They are part of the fingerprints of all models there are."""
    assert any_quantizer({}).identity == "vq normalized"
    assert any_quantizer({"l2_normalize": False}).identity == "vq"
    assert any_quantizer({"gradient": "rotation"}).identity == "vq normalized"
    assert any_quantizer({"remap": {"used": 6}}).identity == "vq normalized remapped unknown random"
    assert any_quantizer({"l2_normalize": False, **TABLES[3]}).identity == "vq remapped unknown extra"
    assert any_quantizer({"name": "gumbel", **TABLES[4]}).identity == "gumbel remapped unknown 1"
    for noisy in (False, True):
        assert any_quantizer({"name": "gumbel", "noisy": noisy}).identity == "gumbel"
    assert any_quantizer({"name": "ema"}).identity == "ema normalized"
    assert any_quantizer({"name": "ema", "l2_normalize": False}).identity == "ema"
    assert any_quantizer({"name": "simvq"}).identity == "simvq"
    assert any_quantizer({"name": "fsq"}).identity == "fsq 4 3 5"
    assert any_quantizer({"name": "lfq"}).identity == "lfq"
    assert any_quantizer({"name": "lfq", "spherical": True}).identity == "lfq spherical"


@pytest.mark.parametrize(
    ("plain", "sentence"),
    [
        (
            {"codebook_sizes": 1},
            r"here: unknown key 'quantizer\.(vq\.)?codebook_sizes'; did you mean 'codebook_size'\?",
        ),
        ({"name": "vq", "kl_weight": 1}, r"unknown key 'quantizer\.(vq\.)?kl_weight'"),
        (
            {"gradient": "straight"},
            r"quantizer\.gradient = 'straight': input should be 'straight-through' or 'rotation'",
        ),
        ({"name": "gumbel", "kl_wieght": 1}, r"'quantizer\.(gumbel\.)?kl_wieght'; did you mean 'kl_weight'\?"),
        ({"name": "gumbel", "temperature": {"pek": 1}}, r"temperature\.pek'; did you mean 'peak'\?"),
        ({"name": "gumbel", "temperature": {"end": 0}}, r"temperature\.end = 0: input should be greater than 0"),
        ({"name": "gumble"}, r"here: quantizer = .*'gumble'.*'vq', 'ema', 'simvq', 'gumbel', 'fsq', 'lfq'"),
        ({"remap": {"usde": 3}}, r"remap\.usde'; did you mean 'used'\?"),
        (
            {"remap": {"used": 3, "unknown": "none"}},
            r"unknown = 'none': it is \"random\", \"extra\" or one of the .* 3$",
        ),
        ({"remap": {"used": 3, "unknown": 3}}, r"unknown = 3: .* of which there are 3"),
        ({"remap": {"used": 3, "unknown": -1}}, r"unknown = -1: .* of which there are 3"),
        ({"remap": {"used": 9}}, r"remap\.used = 9, but the codebook has 8 codes"),
        ({"name": "gumbel", "remap": {"used": 9}}, r"remap\.used = 9, but the codebook has 8 codes"),
        ({"name": "ema", "remap": {"used": 3}}, r"unknown key 'quantizer\.(ema\.)?remap'"),
        ({"name": "fsq", "levels": [8, 2]}, r"levels\.1 = 2: input should be greater than or equal to 3"),
        ({"name": "fsq", "levels": []}, r"levels = \[\]: tuple should have at least 1 item"),
        ({"name": "fsq", "levels": [1024] * 4}, r"1,099,511,627,776 codes; there may be 1,073,741,824 at most"),
        (
            {"name": "fsq", "codebook_size": 8},
            r"unknown key 'quantizer\.(fsq\.)?codebook_size'; there are: levels, name",
        ),
        ({"name": "lfq", "codebook_dim": 31}, r"codebook_dim = 31: input should be less than or equal to 30"),
    ],
)
def test_wrong_settings_are_reported(plain: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        settings_of(plain)
