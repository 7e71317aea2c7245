"""Training of causal attention on a CPU, by `causal_attention.c`.

PyTorch's own takes 1.1 to 1.5 times as long (docs/log.md). Without gradients PyTorch's is used, so that samples and
likelihoods are equal on any machine.

Notation: B batch, N heads, T codes, d head dimension.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from smalti.kernels.native import compile_library, is_cpu_float32, require_library


def is_supported(queries: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether `attend` supports these and is faster: float32 on a CPU, with gradients."""
    tensors = queries, keys, values
    trainable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return trainable and is_cpu_float32(*tensors) and _library() is not None


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """(B,N,T,d) three times, supported -> attention output of each code over itself and the codes before it
    (B,N,T,d).

    It has gradients, but no second derivatives. Raises MemoryError.
    """
    result: Tensor = _CausalAttention.apply(queries, keys, values)  # type: ignore[no-untyped-call]
    return result


@final
class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        tensors = [_contiguous_rows(tensor) for tensor in (queries, keys, values)]
        output, log_sums = _empty_like_heads(queries), queries.new_empty(queries.shape[:3])
        _call(require_library(_library()).attend_causally, [*tensors, output], log_sums)
        ctx.save_for_backward(*tensors, output, log_sums)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        *tensors, output, log_sums = ctx.saved_tensors
        gradients = tuple(_empty_like_heads(tensor) for tensor in tensors)
        _call(
            require_library(_library()).attend_back,
            [*tensors, output, _contiguous_rows(gradient), *gradients],
            log_sums,
        )
        return gradients


def _contiguous_rows(x: Tensor) -> Tensor:
    """x (B,N,T,d) with contiguous rows."""
    return x if x.stride(3) == 1 else x.contiguous()


def _empty_like_heads(x: Tensor) -> Tensor:
    """An empty (B,N,T,d) with the memory layout (B,T,N,d)."""
    return x.transpose(1, 2).new_empty(x.transpose(1, 2).shape).transpose(1, 2)


# --- the C file
# ----------------------------------------------------------------------------------------------------------------


@final
class _Part(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), *((name, ctypes.c_long) for name in ("sequence", "head", "code"))]


def _call(function: Any, tensors: list[Tensor], log_sums: Tensor) -> None:
    parts = (_Part * len(tensors))(*(_Part(tensor.data_ptr(), *tensor.stride()[:3]) for tensor in tensors))
    if function(parts, *tensors[0].shape, torch.get_num_threads(), log_sums.data_ptr()):
        raise MemoryError(f"There is no memory for the attention of {tensors[0].shape[2]} codes.")


@cache
def _library() -> ctypes.CDLL | None:
    library = compile_library(Path(__file__).with_name("causal_attention.c"))
    if library is not None:
        for function in (library.attend_causally, library.attend_back):
            function.argtypes = [ctypes.POINTER(_Part), *[ctypes.c_long] * 4, ctypes.c_int, ctypes.c_void_p]
    return library
