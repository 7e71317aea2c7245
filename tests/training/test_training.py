"""Training: settings, the loop, and that a killed run continues as if nothing had happened."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.progress import ProgressReporter
from smalti.training import gan_step, optimizer_step
from smalti.training.config import PriorTraining, TokenizerTraining, resolve
from smalti.training.loop import seed_step
from smalti.training.optimizer import Average, rate_at
from smalti.training.run_folder import read_metrics
from smalti.training.runs import codes_of, train_prior, train_tokenizer
from tests.small import RECIPE, small_prior, write_images, write_recipe

QUIET = Console(quiet=True)

# A run in a process of its own that ends itself with SIGKILL at the n-th call of a function.
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
import {module} as place
function, calls = place.{name}, 0
def deadly(*given, **named):
    global calls
    calls += 1
    if calls == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*given, **named)
place.{name} = deadly
from tests.training.test_training import {train} as train
train(Path({folder!r}), {out!r})
"""


def small_tokenizer(folder: Path, out: str, *overrides: str) -> Path:
    settings = resolve(TokenizerTraining, stage="tokenizer", recipe=str(folder / "small.yaml"), overrides=overrides)
    train_tokenizer(folder / "images", folder / out, settings=settings, console=QUIET)
    return folder / out


def small_tokenizer_in_twelves(folder: Path, out: str) -> Path:
    return small_tokenizer(folder, out, "run.log_every=12", "run.images=48")


def small_tokenizer_with_decoder_phase(folder: Path, out: str) -> Path:
    return small_tokenizer(folder, out, "decoder_phase.start=0.5", "decoder_phase.neighbors=3")


