"""Training that begins with a tokenizer made elsewhere."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from smalti.cli.main import app
from smalti.core.errors import SmaltiError
from smalti.hub.pretrained import find_model
from smalti.tokenizer.vqgan import VQGAN
from smalti.training.initialization import resolve_tokenizer_from, tokenizer_start
from tests.small import write_images, write_recipe

THEIRS = (
    "model.quantizer.l2_normalize=false",
    "model.autoencoder.patch_size=1",
    "model.autoencoder.base_channels=32",
    "run.images=16",
)
OTHER = [
    "model.quantizer.codebook_size=8",
    "model.autoencoder.base_channels=16",
    "run.images=16",
    "model.quantizer.dead_code_threshold=0",
]


def smalti(*arguments: object, status: int = 0) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    error = done.exception
    if isinstance(error, SmaltiError):
        assert status == 1, error
        return str(error)
    assert done.exit_code == status, done.output
    return done.output


def train(folder: Path, out: str, *arguments: str, overrides: tuple[str, ...] = (), status: int = 0) -> str:
    given = [part for override in overrides for part in ("--set", override)]
    fixed = ["--recipe", folder / "small.yaml", "--out", folder / out]
    return smalti("train", "tokenizer", folder / "images", *fixed, *arguments, *given, status=status)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a recipe, and a tokenizer of other sizes than the recipe's."""
    path = tmp_path_factory.mktemp("finetuning")
    write_images(path / "images")
    write_recipe(path / "small.yaml")
    train(path, "other", overrides=tuple(OTHER))
    return path


def test_weights_and_codebook_are_kept(folder: Path) -> None:
    """With rates of almost zero nothing moves: neither k-means nor the warm-up of codes touches what was learned."""
    slow = ("optimizer.lr=1e-12", "run.ema_half_life=0", "run.images=16")
    train(folder, "still", "--from", str(folder / "other"), overrides=slow)
    before, after = (load_file(folder / run / "model" / "model.safetensors") for run in ("other", "still"))
    assert before.keys() == after.keys()
    for name in before:
        if name != "quantizer.use":
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-8, msg=name)


def test_the_config_says_where_it_came_from(folder: Path) -> None:
    train(folder, "told", "--from", str(folder / "other"), overrides=("run.images=16",))
    config = yaml.safe_load((folder / "told" / "config.yaml").read_text("utf-8"))
    fingerprint = VQGAN.from_pretrained(folder / "other").fingerprint()
    expected = {"model": str(folder / "other"), "fingerprint": fingerprint}
    assert config["from"] == find_model(folder / "told", kind="tokenizer").about["from"] == expected
    assert config["model"]["quantizer"]["codebook_size"] == 8
    assert config["quantize_from"] == 0
    assert VQGAN.from_pretrained(folder / "told").fingerprint() != fingerprint  # it has learned


def test_it_is_resumed_as_any_run(folder: Path) -> None:
    given = ("--from", str(folder / "other"))
    train(folder, "whole", *given, overrides=("run.images=32",))
    train(folder, "cut", *given, overrides=("run.images=32", "run.checkpoint_every=16"))
    for state in (folder / "cut" / "state").iterdir():  # as if it had been killed after 16 images
        if int(state.name) > 16:
            (state / "state.ckpt").write_bytes(b"")
    train(folder, "cut", *given, overrides=("run.images=32", "run.checkpoint_every=16"))
    one, other = (load_file(folder / run / "model" / "model.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_without_its_origin_it_is_another_run(folder: Path) -> None:
    train(folder, "origin", "--from", str(folder / "other"), overrides=("run.images=16",))
    assert "holds a run with other settings" in train(folder, "origin", overrides=("run.images=16",), status=1)


def test_another_programs_checkpoint(folder: Path) -> None:
    train(folder, "plain", overrides=THEIRS)
    smalti("convert", folder / "plain" / "model", folder / "taming", "--to", "taming")
    train(folder, "foreign", "--from", str(folder / "taming"), overrides=("run.images=16",))
    assert find_model(folder / "foreign", kind="tokenizer").about["images_seen"] == 16


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["model.quantizer.codebook_size=16"],
            r"--set model.quantizer.codebook_size=16 is not the model of .*other, whose .* is 8; leave it out",
        ),
        (["model=3"], r"'model=3': the model is a section of settings"),
        (["model.quantizer.name=fsq"], r"--set model.quantizer.name=fsq is not the model of .* is vq"),
        (["model.quantizer.sizes=3"], r"model.quantizer.sizes is not there"),
        (
            ["quantize_from=0.2"],
            r"--set quantize_from=0.2: training starts from .*other, whose codes are placed already",
        ),
        (["images.size=[15, 16]"], r"images.size = 15 x 16 is not made of tiles of 4"),
        (["optimizer.rte=1"], r"unknown key 'optimizer.rte'"),
    ],
)
def test_what_contradicts_it_is_refused(overrides: list[str], sentence: str, folder: Path) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        resolve_tokenizer_from(
            tokenizer_start(str(folder / "other")), recipe=str(folder / "small.yaml"), overrides=overrides
        )


