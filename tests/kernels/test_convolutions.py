"""The tokenizer's convolutions against PyTorch's, forward, backward and twice backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.tokenizer import convolutions
from smalti.tokenizer.convolutions import Convolution, Geometry, convolve

# channels in and out, side of the kernel, pixels, geometry
CASES = [
    (16, 24, 3, (9, 7), Geometry(1, 1)),
    (24, 16, 3, (9, 8), Geometry(2, 0)),
    (16, 16, 4, (8, 6), Geometry(2, 1)),
    (16, 24, 1, (5, 5), Geometry(1, 0)),
    (24, 16, 4, (5, 4), Geometry(2, 1, transposed=True)),
]


def parts(case: tuple[int, int, int, tuple[int, int], Geometry]) -> tuple[Tensor, Tensor, Tensor]:
    """An image, a weight and a bias, in float64 and channels last."""
    channels, out_channels, side, pixels, geometry = case
    torch.manual_seed(0)
    ends = (channels, out_channels) if geometry.transposed else (out_channels, channels)
    image = torch.randn(2, channels, *pixels, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(*ends, side, side, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    bias = torch.randn(out_channels, dtype=torch.float64)
    return image.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def by_pytorch(image: Tensor, weight: Tensor, bias: Tensor, geometry: Geometry) -> Tensor:
    function = F.conv_transpose2d if geometry.transposed else F.conv2d
    return function(image, weight, bias, stride=geometry.stride, padding=geometry.padding)


@pytest.mark.parametrize("case", CASES)
def test_result_and_gradients_are_pytorchs(case: tuple[int, int, int, tuple[int, int], Geometry]) -> None:
    given, geometry = parts(case), case[-1]
    ours, theirs = convolve(*given, geometry), by_pytorch(*given, geometry)
    assert "_Convolution" in type(ours.grad_fn).__name__  # the fast path was taken
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    gradient = torch.randn_like(theirs)
    for our, their in zip(*(torch.autograd.grad(y, given, gradient) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", [CASES[0], CASES[-1]])
def test_gradients_have_gradients(case: tuple[int, int, int, tuple[int, int], Geometry]) -> None:
    given, geometry = parts(case), case[-1]
    penalties = []
    for function in (convolve, by_pytorch):
        y = function(*given, geometry)
        first = torch.autograd.grad(y.square().sum(), given, create_graph=True)
        penalties.append(torch.autograd.grad(torch.stack([each.square().sum() for each in first]).sum(), given[:2]))
    for our, their in zip(*penalties, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-9, atol=1e-9)


def test_only_what_is_requested_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[tuple[bool, bool, bool]] = []
    plain = convolutions._gradients

    def watched(*given: object) -> object:
        requested.append(given[-1])  # type: ignore[arg-type]
        return plain(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(convolutions, "_gradients", watched)
    layer = Convolution(16, 16, 3, padding=1)
    layer(torch.randn(1, 16, 4, 4)).sum().backward()  # an image needs no gradient
    assert requested == [(False, True, True)]


def test_the_plain_way_where_the_fast_one_has_nothing_to_gain() -> None:
    few = Convolution(3, 16, 3, padding=1)
    assert "_Convolution" not in type(few(torch.randn(1, 3, 4, 4)).grad_fn).__name__
    layer = Convolution(16, 16, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(torch.randn(1, 16, 4, 4))
    assert half.dtype == torch.bfloat16
    layer.requires_grad_(False)
    assert layer(torch.randn(1, 16, 4, 4)).grad_fn is None
