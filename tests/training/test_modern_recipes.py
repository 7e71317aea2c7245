"""The recipes that are not the original's: what they say, and that they train."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from smalti.conditions.base import Condition
from smalti.conditions.coordinates import Coordinates
from smalti.conditions.labels import Labels, Nothing
from smalti.core.errors import SmaltiError
from smalti.data.code_shards import CodeShards, open_codes
from smalti.encoding.annotators import SAYINGS
from smalti.losses.patch_discriminator import PatchSettings
from smalti.scenes.painter import LABELS
from smalti.tokenizer.quantizers import VQSettings
from smalti.training.run_folder import read_metrics
from smalti.training.runs import OWN, condition_of
from tests.small import SIDE, write_pictures
from tests.training.test_recipes import SMALL, SMALL_PRIOR, overridden, prior, smalti, tokenizer


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
    assert isinstance(game.discriminator, PatchSettings)
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


def test_what_is_made_of_pictures_has_as_many_codes_as_they_have() -> None:
    small, edges, lower = tokenizer("small"), tokenizer("edges"), tokenizer("superres")
    assert (edges.pictures.kind, edges.model.pyramid.channels) == ("edges", 1)
    assert (edges.pictures.size, edges.model.pyramid.factor) == (small.pictures.size, small.model.pyramid.factor)
    assert (lower.pictures.kind, lower.model.pyramid.channels) == ("colour", 3)
    assert [4 * side for side in lower.pictures.size] == list(small.pictures.size)
    assert 4 * lower.model.pyramid.factor == small.model.pyramid.factor
    for settings in (edges, lower):
        assert (settings.objective.perceptual, settings.objective.adversarial.weight) == ("none", 0)
        assert settings.pictures.zoom == small.pictures.zoom  # both are cut alike


TOLD = {
    "class": "labels", "unconditional": "nothing", "coordinates": "coordinates", "layout": "layout", "pose": "keypoints"
}  # fmt: skip


@pytest.mark.parametrize("recipe", sorted(TOLD))
def test_priors_of_conditions_are_small_but_for_what_they_are_told(recipe: str) -> None:
    settings, small = prior(recipe), prior("small")
    assert settings.condition == TOLD[recipe] != small.condition
    assert settings.condition in (*OWN, *SAYINGS)
    assert (settings.run, settings.network, settings.optimiser) == (small.run, small.network, small.optimiser)
    hides = recipe not in ("unconditional", "coordinates")  # where a part lies is always known
    assert settings.drop_condition == (small.drop_condition if hides else 0)
    assert tokenizer(recipe).pictures.zoom == settings.encode.pictures.zoom
    assert settings.encode.pictures.zoom == ((1, 2) if recipe == "coordinates" else (1, 1.25))


MODERN: dict[str, dict[str, Any]] = {
    "edges": {"pictures.kind": "edges"},
    "superres": {"pictures.size": f"[{SIDE // 4}, {SIDE // 4}]"},
    "vqvae": {},
    "f8": {"run.precision": "32-true"},
    "f16": {"model.pyramid.multipliers": "[1, 1]"},
}


@pytest.mark.parametrize("recipe", sorted(MODERN))
def test_modern_tokenizers_train(recipe: str, folder: Path) -> None:
    alike = {"model.pyramid.stem": 1 if recipe in ("f8", "f16", "superres") else 2, "codes_from": 0}
    if recipe not in ("f8", "f16"):
        alike["objective.adversarial.weight"] = 0
    given = {**SMALL, **alike, **MODERN[recipe]}
    out = folder / recipe
    smalti("train", "tokenizer", folder / "pictures", "--out", out, "--recipe", recipe, *overridden(given))
    lines = [line for line in read_metrics(out) if line["part"] == "train"]
    assert all(math.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))
    assert all(line["skipped"] == 0 for line in lines)


TRANSFORMER = {key: value for key, value in SMALL_PRIOR.items() if key not in ("network.vocabulary", "network.block")}


def test_small_priors_train_from_pictures(folder: Path) -> None:
    """What needs nothing beside the pictures; the two others say what they need."""
    run, pictures = folder / "told", folder / "pictures"
    smalti("train", "tokenizer", pictures, "--out", run, "--recipe", "vqvae", *overridden({**SMALL, "codes_from": 0}))
    codes = {}
    for recipe in TOLD:
        words = ["train", "prior", pictures, "--tokenizer", run, "--out", folder / recipe, "--recipe", recipe]
        if recipe in ("layout", "pose"):
            with pytest.raises(
                SmaltiError, match=rf"condition = {TOLD[recipe]} has codes of its own, .*--condition-data"
            ):
                smalti(*words)
            continue
        smalti(*words, *overridden(TRANSFORMER))
        codes[recipe] = open_codes(folder / recipe / "codes")
    assert {name: class_of(shards, TOLD[name]) for name, shards in codes.items()} == {
        "class": Labels, "unconditional": Nothing, "coordinates": Coordinates
    }  # fmt: skip
    with pytest.raises(SmaltiError, match=r"condition = keypoints, and the codes in .* were made without one"):
        condition_of(codes["class"], "keypoints")


def class_of(shards: CodeShards, name: str) -> type[Condition]:
    return type(condition_of(shards, name))
