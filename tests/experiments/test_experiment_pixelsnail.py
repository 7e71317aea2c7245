"""The experiment `transformer-vs-pixelsnail`: the same codes, as many parameters, equal steps and equal time; figures
of its models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from smalti.core.errors import SmaltiError
from smalti.data.code_shards import open_codes
from smalti.experiments import equal_time, prior_steps
from smalti.experiments.base import ExperimentRequest
from smalti.experiments.equal_time import POINTS, with_length
from smalti.experiments.experiment_registry import EXPERIMENTS
from smalti.experiments.pixelsnail.findings import CONTENDERS, PIXELSNAIL, SAME_STEPS, SAME_TIME
from smalti.experiments.prior_steps import parameters, prior_curve
from smalti.hub.pretrained import find_model
from smalti.prior import PixelSNAIL, Transformer, nll
from smalti.prior_folder import load_prior
from smalti.training.config import PriorTraining, TokenizerTraining, resolve
from smalti.training.prior_networks import CodesRead
from smalti.training.run_folder import read_metrics
from tests.experiment_helpers import no_weights, page, request, run_and_read
from tests.small import SIDE, write_images, write_recipe

pytestmark = pytest.mark.slow

NAME = "transformer-vs-pixelsnail"
STUDY = EXPERIMENTS[NAME]
LENGTH = 1280
BATCH = 4 * 16


def chosen(home: Path) -> dict[str, Any]:
    return {
        "recipe": str(home / "small.yaml"),
        "tokenizer": ["run.images=16"],
        "prior": [f"run.codes={LENGTH}"],
        "transformer": ["network={name: transformer, layers: 2, embed_dim: 24, heads: 2}"],
        "pixelsnail": [
            "network={name: pixelsnail, layers: 1, res_blocks: 1, embed_dim: 20, heads: 2}",
            "optimizer.lr=2e-3",
        ],
        "parameters_within": 0.2,
        "size": [SIDE, SIDE],
        "copies": 2,
        "held_out_copies": 3,
        "held_out": 0.3,
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a recipe, and the experiment done once in `out`."""
    path = tmp_path_factory.mktemp("pixelsnail")
    write_images(path / "a")
    write_recipe(path / "small.yaml")
    with no_weights(path / "cache"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(equal_time, "POINTS", 4)
        run_and_read(NAME, path / "out", request(path / "a", chosen(path)))
    return path


def steps(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "out" / "result.json").read_text())["steps"]
    return found


@pytest.mark.parametrize(
    ("name", "kind"), [(PIXELSNAIL, PixelSNAIL), (SAME_STEPS, Transformer), (SAME_TIME, Transformer)]
)
def test_figures_are_those_of_the_models_on_the_held_out_codes(home: Path, name: str, kind: type) -> None:
    found = steps(home)
    prior, _ = load_prior(find_model(home / "out" / found[f"prior-{name}"]["folder"], kind="prior"))
    assert isinstance(prior, kind)
    row = found["compare"]["outcome"]["rows"][name]
    assert row["parameters"] == sum(weight.numel() for weight in prior.parameters())
    shards = open_codes(home / "out" / found["codes"]["folder"] / "codes")
    assert shards.meta.grid == (4, 4)
    codes = torch.stack([shards.validation[index, 0].codes for index in range(len(shards.validation))])
    assert found["compare"]["outcome"]["images"] == len(codes) == found["codes"]["outcome"]["held_out"]
    with torch.no_grad():
        values = nll(prior, prior.null_prefix(len(codes)), codes).mean(dim=(1, 2))
    assert row["nats"] == pytest.approx(values.mean().item(), abs=1e-4)
    points = found[f"prior-{name}"]["outcome"]["curve"]
    assert row["nats"] == pytest.approx(min(point["nats"] for point in points), abs=1e-3), "the best model is kept"
    assert row["last_nats"] == points[-1]["nats"]


def test_differences_are_image_by_image(home: Path) -> None:
    rows = steps(home)["compare"]["outcome"]["rows"]
    assert rows[PIXELSNAIL]["over_pixelsnail"] == rows[PIXELSNAIL]["error"] == 0
    for name in (SAME_STEPS, SAME_TIME):
        assert rows[name]["over_pixelsnail"] == pytest.approx(rows[name]["nats"] - rows[PIXELSNAIL]["nats"])
        assert rows[name]["error"] > 0


