"""Overfitting: the best model is the one that is kept, training stops in time, and neither is lost with a killed
process."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from smalti.cli.main import app
from smalti.core.errors import SmaltiError
from smalti.hub.pretrained import find_model
from smalti.training import optimizer_step
from smalti.training.early_stopping import RISEN, Best
from smalti.training.run_folder import read_diagnostics, read_metrics
from smalti.training.stage2 import PriorStage
from tests.processes import finished, started
from tests.small import small_prior, write_images, write_recipe
from tests.training.test_training import KILLED, small_tokenizer

# Without dropout, at a high rate, on sixteen images: the likelihood of the four others soon falls. States are written
# at every third validation, so that a best model may come between two of them.
OVERFIT = (
    "optimizer.lr=0.03", "network.dropout=0", "network.embed_dim=32", "encode.copies=1",
    "run.ema_half_life=0", "run.codes=6400",
    "run.sample_every=6400", "run.checkpoint_every=960",
)  # fmt: skip
BEST, STOP = 1600, 2560
"""What these settings lead to: the best validation, and the third after it."""


def patient(folder: Path, out: str, patience: int = 3) -> Path:
    return small_prior(folder, out, *OVERFIT, f"run.patience={patience}")


@pytest.fixture(scope="module")
def scored() -> dict[int, dict[str, Tensor]]:
    """The weights at each validation of the run that was not stopped; filled by `folder`."""
    return {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, scored: dict[int, dict[str, Tensor]]) -> Path:
    """Images, a recipe, a tokenizer, and a prior that learns its images by heart, to the end and stopped in time."""
    path = tmp_path_factory.mktemp("patience")
    write_images(path / "images")
    write_recipe(path / "small.yaml")
    small_tokenizer(path, "tokenizer")
    validate = PriorStage.validate

    def noted(stage: PriorStage) -> dict[str, float]:
        scored[320 * (len(scored) + 1)] = {name: value.clone() for name, value in stage.prior.state_dict().items()}
        return validate(stage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PriorStage, "validate", noted)
        patient(path, "overfitted", patience=0)
    patient(path, "patient")
    return path


def validated(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if line["part"] == "validation"]


def weights(run: Path) -> Mapping[str, Tensor]:
    return load_file(run / "model" / "model.safetensors")


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_clock(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("time", "elapsed")} for line in lines]


def kill(folder: Path, out: str, *, module: str, name: str, at: int) -> None:
    """The patient run, in a process of its own that ends itself at a call of a function."""
    script = KILLED.replace("tests.training.test_training", "tests.training.test_early_stopping").format(
        tests=str(Path(__file__).parents[2]),
        module=module,
        name=name,
        at=at,
        train="patient",
        folder=str(folder),
        out=out,
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


class CutError(BaseException):
    """What ends a run in this process: nothing catches it, and nothing is saved."""


def cut(folder: Path, out: str, place: Any, name: str, *, at: int) -> None:
    """The patient run, broken off at a call of a function."""
    calls, function = 0, getattr(place, name)

    def deadly(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise CutError
        return function(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, deadly)
        with pytest.raises(CutError):
            patient(folder, out)


def test_the_best_model_is_kept_and_not_the_last(folder: Path, scored: dict[int, dict[str, Tensor]]) -> None:
    lines = validated(folder / "overfitted")
    best = min(lines, key=lambda line: line["nats"])
    assert best["seen"] == BEST
    assert lines[-1]["seen"] == 6400
    assert lines[-1]["nats"] > 1.2 * best["nats"], "this run does not overfit, so it shows nothing"
    assert same(weights(folder / "overfitted"), scored[BEST])
    assert not same(scored[BEST], scored[6400])
    assert find_model(folder / "overfitted", kind="prior").about["codes_seen"] == BEST


def test_each_validation_says_the_best_so_far(folder: Path) -> None:
    lines = validated(folder / "overfitted")
    for place, line in enumerate(lines, 1):
        best = min(lines[:place], key=lambda line: line["nats"])
        assert (line["best_nats"], line["best_seen"]) == (best["nats"], best["seen"])


def test_training_stops_when_patience_is_over(folder: Path, scored: dict[int, dict[str, Tensor]]) -> None:
    lines = validated(folder / "patient")
    assert lines == [
        {**line, "time": mine["time"], "elapsed": mine["elapsed"]}
        for line, mine in zip(validated(folder / "overfitted"), lines, strict=False)
    ]
    assert lines[-1]["seen"] == STOP == BEST + 3 * 320
    assert same(weights(folder / "patient"), scored[BEST])
    page = (folder / "patient" / "report.html").read_text("utf-8")
    assert f"It is that of {BEST:,} codes" in page
    assert "In 3 validations after it they were higher" in page


def test_a_stopped_run_goes_on_with_more_patience(folder: Path) -> None:
    """The last state is there, not the best one: what comes then is what would have come without a stop."""
    shutil.copytree(folder / "patient", folder / "further")
    patient(folder, "further", patience=0)
    assert without_clock(folder / "further") == without_clock(folder / "overfitted")
    assert same(weights(folder / "further"), weights(folder / "overfitted"))


def test_a_killed_run_stops_at_the_same_place_with_the_same_model(folder: Path) -> None:
    """Killed when the best model is written and the last state is older than it; broken off when two validations after
    it are over, and then while the model of the stopped run is put in its place."""
    kill(folder, "killed", module="smalti.training.optimizer_step", name="set_rate", at=28)
    models = folder / "killed" / "state" / "best"
    assert {kept.name for kept in models.iterdir()} >= {"00000000000960", f"{BEST:014d}"}
    cut(folder, "killed", optimizer_step, "set_rate", at=37 - 960 // 64)
    cut(folder, "killed", shutil, "copyfile", at=2)
    patient(folder, "killed")
    assert without_clock(folder / "killed") == without_clock(folder / "patient")
    assert same(weights(folder / "killed"), weights(folder / "patient"))
    assert [kept.name for kept in models.iterdir()] == [f"{BEST:014d}"]


def test_a_stop_is_reported_again_and_is_no_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    command = ["train", "prior", "codes", "--tokenizer", "tokenizer", "--out", "told", "--recipe", "small.yaml"]
    command += [part for override in OVERFIT for part in ("--set", override)]
    first = CliRunner().invoke(app, [*command, "--patience", "3"])
    assert first.exit_code == 0, first.output
    sentence = (
        f"stopped after {STOP:,} of 6,400 codes: nats have not fallen for 3 validations; "
        f"the model of {BEST:,} codes is kept"
    )
    assert f"prior {sentence}" in first.output
    before = (folder / "told" / "metrics.jsonl").read_text()
    again = CliRunner().invoke(app, [*command, "--patience", "3"])
    assert again.exit_code == 0, again.output
    assert f"prior had {sentence}" in again.output
    assert (folder / "told" / "metrics.jsonl").read_text() == before
    ended = CliRunner().invoke(app, command)
    assert (
        f"ended after 6,400 codes, 15 validations after the best; the model of {BEST:,} codes is kept" in ended.output
    )


def test_overfitting_is_a_diagnostic(folder: Path) -> None:
    begun = [line for line in read_diagnostics(folder / "overfitted") if line["state"] == "begun"]
    assert {line["diagnostic"] for line in begun} == {"overfitting"}
    assert begun[0]["seen"] == BEST + 2 * 320, "at the second validation"
    best = next(line["nats"] for line in validated(folder / "overfitted") if line["seen"] == BEST)
    assert best == pytest.approx(1.18, abs=0.03), "as processors round"
    assert f"({best:.4g}, after {BEST:,})" in begun[0]["message"]


def test_a_state_without_its_best_model_is_passed_over(folder: Path) -> None:
    shutil.copytree(folder / "patient", folder / "plundered")
    shutil.rmtree(folder / "plundered" / "state" / "best")
    with pytest.raises(SmaltiError, match=r"no state in .* can be read .*its best model is not in"):
        patient(folder, "plundered")


def test_patience_with_a_tokenizer_is_refused(folder: Path) -> None:
    with pytest.raises(SmaltiError, match=r"run.patience = 2: .* which only a prior has"):
        small_tokenizer(folder, "impatient", "run.patience=2")


def test_what_is_best() -> None:
    best = Best("nats", {})
    assert not best.take({"nats": math.nan}, seen=1)
    assert (best.seen, best.since, best.notes(), best.described()) == (0, 0, {}, {})
    assert best.take({"nats": 2.0}, seen=2)
    assert not best.take({"nats": 2.0}, seen=3), "the first of equals"
    assert not best.take({"nats": math.nan}, seen=4)
    assert best.since == 2
    assert not best.exhausted(0)
    assert best.exhausted(2)
    assert not best.exhausted(3)
    again = Best("nats", json.loads(json.dumps(best.notes())))
    assert (again.seen, again.value, again.since) == (2, 2.0, 2)
    assert again.diagnose({"nats": 2.0 * (1 + RISEN) + 0.01})["overfitting"]
    assert again.diagnose({"nats": 2.0 * (1 + RISEN) - 0.01}) == {"overfitting": ""}
    assert again.take({"nats": 1.0}, seen=5)
    assert again.described() == {"best_nats": 1.0, "best_seen": 5}
    without_metric = Best("", {})
    assert not without_metric.take({"psnr": 20.0}, seen=1)
    assert (without_metric.diagnose({"psnr": 20.0}), without_metric.exhausted(1)) == ({}, False)


@pytest.mark.slow
def test_two_processes_stop_where_one_stops(folder: Path) -> None:
    """Each measures a fraction of the held-out images, and both must see the same best and stop together."""
    # Without the chance that each process draws for itself. Rounding grows; in the two validations that decide,
    # likelihoods are 5 to 10 % above the best.
    same_chance = (*OVERFIT, "condition_dropout=0", "run.patience=2")
    one = small_prior(folder, "one", *same_chance)
    command = ["-m", "smalti", "train", "prior", "codes", "--tokenizer", "tokenizer", "--recipe", "small.yaml"]
    given = [part for override in (*same_chance, "run.strategy=ddp") for part in ("--set", override)]
    outputs = finished(started(folder, [*command, "--out", "two", *given]))
    expected, found = validated(one), validated(folder / "two")
    assert expected[-1]["seen"] < 6400, "this run is not stopped, so it shows nothing"
    for name in ("seen", "best_seen"):
        assert [line[name] for line in found] == [line[name] for line in expected]
    for mine, other in zip(expected, found, strict=True):
        assert other["nats"] == pytest.approx(mine["nats"], rel=1e-2)
    assert find_model(folder / "two", kind="prior").about["codes_seen"] == expected[-1]["best_seen"]
    assert "nats have not fallen for 2 validations" in outputs[0]
    assert "stopped" not in outputs[1]
