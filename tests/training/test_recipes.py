"""The recipes: each is read, each of the reference is what the original's configuration is, each that can run runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from smalti.cli.main import app
from smalti.core.errors import SmaltiError
from smalti.core.settings import as_mapping, parse
from smalti.hub.pretrained import find_model
from smalti.losses.discriminator import DISCRIMINATORS
from smalti.losses.patch_discriminator import PatchSettings
from smalti.pipeline import Pipeline
from smalti.tokenizer.vqgan import VQGAN
from smalti.training.config import STAGES, PriorTraining, TokenizerTraining, read_recipe, recipes, resolve
from smalti.training.prior_networks import CodesRead, GPTNetwork, build_network
from smalti.training.run_folder import read_metrics
from tests.small import SIDE, write_images

BASE_RATE = 4.5e-6
"""The original's `base_learning_rate`, which it multiplies by the batch."""

REFERENCE = [name for name in recipes() if name.startswith("reference-")]


def tokenizer(recipe: str, *overrides: str) -> TokenizerTraining:
    return resolve(TokenizerTraining, stage="tokenizer", recipe=recipe, overrides=overrides)


def prior(recipe: str, *overrides: str) -> PriorTraining:
    return resolve(PriorTraining, stage="prior", recipe=recipe, overrides=overrides)


TOKENIZERS = [name for name in REFERENCE if "tokenizer" in read_recipe(name)]
PRIORS = [name for name in REFERENCE if "prior" in read_recipe(name)]


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", sorted(recipes()))
def test_every_recipe_resolves_and_comes_back_from_its_yaml(recipe: str) -> None:
    stages = [stage for stage in STAGES if stage in read_recipe(recipe)]
    assert stages
    for stage in stages:
        settings: Any = resolve(STAGES[stage], stage=stage, recipe=recipe, overrides=[])
        plain = as_mapping(settings)
        assert parse(STAGES[stage], yaml.safe_load(yaml.safe_dump(plain)), where=recipe) == settings


def test_a_recipe_is_like_another_but_for_what_it_says(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    quantizer = "tokenizer: {model: {quantizer: {name: gumbel, codebook_size: 64}}}\n"
    mine.write_text("like: small\nprior: {network: {layers: 2}}\n" + quantizer)
    changed, whole = read_recipe(str(mine)), read_recipe("small")
    assert changed["prior"]["network"] == {**whole["prior"]["network"], "layers": 2}
    assert changed["prior"]["run"] == whole["prior"]["run"]
    assert changed["tokenizer"]["model"]["quantizer"] == {
        "name": "gumbel",
        "codebook_size": 64,
    }  # another kind: nothing is left of VQ
    assert changed["tokenizer"]["model"]["autoencoder"] == whole["tokenizer"]["model"]["autoencoder"]
    assert "like" not in changed


def test_what_a_recipe_costs_is_not_what_another_like_it_costs(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("like: small\nmeasured: An hour.\n")
    assert "measured" not in read_recipe(str(mine))
    assert "measured" not in read_recipe("small")
    assert read_recipe("small")["about"] in recipes()["small"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("like: smal\n", r"is like 'smal', which is not a recipe of smalti; did you mean 'small'\?"),
        ("tokenzer: {}\n", r"unknown section 'tokenzer'; did you mean 'tokenizer'\?"),
        (
            "about: nothing\n",
            r"has no section 'tokenizer'; those that have one are class, .*demo, .*reference-imagenet",
        ),
        ("- 1\n", "must hold the sections"),
    ],
)
def test_wrong_recipes_are_sentences(tmp_path: Path, text: str, sentence: str) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text)
    with pytest.raises(SmaltiError, match=sentence):
        tokenizer(str(recipe))


# --- the original's configurations ------------------------------------------------------------------------------------


