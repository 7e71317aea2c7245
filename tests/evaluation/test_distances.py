"""Scores of sets of images: closed forms, slow definitions, and that order, batches and processes do not matter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.evaluation.distances import FeatureMoments, Gaussian, InceptionScore, frechet
from smalti.evaluation.metrics import Accumulator
from smalti.evaluation.nearest_neighbors import FeatureReservoir, kernel_distance, manifold

D, CLASSES = 6, 5


def draws(count: int, width: int = D, *, seed: int = 0) -> Tensor:
    """Correlated features (N,D) with a mean, float32."""
    chance = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, width, generator=chance) @ mixing + 2.0 + 0.1 * seed


def moments(features: Tensor) -> FeatureMoments:
    made = FeatureMoments(features.shape[1])
    made.update(features)
    return made


def gaussian(features: Tensor) -> Gaussian:
    return moments(features).gaussian()


def gathered(parts: Sequence[Accumulator]) -> dict[str, Tensor]:
    """What all-gather makes of the states."""
    states = [part.state() for part in parts]
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


@st.composite
def divisions(draw: st.DrawFn, *, count: int) -> list[list[list[int]]]:
    """A set of `count` images -> for each of one to three processes, batches of indices in any order."""
    order = draw(st.permutations(range(count)))
    cuts = sorted(draw(st.lists(st.integers(0, count), max_size=6)))
    batches = [order[a:b] for a, b in zip([0, *cuts], [*cuts, count], strict=True)]
    processes = draw(st.integers(1, 3))
    return [batches[process::processes] for process in range(processes)]


# --- the Frechet distance ------------------------------------------------------------------------------------------


def test_moments_are_those_of_the_whole() -> None:
    features = draws(50)
    found = gaussian(features)
    torch.testing.assert_close(found.mean, features.double().mean(0), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(found.covariance, torch.cov(features.double().T), rtol=1e-13, atol=1e-13)
    assert found.images == 50


@settings(max_examples=20, deadline=None)
@given(divisions(count=23))
def test_moments_do_not_depend_on_order_batches_or_processes(division: list[list[list[int]]]) -> None:
    features = draws(23)
    parts = [FeatureMoments(D) for _ in division]
    for part, batches in zip(parts, division, strict=True):
        for indices in batches:
            part.update(features[indices])
    total = FeatureMoments(D)
    total.merge_gathered(gathered(parts))
    expected = gaussian(features)
    torch.testing.assert_close(total.gaussian().mean, expected.mean, rtol=1e-13, atol=0.0)
    torch.testing.assert_close(total.gaussian().covariance, expected.covariance, rtol=1e-12, atol=1e-13)
    reference = gaussian(draws(40, seed=1))
    assert frechet(total.gaussian(), reference).value == pytest.approx(frechet(expected, reference).value, rel=1e-9)


def test_a_large_mean_costs_no_digits() -> None:
    features = draws(64).double() + 1e6
    made = FeatureMoments(D)
    for part in torch.split(features, 5):
        made.update(part)
    torch.testing.assert_close(made.gaussian().covariance, torch.cov(features.T), rtol=1e-8, atol=1e-8)


def test_memory_does_not_grow() -> None:
    made = moments(draws(3))
    shapes = {name: tensor.shape for name, tensor in made.state().items()}
    made.update(draws(500))
    assert {name: tensor.shape for name, tensor in made.state().items()} == shapes
    assert all(tensor.numel() <= D * D for tensor in vars(made).values())


def test_states_are_copies() -> None:
    score, kept = InceptionScore(CLASSES, images=10), FeatureReservoir(D, limit=7)
    made = moments(draws(5))
    score.update(logits(5), torch.arange(5))
    kept.update(draws(5), torch.arange(5))
    states = [each.state() for each in (made, score, kept)]
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    made.update(draws(5, seed=1))
    score.update(logits(5), torch.arange(5, 10))
    kept.update(draws(5), torch.arange(5, 10))
    for state, copy in zip(states, before, strict=True):
        assert all(state[name].equal(copy[name]) for name in copy)


def test_the_distance_of_commuting_covariances_by_hand() -> None:
    """For diagonal covariances: |m1-m2|^2 + sum (s1-s2)^2; and a common rotation changes nothing."""
    deviations = torch.tensor([[1.0, 2.0, 0.5], [3.0, 0.1, 0.5]], dtype=torch.float64)
    means = torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 5.0]], dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    a, b = (
        Gaussian(turn @ mean, turn @ torch.diag(deviation**2) @ turn.T, 100)
        for mean, deviation in zip(means, deviations, strict=True)
    )
    found = frechet(a, b)
    assert found.value == pytest.approx(13 + 4 + 1.9**2, rel=1e-12)
    assert found.means == pytest.approx(13, rel=1e-12)
    assert found.notes == ()


def test_the_distance_is_that_of_the_formula() -> None:
    a, b = gaussian(draws(50)), gaussian(draws(40, seed=3).square())
    root = torch.linalg.eigvals(a.covariance @ b.covariance).real.sqrt().sum()
    expected = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * root
    assert frechet(a, b).value == pytest.approx(float(expected), rel=1e-10)
    assert frechet(b, a).value == pytest.approx(float(expected), rel=1e-10)


def test_equal_sets_have_no_distance() -> None:
    """Nor a negative one, which rounding would give to some of these."""
    for seed in range(10):
        same = gaussian(draws(50, seed=seed))
        assert 0 <= frechet(same, same).value < 1e-12


def test_singular_covariances_are_handled_and_reported() -> None:
    """Four images of six features; features that never vary; and one image's features twice."""
    few, many = gaussian(draws(4)), gaussian(draws(60, seed=1))
    found = frechet(few, many)
    assert 0 < found.value < math.inf
    (note,) = found.notes
    assert "samples: 4 images are fewer than the 6 features" in note
    assert "rank 3" in note
    assert ["reference: 4 images" in each for each in frechet(many, few).notes] == [True]

    flat = draws(60, seed=1) * torch.tensor([1.0, 1, 1, 1, 0, 0])
    (note,) = frechet(many, gaussian(flat)).notes
    assert "reference: the covariance is singular (rank 4 of 6 features)" in note
    still = gaussian(torch.ones(9, D))
    found = frechet(still, many)
    assert found.value == pytest.approx(float((still.mean - many.mean).square().sum() + many.covariance.trace()))


