"""What a prior does for each code, in C (`decode_block.c`): linear maps of few rows, attention of one query, norms and gates.

Letters: R rows, D width, E numbers made, P numbers of a panel, B sequences, T codes of one call, N heads, S codes so far, d width
of a head.
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

from smalti.kernels.native import LANES, PANEL, compiled, needed, reaches

FEW = 64
"""Rows up to which weights in panels are sooner; with more, products are what costs, and plain ones are as fast."""


def available() -> bool:
    """Whether this machine has what the C file needs; makes it, if this was not done before."""
    return _library() is not None


@final
class Panels(nn.Module):
    """(...,D) -> (...,E), as the `nn.Linear` in float32 that it is made of. It carries no gradients.

    What is made of a row is the same, bit for bit, whatever rows are beside it, if they are few.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        filled = F.pad(linear.weight.detach(), (0, 0, 0, -len(linear.weight) % PANEL))
        self.ordered = filled.view(-1, PANEL, filled.shape[1]).transpose(1, 2).contiguous()  # (E/P,D,P)
        self.map = _Map(self.ordered.data_ptr(), _address(linear.bias), len(linear.weight))

    def forward(self, x: Tensor) -> Tensor:
        read = x.shape[-1]
        if x.numel() > FEW * read or not reaches(x):
            return F.linear(x, self.weight, self.bias)
        x = x.contiguous()
        made = x.new_empty(*x.shape[:-1], self.map.E)
        needed(_library()).linear(
            x.data_ptr(), self.map, x.numel() // read, read, torch.get_num_threads(), made.data_ptr()
        )
        return made


def panels(module: nn.Module) -> Panels:
    """A linear map of a packed block, as what it is by then."""
    assert isinstance(module, Panels), f"{type(module).__name__} is not packed"
    return module


class Normed(NamedTuple):
    """A LayerNorm, or where it adds nothing an RMSNorm."""

    gain: Tensor
    shift: Tensor | None
    epsilon: float


@final
class Step:
    """A block of a transformer but for its attention: what is before it in one call, and what comes after it in another."""

    def __init__(
        self,
        *,
        heads: int,
        attention: Normed,
        project: Sequence[Panels],
        turned: Sequence[Normed],
        out: Panels,
        mlp: Normed,
        up: Panels,
        down: Panels,
    ) -> None:
        """`project` is a map to queries, one to keys and one to values, or one to all three. `turned` are the norms of queries
        and keys, if they have any. What `up` makes goes through GELU, or where that is twice as much as `down` reads, SwiGLU.
        """
        self.heads, self.width, self.hidden = heads, len(down.weight), down.weight.shape[1]
        self.held = (attention, mlp, *turned, *project, out, up, down)
        query, key = turned or (Normed(torch.empty(0), None, 0.0),) * 2
        self.block = _Block(
            *(_Norm(_address(each.gain), _address(each.shift), each.epsilon) for each in (attention, query, key, mlp)),
            (_Map * 3)(*(each.map for each in project)),
            *(each.map for each in (out, up, down)),
            self.width,
            heads,
            self.hidden,
        )

    def takes(self, x: Tensor) -> bool:
        """Whether x (B,T,D) is read by C: few rows, and widths of whole registers and panels."""
        whole = not (self.width // self.heads % LANES or self.hidden % PANEL)
        return whole and x.numel() <= FEW * self.width and not torch.is_grad_enabled() and reaches(x)

    def project(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B,T,D), and by which cosines and sines (T,d) codes are turned -> queries, keys and values (B,N,T,d)."""
        x, (B, T, D) = x.contiguous(), x.shape
        threads = torch.get_num_threads()
        work, made = x.new_empty(threads, *x.shape), x.new_empty(B, T, 3, self.heads, D // self.heads)
        turning = (None, None) if rotation is None else [each.contiguous() for each in rotation]
        sizes = B * T, T, threads
        needed(_library()).project(
            self.block, x.data_ptr(), *map(_address, turning), *sizes, work.data_ptr(), made.data_ptr()
        )
        queries, keys, values = made.permute(2, 0, 3, 1, 4).unbind(0)
        return queries, keys, values

    def finish(self, x: Tensor, seen: Tensor) -> Tensor:
        """x (B,T,D) and what its codes see (B,N,T,d) -> what the next block reads (B,T,D)."""
        x, seen, rows = x.contiguous(), seen.transpose(1, 2).contiguous(), x.numel() // self.width
        threads = torch.get_num_threads()
        work, hidden, made = x.new_empty(threads, *x.shape), x.new_empty(rows, self.hidden), torch.empty_like(x)
        ends = (each.data_ptr() for each in (work, hidden, made))
        needed(_library()).finish(self.block, x.data_ptr(), seen.data_ptr(), rows, threads, *ends)
        return made


def attends(queries: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether `attended` takes a query of each sequence (B,N,1,d), and keys and values (B,N,S,d), which may lie in a cache."""
    if queries.shape[2] != 1 or queries.shape[3] % LANES or torch.is_grad_enabled():
        return False
    alike = keys.stride() == values.stride() and keys.stride()[2:] == (keys.shape[3], 1)
    return alike and reaches(queries, keys, values) and available()


def attended(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """A query of each sequence (B,N,1,d), keys and values (B,N,S,d) -> what it sees of all of them (B,N,1,d)."""
    asked, (B, N, S, d) = queries.contiguous(), keys.shape
    seen, scores = torch.empty_like(asked), asked.new_empty(B, N, S + LANES - 1)
    kept, threads = _Kept(B, N, S, d, *keys.stride()[:2]), torch.get_num_threads()
    parts = (each.data_ptr() for each in (asked, keys, values))
    needed(_library()).attend(*parts, kept, threads, scores.data_ptr(), seen.data_ptr())
    return seen


# --- the C file ----------------------------------------------------------------------------------------------------------------


@final
class _Map(ctypes.Structure):
    _fields_ = [("panels", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("E", ctypes.c_long)]


@final
class _Norm(ctypes.Structure):
    _fields_ = [("gain", ctypes.c_void_p), ("shift", ctypes.c_void_p), ("epsilon", ctypes.c_float)]


@final
class _Block(ctypes.Structure):
    _fields_ = [
        *((name, _Norm) for name in ("attention", "query", "key", "perceptron")),
        ("project", _Map * 3),
        *((name, _Map) for name in ("out", "up", "down")),
        *((name, ctypes.c_long) for name in ("D", "N", "H")),
    ]


@final
class _Kept(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("B", "N", "S", "d", "sequence", "head")]


def _address(tensor: Tensor | None) -> int | None:
    """Where it lies; that of a tensor without numbers is none."""
    return None if tensor is None else tensor.data_ptr() or None


@cache
def _library() -> ctypes.CDLL | None:
    library = compiled(Path(__file__).with_name("decode_block.c"))
    if library is not None:
        address, block, long, number = ctypes.c_void_p, ctypes.POINTER(_Block), ctypes.c_long, ctypes.c_int
        library.linear.argtypes = [address, _Map, long, long, number, address]
        library.project.argtypes = [block, *[address] * 3, long, long, number, *[address] * 2]
        library.attend.argtypes = [*[address] * 3, _Kept, number, *[address] * 2]
        library.finish.argtypes = [block, *[address] * 2, long, number, *[address] * 3]
        for function in (library.linear, library.project, library.attend, library.finish):
            function.restype = None
    return library
