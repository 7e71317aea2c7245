"""The record of the codes before a prior's input: a value that is handed to `forward`.

Shapes: B batch, T codes of one call, D width.
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
    the prefix.
    """

    columns: int
    length: int

    @abc.abstractmethod
    def append(self, name: str, new: Tensor) -> Tensor:
        """Layer `name`'s output for the input (B, ..., T, D) -> its output for all codes so far (B, ..., length +
        T, D)."""

    @abc.abstractmethod
    def advance(self, count: int) -> None:
        """Count `count` codes that have passed all layers. A prior's `features` calls this at its end."""


@final
class NoCache(Cache):
    """No codes before the input, and nothing is stored: the input is the whole sequence."""

    def __init__(self, *, columns: int) -> None:
        self.columns, self.length = columns, 0

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