def test_the_singular_distance_does_not_depend_on_order() -> None:
    """Roots of rounding errors would show here: there are more features than images."""
    features, reference = draws(20, 64), gaussian(draws(30, 64, seed=1))
    first = frechet(gaussian(features), reference).value
    other = FeatureMoments(64)
    for part in torch.split(features.flip(0), 3):
        other.update(part)
    assert frechet(other.gaussian(), reference).value == pytest.approx(first, rel=1e-12)
    assert frechet(reference, gaussian(features)).value == pytest.approx(first, rel=1e-12)


def test_statistics_of_unknown_size_have_no_note_of_it() -> None:
    many = gaussian(draws(60))
    assert frechet(many, many._replace(images=None)).notes == ()
    assert "singular" in frechet(many, gaussian(draws(4))._replace(images=None)).notes[0]


def test_what_is_no_distribution_is_refused() -> None:
    good = gaussian(draws(50))
    with pytest.raises(SmaltiError, match="at least 2 images, there is 1"):
        gaussian(draws(1))
    with pytest.raises(SmaltiError, match="at least 2 images, there are 0"):
        FeatureMoments(3).gaussian()
    with pytest.raises(SmaltiError, match="not all finite"):
        gaussian(torch.tensor([[1.0, math.nan], [0.0, 1.0]]))
    with pytest.raises(SmaltiError, match="statistics of 6 and of 3 features"):
        frechet(good, gaussian(draws(9, 3)))
    with pytest.raises(SmaltiError, match=r"reference are no mean and covariance: .*\(6,\) and \(6, 5\)"):
        frechet(good, good._replace(covariance=good.covariance[:, :5]))
    with pytest.raises(SmaltiError, match="samples hold values that are not finite"):
        frechet(good._replace(covariance=good.covariance * math.nan), good)
    with pytest.raises(SmaltiError, match="samples hold no covariance: it has the negative eigenvalue -"):
        frechet(good._replace(covariance=-good.covariance), good)
    with pytest.raises(SmaltiError, match="reference hold no covariance: it has the negative eigenvalue -1"):
        frechet(good, good._replace(covariance=torch.diag(torch.tensor([-1.0, 2, 3, 4, 5, 6]))))


