"""The recipes that are not the original's: what they say, and that they train."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from smalti.conditions.base import Condition
from smalti.conditions.coordinates import Coordinates
from smalti.conditions.labels import Labels, Unconditional
from smalti.core.errors import SmaltiError
from smalti.data.code_shards import CodeShards, open_codes
from smalti.encoding.annotators import ANNOTATORS
from smalti.losses.patch_discriminator import PatchSettings
from smalti.scenes.painter import LABELS
from smalti.tokenizer.quantizers import VQSettings
from smalti.training.run_folder import read_metrics
from smalti.training.runs import WITHOUT_CODES, condition_of
from tests.small import SIDE, write_images
from tests.training.test_recipes import SMALL, SMALL_PRIOR, overridden, prior, smalti, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("modern")
    write_images(path / "images")
    return path


@pytest.mark.parametrize(("recipe", "factor"), [("f8", 8), ("f16", 16)])
def test_photographs_are_the_originals_networks_trained_the_modern_way(recipe: str, factor: int) -> None:
    settings, original = tokenizer(recipe), tokenizer("reference-imagenet")
    autoencoder, quantizer = settings.model.autoencoder, settings.model.quantizer
    assert autoencoder.factor == factor
    assert (autoencoder.base_channels, autoencoder.res_blocks) == (
        original.model.autoencoder.base_channels,
        original.model.autoencoder.res_blocks,
    )
    assert autoencoder.attention_levels == (len(autoencoder.channel_multipliers) - 1,)
    assert quantizer.name == "vq"
    assert quantizer == VQSettings(codebook_size=16384)  # all else is the modern default
    adversarial = settings.objective.adversarial
    assert isinstance(adversarial.discriminator, PatchSettings)
    assert (adversarial.updates, adversarial.discriminator_from_start, adversarial.discriminator.norm) == (
        "simultaneous",
        True,
        "group",
    )
    assert (settings.run.ema_half_life, settings.run.precision, settings.optimizer.grad_clip) == (0.05, "bf16-mixed", 1)


def test_a_vq_vae_has_neither_critic() -> None:
    settings = tokenizer("vqvae")
    objective, quantizer = settings.objective, settings.model.quantizer
    assert (objective.pixel, objective.perceptual, objective.adversarial.weight) == ("l2", "none", 0)
    assert quantizer.name == "ema"
    assert (quantizer.codebook_size, quantizer.codebook_dim, quantizer.decay, quantizer.commitment) == (
        512,
        64,
        0.99,
        0.25,
    )


def test_maps_have_recipes() -> None:
    labels, depth = tokenizer("segmentation"), tokenizer("depth")
    assert (labels.images.file_type, labels.objective.pixel) == ("labels", "cross_entropy")
    assert labels.model.autoencoder.channels == len(LABELS)
    assert (depth.images.file_type, depth.objective.pixel, depth.model.autoencoder.channels) == ("depth", "l1", 1)
    for settings in (labels, depth):
        assert (settings.objective.perceptual, settings.objective.adversarial.weight) == ("none", 0)


def test_what_is_made_of_images_has_as_many_codes_as_they_have() -> None:
    small, edges, lower = tokenizer("small"), tokenizer("edges"), tokenizer("superres")
    assert (edges.images.file_type, edges.model.autoencoder.channels) == ("edges", 1)
    assert (edges.images.size, edges.model.autoencoder.factor) == (small.images.size, small.model.autoencoder.factor)
    assert (lower.images.file_type, lower.model.autoencoder.channels) == ("color", 3)
    assert [4 * side for side in lower.images.size] == list(small.images.size)
    assert 4 * lower.model.autoencoder.factor == small.model.autoencoder.factor
    for settings in (edges, lower):
        assert (settings.objective.perceptual, settings.objective.adversarial.weight) == ("none", 0)
        assert settings.images.zoom == small.images.zoom  # both are cut alike


CONDITIONS = {
    "class": "labels", "unconditional": "unconditional", "coordinates": "coordinates", "layout": "layout",
    "pose": "keypoints"
}  # fmt: skip


@pytest.mark.parametrize("recipe", sorted(CONDITIONS))
def test_priors_of_conditions_are_small_but_for_their_condition(recipe: str) -> None:
    settings, small = prior(recipe), prior("small")
    assert settings.condition == CONDITIONS[recipe] != small.condition
    assert settings.condition in (*WITHOUT_CODES, *ANNOTATORS)
    assert (settings.run, settings.network, settings.optimizer) == (small.run, small.network, small.optimizer)
    hides = recipe not in ("unconditional", "coordinates")  # where a part lies is always known
    assert settings.condition_dropout == (small.condition_dropout if hides else 0)
    assert tokenizer(recipe).images.zoom == settings.encode.images.zoom
    assert settings.encode.images.zoom == ((1, 2) if recipe == "coordinates" else (1, 1.25))


MODERN: dict[str, dict[str, Any]] = {
    "edges": {"images.file_type": "edges"},
    "superres": {"images.size": f"[{SIDE // 4}, {SIDE // 4}]"},
    "vqvae": {},
    "f8": {"run.precision": "32-true"},
    "f16": {"model.autoencoder.channel_multipliers": "[1, 1]"},
}


@pytest.mark.parametrize("recipe", sorted(MODERN))
def test_modern_tokenizers_train(recipe: str, folder: Path) -> None:
    alike = {"model.autoencoder.patch_size": 1 if recipe in ("f8", "f16", "superres") else 2, "quantize_from": 0}
    if recipe not in ("f8", "f16"):
        alike["objective.adversarial.weight"] = 0
    given = {**SMALL, **alike, **MODERN[recipe]}
    out = folder / recipe
    smalti("train", "tokenizer", folder / "images", "--out", out, "--recipe", recipe, *overridden(given))
    lines = [line for line in read_metrics(out) if line["part"] == "train"]
    assert all(math.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))
    assert all(line["skipped"] == 0 for line in lines)


TRANSFORMER = {
    key: value for key, value in SMALL_PRIOR.items() if key not in ("network.vocab_size", "network.block_size")
}


def test_small_priors_train_from_images(folder: Path) -> None:
    """What needs nothing beside the images; the two others say what they need."""
    run, images = folder / "told", folder / "images"
    smalti("train", "tokenizer", images, "--out", run, "--recipe", "vqvae", *overridden({**SMALL, "quantize_from": 0}))
    codes = {}
    for recipe in CONDITIONS:
        words = ["train", "prior", images, "--tokenizer", run, "--out", folder / recipe, "--recipe", recipe]
        if recipe in ("layout", "pose"):
            with pytest.raises(
                SmaltiError, match=rf"condition = {CONDITIONS[recipe]} has codes of its own, .*--condition-data"
            ):
                smalti(*words)
            continue
        smalti(*words, *overridden(TRANSFORMER))
        codes[recipe] = open_codes(folder / recipe / "codes")
    assert {name: class_of(shards, CONDITIONS[name]) for name, shards in codes.items()} == {
        "class": Labels, "unconditional": Unconditional, "coordinates": Coordinates
    }  # fmt: skip
    with pytest.raises(SmaltiError, match=r"condition = keypoints, and the codes in .* were made without one"):
        condition_of(codes["class"], "keypoints")


def class_of(shards: CodeShards, name: str) -> type[Condition]:
    return type(condition_of(shards, name))
