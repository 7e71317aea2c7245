"""The experiment `modern-vs-reference`: equal time, equal parameters, the same images, and what its figures are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalti.core.errors import SmaltiError
from smalti.core.settings import as_mapping
from smalti.data.sources import open_source
from smalti.experiments.base import ExperimentRequest
from smalti.experiments.equal_time import (
    POINTS,
    SAVED,
    at_nominal_length,
    check_parameter_counts,
    reached,
    tokenizer_curve,
    weights,
    with_duration,
)
from smalti.experiments.experiment_registry import EXPERIMENTS
from smalti.experiments.tokenizer_comparison import LPIPS
from smalti.losses.discriminator import DISCRIMINATORS
from smalti.tokenizer.vqgan import VQGAN
from smalti.training import pace
from smalti.training.config import TokenizerTraining, resolve
from smalti.training.pace import NOMINAL, PLACES
from smalti.training.run_folder import read_metrics
from tests import reference
from tests.experiment_helpers import no_weights, page, quick, request, run_and_read
from tests.small import SIDE, write_images, write_recipe

pytestmark = pytest.mark.slow

NAME = "modern-vs-reference"
STUDY = EXPERIMENTS[NAME]
NAMES = ["reference", "modern", "no-average"]


def chosen(home: Path) -> dict[str, Any]:
    recipe = str(home / "small.yaml")
    return {
        "reference": {
            "recipe": recipe,
            "changes": ["objective.adversarial.updates=alternating", "model.quantizer.kmeans_iterations=0"],
        },
        "modern": {"recipe": recipe},
        "without": [{"name": "no-average", "changes": ["run.ema_half_life=0"]}],
        "sets": [{"name": "light", "size": [SIDE, SIDE]},
            {"name": "wide", "size": [SIDE, 2 * SIDE], "data": str(home / "a")}],
        "minutes": 0.005,
        "pace_seconds": 0.01,
        "held_out": 0.3,
        "images": 6,
        "shown": 2,
    }  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a recipe, and the experiment done once in `out`."""
    path = tmp_path_factory.mktemp("modern")
    write_images(path / "a")
    write_recipe(path / "small.yaml")
    with no_weights(path / "cache"), quick():
        run_and_read(NAME, path / "out", request(path / "a", chosen(path)))
    return path


