"""The experiment `orders`: the same codes and the same network in every order; its figures are those of its models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smalti.conditions.base import constant_prefix
from smalti.core.errors import SmaltiError
from smalti.experiments import equal_time, prior_steps
from smalti.experiments.base import ExperimentRequest
from smalti.experiments.experiment_registry import EXPERIMENTS
from smalti.experiments.orders import experiment
from smalti.experiments.orders.experiment import in_turn
from smalti.experiments.orders.findings import CALLED, RASTER, by_part, compare_to_raster, orders_by_nats, shown
from smalti.experiments.page_parts import pixels
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.hub.pretrained import find_model
from smalti.images.io import to_array
from smalti.model_loading import load_tokenizer
from smalti.pipeline import Pipeline
from smalti.prior import nll
from smalti.prior.order import ORDERS, Order
from smalti.prior_folder import load_prior
from smalti.reports.number_format import signed
from tests.experiment_helpers import held_out_codes, no_weights, page, request, run_and_read, step_folder
from tests.small import SIDE, write_images, write_recipe

pytestmark = pytest.mark.slow

NAME = "orders"
STUDY = EXPERIMENTS[NAME]
LENGTH = 384
SEEDS = 3


def chosen(home: Path) -> dict[str, Any]:
    return {
        "recipe": str(home / "small.yaml"),
        "tokenizer": ["run.images=16"],
        "prior": [
            f"run.codes={LENGTH}",
            "network={name: gpt, layers: 1, embed_dim: 16, heads: 2}",
            "optimizer.lr=2e-3",
        ],
        "size": [SIDE, SIDE],
        "copies": 2,
        "held_out": 0.3,
        "samples": SEEDS,
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a recipe, and the experiment done once in `out`, with all orders there are."""
    path = tmp_path_factory.mktemp("orders")
    write_images(path / "a")
    write_recipe(path / "small.yaml")
    with no_weights(path / "cache"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(equal_time, "POINTS", 2)
        run_and_read(NAME, path / "out", request(path / "a", chosen(path)))
    return path


@pytest.mark.parametrize("order", ORDERS)
def test_figures_are_those_of_the_model_on_the_held_out_images(home: Path, found: dict[str, Any], order: Order) -> None:
    prior, _ = load_prior(find_model(step_folder(home, found, f"prior-{order}"), kind="prior"))
    assert prior.order == order
    compared = found["compare"]["outcome"]
    assert compared["parameters"] == sum(weight.numel() for weight in prior.parameters())
    codes = held_out_codes(home, found)
    assert compared["images"] == len(codes) > 1
    with torch.no_grad():
        each = nll(prior, prior.null_prefix(len(codes)), codes)  # (B,h,w)
    row = compared["rows"][order]
    assert row["nats"] == pytest.approx(each.mean().item(), abs=1e-4)
    assert row["codes"] == LENGTH == found[f"prior-{order}"]["outcome"]["curve"][-1]["codes"]
    turns = compared["by_turn"][order]
    places = ORDERS[order](4, 4).tolist()
    assert turns[5] == pytest.approx(each.flatten(1)[:, places[5]].mean().item(), abs=1e-4), "the sixth code laid"


@pytest.mark.parametrize("order", ORDERS)
def test_differences_from_raster_are_image_by_image(home: Path, found: dict[str, Any], order: Order) -> None:
    codes, values = held_out_codes(home, found), {}
    for name in (order, RASTER):
        prior, _ = load_prior(find_model(step_folder(home, found, f"prior-{name}"), kind="prior"))
        with torch.no_grad():
            values[name] = nll(prior, prior.null_prefix(len(codes)), codes).double().mean((1, 2))
    gains = values[order] - values[RASTER]
    row = found["compare"]["outcome"]["rows"][order]
    assert row["over_raster"] == pytest.approx(gains.mean().item(), abs=1e-5)
    assert row["error"] == pytest.approx(gains.std().item() / math.sqrt(len(gains)), abs=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_samples_are_what_the_program_generates_in_that_order(home: Path, found: dict[str, Any], order: Order) -> None:
    tokenizer = load_tokenizer(step_folder(home, found, "tokenizer"))
    prior, condition = load_prior(find_model(step_folder(home, found, f"prior-{order}"), kind="prior"))
    pipeline = Pipeline(tokenizer, prior, condition)
    prefix, known = prior.null_prefix(SEEDS), unknown_codes(SEEDS, prior.grid)
    codes = final_codes(
        generate(
            prior, GenerationRequest(constant_prefix(prefix), sampler=Sampler(), seeds=torch.arange(SEEDS), known=known)
        )
    )
    files = sorted((step_folder(home, found, f"samples-{order}") / "samples").glob("*.png"))
    assert len(files) == SEEDS
    wanted = to_array(pipeline.decode(codes))
    for file, image in zip(files, wanted, strict=True):
        assert np.array_equal(pixels(file), image)


def test_all_see_the_same_batches(home: Path, found: dict[str, Any]) -> None:
    settings = []
    for order in ORDERS:
        note = json.loads(step_folder(home, found, f"prior-{order}").with_suffix(".json").read_text())
        assert note["settings"]["training"]["network"].pop("order") == order
        assert note["after"] == ["tokenizer", "codes"]
        settings.append(note["settings"])
    assert settings.count(settings[0]) == len(ORDERS), "the order is all that differs"


def test_the_numbers_of_a_grid_in_turn() -> None:
    values = torch.arange(12.0).view(3, 4)
    assert in_turn(values, "raster").tolist() == list(range(12))
    assert in_turn(values, "alternate").tolist() == [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11]


def test_turns_are_averaged_in_parts() -> None:
    assert by_part([float(value) for value in range(16)])[:2] == [(1.5, 0.5), (3.5, 2.5)]
    assert by_part([4.0, 2.0]) == [(1.0, 4.0), (2.0, 2.0)]


def test_an_image_of_an_order_is_darker_where_codes_come_later() -> None:
    image = shown("spiral_out", (2, 2), size=(4, 6))
    assert image.shape == (4, 6)
    first, second, third, fourth = image[2, 0], image[0, 0], image[0, 3], image[3, 5]
    assert first > second > third > fourth
    assert (image[:2, :3] == second).all()


def test_a_difference_in_words() -> None:
    assert (signed(-0.01, 0.0026), signed(0.25, None)) == ("\u22120.010 ± 0.003", "+0.250")


def test_orders_are_distinguished_by_two_standard_errors() -> None:
    values: dict[Order, tuple[float, float, float]] = {
        "raster": (4.0, 0.0, 0.0),
        "random": (4.3, 0.3, 0.1),
        "z_curve": (4.1, 0.1, 0.06),
        "subsample": (3.9, -0.1, 0.04),
        "alternate": (3.95, -0.05, 0.03),
    }
    rows: dict[Order, dict[str, float]] = {
        name: {"nats": mean, "over_raster": over, "error": error} for name, (mean, over, error) in values.items()
    }
    assert compare_to_raster(rows) == (["subsample"], ["alternate", "z_curve"], ["random"])
    assert orders_by_nats(rows) == ["subsample", "alternate", "raster", "z_curve", "random"]


def test_the_page_reports_what_was_found(home: Path, found: dict[str, Any]) -> None:
    text, images = page(home / "out")
    rows = found["compare"]["outcome"]["rows"]
    assert f"row major has {rows[RASTER]['nats']:.3f} nats per code" in text
    best = orders_by_nats(rows)[0]
    assert rows[best]["nats"] == min(row["nats"] for row in rows.values())
    assert f"Likeliest: {CALLED[best]}" in text
    for order in compare_to_raster(rows).alike:
        row = rows[order]
        assert f"{CALLED[order]} ({signed(row['over_raster'], row['error'])})" in text
    assert images == len(ORDERS) * (1 + SEEDS)
    assert "nan" not in text.lower().split()


def test_fewer_orders_train_nothing_anew(home: Path, tmp_path: Path, found: dict[str, Any]) -> None:
    few = {**chosen(home), "orders": ["raster", "random"]}
    with no_weights(home / "cache"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(equal_time, "POINTS", 2)
        patch.setattr(prior_steps, "trained", None)
        patch.setattr(experiment, "generate_images", None)
        again = run_and_read(NAME, home / "out", request(home / "a", few))["steps"]
        compared = again.pop("compare")["outcome"]["rows"]
        assert again == {name: found[name] for name in again}
        assert compared == {order: found["compare"]["outcome"]["rows"][order] for order in ("raster", "random")}
        run_and_read(NAME, home / "out", request(home / "a", chosen(home)))


@pytest.mark.parametrize("scale", STUDY.scales)
def test_every_scale_can_be_planned(home: Path, scale: str) -> None:
    what = ExperimentRequest(scale=scale, data=home / "a")
    settings = STUDY.resolved(what)
    assert settings.orders == tuple(ORDERS)
    steps = [step.name for step in STUDY.plan(settings, what)]
    assert [name for name in steps if name.startswith("prior-")] == [f"prior-{order}" for order in ORDERS]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("orders=[random, subsample]", "orders = random, subsample is without raster"),
        ("orders=[raster, random, random]", "has random twice"),
        ("orders=[raster, hilbert]", "hilbert|'raster'"),
        ("prior.network.order=random", "decides network.order itself"),
        ("prior.run.patience=3", "decides run.patience itself"),
        ("tokenizer.images.size=[8, 8]", "decides images.size itself"),
        ("scenes=3", "no scenes are rendered"),
        ('prior=["network={name: pixelsnail, layers: 1, res_blocks: 1, embed_dim: 20, heads: 2}"]', "raster"),
    ],
)
def test_mistakes_are_sentences(home: Path, tmp_path: Path, override: str, sentence: str) -> None:
    with no_weights(tmp_path), pytest.raises(SmaltiError, match=sentence):
        run_and_read(NAME, tmp_path / "out", request(home / "a", chosen(home), override))
    assert not (tmp_path / "out").exists(), "nothing is begun"
