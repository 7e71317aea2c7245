"""The last phase of stage 1: nothing that codes depend on moves, the decoder learns, and a stopped run continues as it
was."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from typer.testing import CliRunner

from smalti.cli.main import app
from smalti.core.errors import SmaltiError
from smalti.data.file_types import FILE_TYPES
from smalti.data.sources import open_source
from smalti.tokenizer.quantizers import QUANTIZERS
from smalti.tokenizer.vqgan import VQGAN
from smalti.training import gan_step, optimizer_step
from smalti.training.codebook_training import encoding_parts
from smalti.training.config import TokenizerTraining, resolve
from smalti.training.initialization import resolve_tokenizer_from, tokenizer_start
from smalti.training.optimizer import set_rate
from smalti.training.run_folder import read_metrics
from smalti.training.runs import train_tokenizer
from smalti.training.stage1 import TokenizerStage
from tests.small import write_images, write_recipe
from tests.training.test_training import same_weights

QUIET = Console(quiet=True)
PHASE = (
    "decoder_phase.start=0.5",
    "decoder_phase.replaced=0.4",
    "decoder_phase.neighbors=3",
    "optimizer.lr=0.003",
    "optimizer.weight_decay=0.1",
)
"""From 24 of 48 images on; states are written after 16, 32 and 48."""
QUANTIZER_SETTINGS: dict[str, tuple[str, ...]] = {
    "vq": ("model.quantizer.dead_code_threshold=0.9", "model.quantizer.gradient=rotation"),
    "ema": ("model.quantizer={name: ema, codebook_size: 16, codebook_dim: 4, dead_code_threshold: 0.9}",),
    "simvq": ("model.quantizer={name: simvq, codebook_size: 16, codebook_dim: 4}",),
    "gumbel": ("model.quantizer={name: gumbel, codebook_size: 16, codebook_dim: 4, noisy: true}",),
    "fsq": ("model.quantizer={name: fsq, levels: [4, 4]}",),
    "lfq": ("model.quantizer={name: lfq, codebook_dim: 4}",),
}


def settings_of(folder: Path, *overrides: str) -> TokenizerTraining:
    return resolve(TokenizerTraining, stage="tokenizer", recipe=str(folder / "small.yaml"), overrides=overrides)


def trained(folder: Path, out: str, *overrides: str) -> Path:
    settings = settings_of(folder, *PHASE, *overrides)
    train_tokenizer(folder / "images", folder / out, settings=settings, console=QUIET)
    return folder / out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a recipe, and an uninterrupted run."""
    path = tmp_path_factory.mktemp("phase")
    write_images(path / "images")
    write_recipe(path / "small.yaml")
    trained(path, "whole")
    return path


def stage_of(folder: Path, *overrides: str) -> TokenizerStage:
    settings = settings_of(folder, *PHASE, *overrides)
    return TokenizerStage(settings, open_source(folder / "images"), fabric=Fabric(accelerator="cpu"), about={})


def steps(stage: TokenizerStage, start: int, end: int) -> list[dict[str, Tensor]]:
    """Steps from `start` to `end` images -> what they gave."""
    batches, values = stage.batches(start), []
    for seen in range(start, end, 4):
        torch.manual_seed(seen)
        values.append(stage.step(next(batches), seen=seen, count=4, generator=torch.Generator().manual_seed(seen)))
    return values


def copied(*modules: nn.Module) -> list[dict[str, Tensor]]:
    return [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]


def equal(ours: list[dict[str, Tensor]], theirs: list[dict[str, Tensor]]) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(ours, theirs, strict=True)
    )


