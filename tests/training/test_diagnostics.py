"""Diagnostics: each symptom by itself, that each is reported once, and that steps that are not finite change
nothing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.data.loader import Batch
from smalti.data.sources import open_source
from smalti.losses.objective import AdversarialSettings
from smalti.training import gan_step
from smalti.training.config import TokenizerTraining, resolve
from smalti.training.diagnostics import (
    Diagnostics,
    describe_diagnostics,
    diagnose_codebook,
    diagnose_gan,
    diagnose_skipped_steps,
)
from smalti.training.gan_step import UPDATES
from smalti.training.optimizer_step import NotFiniteError, not_finite
from smalti.training.run_folder import read_diagnostics, read_metrics
from smalti.training.running_metrics import RunningMetrics
from smalti.training.runs import train_tokenizer
from smalti.training.stage1 import TokenizerStage
from tests.small import RECIPE, write_images, write_recipe

HEALTHY = {"discriminator": 0.7, "real_logits": 0.3, "fake_logits": -0.3, "adaptive_weight": 0.5}


# --- each symptom -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "perplexity", "sick"), [(0.9, 700, False), (0.19, 190, True), (0.9, 51, True), (0.2, 52, False)]
)
def test_a_codebook_that_has_collapsed(used: float, perplexity: float, sick: bool) -> None:
    scored = diagnose_codebook({"codes_in_use": used, "perplexity": perplexity}, size=1024)
    assert scored.keys() == {"codebook"}
    assert bool(scored["codebook"]) == sick
    if sick:
        assert f"{used:.1%} of 1,024 codes" in scored["codebook"]


def test_nothing_is_printed_of_codes_that_were_not_counted() -> None:
    assert diagnose_codebook({"pixel": 0.1}, size=1024) == {}


def gan_diagnostics(
    means: dict[str, float], *, trained: float = 0.5, strength: float = 1.0, **options: Any
) -> set[str]:
    scored = diagnose_gan(means, settings=AdversarialSettings(**options), trained=trained, strength=strength)
    return {name for name, sentence in scored.items() if sentence}


def test_a_healthy_gan_gives_no_diagnostic() -> None:
    assert gan_diagnostics(HEALTHY) == set()
    scored = diagnose_gan(HEALTHY, settings=AdversarialSettings(), trained=0.5, strength=1.0)
    assert scored.keys() == {"discriminator overpowering", "discriminator not learning", "adaptive weight"}


@pytest.mark.parametrize("loss", ["hinge", "vanilla", "nonsaturating"])
def test_a_discriminator_that_has_won(loss: str) -> None:
    overpowering = {**HEALTHY, "discriminator": 0.02, "real_logits": 3.0, "fake_logits": -3.0}
    assert gan_diagnostics(overpowering, loss=loss) == {"discriminator overpowering"}
    assert gan_diagnostics({**overpowering, "discriminator": 0.3}, loss=loss) == set()
    assert gan_diagnostics({**overpowering, "real_logits": -1.5}, loss=loss) == set()


@pytest.mark.parametrize(("loss", "guess"), [("hinge", 1.0), ("vanilla", 0.6931), ("nonsaturating", 0.6931)])
def test_a_discriminator_that_sleeps(loss: str, guess: float) -> None:
    not_learning = {**HEALTHY, "discriminator": guess, "real_logits": 0.001, "fake_logits": 0.0}
    assert gan_diagnostics(not_learning, loss=loss) == {"discriminator not learning"}
    assert gan_diagnostics(not_learning, loss=loss, trained=0.01) == set()  # it has only begun
    assert gan_diagnostics({**not_learning, "real_logits": 0.1}, loss=loss) == set()
    assert gan_diagnostics({**not_learning, "discriminator": 0.9 * guess}, loss=loss) == set()


def test_an_adaptive_weight_at_its_limit() -> None:
    assert gan_diagnostics({**HEALTHY, "adaptive_weight": 4000.0}, weight=0.4) == {"adaptive weight"}
    assert gan_diagnostics({**HEALTHY, "adaptive_weight": 1000.0}, weight=0.4, strength=0.25) == {"adaptive weight"}
    assert gan_diagnostics({**HEALTHY, "adaptive_weight": 1000.0}, weight=0.4) == set()
    assert gan_diagnostics({**HEALTHY, "adaptive_weight": 4000.0}, weight=0.4, weighting="fixed") == set()
    assert gan_diagnostics({**HEALTHY, "adaptive_weight": 0.0}, strength=0.0) == set()


def test_without_a_discriminator_there_is_no_diagnostic_of_it() -> None:
    assert diagnose_gan({"pixel": 0.1}, settings=AdversarialSettings(), trained=0.5, strength=1.0) == {}
    assert diagnose_gan(HEALTHY, settings=AdversarialSettings(weight=0.0), trained=0.5, strength=1.0) == {}
    assert diagnose_gan(HEALTHY, settings=AdversarialSettings(), trained=-0.1, strength=0.0) == {}


def test_skipped_steps() -> None:
    assert diagnose_skipped_steps(0, 10, names=[]) == {"not finite": ""}
    sentence = diagnose_skipped_steps(2, 10, names=["gradient_norm"])["not finite"]
    assert sentence.startswith("2 of 10 steps were skipped")
    assert "gradient_norm" in sentence


# --- reported once
# -----------------------------------------------------------------------------------------------------


def test_a_diagnostic_is_reported_when_it_begins_and_when_it_is_resolved() -> None:
    diagnostics = Diagnostics({})
    assert diagnostics.changes({"codebook": ""}) == []
    (begun,) = diagnostics.changes({"codebook": "it is bad"})
    assert (begun.state, begun.described()) == ("begun", "WARNING: it is bad")
    assert diagnostics.changes({"codebook": "it is worse"}) == []
    assert diagnostics.changes({}) == []  # not judged: as it was
    resumed = Diagnostics(json.loads(json.dumps(diagnostics.active)))
    assert resumed.changes({"codebook": "it is worse"}) == []
    (resolved,) = resumed.changes({"codebook": ""})
    assert (resolved.state, resolved.described()) == ("resolved", "resolved: codebook")


def test_the_page_reports_from_when_to_when() -> None:
    lines = [
        {"seen": 10, "diagnostic": "a", "state": "begun", "message": "x"},
        {"seen": 20, "diagnostic": "b", "state": "begun", "message": "y"},
        {"seen": 3000, "diagnostic": "a", "state": "resolved", "message": "x"},
    ]
    assert describe_diagnostics(lines, unit="images") == [
        "From 10 to 3,000 images: x.",
        "From 20 images on, to the end: y.",
    ]


# --- steps that are left out ------------------------------------------------------------------------------------------


def stage_of(folder: Path, *overrides: str) -> TokenizerStage:
    write_recipe(folder / "small.yaml")
    if not (folder / "images").is_dir():
        write_images(folder / "images")
    settings = resolve(TokenizerTraining, stage="tokenizer", recipe=str(folder / "small.yaml"), overrides=overrides)
    return TokenizerStage(settings, open_source(folder / "images"), fabric=Fabric(accelerator="cpu"), about={})


def everything(stage: TokenizerStage) -> dict[str, Any]:
    """Copies of all that a step may move."""
    modules = {"tokenizer": stage.tokenizer, "discriminator": stage.discriminator, "average": stage.exported.module}
    kept: dict[str, Any] = {name: module.state_dict() for name, module in modules.items()}
    optimizers = {"optimizer": stage.optimizer, "discriminator_optimizer": stage.discriminator_optimizer}
    kept |= {name: optimizer.state_dict()["state"] for name, optimizer in optimizers.items()}
    return copy.deepcopy({**kept, "lecam": stage.lecam_ema._asdict(), "used": {"counts": stage.used.counts}})


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    if isinstance(before, dict):
        assert before.keys() == after.keys(), path
        return [name for key in before for name in differences(before[key], after[key], f"{path}.{key}")]
    return [] if torch.equal(torch.as_tensor(before), torch.as_tensor(after)) else [path]


def step(stage: TokenizerStage, seen: int, *, images: Tensor | None = None) -> dict[str, Tensor]:
    batch = next(stage.batches(seen))
    batch = batch if images is None else Batch(images, batch.labels)
    return stage.step(batch, seen=seen, count=4, generator=torch.Generator().manual_seed(0))


NAN = torch.full((4, 3, 16, 16), torch.nan)


@pytest.mark.parametrize("norm", ["group", "batch", "act"])
@pytest.mark.parametrize(("updates", "parts"), [*((updates, 1) for updates in sorted(UPDATES)), ("simultaneous", 2)])
def test_a_step_that_is_not_finite_leaves_everything_as_it_was(
    tmp_path: Path, norm: str, updates: str, parts: int
) -> None:
    given = f"objective.adversarial.discriminator.norm={norm}", f"objective.adversarial.updates={updates}"
    stage = stage_of(tmp_path, *given, "objective.adversarial.start=0", f"run.accumulate={parts}")
    for seen in (0, 4, 8):
        step(stage, seen)
    before = everything(stage)
    with pytest.raises(NotFiniteError) as raised:
        step(stage, 12, images=NAN)
    assert "gradient_norm" in raised.value.names
    assert differences(before, everything(stage)) == []
    step(stage, 16)
    assert any("tokenizer" in name for name in differences(before, everything(stage)))
    assert all(parameter.isfinite().all() for parameter in stage.tokenizer.parameters())


def test_the_first_batch_of_an_actnorm_may_be_a_bad_one(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, "objective.adversarial.discriminator.norm=act")
    with pytest.raises(NotFiniteError):
        step(stage, 0, images=NAN)
    step(stage, 4)
    assert all(parameter.isfinite().all() for parameter in stage.discriminator.parameters())


def test_the_names_of_what_is_not_finite() -> None:
    values = {"a": torch.tensor(1.0), "b": torch.tensor(torch.nan), "c": torch.tensor(-torch.inf, dtype=torch.float64)}
    assert not_finite(values) == ["b", "c"]
    assert not_finite({"a": torch.tensor(3)}) == []


# --- whole runs -------------------------------------------------------------------------------------------------------


def run(folder: Path, out: str, *overrides: str) -> str:
    settings = resolve(TokenizerTraining, stage="tokenizer", recipe=str(folder / "small.yaml"), overrides=overrides)
    console = Console(record=True, width=400, file=(folder / "console.txt").open("w"))
    try:
        train_tokenizer(folder / "images", folder / out, settings=settings, console=console)
    finally:
        console.file.close()
    return console.export_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "images")
    write_recipe(tmp_path / "small.yaml")
    return tmp_path


def broken_at(steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let some steps, counted from 0, have metrics that are not finite."""
    calls = iter(range(10**6))

    def sometimes(fabric: Fabric, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**values, "pixel": torch.tensor(torch.nan)} if next(calls) in steps else values

    monkeypatch.setattr(gan_step, "mean_of_processes", sometimes)


