"""A prior's decoding step in C (`decode_block.c`): linear maps of few rows, attention of one query, norms and
gates.

Notation: R rows, D width, E outputs, P panel width, B sequences, T codes of one call, N heads, S codes so far, d
head dimension.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.kernels.native import LANES, PANEL, compile_library, is_cpu_float32, require_library

MAX_ROWS = 64
"""Maximum number of rows for which packed weights are faster; with more, computation dominates."""


def available() -> bool:
    """Whether the C file is compiled on this machine; compiles it if necessary."""
    return _library() is not None


@final
class PackedLinear(nn.Module):
    """(...,D) -> (...,E), equal to the float32 `nn.Linear` it is made of. It has no gradients.

    The output of a row does not depend on the other rows, bit for bit, up to `MAX_ROWS` rows.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        padded = F.pad(linear.weight.detach(), (0, 0, 0, -len(linear.weight) % PANEL))
        self.packed = padded.view(-1, PANEL, padded.shape[1]).transpose(1, 2).contiguous()  # (E/P,D,P)
        self.map = _Map(self.packed.data_ptr(), _address(linear.bias), len(linear.weight))

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        if x.numel() > MAX_ROWS * width or not is_cpu_float32(x):
            return F.linear(x, self.weight, self.bias)
        x = x.contiguous()
        output = x.new_empty(*x.shape[:-1], self.map.E)
        require_library(_library()).linear(
            x.data_ptr(), self.map, x.numel() // width, width, torch.get_num_threads(), output.data_ptr()
        )
        return output


class NormParameters(NamedTuple):
    """The parameters of a LayerNorm, or of an RMSNorm if `shift` is None."""

    gain: Tensor
    shift: Tensor | None
    epsilon: float


class Rotation(NamedTuple):
    """Cosines and signed sines by which queries and keys are rotated, (T, d) each, or (B, 1, T, d) with orders of their
    own."""

    query_cosines: Tensor
    query_sines: Tensor
    key_cosines: Tensor
    key_sines: Tensor


class BlockDescription(NamedTuple):
    """A transformer block around its attention: norms, linear maps and what they mean.

    x -> x + out(attention of project(attention_norm(x))), and x -> x + down(activation of up(mlp_norm(x))). The
    activation is GELU, or SwiGLU if `up` has twice as many outputs as `down` has inputs.
    """

    heads: int
    attention_norm: NormParameters
    project: Sequence[nn.Module]
    """One linear map each to queries, keys and values, or one to all three."""
    query_key_norms: Sequence[NormParameters]
    """The norms of queries and keys of each head, or none."""
    out: nn.Module
    mlp_norm: NormParameters
    up: nn.Module
    down: nn.Module