def test_all_of_them_are_there() -> None:
    assert set(TOKENIZERS) == {
        f"reference-{name}"
        for name in (
            *("imagenet", "imagenet-16384", "faceshq", "imagenet-depth", "custom", "gumbel"),
            *("coco-segmentation", "sflckr-segmentation", "ade20k-segmentation"),
        )
    }
    assert set(PRIORS) == {
        f"reference-{name}"
        for name in ("faceshq-coordinates", "drin", "sflckr", "class", "faces", "coco-layout", "open-images-layout")
    }


@pytest.mark.parametrize("recipe", TOKENIZERS)
def test_what_all_tokenizers_share(recipe: str) -> None:
    settings = tokenizer(recipe)
    run, objective, adversarial = settings.run, settings.objective, settings.objective.adversarial
    for optimizer in (settings.optimizer, settings.discriminator_optimizer):
        assert optimizer.lr == pytest.approx(BASE_RATE * run.batch, rel=1e-12)
        assert optimizer.betas == (0.5, 0.9)
        assert (optimizer.weight_decay, optimizer.warmup, optimizer.final_lr, optimizer.grad_clip) == (0, 0, 1, 0)
    assert (run.ema_half_life, settings.quantize_from, objective.codebook_weight, run.precision) == (0, 0, 1, "32-true")
    assert settings.images.size == (256, 256)
    assert not settings.images.flip
    autoencoder = settings.model.autoencoder
    assert (autoencoder.patch_size, autoencoder.base_channels, autoencoder.res_blocks, autoencoder.latent_channels) == (
        1,
        128,
        2,
        256,
    )
    assert (autoencoder.dropout, autoencoder.zero_residuals, autoencoder.middle_attention) == (0, False, True)
    assert settings.model.quantizer.codebook_dim == 256
    if adversarial.weight:
        assert (objective.pixel, objective.perceptual, objective.perceptual_weight) == ("l1", "vgg16", 1)
        assert objective.perceptual_dropout == 0.5
        assert (adversarial.loss, adversarial.weighting, adversarial.updates, adversarial.discriminator_from_start) == (
            "hinge",
            "adaptive",
            "alternating",
            False,
        )
        assert (adversarial.ramp, adversarial.lecam, adversarial.max_weight) == (0, 0, 1e4)
        discriminator = adversarial.discriminator
        assert isinstance(discriminator, PatchSettings)
        assert (discriminator.norm, discriminator.base_channels, discriminator.patch_size) == ("batch", 64, 1)


VQ_1024 = (1024, [1, 1, 2, 2, 4], (4,), 3)


@pytest.mark.parametrize(
    ("recipe", "model", "batch", "disc_start", "weight", "layers"),
    [
        ("imagenet", VQ_1024, 12, 250001, 0.8, 3),
        ("imagenet-16384", (16384, [1, 1, 2, 2, 4], (4,), 3), 12, 0, 0.75, 2),
        ("faceshq", VQ_1024, 3, 30001, 0.8, 3),
        ("imagenet-depth", (1024, [1, 1, 2, 2, 4], (4,), 1), 3, 50001, 0.75, 3),
        ("custom", VQ_1024, 5, 10000, 0.8, 3),
        ("gumbel", (8192, [1, 1, 2, 4], (3,), 3), 12, 250001, 0.8, 3),
    ],
)
def test_tokenizers_with_a_game(
    recipe: str, model: tuple[Any, ...], batch: int, disc_start: int, weight: float, layers: int
) -> None:
    settings = tokenizer(f"reference-{recipe}")
    autoencoder, adversarial = settings.model.autoencoder, settings.objective.adversarial
    found = (
        settings.model.quantizer.codebook_size,
        list(autoencoder.channel_multipliers),
        autoencoder.attention_levels,
        autoencoder.channels,
    )
    assert found == model
    assert isinstance(adversarial.discriminator, PatchSettings)
    assert (settings.run.batch, adversarial.start, adversarial.weight, adversarial.discriminator.layers) == (
        batch,
        disc_start * batch,
        weight,
        layers,
    )
    assert adversarial.start != 1  # it would be a fraction of the training
    assert settings.run.images > adversarial.start


