"""The experiment `quantizers`: one of each, as many codes, as many images, and figures that are those of its models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from smalti.core.errors import SmaltiError
from smalti.experiments.base import ExperimentRequest
from smalti.experiments.experiment_registry import EXPERIMENTS
from smalti.tokenizer.quantizers import QUANTIZERS
from smalti.training.config import TokenizerTraining, resolve
from smalti.training.run_folder import read_metrics
from tests.experiment_helpers import no_weights, page, quick, request, run_and_read
from tests.small import SIDE, write_images, write_recipe

pytestmark = pytest.mark.slow

NAME = "quantizers"
STUDY = EXPERIMENTS[NAME]
SMALL = [
    {
        "name": "vq-reference",
        "changes": ["model.quantizer={name: vq, codebook_size: 16, codebook_dim: 4, kmeans_iterations: 0}"],
    },
    {
        "name": "vq-rotation",
        "changes": ["model.quantizer={name: vq, codebook_size: 16, codebook_dim: 4, gradient: rotation}"],
    },
    {"name": "ema", "changes": ["model.quantizer={name: ema, codebook_size: 16, codebook_dim: 4}"]},
    {"name": "gumbel", "changes": ["model.quantizer={name: gumbel, codebook_size: 16, codebook_dim: 8}"]},
    {"name": "fsq", "changes": ["model.quantizer={name: fsq, levels: [4, 4]}"]},
    {"name": "lfq", "changes": ["model.quantizer={name: lfq, codebook_dim: 4}"]},
    {"name": "simvq", "changes": ["model.quantizer={name: simvq, codebook_size: 16, codebook_dim: 4}"]},
]


def chosen(home: Path) -> dict[str, Any]:
    return {
        "recipe": str(home / "small.yaml"),
        "training": ["run.images=16"],
        "quantizers": SMALL,
        "size": [SIDE, SIDE],
        "pace_seconds": 0.01,
        "held_out": 0.3,
        "images": 6,
        "shown": 2,
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a recipe, and the experiment done once in `out`."""
    path = tmp_path_factory.mktemp("quantizers")
    write_images(path / "a")
    write_recipe(path / "small.yaml")
    with no_weights(path / "cache"), quick():
        run_and_read(NAME, path / "out", request(path / "a", chosen(path)))
    return path


@pytest.mark.parametrize("name", [each["name"] for each in SMALL])
def test_each_is_trained_timed_and_measured(home: Path, name: str) -> None:
    found = json.loads((home / "out" / "result.json").read_text())["steps"]
    measured, run = found[f"measure-{name}"]["outcome"], home / "out" / found[f"tokenizer-{name}"]["folder"]
    assert measured["codes"] == 16
    assert read_metrics(run)[-1]["seen"] == 16
    assert found[f"pace-{name}"]["outcome"]["seconds_per_image"] > 0
    assert 1 <= measured["result"]["scores"]["perplexity"] <= 16
    text, _ = page(home / "out")
    assert f"{name} has {measured['result']['scores']['codes_in_use']:.0%} in use" in text


def test_the_page_reports_what_was_found_and_what_is_missing(home: Path) -> None:
    text, images = page(home / "out")
    assert "By PSNR" in text
    assert "LPIPS was not measured" in text
    assert "times the training time that it costs" in text
    assert images == 2 + 2 * 2 * (1 + len(SMALL))
    assert "nan" not in text


@pytest.mark.parametrize("scale", STUDY.scales)
def test_every_quantizer_there_is_is_compared_with_as_many_codes(scale: str) -> None:
    settings = STUDY.resolved(ExperimentRequest(scale=scale, data=Path("given")))
    found = {}
    for each in settings.quantizers:
        generated = [*settings.training, *each.changes]
        training = resolve(TokenizerTraining, stage="tokenizer", recipe=settings.recipe, overrides=generated)
        found[each.name] = training.model.quantizer
    assert {quantizer.name for quantizer in found.values()} == set(QUANTIZERS)
    sizes = [quantizer.codebook_size for quantizer in found.values()]
    assert max(sizes) - min(sizes) <= 0.03 * max(sizes)
    assert all(math.log2(size) > 8.9 for size in sizes)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("tokenizer.model.quantizer.codebook_size=9", "decides model.quantizer.codebook_size itself"),
        ("tokenizer.model={}", "decides model itself"),
        ("quantizers=[{name: a}, {name: a}]", "two quantizers are called 'a'"),
        ("prior.run.codes=9", "no prior is trained in this experiment"),
    ],
)
def test_mistakes_are_sentences(home: Path, tmp_path: Path, override: str, sentence: str) -> None:
    with no_weights(tmp_path), pytest.raises(SmaltiError, match=sentence):
        run_and_read(NAME, tmp_path / "out", request(home / "a", chosen(home), override))
