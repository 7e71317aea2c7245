"""Attention of a causal network while it learns, on a CPU, by `causal_attention.c`.

PyTorch's own takes 1.1 to 1.5 times as long (docs/log.md). Where nothing is learned, PyTorch's stays, so that sampling and
likelihoods are what they are on any machine.

Shapes: B batch, N heads, T codes, d width of a head.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from smalti.kernels.native import compiled, needed, reaches


def suits(queries: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether `attended` takes these and gains by it: float32 of a CPU, of which one learns."""
    parts = queries, keys, values
    learned = torch.is_grad_enabled() and any(each.requires_grad for each in parts)
    return learned and reaches(*parts) and _library() is not None


def attended(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """(B,N,T,d) three times, that suit -> what each code sees of itself and those before it (B,N,T,d).

    It has gradients, and they have none. Memory that runs out: MemoryError.
    """
    result: Tensor = _Attended.apply(queries, keys, values)  # type: ignore[no-untyped-call]
    return result


@final
class _Attended(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        parts = [_lying(each) for each in (queries, keys, values)]
        seen, logs = _like(queries), queries.new_empty(queries.shape[:3])
        _call(needed(_library()).attend_causally, [*parts, seen], logs)
        ctx.save_for_backward(*parts, seen, logs)
        return seen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        *parts, seen, logs = ctx.saved_tensors
        made = tuple(_like(each) for each in parts)
        _call(needed(_library()).attend_back, [*parts, seen, _lying(gradient), *made], logs)
        return made


def _lying(x: Tensor) -> Tensor:
    """x (B,N,T,d) with the numbers of each code side by side."""
    return x if x.stride(3) == 1 else x.contiguous()


def _like(x: Tensor) -> Tensor:
    """Room for (B,N,T,d), which lies as heads are taken from maps and put together again: (B,T,N,d)."""
    return x.transpose(1, 2).new_empty(x.transpose(1, 2).shape).transpose(1, 2)


# --- the C file ----------------------------------------------------------------------------------------------------------------


@final
class _Part(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), *((name, ctypes.c_long) for name in ("sequence", "head", "code"))]


def _call(function: Any, tensors: list[Tensor], logs: Tensor) -> None:
    parts = (_Part * len(tensors))(*(_Part(each.data_ptr(), *each.stride()[:3]) for each in tensors))
    if function(parts, *tensors[0].shape, torch.get_num_threads(), logs.data_ptr()):
        raise MemoryError(f"There is no memory for the attention of {tensors[0].shape[2]} codes.")


@cache
def _library() -> ctypes.CDLL | None:
    library = compiled(Path(__file__).with_name("causal_attention.c"))
    if library is not None:
        for function in (library.attend_causally, library.attend_back):
            function.argtypes = [ctypes.POINTER(_Part), *[ctypes.c_long] * 4, ctypes.c_int, ctypes.c_void_p]
    return library