# --- the Inception Score -------------------------------------------------------------------------------------------


def logits(count: int) -> Tensor:
    return 3 * torch.randn(count, CLASSES, generator=torch.Generator().manual_seed(5))


def slow_score(values: Tensor) -> float:
    """exp(E KL(p(y|x) || p(y))), image by image."""
    shares = values.double().softmax(1)
    mean = shares.mean(0)
    divergences = [sum(p * math.log(p / q) for p, q in zip(row, mean.tolist(), strict=True)) for row in shares.tolist()]
    return math.exp(sum(divergences) / len(divergences))


def test_the_score_is_the_mean_over_consecutive_parts() -> None:
    values = logits(23)
    score = InceptionScore(CLASSES, images=23, splits=3)
    for process in range(2):  # indices with gaps, as the processes of a sampler have them
        indices = torch.arange(23)[process::2]
        score.update(values[indices], indices)
    expected = torch.tensor([slow_score(values[a:b]) for a, b in ((0, 7), (7, 15), (15, 23))])
    found = score.score()
    assert found.mean == pytest.approx(float(expected.mean()), rel=1e-6)
    assert found.deviation == pytest.approx(float(expected.std(correction=0)), rel=1e-5)
    assert found.notes == ()


@settings(max_examples=20, deadline=None)
@given(divisions(count=23))
def test_the_score_does_not_depend_on_order_batches_or_processes(division: list[list[list[int]]]) -> None:
    values = logits(23)
    alone = InceptionScore(CLASSES, images=23, splits=4)
    alone.update(values, torch.arange(23))
    parts = [InceptionScore(CLASSES, images=23, splits=4) for _ in division]
    for part, batches in zip(parts, division, strict=True):
        for indices in batches:
            part.update(values[indices], torch.tensor(indices, dtype=torch.int64))
    total = InceptionScore(CLASSES, images=23, splits=4)
    total.merge_gathered(gathered(parts))
    assert total.score().mean == pytest.approx(alone.score().mean, rel=1e-12)
    assert total.score().deviation == pytest.approx(alone.score().deviation, rel=1e-9)


def test_extremes_of_the_score() -> None:
    """Certain and evenly shared classes give their number; images that are all alike give 1."""
    certain = 1e4 * torch.eye(CLASSES).repeat(4, 1)
    for values, expected in ((certain, CLASSES), (torch.zeros(20, CLASSES), 1.0), (certain[:1].expand(20, -1), 1.0)):
        score = InceptionScore(CLASSES, images=20, splits=2)
        score.update(values, torch.arange(20))
        assert score.score().mean == pytest.approx(expected, rel=1e-9)


def test_the_score_reports_when_it_is_not_what_it_seems() -> None:
    score = InceptionScore(CLASSES, images=10, splits=2)
    score.update(logits(9), torch.arange(9))
    first, second = score.score().notes
    assert first == "9 of 10 images were counted"
    assert "a part has 4 images, fewer than the 5 classes" in second
    half = InceptionScore(CLASSES, images=10, splits=2)
    half.update(logits(5), torch.arange(5))
    with pytest.raises(SmaltiError, match="part 2 of 2 of the images is empty"):
        half.score()
    with pytest.raises(SmaltiError, match="of 7 images cannot be taken in 10 parts"):
        InceptionScore(CLASSES, images=7)
    with pytest.raises(AssertionError, match=r"outside of 0\.\.9"):
        score.update(logits(1), torch.tensor([10]))


# --- the features that are kept ------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(divisions(count=23))
def test_what_is_kept_does_not_depend_on_order_batches_or_processes(division: list[list[list[int]]]) -> None:
    features = draws(23)
    parts = [FeatureReservoir(D, limit=7, seed=3) for _ in division]
    for part, batches in zip(parts, division, strict=True):
        for indices in batches:
            part.update(features[indices], torch.tensor(indices, dtype=torch.int64))
    total = FeatureReservoir(D, limit=7, seed=3)
    total.merge_gathered(gathered(parts))
    alone = FeatureReservoir(D, limit=7, seed=3)
    alone.update(features, torch.arange(23))
    assert total.features().equal(alone.features())
    assert total.notes() == ("7 of 23 images were compared, selected with seed 3",)