def small_prior_in_any_order(folder: Path, out: str) -> Path:
    return small_prior(folder, out, "network.order=any")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a recipe, and an uninterrupted run of both stages."""
    path = tmp_path_factory.mktemp("training")
    write_images(path / "images")
    write_recipe(path / "small.yaml")
    small_tokenizer(path, "tokenizer")
    small_prior(path, "prior")
    return path


def killed(folder: Path, train: str, out: str, *, module: str, name: str, at: int) -> None:
    script = KILLED.format(
        tests=str(Path(__file__).parents[2]), module=module, name=name, at=at, train=train, folder=str(folder), out=out
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def same_weights(a: Path, b: Path) -> bool:
    one, other = load_file(a / "model" / "model.safetensors"), load_file(b / "model" / "model.safetensors")
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_killed_tokenizer_run_ends_with_the_same_weights(folder: Path) -> None:
    """Killed in the middle of a step, and then inside the writing of a state, between its bytes and its name."""
    killed(folder, "small_tokenizer", "killed", module="smalti.training.optimizer_step", name="set_rate", at=13)
    killed(folder, "small_tokenizer", "killed", module="smalti.core.files", name="_sync", at=7)
    assert list((folder / "killed" / "state").glob(".*.tmp"))  # what the second kill left behind
    assert same_weights(small_tokenizer(folder, "killed"), folder / "tokenizer")
    assert not list((folder / "killed" / "state").glob(".*.tmp"))
    lines = read_metrics(folder / "killed")
    assert [line["seen"] for line in lines if line["part"] == "validation"] == [16, 32, 48]


def test_a_run_killed_while_its_decoder_learns_alone_ends_with_the_same_weights(folder: Path) -> None:
    """After 36 of 48 images; the codebook is frozen from 24 on, and the last state is of 32."""
    train, name = "small_tokenizer_with_decoder_phase", "set_rate"
    killed(folder, train, "killed-phase", module="smalti.training.optimizer_step", name=name, at=19)
    whole = small_tokenizer_with_decoder_phase(folder, "whole-phase")
    assert same_weights(small_tokenizer_with_decoder_phase(folder, "killed-phase"), whole)


def test_a_report_covers_the_steps_before_a_stop_too(folder: Path) -> None:
    """Reports after 12, 24, 36 images and states after 16, 32: the third report is of steps on both sides
    of the cut."""
    given = ("run.log_every=12", "run.images=48")
    small_tokenizer(folder, "uncut", *given)
    killed(folder, "small_tokenizer_in_twelves", "cut", module="smalti.training.optimizer_step", name="set_rate", at=17)
    small_tokenizer(folder, "cut", *given)
    whole, cut = (
        [
            {key: value for key, value in line.items() if key not in ("time", "elapsed")}
            for line in read_metrics(folder / run)
        ]
        for run in ("uncut", "cut")
    )
    assert cut == whole


def test_time_left_is_never_negative() -> None:
    """The last step may go beyond the length."""
    console = Console(record=True, width=200, file=io.StringIO())
    progress = ProgressReporter(console, title="tokenizer", tensorboard=None, quiet=False)
    progress.begin(seen=0, length=10, unit="images")
    progress.advance(12)
    progress.report("train", 12, {"pixel": 0.1})
    assert "0:00 left" in console.export_text()


def test_a_run_of_an_older_smalti_goes_on(folder: Path) -> None:
    """Its config lacks the settings that are new, and its states the notes."""
    for run in ("older", "newer"):
        small_tokenizer(folder, run, "run.images=16")
    config = folder / "older" / "config.yaml"
    values = yaml.safe_load(config.read_text("utf-8"))
    values["run"] = {key: value for key, value in values["run"].items() if key in RECIPE["tokenizer"]["run"]}
    del values["images"]["file_type"], values["model"]["quantizer"]["l2_normalize"]
    config.write_text(yaml.safe_dump(values))
    for notes in (folder / "older" / "state").glob("0*/notes.json"):
        notes.unlink()
    assert same_weights(small_tokenizer(folder, "older"), small_tokenizer(folder, "newer"))


def test_a_killed_prior_run_ends_with_the_same_weights(folder: Path) -> None:
    killed(folder, "small_prior", "killed-prior", module="smalti.training.optimizer_step", name="set_rate", at=11)
    assert same_weights(small_prior(folder, "killed-prior"), folder / "prior")


def test_a_killed_prior_run_in_any_order_ends_with_the_same_weights(folder: Path) -> None:
    """The orders of a step depend on how much has been seen, not on the process."""
    killed(
        folder,
        "small_prior_in_any_order",
        "killed-any",
        module="smalti.training.optimizer_step",
        name="set_rate",
        at=11,
    )
    whole = small_prior_in_any_order(folder, "any")
    assert same_weights(small_prior_in_any_order(folder, "killed-any"), whole)
    assert not same_weights(
        whole, small_prior(folder, "any-raster", "network.order=any", "orders.raster=1", "orders.random=0")
    )


def test_sigterm_saves_and_the_same_command_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def counted(moved: torch.optim.Optimizer, rate: float) -> None:
        nonlocal calls
        calls += 1
        if calls == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        for group in moved.param_groups:
            group["lr"] = rate

    monkeypatch.setattr(optimizer_step, "set_rate", counted)
    with pytest.raises(SmaltiError, match=r"stopped by SIGTERM after 20 of 48 images.*same command"):
        small_tokenizer(folder, "stopped")
    monkeypatch.undo()
    assert [state.name for state in sorted((folder / "stopped" / "state").iterdir())][-1].lstrip("0") == "20"
    assert same_weights(small_tokenizer(folder, "stopped"), folder / "tokenizer")


def test_a_damaged_state_is_passed_over_for_the_one_before(folder: Path) -> None:
    small_tokenizer(folder, "damaged", "run.images=32")
    newest = max((folder / "damaged" / "state").iterdir()) / "state.ckpt"
    newest.write_bytes(newest.read_bytes()[:1000])
    small_tokenizer(folder, "damaged", "run.images=32")
    for state in (folder / "damaged" / "state").iterdir():
        (state / "state.ckpt").write_bytes(b"")
    with pytest.raises(SmaltiError, match=r"no state in .* can be read"):
        small_tokenizer(folder, "damaged", "run.images=32")


def test_a_finished_run_is_left_as_it_is(folder: Path) -> None:
    before = (folder / "tokenizer" / "metrics.jsonl").read_text()
    small_tokenizer(folder, "tokenizer")
    assert (folder / "tokenizer" / "metrics.jsonl").read_text() == before


def test_every_term_is_recorded(folder: Path) -> None:
    lines = [line for line in read_metrics(folder / "tokenizer") if line["part"] == "train"]
    terms = {
        "reconstruction", "pixel", "codebook", "discriminator", "generator", "adaptive_weight", "lecam", "real_logits",
        "fake_logits", "gradient_norm", "discriminator_gradient_norm", "restarted_codes",
    }  # fmt: skip
    assert all(terms - {"generator"} <= line.keys() for line in lines)
    assert lines[0]["adaptive_weight"] == 0 != lines[-1]["adaptive_weight"]  # the generator's term waits, then comes
    assert "generator" not in lines[0]
    assert "generator" in lines[-1]
    validation = [line for line in read_metrics(folder / "tokenizer") if line["part"] == "validation"]
    assert {"psnr", "codes_in_use", "perplexity"} <= validation[-1].keys()
    prior = [line for line in read_metrics(folder / "prior") if line["part"] == "validation"]
    assert {"nats", "code_entropy_nats"} <= prior[-1].keys()


def test_both_stages_learn(folder: Path) -> None:
    small_tokenizer(folder, "longer", "run.images=320", "optimizer.lr=0.003")
    metrics = [line for line in read_metrics(folder / "longer") if line["part"] == "validation"]
    assert metrics[-1]["psnr"] > metrics[0]["psnr"] + 3
    small_prior(folder, "longer-prior", "run.codes=12800", "optimizer.lr=0.01")
    nats = [line["nats"] for line in read_metrics(folder / "longer-prior") if line["part"] == "validation"]
    assert nats[-1] < 0.85 * nats[0]


def test_other_settings_are_refused_with_their_names(folder: Path) -> None:
    with pytest.raises(SmaltiError, match=r"optimizer.lr is 0.0002 there and 0.5 here"):
        small_tokenizer(folder, "tokenizer", "optimizer.lr=0.5")


def test_the_folder_of_another_program_is_refused(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(SmaltiError, match="not empty and holds no run of smalti"):
        small_tokenizer(folder, "other")
    (other / "config.yaml").write_text("model: resnet\n")
    with pytest.raises(SmaltiError, match="holds the run of another program"):
        small_tokenizer(folder, "other")
    assert (other / "notes.txt").read_text() == "mine"


def test_codes_of_another_tokenizer_are_refused(folder: Path) -> None:
    small_tokenizer(folder, "second", "run.seed=1", "run.images=16")
    settings = resolve(PriorTraining, stage="prior", recipe=str(folder / "small.yaml"), overrides=[])
    shards = codes_of(folder / "codes", folder / "second", folder / "x", settings=settings, progress=lambda a, b: None)
    with pytest.raises(SmaltiError, match="were made by the tokenizer"):
        train_prior(shards, folder / "second", folder / "refused", settings=settings, console=QUIET)


def test_a_full_disk_is_a_sentence_and_keeps_the_last_state(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tokenizer(folder, "full", "run.images=16")

    def refused(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("smalti.core.files._sync", refused)
    with pytest.raises(SmaltiError, match=r"cannot write .*No space left"):
        small_tokenizer(folder, "full", "run.images=48")
    monkeypatch.undo()
    assert [state.name.lstrip("0") for state in (folder / "full" / "state").iterdir()] == ["16"]
    assert same_weights(small_tokenizer(folder, "full"), small_tokenizer(folder, "full"))


def test_not_a_number_stops_the_run_and_names_the_term(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> dict[str, Tensor]:
        return {"generator": torch.tensor(torch.nan)}

    monkeypatch.setattr(gan_step, "mean_of_processes", broken)
    with pytest.raises(SmaltiError, match=r"10 steps in a row had to be skipped, for generator is no longer a finite"):
        small_tokenizer(folder, "broken")


@pytest.mark.parametrize(
    ("recipe", "overrides", "sentence"),
    [
        ("smal", [], r"there is no recipe 'smal' and no such file; did you mean 'small'\? There are: .*demo"),
        ("small", ["optimizer.warmpu=1"], r"unknown key 'optimizer.warmpu'; did you mean 'warmup'\?"),
        (
            "small",
            ["model.quantizer.codebook_sizes=1"],
            r"unknown key 'model.quantizer.codebook_sizes'; did you mean 'codebook_size'\?",
        ),
        ("small", ["run.batch=many"], r"run.batch = 'many': input should be a valid integer"),
        ("small", ["run"], r"--set 'run' is not of the form a.b=value"),
        ("small", ["run.batch.x=1"], r"'batch' is a single value, not a section"),
    ],
)
def test_wrong_settings_are_sentences(recipe: str, overrides: list[str], sentence: str) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        resolve(TokenizerTraining, stage="tokenizer", recipe=recipe, overrides=overrides)


def test_numbers_with_an_exponent_are_numbers() -> None:
    settings = resolve(TokenizerTraining, stage="tokenizer", recipe="small", overrides=["optimizer.lr=3e-4"])
    assert settings.optimizer.lr == 3e-4


def test_the_rate_rises_and_falls() -> None:
    options = resolve(
        TokenizerTraining, stage="tokenizer", recipe="small", overrides=["optimizer.warmup=0.1"]
    ).optimizer
    rates = [rate_at(seen, length=100, settings=options) for seen in range(0, 101, 10)]
    assert rates[0] == 0
    assert rates[1] == options.lr == max(rates)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] == pytest.approx(options.lr * options.final_lr)


def test_the_average_is_a_share_of_what_was_seen() -> None:
    """After twice as much, with a half-life of everything seen, half of the old average is left."""
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    average = Average(module, half_life=1.0)
    torch.nn.init.ones_(module.weight)
    average.update(module, seen=100, step=200)
    assert float(average.module.weight) == pytest.approx(1 - 0.5 ** (200 / 300))


def test_chance_is_a_function_of_seed_and_position() -> None:
    first = seed_step(3, 640, 0)
    drawn = torch.rand(2)
    assert torch.equal(torch.rand(3, generator=first), torch.rand(3, generator=seed_step(3, 640, 0)))
    seed_step(3, 640, 0)
    assert torch.equal(torch.rand(2), drawn)
    seed_step(3, 656, 0)
    assert not torch.equal(torch.rand(2), drawn)