@pytest.mark.parametrize(
    ("recipe", "labels", "zoom"), [("coco", 183, 296 / 256), ("sflckr", 182, 1.0), ("ade20k", 151, 296 / 256)]
)
def test_tokenizers_of_label_maps(recipe: str, labels: int, zoom: float) -> None:
    settings = tokenizer(f"reference-{recipe}-segmentation")
    assert (settings.run.batch, settings.model.autoencoder.channels, settings.model.quantizer.codebook_size) == (
        12,
        labels,
        1024,
    )
    assert (settings.objective.pixel, settings.objective.perceptual) == ("bce", "none")
    assert settings.objective.adversarial.weight == 0
    assert settings.images.zoom == (zoom, zoom)


def test_the_quantizers() -> None:
    for recipe in TOKENIZERS:
        quantizer = tokenizer(recipe).model.quantizer
        if quantizer.name == "vq":
            assert (quantizer.commitment, quantizer.beta_on) == (0.25, "codebook")
            assert (quantizer.l2_normalize, quantizer.kmeans_iterations, quantizer.dead_code_threshold) == (False, 0, 0)
    settings = tokenizer("reference-gumbel")
    quantizer = settings.model.quantizer
    assert quantizer.name == "gumbel"
    assert (quantizer.kl_weight, quantizer.straight_through, quantizer.noisy) == (1e-8, True, True)
    plan = quantizer.temperature
    assert (plan.start, plan.peak, plan.end, plan.warmup) == (0.9, 0.9, 1e-6, 0)
    assert plan.decay == 1000001 * settings.run.batch == settings.run.images


@pytest.mark.parametrize("recipe", PRIORS)
def test_what_all_priors_share(recipe: str) -> None:
    settings = prior(recipe)
    assert settings.optimizer.lr == pytest.approx(BASE_RATE * settings.run.batch, rel=1e-12)
    assert settings.optimizer.betas == (0.9, 0.95)
    assert settings.optimizer.weight_decay == 0.01
    assert (settings.optimizer.warmup, settings.optimizer.final_lr, settings.optimizer.grad_clip) == (0, 1, 0)
    assert (settings.run.ema_half_life, settings.condition_dropout, settings.keep_probability) == (0, 0, 1)
    assert isinstance(settings.network, GPTNetwork)
    assert (settings.network.unmasked, settings.network.start_code, settings.network.order) == (0, 0, "raster")
    assert settings.run.codes % (256 * settings.run.batch) == 0


@pytest.mark.parametrize(
    ("recipe", "condition", "sizes", "dropout", "batch"),
    [
        ("faceshq-coordinates", "coordinates", (1024, 512, 24, 16, 1024), 0.0, 2),
        ("drin", "depth", (1024, 512, 24, 16, 1024), 0.0, 2),
        ("sflckr", "segmentation", (1024, 512, 24, 16, 1024), 0.0, 2),
        ("class", "labels", (16384, 256, 48, 24, 1536), 0.0, 64),
        ("faces", "unconditional", (1024, 256, 24, 16, 1664), 0.0, 8),
        ("coco-layout", "layout", (8192, 348, 40, 16, 1408), 0.1, 6),
        ("open-images-layout", "layout", (8192, 348, 36, 16, 1536), 0.1, 6),
    ],
)
def test_priors(recipe: str, condition: str, sizes: tuple[int, ...], dropout: float, batch: int) -> None:
    settings = prior(f"reference-{recipe}")
    network = settings.network
    assert isinstance(network, GPTNetwork)
    assert (settings.condition, settings.run.batch) == (condition, batch)
    assert (network.vocab_size, network.block_size, network.layers, network.heads, network.embed_dim) == sizes
    assert {network.embedding_dropout, network.attention_dropout, network.residual_dropout} == {dropout}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("recipe", "weights", "scored"),
    [
        ("imagenet", 72_141_699, 2_765_633),
        ("imagenet-16384", 76_073_859, 663_361),
        ("gumbel", 68_995_971, 2_765_633),
        ("sflckr-segmentation", 72_554_294, None),
    ],
)
def test_tokenizers_have_as_many_weights_as_the_original(recipe: str, weights: int, scored: int | None) -> None:
    settings = tokenizer(f"reference-{recipe}")
    discriminator = settings.objective.adversarial.discriminator
    with torch.device("meta"):
        assert count(VQGAN(settings.model)) == weights
        assert scored is None or count(DISCRIMINATORS[discriminator.name](discriminator)) == scored


