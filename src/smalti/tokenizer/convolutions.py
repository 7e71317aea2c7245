"""Convolutions that learn, faster on a CPU than PyTorch's own.

Those of 3 x 3 are `smalti.kernels.winograd`'s where it supports them; all others have a faster gradient of their
weights. Images are stored channels-last, the fastest layout for most of PyTorch's CPU library. Its gradient of a weight
is the exception: for 64 channels at 128 x 128 it takes up to three times as long as in the contiguous layout, copying
both images there included.

Notation: B batch, C channels of the image, K channels of the result, H W pixels of the result, k side of the kernel.
"""

from __future__ import annotations

from typing import Any, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.kernels import winograd

MIN_CHANNELS = 16
"""Channels, of the image and of the result, below which there is nothing to be gained."""


class Geometry(NamedTuple):
    """How a kernel moves over an image."""

    stride: int
    padding: int
    transposed: bool = False


AS_IT_IS = Geometry(stride=1, padding=1)
"""With a 3x3 kernel, the result is as large as the image."""


@final
class Convolution(nn.Conv2d):
    """(B,C,.,.) -> (B,K,H,W): PyTorch's, with the faster gradient where it applies; kernel, stride and padding are
    square.

    Where only the gradient of its image is needed, as of a discriminator, that of its weight is computed all the same.
    """

    def __init__(self, channels: int, out_channels: int, side: int, *, stride: int = 1, padding: int = 0) -> None:
        super().__init__(channels, out_channels, side, stride, padding)
        self.geometry = Geometry(stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.bias, self.geometry)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """x (B,C,.,.) and a weight (K,C,k,k), or (C,K,k,k) of a transposed convolution -> (B,K,H,W), the same as
    PyTorch's."""
    if geometry == AS_IT_IS and weight.shape[2:] == (3, 3) and winograd.is_supported(x, weight):
        return winograd.convolve(x, weight, bias)
    if not _suits(x, weight):
        return _plain(x, weight, bias, geometry)
    result: Tensor = _Convolution.apply(x, weight, bias, geometry)  # type: ignore[no-untyped-call]
    return result


def _suits(x: Tensor, weight: Tensor) -> bool:
    learns = torch.is_grad_enabled() and weight.requires_grad and not torch.compiler.is_compiling()
    plain = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and x.dtype == weight.dtype
    return learns and plain and min(weight.shape[:2]) >= MIN_CHANNELS


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    function = F.conv_transpose2d if geometry.transposed else F.conv2d
    return function(x, weight, bias, stride=geometry.stride, padding=geometry.padding)


@final
class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return _plain(x, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        # Written in operations that have gradients themselves.
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        given_x = _gradients(gradient, x, weight, ctx.geometry, (of_x, False, False))[0] if of_x else None
        contiguous = gradient.contiguous(), x.contiguous(), weight.contiguous()
        _, given_weight, given_bias = _gradients(*contiguous, ctx.geometry, (False, of_weight, of_bias))
        return given_x, given_weight, given_bias, None


def _gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of `x`, the weight and the bias, where wanted, by PyTorch."""
    biases = [weight.shape[1] if geometry.transposed else weight.shape[0]]
    stride, padding = [geometry.stride] * 2, [geometry.padding] * 2
    given: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.convolution_backward(
        gradient, x, weight, biases, stride, padding, [1, 1], geometry.transposed, [0, 0], 1, list(wanted)
    )
    return given