def test_skipped_steps_are_counted_reported_and_forgotten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_at({2, 3, 5}, monkeypatch)
    text = run(folder, "run", "run.max_skipped_steps=3")
    lines = [line for line in read_metrics(folder / "run") if line["part"] == "train"]
    assert [line["skipped"] for line in lines] == [0, 2, 1, 0, 0, 0]
    assert "pixel" not in lines[1]  # both of its steps were skipped
    assert lines[2]["pixel"] > 0
    diagnostics = [(line["seen"], line["diagnostic"], line["state"]) for line in read_diagnostics(folder / "run")]
    assert diagnostics == [(16, "not finite", "begun"), (32, "not finite", "resolved")]
    assert text.count("WARNING: 2 of 2 steps were skipped") == 1
    assert text.count("resolved: not finite") == 1
    page = (folder / "run" / "report.html").read_text("utf-8")
    assert "From 16 to 32 images: 2 of 2 steps were skipped" in page


def test_too_many_in_a_row_stop_the_run_with_the_last_state_intact(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_at({5, 6, 7}, monkeypatch)
    with pytest.raises(SmaltiError, match="3 steps in a row had to be skipped, for pixel is no longer a finite number"):
        run(folder, "run", "run.max_skipped_steps=3")
    assert [int(state.name) for state in (folder / "run" / "state").iterdir()] == [16]
    monkeypatch.undo()
    run(folder, "run", "run.max_skipped_steps=3")
    assert [line["seen"] for line in read_metrics(folder / "run") if line["part"] == "validation"] == [16, 32, 48]


def test_every_line_has_the_seconds_of_training(folder: Path) -> None:
    run(folder, "run", "run.images=16")
    run(folder, "run", "run.images=32")
    elapsed = [json.loads(line)["elapsed"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert elapsed == sorted(elapsed)
    notes = json.loads(max((folder / "run" / "state").glob("0*/notes.json")).read_text())
    assert notes["running_metrics"]["elapsed"] >= elapsed[-2] > 0


def test_a_healthy_run_has_no_diagnostics_on_its_page(folder: Path) -> None:
    run(folder, "run")
    assert read_diagnostics(folder / "run") == []
    assert "Diagnostics" not in (folder / "run" / "report.html").read_text("utf-8")
    assert parse(TokenizerTraining, RECIPE["tokenizer"], where="test").run.max_skipped_steps == 10


# --- the record -------------------------------------------------------------------------------------------------------


def test_a_record_goes_through_a_stop_unharmed() -> None:
    """Means of a report in two parts, with a stop between them, are those of one."""
    torch.manual_seed(0)
    steps = [{"a": torch.rand(()), **({"b": torch.rand(())} if place % 3 else {})} for place in range(11)]
    whole, first = RunningMetrics({}), RunningMetrics({})
    for place, values in enumerate(steps):
        whole.add(values)
        first.add(values)
        if place == 4:
            whole.skip(["a"])
            first.skip(["a"])
            first = RunningMetrics(json.loads(json.dumps(first.notes())))
    assert first.steps == 12
    assert first.elapsed > 0
    expected, found = whole.report(), first.report()
    assert found == expected
    assert found["a"] == pytest.approx(float(torch.stack([values["a"] for values in steps]).mean()), rel=1e-6)
    assert found["skipped"] == 1
    assert first.report() == {"skipped": 0}


def test_skips_in_a_row_are_counted_anew_after_a_step() -> None:
    record = RunningMetrics({})
    record.skip(["a"])
    record.skip(["b", "a"])
    assert (record.consecutive, record.broken) == (2, ["a", "b"])
    record.add({"a": torch.zeros(())})
    record.skip(["a"])
    assert (record.consecutive, record.skipped, record.steps) == (1, 3, 4)
