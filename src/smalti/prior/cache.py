"""The record of the codes before a prior's input: a value that is handed to `forward`.

Notation: B batch, T codes of one call, D width, n image codes of the sequence.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor


class Cache(abc.ABC):
    """A prior's record of the codes before its input.

    `columns` is the width of the grid of image codes, and `length` the number of codes before the input, including
    the prefix. `order` is for any-order priors: the raster places of the image codes in sequence order,
    (n,) or (B, n), one more than image codes are read so far at least, unless all are; None for raster order.
    """

    columns: int
    length: int
    order: Tensor | None

    @abc.abstractmethod
    def append(self, name: str, new: Tensor) -> Tensor:
        """Layer `name`'s output for the input (B, ..., T, D) -> its output for all codes so far (B, ..., length +
        T, D)."""

    @abc.abstractmethod
    def advance(self, count: int) -> None:
        """Count `count` codes that have passed all layers. A prior's `forward` calls this at its end."""


@final
class NoCache(Cache):
    """No codes before the input, and nothing is stored: the input is the whole sequence."""

    def __init__(self, *, columns: int, order: Tensor | None = None) -> None:
        self.columns, self.length, self.order = columns, 0, order

    def append(self, name: str, new: Tensor) -> Tensor:
        return new

    def advance(self, count: int) -> None:
        pass


@final
@dataclass(kw_only=True)
class StaticCache(Cache):
    """Stores each layer's output for the codes so far in preallocated buffers for `capacity` codes.

    A layer's buffer is allocated on its first use, when its type (autocast) and device are known. It has no
    gradients.
    """

    columns: int
    capacity: int
    order: Tensor | None = None
    length: int = 0
    buffers: dict[str, Tensor] = field(default_factory=dict)

    def append(self, name: str, new: Tensor) -> Tensor:
        assert not torch.is_grad_enabled(), "a cache carries no gradients: call the prior under torch.no_grad()"
        end = self.length + new.shape[-2]
        assert end <= self.capacity, f"{end} codes in a cache for {self.capacity}"
        if name not in self.buffers:
            self.buffers[name] = new.new_empty(*new.shape[:-2], self.capacity, new.shape[-1])
        buffer = self.buffers[name]
        buffer[..., self.length : end, :] = new
        return buffer[..., :end, :]

    def advance(self, count: int) -> None:
        self.length += count


@final
class BranchCache(Cache):
    """Continuations of one cached sequence that do not see one another: m per sequence, in a batch of m B.

    It reads the codes of a `StaticCache` (B sequences, those of the first branch first) and stores nothing.
    """

    def __init__(self, base: StaticCache, branches: int, *, order: Tensor) -> None:
        """`order` (m B, n): that of each branch."""
        self.base, self.branches = base, branches
        self.columns, self.length, self.order = base.columns, base.length, order

    def append(self, name: str, new: Tensor) -> Tensor:
        if not self.length:
            return new
        before = self.base.buffers[name][..., : self.length, :]
        return torch.cat((before.repeat(self.branches, *(1,) * (before.dim() - 1)), new), dim=-2)

    def advance(self, count: int) -> None:
        pass
