"""A prior in parts, one in each of two processes, is the prior that one process trains."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from smalti.core.errors import SmaltiError
from smalti.training.config import PriorRun, TokenizerTraining, resolve
from smalti.training.launcher import launch
from smalti.training.run_folder import read_metrics
from smalti.training.runs import train_tokenizer
from tests.processes import finished, started
from tests.small import small_prior, write_images, write_recipe

LONG = ("run.codes=3200", "run.log_every=160", "network.dropout=0", "condition_dropout=0", "run.checkpoint_every=320")
"""50 steps; without chance, which each process draws for itself."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a tokenizer, codes, and the prior that one process trains on them, `one`."""
    path = tmp_path_factory.mktemp("sharded")
    write_images(path / "images")
    write_recipe(path / "small.yaml")
    settings = resolve(TokenizerTraining, stage="tokenizer", recipe=str(path / "small.yaml"), overrides=())
    train_tokenizer(path / "images", path / "tokenizer", settings=settings, console=Console(quiet=True))
    small_prior(path, "one", *LONG)
    return path


def command(out: str, *overrides: str) -> list[str]:
    given = [part for override in (*LONG, *overrides) for part in ("--set", override)]
    return [
        "-m",
        "smalti",
        "train",
        "prior",
        "codes",
        "--tokenizer",
        "tokenizer",
        "--recipe",
        "small.yaml",
        "--out",
        out,
        *given,
    ]


def check_same(one: Path, two: Path) -> None:
    """The same likelihoods and norms. Weights whose gradient is rounding alone may be a step of Adam apart."""
    expected, found = read_metrics(one), read_metrics(two)
    assert [line["seen"] for line in found] == [line["seen"] for line in expected]
    for a, b in zip(expected, found, strict=True):
        for name in {"nats", "gradient_norm", "rate", "best_nats"} & a.keys():
            assert b[name] == pytest.approx(a[name], rel=1e-4 if "norm" in name else 1e-5), name
    weights, others = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["run.accumulate=1", "run.accumulate=2", "run.recompute=true"])
def test_a_prior_in_parts_is_the_prior_of_one_process(change: str, folder: Path) -> None:
    out = f"two-{change}"
    finished(started(folder, command(out, "run.strategy=fsdp", change)))
    check_same(folder / "one", folder / out)


def kill_after(both: list[subprocess.Popen[str]], states: Path, *, seen: int) -> None:
    """Wait for a state after more than `seen` codes, and kill."""
    while not any(int(state.parent.name) > seen for state in states.glob("0*/state.ckpt")):
        assert all(process.poll() is None for process in both)
        time.sleep(0.02)
    for process in both:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
def test_what_parts_have_written_is_whole(folder: Path) -> None:
    """Two processes begin in parts, one continues without, two end in parts; two are killed."""
    states = folder / "killed" / "state"
    kill_after(started(folder, command("killed", "run.strategy=fsdp")), states, seen=0)
    reached = max(int(state.name) for state in states.glob("0*"))
    kill_after(started(folder, command("killed"), world=1), states, seen=reached)
    outputs = finished(started(folder, command("killed", "run.strategy=fsdp")))
    assert "resuming from" in outputs[0]
    check_same(folder / "one", folder / "killed")


def test_a_prior_in_parts_needs_a_running_average() -> None:
    some: dict[str, Any] = {f"{name}_every": 8 for name in ("log", "validate", "sample", "checkpoint")}
    with pytest.raises(SmaltiError, match=r"'fsdp' validates and exports the EMA.*run.ema_half_life above 0"):
        launch(PriorRun(codes=8, **some, ema_half_life=0, strategy="fsdp"), blocks=lambda joined: joined)