def test_fewer_than_the_limit_are_all_kept_in_the_order_of_indices() -> None:
    kept = FeatureReservoir(D, limit=30)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(1))
    kept.update(draws(23)[order], order)
    assert kept.features().equal(draws(23))
    assert kept.notes() == ()


def test_the_choice_is_even() -> None:
    """Each of 20 images is among 5 in a quarter of 400 choices: 100 times, with a deviation of 8.7."""
    counts = torch.zeros(20)
    for seed in range(400):
        kept = FeatureReservoir(1, limit=5, seed=seed)
        kept.update(torch.arange(20.0)[:, None], torch.arange(20))
        counts[kept.features()[:, 0].long()] += 1
    assert counts.sum() == 2000
    assert 60 < counts.min() < counts.max() < 140


def test_what_is_kept_is_bounded() -> None:
    kept = FeatureReservoir(D, limit=8)
    for indices in torch.split(torch.arange(1000), 10):
        kept.update(draws(10), indices)
        assert sum(len(part.ranks) for part in kept._parts) <= 16
    assert {name: len(tensor) for name, tensor in kept.state().items() if tensor.ndim} == {
        "ranks": 8,
        "indices": 8,
        "features": 8,
    }
    kept.update(draws(10), torch.arange(1000, 1010) + (1 << 40))  # indices beyond 32 bits are indices too
    assert len(kept.features()) == 8


def test_an_image_counted_twice_is_noticed() -> None:
    kept = FeatureReservoir(D, limit=8)
    kept.update(draws(3), torch.tensor([0, 1, 1]))
    with pytest.raises(AssertionError, match="counted twice"):
        kept.features()


# --- the kernel distance -------------------------------------------------------------------------------------------


def slow_kernel_distance(a: Tensor, b: Tensor) -> float:
    """The unbiased estimate of all images, pair by pair."""

    def kernel(x: Tensor, y: Tensor) -> float:
        return (float(x.double() @ y.double()) / len(x) + 1) ** 3

    within = [
        sum(kernel(x, y) for x, y in permutations(part, 2)) / (len(part) * (len(part) - 1))
        for part in (list(a), list(b))
    ]
    between = sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))
    return sum(within) - 2 * between


def test_the_kernel_distance_is_its_definition() -> None:
    """A subset of all images is the whole set, in every draw."""
    a, b = draws(9), draws(9, seed=2)
    found = kernel_distance(a, b, subsets=3, size=9)
    assert found.mean == pytest.approx(slow_kernel_distance(a, b), rel=1e-10)
    assert found.deviation == pytest.approx(0.0, abs=1e-9 * abs(found.mean))


def test_the_kernel_distance_averages_over_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    """With enough subsets of 4 of 6 and of 5, about the mean over all of them; in blocks of two rows as in one."""
    a, b = draws(6), draws(5, seed=2)
    values = [
        slow_kernel_distance(a[list(i)], b[list(j)])
        for i in combinations(range(6), 4)
        for j in combinations(range(5), 4)
    ]
    every = torch.tensor(values, dtype=torch.float64)
    found = kernel_distance(a, b, subsets=500, size=4)
    assert found.mean == pytest.approx(float(every.mean()), abs=4 * float(every.std()) / 500**0.5)
    assert found.deviation == pytest.approx(float(every.std(correction=0)), rel=0.2)
    assert found != kernel_distance(a, b, subsets=500, size=4, seed=1)
    monkeypatch.setattr("smalti.evaluation.nearest_neighbors.BLOCK", 2)
    blocks = kernel_distance(a, b, subsets=500, size=4)
    assert blocks.mean == pytest.approx(found.mean, rel=1e-10)


