"""3x3 convolutions on a CPU by a quarter of the products: Winograd's F(4x4, 3x3), forward and backward.

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.3. PyTorch's GPU libraries do the
like by themselves, its CPU library does not. The loops are C (`winograd.c`). Results are within about 1e-5 of the
largest one, ten times as far as the direct way's.

Notation: B batch, C channels in, K channels out, H W pixels, P channels of a panel.
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

from smalti.kernels.native import LANES, PANEL, compile_library, is_cpu_float32, require_library

MIN_TILES = 64
"""Minimum number of 4 x 4 pixel tiles in a batch; with fewer, the weight transform costs more than is saved (two
AVX2 cores)."""


def available() -> bool:
    """Whether the C file is compiled on this machine; compiles it if necessary."""
    return _library() is not None


def is_supported(x: Tensor, weight: Tensor, *, min_tiles: int = MIN_TILES) -> bool:
    """Whether `convolve` supports x (B,C,H,W) and weight (K,C,3,3) and is faster: float32 on a CPU, `min_tiles`
    tiles or more."""
    if not is_cpu_float32(x, weight):
        return False
    (K, C), (B, _, H, W) = weight.shape[:2], x.shape
    tile_count = B * -(-H // 4) * -(-W // 4)
    return tile_count >= min_tiles and C % LANES == 0 and K % LANES == 0 and _library() is not None


def transform_weight(weight: Tensor, *, backward: bool = False) -> Tensor:
    """weight (K,C,3,3) -> the transformed weight (36,K/P,C,P), K/P rounded up, four times as large.

    With `backward` it is that of the convolution from output gradients to input gradients: (36,C/P,K,P).
    """
    K, C = weight.shape[:2]
    strides, corner = weight.stride(), weight.data_ptr()
    if backward:  # channels exchanged, the kernel turned by half a turn: read from its last corner backwards
        K, C, corner = C, K, corner + 4 * 2 * (strides[2] + strides[3])
        strides = strides[1], strides[0], -strides[2], -strides[3]
    output = torch.zeros(36, -(-K // PANEL), C, PANEL)
    require_library(_library()).map_weight(corner, _Strides(*strides), C, K, torch.get_num_threads(), output.data_ptr())
    return output


WeightTransform = Callable[..., Tensor]  # the signature of `transform_weight`


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, transform: WeightTransform = transform_weight
) -> Tensor:
    """x (B,C,H,W), weight (K,C,3,3) and bias (K), supported -> (B,K,H,W): stride 1, zero padding of one pixel.

    `transform` is `transform_weight`, or a cached version of it. Raises MemoryError.
    """
    result: Tensor = _Convolution.apply(x, weight, bias, transform)  # type: ignore[no-untyped-call]
    return result


@final
class FrozenConvolution(nn.Module):
    """(B,C,H,W) -> (B,K,H,W): a 3x3 convolution with zero padding of one pixel, for frozen weights.

    The transformed weights are cached (235 MB for all of VGG16, and as much again with gradients), and recomputed
    if the weights change.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        convolution = nn.Conv2d(channels, out_channels, 3, padding=1)  # for its initial values
        assert convolution.bias is not None
        self.weight, self.bias = convolution.weight, convolution.bias
        self._transformed: dict[bool, tuple[tuple[int, int], Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.requires_grad or not is_supported(x, self.weight, min_tiles=8):
            return F.conv2d(x, self.weight, self.bias, padding=1)
        return convolve(x, self.weight, self.bias, transform=self._transformed_weight)

    def _transformed_weight(self, weight: Tensor, *, backward: bool = False) -> Tensor:
        version = weight.data_ptr(), weight._version
        if backward not in self._transformed or self._transformed[backward][0] != version:
            self._transformed[backward] = version, transform_weight(weight, backward=backward)
        return self._transformed[backward][1]


@final
class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, transform: WeightTransform) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.transform = transform
        return _convolve(x, transform(weight), bias, weight.shape[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # double backward, which PyTorch's own supports
            ones, needs_grad = [1, 1], [needs_x, needs_weight, needs_bias]
            gradients: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.convolution_backward(
                gradient, x, weight, [len(weight)], ones, ones, ones, False, [0, 0], 1, needs_grad
            )
            return *gradients, None
        grad_x = _convolve(gradient, ctx.transform(weight, backward=True), None, weight.shape[1]) if needs_x else None
        grad_weight = _weight_gradient(x, gradient, weight) if needs_weight else None
        return grad_x, grad_weight, gradient.sum((0, 2, 3)) if needs_bias else None, None


def _convolve(x: Tensor, weights: Tensor, bias: Tensor | None, K: int) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    B, C, H, W = x.shape
    result = torch.empty((B, K, H, W), memory_format=torch.channels_last)
    bias_address = None if bias is None else bias.contiguous().data_ptr()
    shape, threads = _Shape(B, H, W, C, K), torch.get_num_threads()
    if require_library(_library()).convolve(
        x.data_ptr(), weights.data_ptr(), bias_address, shape, threads, result.data_ptr()
    ):
        raise MemoryError(f"There is no memory for a convolution of {C} channels.")
    return result


def _weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    x, gradient = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, gradient))
    B, C, H, W = x.shape
    output = torch.empty_like(weight)
    shape, strides = _Shape(B, H, W, C, len(weight)), _Strides(*output.stride())
    threads = torch.get_num_threads()
    if require_library(_library()).weight_gradient(
        x.data_ptr(), gradient.data_ptr(), shape, strides, threads, output.data_ptr()
    ):
        raise MemoryError(f"There is no memory for the gradient of a weight of {C} x {len(weight)} channels.")
    return output


# --- the C file
# ----------------------------------------------------------------------------------------------------------------

_Strides = ctypes.c_long * 4


@final
class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("B", "H", "W", "C", "K")]


@cache
def _library() -> ctypes.CDLL | None:
    library = compile_library(Path(__file__).with_name("winograd.c"))
    return None if library is None else _with_signatures(library)


def _with_signatures(library: ctypes.CDLL) -> ctypes.CDLL:
    """Set the signatures; without them ctypes would truncate addresses to the size of an int."""
    address, long, number = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    library.map_weight.argtypes = [address, _Strides, long, long, number, address]
    library.map_weight.restype = None
    library.convolve.argtypes = [address, address, address, _Shape, number, address]
    library.weight_gradient.argtypes = [address, address, _Shape, _Strides, number, address]
    return library
