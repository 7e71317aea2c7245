"""GroupNorm of feature maps, right for maps of any size also where they are stored channels-last on a CPU.

PyTorch 2.13's is not, in float32: with values of deviation 2 its results are up to 2.7e-4 off at 256 x 256 pixels, and
up to 5.5e-3 at 1024 x 1024 (docs/log.md).

Notation: B batch, C channels, H W pixels, G groups. Source: Wu and He 2018, "Group Normalization" (arXiv 1803.08494).
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.kernels.native import LANES, compile_library, is_cpu_float32, require_library


@final
class GroupNorm(nn.GroupNorm):
    """(B,C,H,W) -> (B,C,H,W), equal to PyTorch's up to rounding; by `group_norm.c` if it supports the input."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_supported(x) or not is_cpu_float32(self.weight, self.bias):
            return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        result: Tensor = _GroupNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps)  # type: ignore[no-untyped-call]
        return result


def is_supported(x: Tensor) -> bool:
    """Whether the C file supports x (B,C,H,W): channels last, and not contiguous as well."""
    channels_last = x.dim() == 4 and x.permute(0, 2, 3, 1).is_contiguous() and not x.is_contiguous()
    return channels_last and x.shape[1] % LANES == 0 and is_cpu_float32(x) and _library() is not None


@final
class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float) -> Tensor:
        B, C, H, W = x.shape
        mean, scale, output = x.new_empty(B, groups), x.new_empty(B, groups), torch.empty_like(x)
        library, threads = require_library(_library()), torch.get_num_threads()
        inputs, outputs = [x, weight.contiguous(), bias.contiguous()], [mean, scale, output]
        sizes = B, H * W, C, groups, epsilon, threads
        if library.group_norm(
            *(tensor.data_ptr() for tensor in inputs), *sizes, *(tensor.data_ptr() for tensor in outputs)
        ):
            raise MemoryError(f"There is no memory for the statistics of {C} channels.")
        ctx.save_for_backward(x, weight, bias, mean, scale)
        ctx.groups, ctx.epsilon = groups, epsilon
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight, bias, mean, scale = ctx.saved_tensors
        needs_grad = list(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled():  # double backward, which PyTorch's own supports
            output = F.group_norm(x, ctx.groups, weight, bias, ctx.epsilon)
            differentiated = [tensor for tensor, needed in zip((x, weight, bias), needs_grad, strict=True) if needed]
            computed = iter(torch.autograd.grad(output, differentiated, gradient, create_graph=True))
            grad_x, grad_weight, grad_bias = (next(computed) if needed else None for needed in needs_grad)
            return grad_x, grad_weight, grad_bias, None, None
        B, C, H, W = x.shape
        gradients: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.native_group_norm_backward(
            gradient.contiguous(memory_format=torch.channels_last),
            x,
            mean,
            scale,
            weight,
            B,
            C,
            H * W,
            ctx.groups,
            needs_grad,
        )
        return *gradients, None, None


@cache
def _library() -> ctypes.CDLL | None:
    library = compile_library(Path(__file__).with_name("group_norm.c"))
    if library is not None:
        address, long, number = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
        library.group_norm.argtypes = [*[address] * 3, *[long] * 4, ctypes.c_double, number, *[address] * 3]
    return library