@pytest.fixture
def result(home: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((home / "out" / "result.json").read_text())
    return values


@pytest.mark.parametrize("given", ["light", "wide"])
def test_the_figures_of_each_set_are_those_of_its_trainings(home: Path, result: dict[str, Any], given: str) -> None:
    steps = result["steps"]
    compared = steps[f"compare-{given}"]["outcome"]
    assert list(compared["rows"]) == NAMES
    assert compared["metric"] == "psnr", "without weights there is no LPIPS"
    for name, row in compared["rows"].items():
        run = steps[f"tokenizer-{given}-{name}"]
        measured = steps[f"measure-{given}-{name}"]["outcome"]
        pace = steps[f"pace-{given}-{name}"]["outcome"]
        assert row["psnr"] == measured["result"]["scores"]["psnr"]
        assert row["images"] == run["outcome"]["images"] == read_metrics(home / "out" / run["folder"])[-1]["seen"]
        assert row["seconds"] == run["outcome"]["curve"][-1]["seconds"]
        assert row["images"] % 4 == 0
        planned = 60 * 0.005 / pace["seconds_per_image"]
        assert max(planned - 4, 4) <= row["images"] <= max(planned, 4), "as many as go into the minutes"
        assert row["parameters"] == measured["parameters"] == pace["tokenizer"]
    assert compared["rows"]["modern"]["over_modern"]["psnr"] == [0.0, 0.0]
    assert compared["rows"]["reference"]["share"] <= 1, "the reference is as good as itself at its end"


def test_the_steps_follow_one_another_and_nothing_else_is_timed_meanwhile(result: dict[str, Any]) -> None:
    names = [name for name in result["steps"] if "light" in name]
    assert names == [
        *(f"{part}-light-{name}" for name in NAMES for part in ("pace", "tokenizer", "measure")),
        "compare-light",
    ]


def test_the_page_reports_what_was_found(home: Path, result: dict[str, Any]) -> None:
    text, images = page(home / "out")
    rows = result["steps"]["compare-wide"]["outcome"]["rows"]
    assert f"modern way at {rows['modern']['psnr']:.4g}" in text
    assert "What single changes cost: wide" in text
    assert "LPIPS was not measured" in text
    assert "Each was trained once, with one seed." in text
    assert images == 2 + 2 * 2 * 3 * 2, "the band; for each set originals and both, whole and in details"
    assert "nan" not in text


def test_a_change_of_one_training_leaves_the_others_as_they_are(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "out", tmp_path / "out")
    before = json.loads((tmp_path / "out" / "result.json").read_text())["steps"]
    changed = chosen(home)
    changed["without"] = [{"name": "no-average", "changes": ["optimizer.grad_clip=0"]}]
    with no_weights(tmp_path / "cache"), quick():
        after = run_and_read(NAME, tmp_path / "out", request(home / "a", changed))["steps"]
    moved = {name for name in after if after[name]["folder"] != before[name]["folder"]}
    assert {name.removesuffix("no-average") for name in moved} == {
        *(f"{part}-{each}-" for part in ("pace", "tokenizer", "measure") for each in ("light", "wide")),
        *(f"compare-{each}" for each in ("light", "wide")),
    }


@pytest.mark.parametrize(
    ("changes", "override", "sentence"),
    [
        (
            {"modern": {"recipe": "RECIPE", "changes": ["model.autoencoder.base_channels=16"]}},
            (),
            r"reference has \S+ parameters and modern",
        ),
        ({"without": [{"name": "modern"}]}, (), "two trainings are called 'modern'"),
        ({"sets": [{"name": "a", "size": [8, 8]}] * 2}, (), "two sets of images are called 'a'"),
        ({}, ("tokenizer.run.images=9",), "each training lasts as long as the others; set minutes"),
        ({}, ("tokenizer.run.ema_half_life=1",), "the experiment decides run.ema_half_life itself"),
        ({}, ("prior.run.codes=9",), "no prior is trained in this experiment"),
        ({}, ("scenes=9",), "images are given and no scenes are rendered"),
    ],
)  # fmt: skip
def test_mistakes_are_sentences_before_anything_is_done(
    home: Path, tmp_path: Path, changes: dict[str, Any], override: tuple[str, ...], sentence: str
) -> None:
    values = json.loads(json.dumps({**chosen(home), **changes}).replace("RECIPE", str(home / "small.yaml")))
    with no_weights(tmp_path), pytest.raises(SmaltiError, match=sentence):
        run_and_read(NAME, tmp_path / "out", request(home / "a", values, *override))
    assert not (tmp_path / "out").exists()


# --- both ways of training, as the scales have them -----------------------------------------------------------------


def training(recipe: str, *changes: str) -> TokenizerTraining:
    return resolve(TokenizerTraining, stage="tokenizer", recipe=recipe, overrides=changes)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return found


def single_changes() -> dict[str, list[str]]:
    """Name -> the change away from modern, for all that are known: those of the scale full, with rates as at small."""
    known = [each for scale in ("full", "small", "tiny") for each in STUDY.scales[scale].settings["without"]]
    return {each["name"]: each["changes"] for each in known}


@pytest.mark.parametrize("name", sorted(single_changes()))
def test_each_single_change_is_away_from_modern_to_what_the_reference_has(name: str) -> None:
    modern, original = flat(as_mapping(training("small-64"))), flat(as_mapping(training("small-reference")))
    changed = flat(as_mapping(training("small-64", *single_changes()[name])))
    moved = {key for key in changed if changed[key] != modern[key]}
    assert moved, "a change that changes nothing"
    assert len(moved) >= len(single_changes()[name]) - 1, "each part of it changes something"
    assert {key: changed[key] for key in moved} == {key: original[key] for key in moved}


def test_all_that_reports_the_two_apart_is_among_the_single_changes() -> None:
    modern, original = flat(as_mapping(training("small-64"))), flat(as_mapping(training("small-reference")))
    apart = {key for key in modern if modern[key] != original[key] and not key.startswith(("run.", "images."))}
    changed = {change.partition("=")[0] for changes in single_changes().values() for change in changes}
    assert apart - changed == set()


@pytest.mark.parametrize("scale", STUDY.scales)
def test_all_trainings_of_a_scale_have_about_as_many_parameters(scale: str) -> None:
    settings = STUDY.resolved(ExperimentRequest(scale=scale, data=Path("given")))
    ways = {"reference": settings.reference, "modern": settings.modern}
    found = {name: weights(training(way.recipe, *way.changes)).tokenizer for name, way in ways.items()}
    for each in settings.without:
        found[each.name] = weights(training(settings.modern.recipe, *settings.modern.changes, *each.changes)).tokenizer
    check_parameter_counts(found, like="modern", within=settings.parameters_within, change="change it")
    assert found["reference"] > 6e6


def test_parameters_are_those_of_the_networks() -> None:
    small = training(
        "small-64", "model.autoencoder.base_channels=16", "objective.adversarial.discriminator.base_channels=8"
    )
    discriminator = DISCRIMINATORS["patch"](small.objective.adversarial.discriminator)
    counts = [sum(each.numel() for each in network.parameters()) for network in (VQGAN(small.model), discriminator)]
    assert list(weights(small)) == counts
    assert weights(training("small-64", "objective.adversarial.weight=0")).discriminator == 0


def test_parameters_may_differ_by_a_share() -> None:
    some = {"modern": 1000, "reference": 1099}
    check_parameter_counts(some, like="modern", within=0.1, change="change it")
    with pytest.raises(
        SmaltiError, match=r"reference has 1,099 parameters and modern 1,000: \+10%, where 9% is allowed"
    ):
        check_parameter_counts(some, like="modern", within=0.09, change="change it")


# --- the clock --------------------------------------------------------------------------------------------------------


def test_a_training_is_as_long_as_the_minutes_allow() -> None:
    small = training("small-64")
    run = with_duration(small, minutes=2.0, seconds_per_image=0.7).run
    assert run.images == 168, "120 seconds are 171.4 images, in batches of 4"
    assert (run.validate_every, run.checkpoint_every) == (14, 56)
    assert with_duration(small, minutes=1e-6, seconds_per_image=1.0).run.images == 4, "at least a step"


def test_the_pace_is_taken_away_from_the_borders_between_phases() -> None:
    """A step on the border would index the codes, which is done once in a training and not in each step."""
    small = at_nominal_length(training("small-64"))
    assert small.run.images == NOMINAL
    game = small.objective.adversarial
    borders = [0.0, small.quantize_from, game.start, game.start + game.ramp, 1.0]
    places = [(2 * number + 1) / (2 * PLACES) for number in range(PLACES)]
    assert min(abs(index - border) for index in places for border in borders) * NOMINAL > 100 * small.run.batch
    assert any(index < game.start for index in places)
    assert any(index > game.start + game.ramp for index in places)


def test_looking_at_held_out_images_is_no_training() -> None:
    lines = [
        {"part": "train", "seen": 4, "elapsed": 2.0},
        {"part": "validation", "seen": 4, "elapsed": 5.0, "psnr": 9.0, "perceptual": 0.5},
        {"part": "train", "seen": 8, "elapsed": 7.0},
        {"part": "validation", "seen": 8, "elapsed": 8.0, "psnr": 11.0, "perceptual": 0.4},
        {"part": "train", "seen": 12, "elapsed": 12.0},
        {"part": "validation", "seen": 12, "elapsed": 19.0, "psnr": 12.0, "perceptual": 0.3},
    ]
    found = tokenizer_curve(lines)
    assert [point["seconds"] for point in found] == [2.0, 4.0, 8.0]
    assert [point[LPIPS] for point in found] == [0.5, 0.4, 0.3]


values = st.lists(st.integers(0, 20), min_size=1, max_size=8)


@given(values, st.integers(0, 20), st.sampled_from([LPIPS, "psnr"]))
def test_the_moment_at_which_a_target_is_reached(heights: list[int], target: int, score: str) -> None:
    points = [{"seconds": 3.0 * index + 1, score: float(height)} for index, height in enumerate(heights)]
    found = reached(points, score, target=float(target))
    slow = reference.first_reached(points, score, target=float(target), lower_is_better=score == LPIPS)
    assert (found is None) == (slow is None)
    if found is not None and slow is not None:
        assert found == pytest.approx(slow, abs=2e-3)


def test_the_pace_is_the_mean_over_all_phases_of_the_step_that_is_neither_fast_nor_slow(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    seen_at: list[int] = []

    def step(stage: Any, batch: Any, seen: int, fabric: Any) -> None:
        # The first step of all is slow, and so is every tenth; where the discriminator plays a step takes three times
        # as long.
        seen_at.append(seen)
        clock[0] += 50.0 if len(seen_at) % 10 == 1 else 3.0 if seen > NOMINAL / 2 else 1.0

    monkeypatch.setattr(pace, "_step", step)
    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    found = pace.measure_tokenizer_pace(
        at_nominal_length(training(str(home / "small.yaml"))), open_source(home / "a"), seconds=1.0
    )
    assert found == pytest.approx(2.0 / 4), "a mean step takes 2 seconds and has 4 images"
    assert len(set(seen_at)) == PLACES
    assert POINTS > SAVED


def test_images_need_not_be_given_where_every_set_names_its_own() -> None:
    sets = "sets=[{name: a, data: stones, size: [64, 64]}, {name: b, data: %s, size: [64, 64]}]"
    request = ExperimentRequest(scale="small", overrides=(sets % "leaves",))
    assert [each.data for each in EXPERIMENTS["modern-vs-reference"].resolved(request).sets] == ["stones", "leaves"]
    with pytest.raises(SmaltiError, match="give the images with --data"):
        EXPERIMENTS["modern-vs-reference"].resolved(ExperimentRequest(scale="small", overrides=(sets % "null",)))


def test_the_change_of_everything_is_the_sum_of_the_others() -> None:
    changes = {name: each for name, each in single_changes().items() if name not in ("reference-rate", "constant-rate")}
    everything = changes.pop("reference-our-rate")
    assert set(everything) == {change for each in changes.values() for change in each}