def test_steps_are_equal_and_then_time_is(home: Path) -> None:
    found = steps(home)
    runs = {name: found[f"prior-{name}"]["outcome"] for name in CONTENDERS}
    for name in (PIXELSNAIL, SAME_STEPS):
        assert runs[name]["codes"] == LENGTH
        assert [point["codes"] for point in runs[name]["curve"]] == [320, 640, 960, 1280]
    wanted = LENGTH * runs[PIXELSNAIL]["seconds"] / runs[SAME_STEPS]["seconds"]
    assert runs[SAME_TIME]["codes"] % BATCH == 0
    assert abs(runs[SAME_TIME]["codes"] - wanted) <= BATCH / 2 or runs[SAME_TIME]["codes"] == BATCH
    assert read_metrics(home / "out" / found[f"prior-{SAME_TIME}"]["folder"])[-1]["seen"] == runs[SAME_TIME]["codes"]
    for run in runs.values():
        seconds = [point["seconds"] for point in run["curve"]]
        assert seconds[-1] > 0, "the clock of a run counts tenths of a second: the first may be 0"
        assert seconds == sorted(seconds)
        assert run["seconds"] == seconds[-1]


def test_the_clock_stands_still_while_held_out_codes_are_looked_at() -> None:
    lines = [
        {"part": "train", "seen": 5, "elapsed": 10.0},
        {"part": "validation", "seen": 5, "elapsed": 13.0, "nats": 4.0},
        {"part": "train", "seen": 10, "elapsed": 23.0},
        {"part": "diagnostic", "seen": 10, "elapsed": 23.0},
        {"part": "validation", "seen": 10, "elapsed": 30.0, "nats": 3.0},
        {"part": "train", "seen": 15, "elapsed": 41.0},
        {"part": "validation", "seen": 15, "elapsed": 41.5, "nats": 3.5},
    ]
    assert prior_curve(lines) == [
        {"seconds": 10.0, "codes": 5, "nats": 4.0},
        {"seconds": 20.0, "codes": 10, "nats": 3.0},
        {"seconds": 31.0, "codes": 15, "nats": 3.5},
    ]


def test_the_page_reports_what_was_found(home: Path) -> None:
    text, images = page(home / "out")
    rows = steps(home)["compare"]["outcome"]["rows"]
    assert f"{rows[SAME_STEPS]['nats']:.3f} nats per code for the transformer, {rows[PIXELSNAIL]['nats']:.3f}" in text
    better = rows[SAME_STEPS]["over_pixelsnail"] < 0
    apart = abs(rows[SAME_STEPS]["over_pixelsnail"]) >= 2 * rows[SAME_STEPS]["error"]
    verdict = (
        ("the transformer is better" if better else "PixelSNAIL is better") if apart else "do not differ significantly"
    )
    assert verdict in text.partition("After as long a time")[0]
    assert "Held-out codes over time" in text
    assert "nan" not in text.lower().split()
    assert images == 3


def test_a_finished_study_is_not_done_again(home: Path) -> None:
    before = steps(home)
    with no_weights(home / "cache"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(equal_time, "POINTS", 4)
        patch.setattr(prior_steps, "trained", None)
        again = run_and_read(NAME, home / "out", request(home / "a", chosen(home)))["steps"]
    assert again == before


@pytest.mark.parametrize("scale", STUDY.scales)
def test_parameters_are_about_equal_at_every_scale(scale: str) -> None:
    settings = STUDY.resolved(ExperimentRequest(scale=scale, data=Path("given")))
    tokenizer = resolve(
        TokenizerTraining,
        stage="tokenizer",
        recipe=settings.recipe,
        overrides=[*settings.tokenizer, f"images.size={list(settings.size)}"],
    )
    f = tokenizer.model.autoencoder.factor
    read = CodesRead(
        size=tokenizer.model.quantizer.codebook_size,
        grid=(settings.size[0] // f, settings.size[1] // f),
        condition_size=0,
        prefix=1,
    )
    counts = []
    for changes in (settings.transformer, settings.pixelsnail):
        training = resolve(PriorTraining, stage="prior", recipe=settings.recipe, overrides=[*settings.prior, *changes])
        counts.append(parameters(training, read))
    assert abs(counts[0] / counts[1] - 1) <= settings.parameters_within <= 0.05
    assert math.prod(read.grid) in (64, 256)


def test_a_training_of_another_length_validates_as_often(home: Path) -> None:
    training = resolve(PriorTraining, stage="prior", recipe=str(home / "small.yaml"), overrides=[])
    for length in (640, 10**6):
        run = with_length(training.run, length)
        assert run.codes == run.sample_every == length
        assert run.log_every == run.validate_every == math.ceil(length / POINTS)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "parameters_within=0.001",
            r"transformer-steps has [\d,]+ parameters and pixelsnail [\d,]+: [+-]\d+%, where 0% is allowed",
        ),
        ("prior.network.embed_dim=9", "decides network.embed_dim itself"),
        ("prior.run.patience=3", "decides run.patience itself"),
        ("prior.condition=labels", "decides condition itself"),
        ("tokenizer.images.size=[8, 8]", "decides images.size itself"),
        ("scenes=3", "no scenes are rendered"),
    ],
)
def test_mistakes_are_sentences(home: Path, tmp_path: Path, override: str, sentence: str) -> None:
    with no_weights(tmp_path), pytest.raises(SmaltiError, match=sentence):
        run_and_read(NAME, tmp_path / "out", request(home / "a", chosen(home), override))