def test_what_agrees_with_it_is_not(folder: Path) -> None:
    start = tokenizer_start(str(folder / "other"))
    given = ["model.quantizer.codebook_size=8", "quantize_from=0", "optimizer.lr=1e-5"]
    settings = resolve_tokenizer_from(start, recipe=str(folder / "small.yaml"), overrides=given)
    assert settings.model == start.settings
    assert settings.optimizer.lr == 1e-5
    assert settings.objective.adversarial.discriminator.base_channels == 8  # of the recipe


def test_nothing_to_begin_with_is_a_sentence(folder: Path) -> None:
    assert "there is no model folder" in train(folder, "nothing", "--from", str(folder / "gone"), status=1)
    assert not (folder / "nothing").exists()


PRIOR = ("network.layers=2", "network.embed_dim=32", "network.heads=2", "condition_dropout=0")


def train_prior(folder: Path, out: str, *arguments: str, overrides: tuple[str, ...] = (), status: int = 0) -> str:
    given = [part for override in overrides for part in ("--set", override)]
    fixed = ["--recipe", folder / "small.yaml", "--tokenizer", folder / "other", "--out", folder / out]
    return smalti("train", "prior", folder / "codes", *fixed, *arguments, *given, status=status)


@pytest.fixture(scope="module")
def priors(folder: Path) -> Path:
    """The same, with codes of that tokenizer and a prior of other sizes than the recipe's."""
    smalti("encode", folder / "other", folder / "images", "--out", folder / "codes", "--size", "16")
    train_prior(folder, "first", overrides=PRIOR)
    return folder


def test_a_prior_keeps_its_weights(priors: Path) -> None:
    slow = ("optimizer.lr=1e-12", "run.ema_half_life=0", "condition_dropout=0")
    train_prior(priors, "still-prior", "--from", str(priors / "first"), overrides=slow)
    before, after = (load_file(priors / run / "model" / "model.safetensors") for run in ("first", "still-prior"))
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-7, msg=name)
    config = yaml.safe_load((priors / "still-prior" / "config.yaml").read_text("utf-8"))
    assert config["from"]["model"] == str(priors / "first")
    assert config["network"]["embed_dim"] == 32
    assert find_model(priors / "still-prior", kind="prior").about["from"] == config["from"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("network.layers=3",), r"--set network.layers=3 is not the network of .*first, whose network.layers is 2"),
        (("network=3",), r"the network is a section of settings, not a single value"),
        (("condition=unconditional",), r"--from .*first: its \w+ is .*, and for these codes it must be"),
    ],
)
def test_what_a_prior_cannot_begin_with_is_refused(overrides: tuple[str, ...], sentence: str, priors: Path) -> None:
    message = train_prior(priors, "refused", "--from", str(priors / "first"), overrides=overrides, status=1)
    assert re.search(sentence, message), message


def test_a_prior_of_other_classes_is_refused(priors: Path) -> None:
    """As many codes, and each means something else."""
    path = priors / "renamed"
    shutil.copytree(priors / "first" / "model", path)
    config = json.loads((path / "config.json").read_text("utf-8"))
    labels = config["settings"]["condition"]["labels"]
    config["settings"]["condition"]["labels"] = [f"new-{label}" for label in labels]
    (path / "config.json").write_text(json.dumps(config), "utf-8")
    message = train_prior(priors, "other-classes", "--from", str(path), status=1)
    assert "these codes come with" in message
    assert "new-" in message
