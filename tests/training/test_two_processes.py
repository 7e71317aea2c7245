"""Several processes train what one process trains: real processes, exchanging by gloo on CPUs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from smalti.core.errors import SmaltiError
from smalti.training.config import TokenizerRun, TokenizerTraining, resolve
from smalti.training.launcher import (
    device_counts,
    errors_from_first_process,
    is_first_process,
    launch,
    on_first_process,
)
from smalti.training.run_folder import read_metrics
from smalti.training.runs import train_tokenizer
from tests import processes
from tests.in_double import doubled
from tests.processes import finished, threads
from tests.small import write_images, write_recipe

STEPS = 20
LONG = ("run.images=80", "run.log_every=4", "quantize_from=0.1", "run.strategy=ddp")
PROGRAM = Path(__file__).parents[1] / "in_double.py"
CLOCKS = ("time", "elapsed", "part", "diagnostic", "state", "message")

VARIANTS: dict[str, tuple[str, ...]] = {
    "joint": ("model.quantizer.dead_code_threshold=0.9",),
    "ema": ("model.quantizer.name=ema",),
    "alternating": ("objective.adversarial.updates=alternating", "run.ema_half_life=0"),
    "parts": ("run.batch=8", "run.accumulate=2", "objective.adversarial.weighting=fixed"),
    "augmented parts": ("run.batch=8", "run.accumulate=2", "objective.adversarial.augment=[color,translation,cutout]"),
    "decoder phase": ("decoder_phase.start=0.4", "decoder_phase.replaced=0.5", "decoder_phase.neighbors=3"),
    "alone": ("objective.adversarial.weight=0", "objective.pixel=l2"),
}


def command(out: str, *overrides: str) -> list[str]:
    given = [part for override in (*LONG, *overrides) for part in ("--set", override)]
    return [str(PROGRAM), "train", "tokenizer", "images", "--recipe", "small.yaml", "--out", out, *given]


def started(folder: Path, out: str, *overrides: str) -> list[subprocess.Popen[str]]:
    return processes.started(folder, command(out, *overrides))


def alone(folder: Path, out: str, *overrides: str) -> Path:
    overrides = tuple(each for each in (*LONG, *overrides) if "devices" not in each)
    settings = resolve(TokenizerTraining, stage="tokenizer", recipe=str(folder / "small.yaml"), overrides=overrides)
    with threads(1), pytest.MonkeyPatch.context() as patches, doubled(patches):
        train_tokenizer(folder / "images", folder / out, settings=settings, console=Console(quiet=True))
    return folder / out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("two")
    write_images(path / "images")
    write_recipe(path / "small.yaml")
    return path


def numbers(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in read_metrics(run)]


def check_same(one: Path, two: Path) -> None:
    """The same lines, each once, and numbers and codebook within 1e-7: both are in double precision.

    Other weights are not compared one by one: Adam moves a weight whose gradient is rounding alone by a whole step.
    """
    expected, found = numbers(one), numbers(two)
    assert [line["seen"] for line in found] == [line["seen"] for line in expected]
    for a, b in zip(expected, found, strict=True):
        for name in a.keys() | b.keys():
            assert b[name] == pytest.approx(a[name], rel=1e-7, abs=1e-7), name
    codes, others = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    for name in codes:
        if name.startswith("quantizer."):
            torch.testing.assert_close(others[name], codes[name], rtol=1e-7, atol=1e-7, msg=name)


@pytest.mark.slow
def test_two_processes_train_what_one_trains(folder: Path) -> None:
    """k-means start, restarts, adaptive weight, LeCam, clipping and validation included."""
    both = started(folder, "two-joint", *VARIANTS["joint"])
    one = alone(folder, "one-joint", *VARIANTS["joint"])
    outputs = finished(both)
    check_same(one, folder / "two-joint")
    assert "tokenizer validation" in outputs[0]
    assert "tokenizer" not in outputs[1]  # what is told is told once, the settings too
    assert sum(line.get("restarted_codes", 0) for line in read_metrics(one)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("variant", sorted(set(VARIANTS) - {"joint"}))
def test_every_kind_of_training_is_the_same_in_two(variant: str, folder: Path) -> None:
    both = started(folder, f"two-{variant}", *VARIANTS[variant])
    one = alone(folder, f"one-{variant}", *VARIANTS[variant])
    finished(both)
    check_same(one, folder / f"two-{variant}")


@pytest.mark.slow
def test_killed_and_resumed_two_are_still_one(folder: Path) -> None:
    one = alone(folder, "one-killed")
    both = started(folder, "two-killed")
    while not list((folder / "two-killed" / "state").glob("0*/state.ckpt")):
        assert all(process.poll() is None for process in both)
        time.sleep(0.02)
    for process in both:
        process.send_signal(signal.SIGKILL)
    for process in both:
        process.communicate()
    outputs = finished(started(folder, "two-killed"))
    assert "resuming from" in outputs[0]
    check_same(one, folder / "two-killed")


@pytest.mark.slow
def test_a_request_to_one_process_stops_all_after_the_same_step(folder: Path) -> None:
    both = started(folder, "stopped", "run.images=400000")
    while not (folder / "stopped" / "metrics.jsonl").is_file():
        time.sleep(0.02)
    both[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=100)[0] for process in both]
    assert [process.returncode for process in both] == [1, 1]
    assert "stopped by a signal to another process after" in outputs[0]
    assert "error" not in outputs[1]
    assert list((folder / "stopped" / "state").glob("0*/notes.json"))


@pytest.mark.slow
def test_fabric_starts_the_others_where_nobody_has(folder: Path) -> None:
    ours = [sys.executable, *command("spawned", "run.devices=2")]
    done = subprocess.run(ours, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    check_same(alone(folder, "one-spawned"), folder / "spawned")


@pytest.mark.slow
def test_torchrun(folder: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    ours = command("torchrun", "run.devices=2")
    done = subprocess.run([*torchrun, *ours], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    check_same(alone(folder, "one-torchrun"), folder / "torchrun")


@pytest.mark.slow
def test_what_goes_wrong_in_both_is_reported_once(folder: Path) -> None:
    """A batch norm on CPUs, for which there are no shared statistics, and a folder of somebody else, which one process
    sees."""
    both = started(folder, "refused", "objective.adversarial.discriminator.norm=batch")
    outputs = [process.communicate(timeout=100)[0] for process in both]
    assert [process.returncode for process in both] == [1, 1]
    assert "norm = batch on 2 CPU processes" in outputs[0]
    assert "error" not in outputs[1]
    (folder / "theirs").mkdir()
    (folder / "theirs" / "notes.txt").write_text("mine")
    both = started(folder, "theirs")
    outputs = [process.communicate(timeout=100)[0] for process in both]
    assert [process.returncode for process in both] == [1, 1]
    assert "not empty and holds no run" in outputs[0]


# --- how many processes, without starting any -------------------------------------------------------------------------

SOME: dict[str, Any] = {
    "images": 8,
    **{f"{name}_every": 8 for name in ("log", "validate", "sample", "checkpoint")},
    "accelerator": "cpu",
}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3", "RANK": "4", "LOCAL_RANK": "1"}


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without a launcher."""
    for name in (*TORCHRUN, "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_one_process_unless_more_are_requested(nowhere: pytest.MonkeyPatch) -> None:
    assert device_counts(TokenizerRun(**SOME)) == (1, 1)
    assert is_first_process()
    nowhere.setattr("smalti.core.devices.available_cores", lambda: 4)
    assert device_counts(TokenizerRun(**SOME, devices=3, nodes=2)) == (3, 2)
    with pytest.raises(
        SmaltiError, match=r"run.devices = 5, but this machine has 4 CPU cores; set run.devices=4 or less"
    ):
        launch(TokenizerRun(**SOME, devices=5))


def test_torchrun_decides(nowhere: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        nowhere.setenv(name, value)
    assert device_counts(TokenizerRun(**SOME)) == (3, 2)
    assert device_counts(TokenizerRun(**SOME, devices=3)) == (3, 2)
    assert not is_first_process()
    with pytest.raises(SmaltiError, match=r"run.devices = 4 on run.nodes = 2 .* 8 processes, but torchrun started 6"):
        device_counts(TokenizerRun(**SOME, devices=4))


def test_slurm_decides(nowhere: pytest.MonkeyPatch) -> None:
    nowhere.setattr("smalti.training.launcher.SLURMEnvironment.detect", staticmethod(lambda: True))
    for name, value in {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "0"}.items():
        nowhere.setenv(name, value)
    assert device_counts(TokenizerRun(**SOME)) == (4, 2)
    assert is_first_process()
    nowhere.setenv("SLURM_NTASKS_PER_NODE", "8")
    assert device_counts(TokenizerRun(**SOME)) == (8, 1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"strategy": "fsdp"}, r"run.strategy = 'fsdp' is for priors: .*run.recompute=true"),
        ({"strategy": "dp"}, r"run.strategy = 'dp' is not one of auto, ddp, fsdp; did you mean 'ddp'"),
        ({"accelerator": "abacus"}, r"cannot run on 1 x 'abacus'"),
    ],
)
def test_what_cannot_be_is_a_sentence(change: dict[str, Any], sentence: str, nowhere: pytest.MonkeyPatch) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        launch(TokenizerRun(**{**SOME, **change}))


def test_the_others_say_nothing(nowhere: pytest.MonkeyPatch) -> None:
    with pytest.raises(SmaltiError, match="once"), errors_from_first_process():
        raise SmaltiError("once")
    nowhere.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit, match="1"), errors_from_first_process():
        raise SmaltiError("once")


def test_one_process_acts_for_itself(nowhere: pytest.MonkeyPatch) -> None:
    fabric = launch(TokenizerRun(**SOME))
    assert on_first_process(fabric, lambda: json.loads("3")) == 3
