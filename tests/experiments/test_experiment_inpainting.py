"""The experiment `inpainting`: its figures are those of its models, in equal time; its sheets keep what is given."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smalti.core.errors import SmaltiError
from smalti.experiments import equal_time, prior_steps, sampling
from smalti.experiments.base import ExperimentRequest
from smalti.experiments.experiment_registry import EXPERIMENTS
from smalti.experiments.inpainting import experiment
from smalti.experiments.inpainting.findings import ANY, EXACT, RASTER, REAL, gain, price
from smalti.experiments.inpainting.holes import HOLES, SHOWN
from smalti.experiments.page_parts import pixels
from smalti.hub.pretrained import find_model
from smalti.prior import nll
from smalti.prior_folder import load_prior
from tests.experiment_helpers import held_out_codes, no_weights, page, request, run_and_read, step_folder
from tests.small import SIDE, write_images, write_recipe

NAME = "inpainting"
LENGTH = 384
SHEET = 3


def chosen(home: Path) -> dict[str, Any]:
    return {
        "recipe": str(home / "small.yaml"),
        "tokenizer": ["run.images=16"],
        "prior": [f"run.codes={LENGTH}", "network={name: transformer, layers: 1, embed_dim: 16, heads: 2}"],
        "size": [SIDE, SIDE],
        "copies": 2,
        "held_out": 0.3,
        "pace_steps": 2,
        "best_of": 2,
        "shown": SHEET,
        "parallel": [2, 5],
        "samples": 4,
        "classifier_steps": 2,
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a recipe, and the experiment done once in `out`; any order is said to be a third slower."""
    path = tmp_path_factory.mktemp("inpainting")
    write_images(path / "a")
    write_recipe(path / "small.yaml")
    with no_weights(path / "cache"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(equal_time, "POINTS", 2)
        patch.setattr(experiment, "MIN_SAMPLES", 4)
        measured = prior_steps.compare_prior_paces

        def third_slower(*given: Any, **options: Any) -> dict[str, float]:
            found = measured(*given, **options)
            assert set(found) == {RASTER, ANY}
            assert min(found.values()) > 0
            return {RASTER: 1.0, ANY: 4 / 3}

        patch.setattr(prior_steps, "compare_prior_paces", third_slower)
        run_and_read(NAME, path / "out", request(path / "a", chosen(path)))
    return path


def nats(home: Path, found: dict[str, Any], order: str, places: torch.Tensor | None = None) -> torch.Tensor:
    prior, _ = load_prior(find_model(step_folder(home, found, f"prior-{order}"), kind="prior"))
    assert prior.order == order
    codes = held_out_codes(home, found)
    with torch.no_grad():
        return nll(prior, prior.null_prefix(len(codes)), codes, order=places)


@pytest.mark.parametrize("name", HOLES)
def test_nats_of_a_hole_are_those_of_the_models(home: Path, found: dict[str, Any], name: str) -> None:
    outcome = found["likelihoods"]["outcome"]
    hole = HOLES[name](*outcome["grid"])
    kept, missing = (~hole).flatten().nonzero().flatten(), hole.flatten().nonzero().flatten()
    raster = nats(home, found, RASTER)[:, hole].mean(1).double()
    known_first = nats(home, found, ANY, torch.cat((kept, missing)))[:, hole].mean(1).double()
    row = outcome["holes"][name]
    assert row[RASTER] == pytest.approx(raster.mean().item(), abs=1e-4)
    assert row[ANY] == pytest.approx(known_first.mean().item(), abs=1e-4)
    assert row["difference"] == pytest.approx((known_first - raster).mean().item(), abs=1e-5)
    assert row["error"] == pytest.approx((known_first - raster).std().item() / math.sqrt(len(raster)), abs=1e-5)
    assert row["filled"] > 0
    assert gain(row) == pytest.approx(1 - row[ANY] / row[RASTER])


def test_the_price_is_that_of_whole_images_in_raster_order(home: Path, found: dict[str, Any]) -> None:
    outcome = found["likelihoods"]["outcome"]
    for order in (RASTER, ANY):
        assert outcome["whole"][order] == pytest.approx(nats(home, found, order).mean().item(), abs=1e-4)
    assert price(outcome) == pytest.approx(outcome["whole"][ANY] / outcome["whole"][RASTER] - 1)


def test_both_are_trained_for_equal_time(home: Path, found: dict[str, Any]) -> None:
    assert found[f"prior-{RASTER}"]["outcome"]["codes"] == LENGTH
    assert found[f"prior-{ANY}"]["outcome"]["codes"] == LENGTH * 3 // 4 // 64 * 64, "whole batches"
    notes = [
        json.loads(step_folder(home, found, f"prior-{order}").with_suffix(".json").read_text())
        for order in (RASTER, ANY)
    ]
    orders = [note["settings"]["training"]["network"].pop("order") for note in notes]
    assert orders == [RASTER, ANY]
    assert notes[0]["settings"] == notes[1]["settings"], "the order is all that differs"


@pytest.mark.parametrize("hole", SHOWN)
@pytest.mark.parametrize("way", [RASTER, "best of 2", ANY])
def test_completed_images_keep_what_is_given(home: Path, found: dict[str, Any], hole: str, way: str) -> None:
    shown = step_folder(home, found, "completions") / "shown"
    kept = ~HOLES[hole](SIDE, SIDE).numpy()
    for number in range(SHEET):
        original, given, completed = (
            pixels(shown / f"{stem}-{number:02d}.png") for stem in ("original", f"{hole}-given", f"{hole}-{way}")
        )
        assert np.array_equal(completed[kept], original[kept])
        assert np.array_equal(given[kept], original[kept])
        assert len(np.unique(given[~kept])) == 1, "gray"


def test_samples_are_measured_in_each_way(home: Path, found: dict[str, Any]) -> None:
    rows = found["samples"]["outcome"]["rows"]
    assert list(rows) == [RASTER, EXACT, "2 steps", "5 steps", REAL]
    for way, row in rows.items():
        assert row["frechet"] >= 0
        assert 0 <= row["class_accuracy"] <= 1
        assert len(list((step_folder(home, found, "samples") / "samples" / way.replace(" ", "-")).glob("*.png"))) == 4


def test_the_page_reports_what_was_found(home: Path, found: dict[str, Any]) -> None:
    text, images = page(home / "out")
    assert images == len(SHOWN) * 5 * SHEET
    for name in HOLES:
        assert name in text
    assert "2 steps" in text
    assert "nan" not in text.lower().split()


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (16, 16), (64, 48)])
def test_holes_leave_something_and_are_the_same_each_time(rows: int, columns: int) -> None:
    for name, hole_of in HOLES.items():
        hole = hole_of(rows, columns)
        assert hole.shape == (rows, columns)
        assert 0 < int(hole.sum()) < rows * columns, name
        assert torch.equal(hole, hole_of(rows, columns))
    assert torch.equal(HOLES["left half"](rows, columns), ~HOLES["right half"](rows, columns))
    assert torch.equal(HOLES["border"](rows, columns), ~HOLES["center"](rows, columns))


@pytest.mark.parametrize("scale", EXPERIMENTS[NAME].scales)
def test_every_scale_can_be_planned(home: Path, scale: str) -> None:
    what = ExperimentRequest(scale=scale, data=home / "a")
    steps = [step.name for step in EXPERIMENTS[NAME].plan(EXPERIMENTS[NAME].resolved(what), what)]
    assert [name for name in steps if name.startswith("prior-")] == ["prior-raster", "prior-any"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("prior.network.order=random", "decides network.order itself"),
        ("prior.condition=unconditional", "decides condition itself"),
        ("parallel=[0]", "parallel"),
        ("scenes=3", "no scenes are rendered"),
    ],
)
def test_mistakes_are_sentences(home: Path, tmp_path: Path, override: str, sentence: str) -> None:
    with no_weights(tmp_path), pytest.raises(SmaltiError, match=sentence):
        run_and_read(NAME, tmp_path / "out", request(home / "a", chosen(home), override))
    assert not (tmp_path / "out").exists(), "nothing is begun"
    assert sampling.MIN_SAMPLES > 4