def test_subsets_are_drawn_as_torch_fidelity_draws_them() -> None:
    """Of the samples, then of the reference, by one generator; the deviation is that of the subsets themselves."""
    a, b = draws(9), draws(8, seed=2)
    chance = np.random.RandomState(2020)
    values = []
    for _ in range(3):
        first, second = (chance.choice(len(each), 4, replace=False) for each in (a, b))
        values.append(slow_kernel_distance(a[first], b[second]))
    found = kernel_distance(a, b, subsets=3, size=4)
    assert found.mean == pytest.approx(float(np.mean(values)), rel=1e-10)
    assert found.deviation == pytest.approx(float(np.std(values)), rel=1e-10)


def test_sets_smaller_than_a_subset_are_refused() -> None:
    with pytest.raises(SmaltiError, match="subsets of 1000 images from sets of 30 and 20; a subset has 2 to 20"):
        kernel_distance(draws(30), draws(20))
    with pytest.raises(SmaltiError, match="subsets of 1 images"):
        kernel_distance(draws(30), draws(20), size=1)


# --- nearest neighbors --------------------------------------------------------------------------------------------


def slow_manifold(a: Tensor, b: Tensor, *, k: int, wide: int) -> tuple[float, float, float, float]:
    """Precision, recall, density and coverage of samples a, reference b, by their definitions."""

    def radius(points: Tensor, index: int, neighbor: int) -> float:
        others = [float((points[index] - other).norm()) for j, other in enumerate(points) if j != index]
        return sorted(others)[neighbor - 1]

    a, b = a.double(), b.double()
    distances = [[float((x - y).norm()) for y in b] for x in a]
    of_a, of_b, wide_b = (
        [radius(points, i, neighbor) for i in range(len(points))] for points, neighbor in ((a, k), (b, k), (b, wide))
    )
    precision = sum(any(d <= r for d, r in zip(row, of_b, strict=True)) for row in distances) / len(a)
    recall = sum(any(distances[i][j] <= of_a[i] for i in range(len(a))) for j in range(len(b))) / len(b)
    density = sum(d < r for row in distances for d, r in zip(row, wide_b, strict=True)) / (wide * len(a))
    coverage = sum(any(distances[i][j] < wide_b[j] for i in range(len(a))) for j in range(len(b))) / len(b)
    return precision, recall, density, coverage


@pytest.mark.parametrize("neighbors", [1, 3])
@pytest.mark.parametrize("wide", [2, 5])
def test_neighbors_are_those_of_the_definitions(neighbors: int, wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = draws(31, 3), draws(24, 3, seed=4) + 1
    expected = slow_manifold(a, b, k=neighbors, wide=wide)
    assert all(0 < value < 1 for value in expected)
    assert manifold(a, b, neighbors=neighbors, density_neighbors=wide) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr("smalti.evaluation.nearest_neighbors.BLOCK", 5)
    assert manifold(a, b, neighbors=neighbors, density_neighbors=wide) == pytest.approx(expected, rel=1e-12)


def test_equal_and_distant_sets() -> None:
    a = draws(20)
    same = manifold(a, a)
    assert (same.precision, same.recall, same.coverage) == (1.0, 1.0, 1.0)
    assert same.density == pytest.approx(1.0)
    assert manifold(a, a + 1000) == (0.0, 0.0, 0.0, 0.0)


def test_copies_lie_in_each_others_balls() -> None:
    """More copies than neighbors: all radii are 0, and copies that rounding moved a little are copies still.

    A border of radius 0 belongs to the ball in precision and recall, not in density and coverage.
    """
    a = draws(1, 512).repeat(8, 1)
    b = a * (1 + 1e-7 * torch.arange(8.0)[:, None])
    assert manifold(a, b) == (1.0, 1.0, 0.0, 0.0)
    assert manifold(a, a * 1.001).precision == 0.0


def test_sets_without_enough_neighbors_are_refused() -> None:
    with pytest.raises(SmaltiError, match=r"3 and 5 neighbors cannot be found among 5 images; .* at least 6"):
        manifold(draws(5), draws(20))
    assert manifold(draws(6), draws(20)).recall > 0
    with pytest.raises(SmaltiError, match="0 and 5 neighbors"):
        manifold(draws(20), draws(20), neighbors=0)
