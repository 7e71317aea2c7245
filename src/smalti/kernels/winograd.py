"""3x3 convolutions on a CPU by a quarter of the products: Winograd's F(4x4, 3x3), forward and backward.

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.3. PyTorch's GPU libraries do the like by
themselves, its CPU library does not. The loops are C (`winograd.c`). Results are within about 1e-5 of the largest one, ten times as
far as the direct way's.

Letters: B batch, C channels in, K channels out, H W pixels, P channels of a panel.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.kernels.native import LANES, PANEL, compiled, needed, reaches

LEAST = 64
"""Squares of 4 x 4 pixels in a batch, below which mapping the weight costs what is gained (measured on two AVX2 cores)."""


def available() -> bool:
    """Whether this machine has what the C file needs; makes it, if this was not done before."""
    return _library() is not None


def suits(x: Tensor, weight: Tensor, *, least: int = LEAST) -> bool:
    """Whether `convolve` takes x (B,C,H,W) and weight (K,C,3,3) and gains by it: in float32 on a CPU, from `least` squares on."""
    if not reaches(x, weight):
        return False
    (K, C), (B, _, H, W) = weight.shape[:2], x.shape
    squares = B * -(-H // 4) * -(-W // 4)
    return squares >= least and C % LANES == 0 and K % LANES == 0 and _library() is not None


def mapped(weight: Tensor, *, back: bool = False) -> Tensor:
    """weight (K,C,3,3) -> what the products take, (36,K/P,C,P), K/P rounded up, four times as many numbers.

    With `back` it is that of the convolution which takes a gradient of the results to that of the image: (36,C/P,K,P).
    """
    K, C = weight.shape[:2]
    strides, corner = weight.stride(), weight.data_ptr()
    if back:  # channels exchanged, the kernel turned by half a turn: read from its last corner backwards
        K, C, corner = C, K, corner + 4 * 2 * (strides[2] + strides[3])
        strides = strides[1], strides[0], -strides[2], -strides[3]
    made = torch.zeros(36, -(-K // PANEL), C, PANEL)
    needed(_library()).map_weight(corner, _Four(*strides), C, K, torch.get_num_threads(), made.data_ptr())
    return made


Map = Callable[..., Tensor]  # the signature of `mapped`


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *, map_weight: Map = mapped) -> Tensor:
    """x (B,C,H,W), weight (K,C,3,3) and bias (K) that suit -> (B,K,H,W): stride 1, one pixel of zeros around.

    `map_weight` is `mapped`, or keeps what that has made. Memory that runs out: MemoryError.
    """
    result: Tensor = _Convolution.apply(x, weight, bias, map_weight)  # type: ignore[no-untyped-call]
    return result


@final
class FrozenConvolution(nn.Module):
    """(B,C,H,W) -> (B,K,H,W): a 3x3 convolution with one pixel of zeros around, for weights that do not learn.

    The mapped weights are kept (235 MB for all of VGG16, and as much again where gradients go back), and made anew when the
    weights have changed.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        convolution = nn.Conv2d(channels, out_channels, 3, padding=1)  # for its initial values
        assert convolution.bias is not None
        self.weight, self.bias = convolution.weight, convolution.bias
        self._kept: dict[bool, tuple[tuple[int, int], Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.requires_grad or not suits(x, self.weight, least=8):
            return F.conv2d(x, self.weight, self.bias, padding=1)
        return convolve(x, self.weight, self.bias, map_weight=self._map)

    def _map(self, weight: Tensor, *, back: bool = False) -> Tensor:
        now = weight.data_ptr(), weight._version
        if back not in self._kept or self._kept[back][0] != now:
            self._kept[back] = now, mapped(weight, back=back)
        return self._kept[back][1]


@final
class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, map_weight: Map) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.map_weight = map_weight
        return _convolved(x, map_weight(weight), bias, weight.shape[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # a gradient of this gradient will be asked for, which PyTorch's own has
            ones, wanted = [1, 1], [of_x, of_weight, of_bias]
            given: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.convolution_backward(
                gradient, x, weight, [len(weight)], ones, ones, ones, False, [0, 0], 1, wanted
            )
            return *given, None
        given_x = _convolved(gradient, ctx.map_weight(weight, back=True), None, weight.shape[1]) if of_x else None
        given_weight = _weight_gradient(x, gradient, weight) if of_weight else None
        return given_x, given_weight, gradient.sum((0, 2, 3)) if of_bias else None, None


def _convolved(x: Tensor, weights: Tensor, bias: Tensor | None, K: int) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    B, C, H, W = x.shape
    result = torch.empty((B, K, H, W), memory_format=torch.channels_last)
    begun = None if bias is None else bias.contiguous().data_ptr()
    shape, threads = _Shape(B, H, W, C, K), torch.get_num_threads()
    if needed(_library()).convolve(x.data_ptr(), weights.data_ptr(), begun, shape, threads, result.data_ptr()):
        raise MemoryError(f"There is no memory for a convolution of {C} channels.")
    return result


def _weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    x, gradient = (each.contiguous(memory_format=torch.channels_last) for each in (x, gradient))
    B, C, H, W = x.shape
    made = torch.empty_like(weight)
    shape, strides = _Shape(B, H, W, C, len(weight)), _Four(*made.stride())
    threads = torch.get_num_threads()
    if needed(_library()).weight_gradient(x.data_ptr(), gradient.data_ptr(), shape, strides, threads, made.data_ptr()):
        raise MemoryError(f"There is no memory for the gradient of a weight of {C} x {len(weight)} channels.")
    return made


# --- the C file ----------------------------------------------------------------------------------------------------------------

_Four = ctypes.c_long * 4


@final
class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("B", "H", "W", "C", "K")]


@cache
def _library() -> ctypes.CDLL | None:
    library = compiled(Path(__file__).with_name("winograd.c"))
    return None if library is None else _declared(library)


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Without this, ctypes would cut addresses to the size of an int."""
    address, long, number = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    library.map_weight.argtypes = [address, _Four, long, long, number, address]
    library.map_weight.restype = None
    library.convolve.argtypes = [address, address, address, _Shape, number, address]
    library.weight_gradient.argtypes = [address, address, _Shape, _Four, number, address]
    return library