# --- what is frozen, and what learns ----------------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["run.ema_half_life=0.3", "run.ema_half_life=0"])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_what_codes_depend_on_does_not_move_by_a_bit(name: str, average: str, folder: Path) -> None:
    """Neither by a gradient, weight decay, momentum, restarts, counts of use nor the running average;
    dropout is off there.

    What is frozen is what was exported before, so the codes of the exported model are those that the decoder learns
    from.
    """
    dropout = "model.autoencoder.dropout=0.3"
    stage = stage_of(folder, *QUANTIZER_SETTINGS[name], average, dropout)
    steps(stage, 0, 24)
    exported = stage.exported.module
    before = copied(*encoding_parts(exported))
    assert equal(copied(*encoding_parts(stage.tokenizer)), before) == (stage.tokenizer is exported)
    images = stage.training.to_images(next(stage.batches(0)).images)
    decoders = [copied(each.from_codes, each.decoder) for each in (stage.tokenizer, exported)]
    steps(stage, 24, 28)
    stage.validate()  # which puts a model without an average into evaluation mode, and back
    frozen = copied(*encoding_parts(stage.tokenizer))
    steps(stage, 28, 48)
    for tokenizer in (stage.tokenizer, exported):
        assert equal(copied(*encoding_parts(tokenizer)), frozen)
        assert equal(frozen, before)
    for tokenizer, decoder in zip((stage.tokenizer, exported), decoders, strict=True):
        assert not equal(copied(tokenizer.from_codes), decoder[:1])
        assert not equal(copied(tokenizer.decoder), decoder[1:])
    learning = [each.training for each in stage.tokenizer.modules()]
    assert stage.tokenizer.decoder.training
    assert True in learning
    assert not any(each.training for part in encoding_parts(stage.tokenizer) for each in part.modules())
    with torch.no_grad():
        assert torch.equal(stage.tokenizer.features(images), exported.features(images))


