"""The recipes that are not the original's: what they say, and that they train."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from small import write_pictures
from smalti.data.painting import LABELS
from smalti.tokenizer.quantizers import VQSettings
from smalti.training.folder import read_metrics
from test_recipes import SMALL, overridden, smalti, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("modern")
    write_pictures(path / "pictures")
    return path


@pytest.mark.parametrize(("recipe", "factor"), [("f8", 8), ("f16", 16)])
def test_photographs_are_the_originals_networks_trained_the_modern_way(recipe: str, factor: int) -> None:
    settings, original = tokenizer(recipe), tokenizer("reference-imagenet")
    pyramid, quantizer = settings.model.pyramid, settings.model.quantizer
    assert pyramid.factor == factor
    assert (pyramid.width, pyramid.blocks) == (original.model.pyramid.width, original.model.pyramid.blocks)
    assert pyramid.attention == (len(pyramid.multipliers) - 1,)
    assert quantizer.name == "vq"
    assert quantizer == VQSettings(size=16384)  # all else is the modern default
    game = settings.objective.adversarial
    assert (game.play, game.early, game.discriminator.norm) == ("joint", True, "group")
    assert (settings.run.average, settings.run.precision, settings.optimiser.clip) == (0.05, "bf16-mixed", 1)


def test_a_vq_vae_has_neither_critic() -> None:
    settings = tokenizer("vqvae")
    objective, quantizer = settings.objective, settings.model.quantizer
    assert (objective.pixel, objective.perceptual, objective.adversarial.weight) == ("l2", "none", 0)
    assert quantizer.name == "ema"
    assert (quantizer.size, quantizer.dimension, quantizer.memory, quantizer.commitment) == (512, 64, 0.99, 0.25)


def test_maps_have_recipes() -> None:
    labels, depth = tokenizer("segmentation"), tokenizer("depth")
    assert (labels.pictures.kind, labels.objective.pixel) == ("labels", "cross_entropy")
    assert labels.model.pyramid.channels == len(LABELS)
    assert (depth.pictures.kind, depth.objective.pixel, depth.model.pyramid.channels) == ("depth", "l1", 1)
    for settings in (labels, depth):
        assert (settings.objective.perceptual, settings.objective.adversarial.weight) == ("none", 0)


MODERN: dict[str, dict[str, Any]] = {
    "vqvae": {},
    "f8": {"run.precision": "32-true"},
    "f16": {"model.pyramid.multipliers": "[1, 1]"},
}


@pytest.mark.parametrize("recipe", sorted(MODERN))
def test_modern_tokenizers_train(recipe: str, folder: Path) -> None:
    alike = {"model.pyramid.stem": 2 if recipe == "vqvae" else 1, "codes_from": 0}
    if recipe == "vqvae":
        alike["objective.adversarial.weight"] = 0
    given = {**SMALL, **alike, **MODERN[recipe]}
    out = folder / recipe
    smalti("train", "tokenizer", folder / "pictures", "--out", out, "--recipe", recipe, *overridden(given))
    lines = [line for line in read_metrics(out) if line["part"] == "train"]
    assert all(math.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))
    assert all(line["skipped"] == 0 for line in lines)