PREFIXES = {"coordinates": 256, "depth": 256, "segmentation": 256, "layout": 92, "labels": 1, "unconditional": 1}


@pytest.mark.parametrize(
    ("recipe", "weights"),
    [
        ("faceshq-coordinates", 304_932_864),
        ("drin", 304_932_864),
        ("sflckr", 304_932_864),
        ("class", 1_410_640_896),
        ("faces", 801_798_400),
        ("coco-layout", 975_876_352),
        ("open-images-layout", 1_045_638_144),
    ],
)
def test_priors_have_as_many_weights_as_the_original(recipe: str, weights: int) -> None:
    settings = prior(f"reference-{recipe}")
    assert isinstance(settings.network, GPTNetwork)
    some = {"labels": 1000, "unconditional": 0}.get(settings.condition, settings.network.vocab_size)
    size, prefix = settings.network.vocab_size, PREFIXES[settings.condition]
    with torch.device("meta"):
        made = build_network(settings.network, CodesRead(size=size, grid=(16, 16), condition_size=some, prefix=prefix))
    assert count(made.prior) == weights


# --- they run ---------------------------------------------------------------------------------------------------------


def overridden(values: dict[str, Any]) -> list[str]:
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


EVERY = {f"run.{name}_every": 8 for name in ("log", "validate", "sample", "checkpoint")}
SMALL: dict[str, Any] = {
    **EVERY,
    "run.images": 24,
    "run.batch": 4,
    "run.workers": 0,
    "run.tensorboard": "false",
    "run.accelerator": "cpu",
    "model.autoencoder.base_channels": 8,
    "model.autoencoder.channel_multipliers": "[1, 1]",
    "model.autoencoder.attention_levels": "[1]",
    "model.autoencoder.latent_channels": 8,
    "model.quantizer.codebook_size": 16,
    "model.quantizer.codebook_dim": 8,
    "objective.perceptual": "none",
    "objective.adversarial.start": 12,
    "objective.adversarial.discriminator.base_channels": 8,
    "objective.adversarial.discriminator.layers": 1,
    "optimizer.lr": 0.001,
    "images.size": f"[{SIDE}, {SIDE}]",
    "images.validation": 0.2,
}
SMALL_PRIOR: dict[str, Any] = {
    **{key: 64 * value for key, value in EVERY.items()},
    "run.codes": 24 * 64,
    "run.batch": 4,
    "run.tensorboard": "false",
    "run.accelerator": "cpu",
    "network.vocab_size": 0,
    "network.block_size": 0,
    "network.layers": 1,
    "network.embed_dim": 16,
    "network.heads": 2,
    "optimizer.lr": 0.01,
    "keep_probability": 0.9,
    "encode.copies": 1,
    "encode.images.size": f"[{SIDE}, {SIDE}]",
    "encode.images.validation": 0.2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes")
    write_images(path / "images")
    for image in write_images(path / "depths").rglob("*.png"):
        Image.open(image).convert("L").save(image)
    return path


def smalti(*arguments: object) -> None:
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output


RUNNING = [
    "reference-imagenet",
    "reference-imagenet-16384",
    "reference-custom",
    "reference-faceshq",
    "reference-gumbel",
]


@pytest.mark.parametrize("recipe", [*RUNNING, "reference-imagenet-depth"])
def test_reference_tokenizers_train(recipe: str, folder: Path) -> None:
    out, data = folder / recipe, folder / ("depths" if recipe.endswith("depth") else "images")
    more = {"model.quantizer.temperature.decay": 24} if recipe == "reference-gumbel" else {}
    smalti("train", "tokenizer", data, "--out", out, "--recipe", recipe, *overridden({**SMALL, **more}))
    lines = [line for line in read_metrics(out) if line["part"] == "train"]
    assert all(math.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))
    assert [line["seen"] for line in lines] == [8, 16, 24]
    before, after = lines[0], lines[-1]
    assert before["discriminator"] == before["discriminator_gradient_norm"] == before["adaptive_weight"] == 0
    assert before["full_weight"] > 0
    assert before["fake_logits"] == pytest.approx(-before["generator"], abs=0.3)  # asked all along
    assert after["discriminator"] > 0
    assert after["adaptive_weight"] == pytest.approx(after["full_weight"])
    assert find_model(out, kind="tokenizer").about["images_seen"] == 24