def test_frozen_parts_get_no_gradients_and_no_graph(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(folder)
    steps(stage, 0, 24)
    requested: list[bool] = []
    features = VQGAN.features

    def watched(tokenizer: VQGAN, images: Tensor) -> Tensor:
        made = features(tokenizer, images)
        requested.append(made.requires_grad)
        return made

    monkeypatch.setattr(VQGAN, "features", watched)
    with_gradients: set[str] = set()
    grad_clip = optimizer_step.clip_gradients

    def noted(*given: Any) -> Tensor:
        named = stage.tokenizer.named_parameters()
        with_gradients.update(name for name, weight in named if weight.grad is not None)
        return grad_clip(*given)

    monkeypatch.setattr(gan_step, "clip_gradients", noted)
    steps(stage, 24, 32)
    assert requested == [False, False]
    assert with_gradients == {
        name for name, _ in stage.tokenizer.named_parameters() if name.startswith(("decoder", "from_"))
    }


def test_the_decoder_sees_replaced_codes_and_the_statistics_true_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of(folder, "decoder_phase.replaced=1", "decoder_phase.neighbors=1")
    steps(stage, 0, 28)
    seen: list[Tensor] = []
    decode = VQGAN.decode

    def watched(tokenizer: VQGAN, latents: Tensor) -> Tensor:
        seen.append(latents)
        return decode(tokenizer, latents)

    monkeypatch.setattr(VQGAN, "decode", watched)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    quantize = stage.codebook.quantize(28, generator=torch.Generator())
    _, quantized, _ = stage.autoencoder(images, quantize)
    codes = stage.exported.module.encode(images).codes
    assert torch.equal(quantized.codes, codes)
    vectors = stage.tokenizer.quantizer.lookup(torch.arange(16).view(1, 1, -1))[0, :, 0].T  # (K,D)
    distances = torch.cdist(vectors, vectors).fill_diagonal_(torch.inf)
    torch.testing.assert_close(seen[0], vectors[distances.argmin(1)][codes].permute(0, 3, 1, 2))


def test_before_the_phase_training_is_as_without_it(folder: Path) -> None:
    with_phase, without = stage_of(folder), stage_of(folder, "decoder_phase.start=1")
    steps(with_phase, 0, 24)
    steps(without, 0, 24)
    assert equal(copied(with_phase.tokenizer), copied(without.tokenizer))
    steps(with_phase, 24, 28)
    steps(without, 24, 28)
    assert not equal(copied(with_phase.tokenizer.encoder), copied(without.tokenizer.encoder))
    assert "psnr_replaced" not in without.validate()


def test_parts_of_a_batch_replace_the_same_codes(folder: Path) -> None:
    whole, parts = (stage_of(folder, *given, "objective.adversarial.weight=0") for given in ((), ("run.accumulate=2",)))
    parts.tokenizer.load_state_dict(whole.tokenizer.state_dict())
    for stage in (whole, parts):
        stage.exported.module.load_state_dict(whole.tokenizer.state_dict())
    for a, b in zip(steps(whole, 24, 36), steps(parts, 24, 36), strict=True):
        assert float(b["pixel"]) == pytest.approx(float(a["pixel"]), rel=1e-4)


def test_validation_says_what_replaced_codes_cost(folder: Path) -> None:
    lines = [line for line in read_metrics(folder / "whole") if line["part"] == "validation"]
    assert all(line["psnr_replaced"] < line["psnr"] for line in lines)
    stage = stage_of(folder, "decoder_phase.replaced=0")
    steps(stage, 0, 8)
    values = stage.validate()
    assert values["psnr_replaced"] == pytest.approx(values["psnr"], abs=1e-4)  # no code is replaced
    noisy = stage_of(folder)
    steps(noisy, 0, 8)
    assert noisy.validate() == noisy.validate()  # the same codes each time


def test_label_maps_have_a_share_of_right_labels_instead(folder: Path, tmp_path: Path) -> None:
    for number in range(6):
        labels = np.random.RandomState(number).randint(0, 3, (16, 16)).astype(np.uint8)
        Image.fromarray(labels).save(tmp_path / f"{number}.png")
    maps = ("images.file_type=labels", "model.autoencoder.channels=3", "objective.pixel=cross_entropy")
    settings = settings_of(folder, *PHASE, *maps, "objective.adversarial.weight=0", "images.validation=0.4")
    source = open_source(tmp_path, file_type=FILE_TYPES["labels"](None))
    stage = TokenizerStage(settings, source, fabric=Fabric(accelerator="cpu"), about={})
    assert {"accuracy", "accuracy_replaced"} <= stage.validate().keys()


# --- runs -------------------------------------------------------------------------------------------------------------


def stopped(folder: Path, out: str, *overrides: str, move: int) -> None:
    """A run that is asked to stop at a move of a network, of which each step has two."""
    calls = 0

    def counted(moved: torch.optim.Optimizer, rate: float) -> None:
        nonlocal calls
        calls += 1
        if calls == move:
            os.kill(os.getpid(), signal.SIGTERM)
        set_rate(moved, rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer_step, "set_rate", counted)
        with pytest.raises(SmaltiError, match=f"stopped by SIGTERM after {2 * move + 2 * (move % 2)} of"):
            trained(folder, out, *overrides)


@pytest.mark.parametrize("average", ["run.ema_half_life=0.05", "run.ema_half_life=0"])
@pytest.mark.parametrize("move", [12, 13, 19])
def test_a_stopped_run_ends_with_the_same_weights(average: str, move: int, folder: Path) -> None:
    """Stopped where the phase is to begin, after its first step, and later."""
    name = f"stopped{average[-4:]}-{move}"
    stopped(folder, name, average, move=move)
    whole = (
        folder / "whole" if average == "run.ema_half_life=0.05" else trained(folder, f"whole{average[-4:]}", average)
    )
    assert same_weights(trained(folder, name, average), whole)


def exported(run: Path) -> VQGAN:
    return VQGAN.from_pretrained(run)


def test_a_longer_run_learns_everything_again_until_its_own_phase(folder: Path) -> None:
    frozen = copied(*encoding_parts(exported(trained(folder, "longer", "run.images=32"))))
    assert not equal(copied(*encoding_parts(exported(trained(folder, "longer", "run.images=80")))), frozen)


def test_a_run_that_is_made_shorter_begins_its_phase_at_once(folder: Path) -> None:
    """Half of 80 images are 40, half of 48 are 24, and it was stopped between them."""
    stopped(folder, "shorter", "run.images=80", move=18)
    frozen = copied(*encoding_parts(exported(folder / "shorter")))
    assert equal(copied(*encoding_parts(exported(trained(folder, "shorter", "run.images=48")))), frozen)


def test_a_phase_may_begin_after_a_number_of_images(folder: Path) -> None:
    """Which does not depend on the length; while that is less there is no phase."""
    start = ("decoder_phase.start=40",)
    run = trained(folder, "in-images", *start, "run.images=40")
    assert not any("psnr_replaced" in line for line in read_metrics(run))
    frozen = copied(*encoding_parts(exported(run)))
    assert equal(copied(*encoding_parts(exported(trained(folder, "in-images", *start, "run.images=48")))), frozen)
    assert "psnr_replaced" in read_metrics(run)[-1]


def test_only_the_decoder_of_a_trained_tokenizer_learns_where_the_phase_is_all(folder: Path) -> None:
    """Codes of one are codes of the other. Weights of the discriminator and of the decoder move from the first step."""
    start = tokenizer_start(str(folder / "whole"))
    given = ("decoder_phase.start=0", "decoder_phase.neighbors=3", "run.images=16")
    settings = resolve_tokenizer_from(start, recipe=str(folder / "small.yaml"), overrides=given)
    train_tokenizer(folder / "images", folder / "post", settings=settings, console=QUIET, start=start)
    old, new = (VQGAN.from_pretrained(folder / run) for run in ("whole", "post"))
    assert equal(copied(*encoding_parts(new)), copied(*encoding_parts(old)))
    assert not equal(copied(new.decoder), copied(old.decoder))
    assert new.fingerprint() != old.fingerprint()


def test_the_settings_are_displayed_before_they_are_used(folder: Path) -> None:
    given = [part for override in PHASE for part in ("--set", override)]
    recipe = ["--recipe", str(folder / "small.yaml"), "--out", str(folder / "dry"), "--dry-run"]
    done = CliRunner().invoke(app, ["train", "tokenizer", str(folder / "images"), *recipe, *given])
    assert "decoder_phase: {start: 0.5, replaced: 0.4, neighbors: 3}" in done.output
    assert not (folder / "dry").exists()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("decoder_phase.start=0.05",), r"decoder_phase.start = 0.05 is not after quantize_from = 0.05"),
        (("decoder_phase.start=2",), r"decoder_phase.start = 2 is not after quantize_from = 0.05"),
        (
            ("decoder_phase.neighbors=16",),
            r"neighbors = 16, but each of the 16 codes has only 15 others; set it to 15 or",
        ),
        (("model.quantizer.remap.used=3",), r"neighbors = 3, but each of the 3 codes has only 2 others"),
        (
            ("model.quantizer={name: lfq, codebook_dim: 30}",),
            r"neighbors = 3 of each of 1,073,741,824 codes are a table of 3,221,225,472, and 4,194,304 may be held",
        ),
        (("decoder_phase.neighbors=0",), r"decoder_phase.neighbors = 0: input should be greater than or equal to 1"),
        (("decoder_phase.replaced=1.5",), r"decoder_phase.replaced = 1.5: input should be less than or equal to 1"),
        (("decoder_phase.probability=0.1",), r"unknown key 'decoder_phase.probability'"),
    ],
)
def test_phases_that_cannot_be_are_reported(overrides: tuple[str, ...], sentence: str, folder: Path) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        settings_of(folder, *PHASE, *overrides)


def test_what_is_off_requests_nothing(folder: Path) -> None:
    """The default has 16 neighbors, which a codebook of 16 codes has not."""
    settings = settings_of(folder)
    assert not settings.has_decoder_phase
    assert settings.decoder_phase.neighbors == 16


def test_an_encoder_that_has_learned_nothing_is_not_frozen(folder: Path) -> None:
    with pytest.raises(
        SmaltiError, match=r"decoder_phase.start = 0 freezes an encoder that has learned nothing; .*--from"
    ):
        stage_of(folder, "decoder_phase.start=0", "quantize_from=0")
