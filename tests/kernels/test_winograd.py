"""smalti.kernels.winograd: equal to the definition, forwards and backwards, used where it should be,
and missed nowhere."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from smalti.kernels import winograd
from smalti.kernels.winograd import FrozenConvolution, convolve, is_supported, transform_weight
from smalti.losses.perceptual import Perceptual, vgg16
from smalti.tokenizer.convolutions import Convolution
from tests import reference
from tests.processes import threads

here = pytest.mark.skipif(not winograd.available(), reason="no C compiler with OpenMP on this machine")

NEAR = 2e-5
"""How far a result may be, as fractions of the largest one (float32)."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_near(found: Tensor, exact: Tensor) -> None:
    assert found.shape == exact.shape
    assert (found - exact).abs().max() < NEAR * exact.abs().max()


def both_ways(x: Tensor, weight: Tensor, bias: Tensor, upstream: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Results and gradients: ours, and those of the definition in float64."""
    ours = [each.clone().requires_grad_() for each in (x, weight, bias)]
    theirs = [each.double().requires_grad_() for each in (x, weight, bias)]
    found = convolve(ours[0], ours[1], ours[2])
    expected = reference.convolution(theirs[0], theirs[1]) + theirs[2][:, None, None]
    yield found, expected
    yield from zip(
        torch.autograd.grad(found, ours, upstream),
        torch.autograd.grad(expected, theirs, upstream.double()),
        strict=True,
    )


@here
@given(
    st.integers(1, 3),
    st.sampled_from([8, 16, 24, 40]),
    st.sampled_from([8, 16, 40]),
    st.integers(1, 19),
    st.integers(1, 19),
    st.booleans(),
    st.integers(1, 3),
)
def test_it_is_the_convolution_and_its_gradients(
    B: int, C: int, K: int, H: int, W: int, last: bool, count: int
) -> None:
    layout = torch.channels_last if last else torch.contiguous_format
    given_parts = [
        each.contiguous(memory_format=layout)
        for each in (noise(B, C, H, W), noise(K, C, 3, 3, seed=1), noise(B, K, H, W, seed=3))
    ]
    with threads(count):
        for found, exact in both_ways(given_parts[0], given_parts[1], noise(K, seed=2), given_parts[2]):
            assert_near(found, exact)


@here
def test_many_squares_go_through_in_parts() -> None:
    """More squares than go at once, for each of several threads, and not a multiple of them."""
    for found, exact in both_ways(noise(2, 32, 61, 45), noise(16, 32, 3, 3, seed=1), noise(16), noise(2, 16, 61, 45)):
        assert_near(found, exact)


@here
def test_the_gradient_of_a_weight_is_the_same_each_time() -> None:
    x, weight, upstream = noise(4, 32, 64, 64), noise(32, 32, 3, 3, seed=1).requires_grad_(), noise(4, 32, 64, 64)
    with threads(4):
        first, *others = (torch.autograd.grad(convolve(x, weight, None), weight, upstream)[0] for _ in range(4))
    assert all(torch.equal(first, other) for other in others)


@here
def test_gradients_have_gradients() -> None:
    penalties = []
    for function in (convolve, partial(F.conv2d, padding=1)):
        parts = [noise(1, 16, 8, 8).requires_grad_(), noise(16, 16, 3, 3, seed=1).requires_grad_()]
        first = torch.autograd.grad(function(parts[0], parts[1], None).square().sum(), parts, create_graph=True)
        penalties.append(torch.autograd.grad(torch.stack([each.square().sum() for each in first]).sum(), parts))
    for found, exact in zip(*penalties, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-3 * exact.abs().max())


X, WEIGHT = noise(4, 16, 16, 16), noise(32, 16, 3, 3)


@here
@pytest.mark.parametrize(
    ("x", "weight", "fits"),
    [
        (X, WEIGHT, True),
        (noise(1, 16, 29, 31), WEIGHT, True),
        (noise(4, 16, 16, 12), WEIGHT, False),  # few squares
        (noise(4, 12, 16, 16), noise(32, 12, 3, 3), False),  # channels in
        (X, noise(28, 16, 3, 3), False),  # channels out
        (X.double(), WEIGHT.double(), False),
        (X.bfloat16(), WEIGHT, False),
        (X.to("meta"), WEIGHT.to("meta"), False),
    ],
)
def test_what_suits(x: Tensor, weight: Tensor, fits: bool) -> None:
    assert is_supported(x, weight) is fits


@here
def test_what_only_watches_the_operations_sees_them_all() -> None:
    layer, x = Convolution(16, 16, 3, padding=1), X[:, :16]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    exported = torch.export.export(layer, (x,))
    assert "conv2d" in str(exported.graph)
    assert_near(layer(x), exported.module()(x))


def test_without_a_compiler_pytorch_computes_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Convolution(16, 32, 3, padding=1)
    expected = F.conv2d(X, layer.weight, layer.bias, padding=1)
    for name, value in (("CC", "no-such-compiler"), ("CC", "false"), ("SMALTI_DIRECT", "1")):
        with monkeypatch.context() as patch:
            patch.setenv("SMALTI_CACHE", str(tmp_path))
            patch.setenv(name, value)
            patch.setattr(winograd, "_library", winograd._library.__wrapped__)
            assert not winograd.available()
            assert torch.equal(layer(X), expected)
    assert not list((tmp_path / "kernels").iterdir()), "nothing half made is left"


@here
def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path / "new"))
    assert winograd._library.__wrapped__() is not None
    (made,) = (tmp_path / "new" / "kernels").iterdir()
    written = made.stat().st_mtime_ns
    assert winograd._library.__wrapped__() is not None
    assert made.stat().st_mtime_ns == written


# --- frozen weights
# ------------------------------------------------------------------------------------------------------------


@here
def test_changed_weights_are_mapped_anew() -> None:
    layer, x = FrozenConvolution(16, 16).requires_grad_(False), noise(1, 16, 16, 16)
    layer(x)
    first = layer._transformed_weight(layer.weight)
    assert layer._transformed_weight(layer.weight) is first
    for change in (
        lambda: layer.weight.mul_(2.0),
        lambda: layer.load_state_dict({key: torch.ones_like(value) for key, value in layer.state_dict().items()}),
    ):
        change()
        assert layer._transformed_weight(layer.weight) is not first
        assert_near(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1))
    double = copy.deepcopy(layer).double()
    assert torch.equal(double(x.double()), F.conv2d(x.double(), double.weight, double.bias, padding=1))
    assert not [key for key in layer.state_dict() if key not in ("weight", "bias")]


@here
def test_both_maps_are_kept_apart() -> None:
    layer = FrozenConvolution(16, 32).requires_grad_(False)
    x = noise(1, 16, 16, 16).requires_grad_()
    for _ in range(2):
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), x)
        exact = torch.autograd.grad(F.conv2d(x, layer.weight, layer.bias, padding=1).square().sum(), x)[0]
        assert_near(gradient, exact)
    assert torch.equal(
        layer._transformed_weight(layer.weight, backward=True), transform_weight(layer.weight, backward=True)
    )


def test_weights_that_learn_get_gradients() -> None:
    learning = FrozenConvolution(16, 16)
    learning(noise(1, 16, 16, 16)).sum().backward()
    assert learning.weight.grad is not None
    assert not learning._transformed


@here
def test_vgg_is_computed_so_but_for_its_first_layer_and_its_last_pixels() -> None:
    torch.manual_seed(0)
    distance = Perceptual(vgg16())
    distance(torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32))
    layers = [each for each in distance.modules() if isinstance(each, FrozenConvolution)]
    assert [bool(each._transformed) for each in layers] == [False] + [True] * 3 + [
        False
    ] * 9  # then fewer than 8 squares