@pytest.mark.parametrize(
    ("recipe", "given", "sizes"),
    [
        ("reference-class", {"label": "dark"}, (16, 64)),
        ("reference-faces", {}, (16, 64)),
        ("reference-faceshq-coordinates", {}, (1024, 127)),
    ],
)
def test_reference_priors_train_and_sample(
    recipe: str, given: dict[str, str], sizes: tuple[int, int], folder: Path
) -> None:
    """Images, a tokenizer, codes, a prior that is told wrong codes now and then, and an image from both."""
    pipeline, images = folder / f"pipeline-{recipe}", folder / "images"
    tokens = ["--recipe", "reference-imagenet", *overridden(SMALL)]
    smalti("train", "tokenizer", images, "--out", pipeline / "tokenizer", *tokens)
    smalti(
        "train", "prior", images, "--tokenizer", pipeline / "tokenizer", "--out", pipeline / "prior",
        "--recipe", recipe, *overridden(SMALL_PRIOR)
    )  # fmt: skip
    nats = [line["nats"] for line in read_metrics(pipeline / "prior") if line["part"] == "validation"]
    assert nats[-1] < nats[0]
    network = find_model(pipeline / "prior", kind="prior").settings["network"]
    assert (network["name"], network["vocab_size"], network["block_size"]) == ("gpt", *sizes)
    assert (network["start_code"] is None) == (recipe != "reference-faces")
    pipe = Pipeline.from_pretrained(pipeline)
    assert pipe.sample(2, seed=1, **given).shape == (2, 3, SIDE, SIDE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "recipe", sorted(set(PRIORS) - {"reference-class", "reference-faces", "reference-faceshq-coordinates"})
)
def test_priors_without_data_end_at_once(recipe: str, tmp_path: Path) -> None:
    """Their settings can be looked at; training says what is missing before it reads or writes anything."""
    command = [
        "train",
        "prior",
        "nowhere",
        "--tokenizer",
        "nowhere",
        "--out",
        str(tmp_path / "run"),
        "--recipe",
        recipe,
    ]
    shown = CliRunner().invoke(app, [*command, "--dry-run"])
    assert shown.exit_code == 0
    assert "vocab_size: " in shown.output
    condition = prior(recipe).condition
    with pytest.raises(SmaltiError, match=rf"condition = {condition} has codes of its own"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", [name for name in TOKENIZERS if name.endswith("-segmentation")])
def test_tokenizers_of_label_maps_are_for_label_maps(recipe: str, tmp_path: Path) -> None:
    command = ["train", "tokenizer", "nowhere", "--out", str(tmp_path / "run"), "--recipe", recipe]
    assert CliRunner().invoke(app, [*command, "--dry-run"]).exit_code == 0
    with pytest.raises(SmaltiError, match=r"there is no nowhere; images come from"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    with pytest.raises(SmaltiError, match=r"objective\.pixel = bce is for label maps, and images\.file_type = color"):
        CliRunner().invoke(app, [*command, "--set", "images.file_type=color"], catch_exceptions=False)
    assert not (tmp_path / "run").exists()
