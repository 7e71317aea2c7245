"""The perceptual distance in few passes: equal to its definition in every feature map, gradient and dropout
included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from smalti.losses.perceptual import BACKBONES, Perceptual, _distance_of_maps
from tests import reference


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Features as they leave a ReLU: half of them 0."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).relu()


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.integers(0, 1000))
def test_a_map_is_compared_as_the_paper_says(B: int, D: int, h: int, w: int, seed: int) -> None:
    target, features = noise(B, D, h, w, seed=seed), noise(B, D, h, w, seed=seed + 1).requires_grad_()
    weight, upstream = noise(D, seed=seed + 2) + 0.1, noise(B, seed=seed + 3) + 0.1
    unit = target / (torch.linalg.vector_norm(target, dim=1, keepdim=True) + 1e-10)
    found = _distance_of_maps(unit, features, weight.view(1, D, 1, 1))
    expected = reference.perceptual_of_map(target, features, weight)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    felt = (features > 0).any(1, keepdim=True).expand_as(features)  # elsewhere the ReLU before lets no gradient through
    ours, theirs = (torch.autograd.grad(value, features, upstream)[0] for value in (found, expected))
    torch.testing.assert_close(ours[felt], theirs[felt], rtol=1e-9, atol=1e-12)
    assert ours.isfinite().all()


@pytest.fixture(scope="module", params=list(BACKBONES))
def distance(request: pytest.FixtureRequest) -> Perceptual:
    """Over random weights in double precision."""
    torch.manual_seed(0)
    made = Perceptual(BACKBONES[request.param].build(), dropout=0.5)
    for parameter in made.backbone.parameters():
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter)
    for weight in made.linear:
        weight.uniform_(0.0, 1.0)
    return made.double()


@pytest.mark.parametrize("training", [False, True])
def test_the_whole_distance_and_its_gradient_are_those_of_kept_features(distance: Perceptual, training: bool) -> None:
    """Also with dropout, whose draws are those of `torch.nn.functional.dropout`: one number for each difference."""
    distance.train(training)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(2, 3, 36, 48, generator=generator, dtype=torch.float64) * 2 - 1 for _ in range(2))
    y.requires_grad_()
    torch.manual_seed(5)
    found = distance(x, y)
    torch.manual_seed(5)
    expected = distance.distance(distance.target(x), distance.features(y))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0.0)
    ours, theirs = (torch.autograd.grad(value.sum(), y)[0] for value in (found, expected))
    assert theirs.abs().max() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10 * float(theirs.abs().max()))