@final
class DecodeBlock:
    """A transformer block except for its attention: one call before the attention, and one after it."""

    def __init__(self, description: BlockDescription) -> None:
        """All linear maps of the description are `PackedLinear` already."""
        heads, query_key_norms = description.heads, description.query_key_norms
        attention_norm, mlp_norm = description.attention_norm, description.mlp_norm
        project = [_packed(linear) for linear in description.project]
        out, up, down = _packed(description.out), _packed(description.up), _packed(description.down)
        self.heads, self.width, self.hidden = heads, len(down.weight), down.weight.shape[1]
        self._tensors = (attention_norm, mlp_norm, *query_key_norms, *project, out, up, down)
        query, key = query_key_norms or (NormParameters(torch.empty(0), None, 0.0),) * 2
        self.block = _Block(
            *(
                _Norm(_address(part.gain), _address(part.shift), part.epsilon)
                for part in (attention_norm, query, key, mlp_norm)
            ),
            (_Map * 3)(*(part.map for part in project)),
            *(part.map for part in (out, up, down)),
            self.width,
            heads,
            self.hidden,
        )

    def is_supported(self, x: Tensor) -> bool:
        """Whether C reads x (B,T,D): few rows, and widths of whole registers and panels."""
        divisible = not (self.width // self.heads % LANES or self.hidden % PANEL)
        return divisible and x.numel() <= MAX_ROWS * self.width and not torch.is_grad_enabled() and is_cpu_float32(x)

    def project_qkv(self, x: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B,T,D), and a rotation of tables (T,d) -> queries, keys and values (B,N,T,d)."""
        x, (B, T, D) = x.contiguous(), x.shape
        threads = torch.get_num_threads()
        work, output = x.new_empty(threads, *x.shape), x.new_empty(B, T, 3, self.heads, D // self.heads)
        rotation_tables = (None,) * 4 if rotation is None else [table.contiguous() for table in rotation]
        sizes = B * T, T, threads
        require_library(_library()).project(
            self.block, x.data_ptr(), *map(_address, rotation_tables), *sizes, work.data_ptr(), output.data_ptr()
        )
        queries, keys, values = output.permute(2, 0, 3, 1, 4).unbind(0)
        return queries, keys, values

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """x (B,T,D) and the attention output (B,N,T,d) -> the input of the next block (B,T,D)."""
        x, attended, rows = x.contiguous(), attended.transpose(1, 2).contiguous(), x.numel() // self.width
        threads = torch.get_num_threads()
        work, hidden, output = x.new_empty(threads, *x.shape), x.new_empty(rows, self.hidden), torch.empty_like(x)
        buffers = (buffer.data_ptr() for buffer in (work, hidden, output))
        require_library(_library()).finish(self.block, x.data_ptr(), attended.data_ptr(), rows, threads, *buffers)
        return output


def attention_is_supported(queries: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether `attend` supports one query per sequence (B,N,1,d), with keys and values (B,N,S,d), which may be
    views of a cache."""
    if queries.shape[2] != 1 or queries.shape[3] % LANES or torch.is_grad_enabled():
        return False
    contiguous_heads = keys.stride() == values.stride() and keys.stride()[2:] == (keys.shape[3], 1)
    return contiguous_heads and is_cpu_float32(queries, keys, values) and available()


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One query per sequence (B,N,1,d), keys and values (B,N,S,d) -> attention output (B,N,1,d)."""
    query, (B, N, S, d) = queries.contiguous(), keys.shape
    output, scores = torch.empty_like(query), query.new_empty(B, N, S + LANES - 1)
    layout, threads = _CacheLayout(B, N, S, d, *keys.stride()[:2]), torch.get_num_threads()
    addresses = (tensor.data_ptr() for tensor in (query, keys, values))
    require_library(_library()).attend(*addresses, layout, threads, scores.data_ptr(), output.data_ptr())
    return output


# --- the C file
# ----------------------------------------------------------------------------------------------------------------


@final
class _Map(ctypes.Structure):
    _fields_ = [("panels", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("E", ctypes.c_long)]


@final
class _Norm(ctypes.Structure):
    _fields_ = [("gain", ctypes.c_void_p), ("shift", ctypes.c_void_p), ("epsilon", ctypes.c_float)]


@final
class _Block(ctypes.Structure):
    _fields_ = [
        *((name, _Norm) for name in ("attention", "query", "key", "mlp")),
        ("project", _Map * 3),
        *((name, _Map) for name in ("out", "up", "down")),
        *((name, ctypes.c_long) for name in ("D", "N", "H")),
    ]


@final
class _CacheLayout(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("B", "N", "S", "d", "sequence", "head")]


def _packed(linear: nn.Module) -> PackedLinear:
    """A linear map of a prepacked block, with its actual type."""
    assert isinstance(linear, PackedLinear), f"{type(linear).__name__} is not packed"
    return linear


def _address(tensor: Tensor | None) -> int | None:
    """The address of a tensor; None for an empty one."""
    return None if tensor is None else tensor.data_ptr() or None


@cache
def _library() -> ctypes.CDLL | None:
    library = compile_library(Path(__file__).with_name("decode_block.c"))
    if library is not None:
        address, block, long, number = ctypes.c_void_p, ctypes.POINTER(_Block), ctypes.c_long, ctypes.c_int
        library.linear.argtypes = [address, _Map, long, long, number, address]
        library.project.argtypes = [block, *[address] * 5, long, long, number, *[address] * 2]
        library.attend.argtypes = [*[address] * 3, _CacheLayout, number, *[address] * 2]
        library.finish.argtypes = [block, *[address] * 2, long, number, *[address] * 3]
        for function in (library.linear, library.project, library.attend, library.finish):
            function.restype = None
    return library
