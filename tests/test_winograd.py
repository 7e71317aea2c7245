"""3x3 convolutions by fewer products: equal to the definition, forwards and backwards, and used where they should be."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import reference
from smalti.losses import winograd
from smalti.losses.perceptual import Perceptual, vgg16
from smalti.losses.winograd import FrozenConvolution, convolve, mapped


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
def test_it_is_the_convolution_and_its_gradient(B: int, C: int, K: int, h: int, w: int, squares: int) -> None:
    x, weight = noise(B, C, 4 * h, 4 * w).requires_grad_(), noise(K, C, 3, 3, seed=1)
    upstream = noise(B, K, 4 * h, 4 * w, seed=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "SQUARES", squares)  # so few that the batch is taken in parts
        found = convolve(x, mapped(weight))
        (gradient,) = torch.autograd.grad(found, x, upstream)
    expected = reference.convolution(x, weight)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x, upstream)[0], rtol=1e-10, atol=1e-10)


def test_in_single_precision_it_is_as_close_as_it_says() -> None:
    x, weight = noise(2, 64, 16, 16).relu(), noise(32, 64, 3, 3, seed=1)
    exact = F.conv2d(x, weight, padding=1)
    found = convolve(x.float(), mapped(weight.float()))
    assert (found - exact).abs().max() < 2e-5 * exact.abs().max()


@pytest.fixture
def layer() -> FrozenConvolution:
    torch.manual_seed(0)
    return FrozenConvolution(4, winograd.LEAST).requires_grad_(False)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that were given to `convolve`."""
    shapes: list[tuple[int, ...]] = []
    whole: Callable[[Tensor, Tensor], Tensor] = winograd.convolve

    def seen(x: Tensor, weights: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return whole(x, weights)

    monkeypatch.setattr(winograd, "convolve", seen)
    return shapes


@pytest.mark.parametrize(("side", "fits"), [(8, True), (12, True), (9, False), (6, False)])
def test_a_frozen_layer_is_a_convolution(
    layer: FrozenConvolution, used: list[tuple[int, ...]], side: int, fits: bool
) -> None:
    x = noise(2, 4, side, 8).float()
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1), rtol=1e-5, atol=1e-5)
    assert bool(used) is fits


def test_weights_that_learn_get_gradients(used: list[tuple[int, ...]]) -> None:
    learning = FrozenConvolution(4, winograd.LEAST)
    learning(noise(1, 4, 8, 8).float()).sum().backward()
    assert learning.weight.grad is not None
    assert not used


def test_few_channels_and_half_precision_go_the_direct_way(
    layer: FrozenConvolution, used: list[tuple[int, ...]]
) -> None:
    FrozenConvolution(4, winograd.LEAST - 1).requires_grad_(False)(noise(1, 4, 8, 8).float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(noise(1, 4, 8, 8).float()).dtype == torch.bfloat16
    assert not used


def test_changed_weights_are_mapped_anew(layer: FrozenConvolution, used: list[tuple[int, ...]]) -> None:
    x = noise(1, 4, 8, 8).float()
    layer(x)
    first = layer._weights()
    assert layer._weights() is first
    for change in (
        lambda: layer.weight.mul_(2.0),
        lambda: layer.load_state_dict({key: torch.ones_like(value) for key, value in layer.state_dict().items()}),
    ):
        change()
        torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1), rtol=1e-5, atol=1e-5)
    double = copy.deepcopy(layer).double()
    y = x.double()
    torch.testing.assert_close(double(y), F.conv2d(y, double.weight, double.bias, padding=1), rtol=1e-12, atol=1e-12)
    assert len(used) == 4


def test_vgg_is_computed_so_from_its_third_block_on(used: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    distance = Perceptual(vgg16())
    assert not [key for key in distance.state_dict() if "mapped" in key]
    distance(torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32))
    assert [(shape[1], shape[2]) for shape in used] == [(128, 8), (256, 8), (256, 8), (256, 4), (512, 4), (512, 4)] * 2
