"""InceptionV3, its resize, and the scores of sets, against numbers that torch-fidelity gave."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from smalti.evaluation.distances import FeatureMoments, Gaussian, InceptionScore, frechet
from smalti.evaluation.inception import InceptionV3, Taps, resize_like_tensorflow
from smalti.evaluation.nearest_neighbors import kernel_distance, manifold
from tests.golden import Golden, fixtures

pytestmark = pytest.mark.golden

NEIGHBORS, PARTS = 3, 10  # as the table of golden numbers says


@pytest.fixture(scope="module", params=fixtures("15_"))
def golden(request: pytest.FixtureRequest) -> Golden:
    path: Path = request.param
    return Golden.read(path)


def tensor_by_rule(key: str, *, seed: int, number: int, shape: list[int]) -> npt.NDArray[np.float32]:
    """One tensor of the random weights, by the rule in `data.json`."""
    chance = np.random.default_rng([seed, number])
    if key.endswith("running_var"):
        values = chance.uniform(0.5, 1.5, shape)
    elif key.endswith(("running_mean", "bias")):
        values = 0.1 * chance.standard_normal(shape)
    elif len(shape) > 1:
        values = chance.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    else:
        values = chance.uniform(0.8, 1.2, shape)
    return values.astype(np.float32)


@pytest.fixture(scope="module")
def network(golden: Golden) -> InceptionV3:
    rule = golden.facts["weights_rule"]
    tensors = {}
    for key, (number, shape, digest) in rule["keys"].items():
        values = tensor_by_rule(key, seed=rule["seed"], number=number, shape=shape)
        assert hashlib.sha256(values.tobytes()).hexdigest().startswith(digest), key
        tensors[key] = torch.from_numpy(values)
    network = InceptionV3()
    network.load_state_dict(tensors)
    return network


def sizes(golden: Golden) -> list[str]:
    return [key.removeprefix("in.images.") for key in golden.tensors if key.startswith("in.images.")]


@pytest.fixture(scope="module")
def taps(golden: Golden, network: InceptionV3) -> dict[str, Taps]:
    """The size of a batch of images -> what the network says about it."""
    return {size: network(golden[f"in.images.{size}"]) for size in sizes(golden)}


@pytest.mark.parametrize("tap", ["pool64", "pool192", "pool768", "pool2048", "logits_unbiased", "logits"])
def test_every_tap_is_the_originals(golden: Golden, taps: dict[str, Taps], tap: str) -> None:
    assert taps
    for size, found in taps.items():
        expected = golden[f"out.{size}.{tap.removeprefix('pool')}"]
        torch.testing.assert_close(getattr(found, tap), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_images_of_a_batch_do_not_meet(golden: Golden, network: InceptionV3, taps: dict[str, Taps]) -> None:
    size = sizes(golden)[0]
    alone = network(golden[f"in.images.{size}"][1:])
    torch.testing.assert_close(alone.pool2048, taps[size].pool2048[1:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone.spatial, taps[size].spatial[1:], rtol=1e-5, atol=1e-5)


def test_the_resize_is_the_originals(golden: Golden) -> None:
    keys = {match[0]: match for key in golden.tensors if (match := re.fullmatch(r"out\.resize_(\d+)(?:x(\d+))?", key))}
    assert len(keys) == 2
    for key, match in keys.items():
        target = (int(match[1]), int(match[2] or match[1]))
        expected = golden[key]
        step = -(-target[0] // expected.shape[2])  # the large one holds every so many rows and columns only
        errors = [
            (resize_like_tensorflow(golden[f"in.images.{size}"][:1].float(), target)[..., ::step, ::step] - expected)
            for size in sizes(golden)
        ]
        assert min(float(error.abs().max()) for error in errors) < 1e-3, key  # of whichever size came first


def gaussian(features: torch.Tensor, *, batch: int) -> Gaussian:
    moments = FeatureMoments(features.shape[1])
    for part in torch.split(features, batch):
        moments.update(part)
    return moments.gaussian()


@pytest.mark.parametrize("batch", [1, 37, 10_000])
def test_fid(golden: Golden, batch: int) -> None:
    first, second = (gaussian(golden[f"in.features_{each}"], batch=batch) for each in "ab")
    assert frechet(first, second).value == pytest.approx(golden.facts["metrics"]["fid"], rel=1e-6)


def test_inception_score(golden: Golden) -> None:
    logits = golden["in.logits"]
    score = InceptionScore(logits.shape[1], images=len(logits), splits=PARTS)
    for places in torch.split(torch.randperm(len(logits), generator=torch.Generator().manual_seed(0)), 77):
        score.update(logits[places], places)
    expected = golden.facts["metrics"]["isc"]
    found = score.score()
    assert found.mean == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert found.deviation == pytest.approx(expected["inception_score_std"], rel=1e-6)


def test_kid(golden: Golden) -> None:
    facts: dict[str, Any] = golden.facts["metrics"]["kid"]
    numbers = re.search(r"(\d+) random subsets of (\d+)", facts["note"])
    assert numbers, facts["note"]
    subsets, size = int(numbers[1]), int(numbers[2])
    found = kernel_distance(golden["in.features_a"], golden["in.features_b"], subsets=subsets, size=size)
    mean, deviation = (facts["values"][f"kernel_inception_distance_{each}"] for each in ("mean", "std"))
    assert found.mean == pytest.approx(mean, abs=3 * deviation / subsets**0.5)
    assert found.deviation == pytest.approx(deviation, rel=0.5)


def test_precision_and_recall(golden: Golden) -> None:
    a, b = golden["in.features_a"], golden["in.features_b"]
    found = manifold(a, b, neighbors=NEIGHBORS)
    expected = golden.facts["metrics"]["prc"]
    assert round(found.precision * len(a)) == pytest.approx(expected["precision"] * len(a), abs=1e-3)
    assert round(found.recall * len(b)) == pytest.approx(expected["recall"] * len(b), abs=1e-3)
