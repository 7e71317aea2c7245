"""What a prior is: a causal network over prefix codes and image codes, in raster or another order; and what follows.

Shapes: B batch, P prefix codes, h w grid, n image codes so far, T codes of one call, D width, K size of the codebook,
V codes that the head scores.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.core.errors import SmaltiError
from smalti.prior.order import ORDERS, Order


class Cache(abc.ABC):
    """What a prior is told about the codes that came before its input.

    `columns` is the width of the grid that the image codes fill, and `length` counts the codes, prefix included, that
    came before.
    """

    columns: int
    length: int

    @abc.abstractmethod
    def append(self, name: str, new: Tensor) -> Tensor:
        """What layer `name` made of the input (B, ..., T, D) -> the same of all so far (B, ..., length + T, D)."""

    @abc.abstractmethod
    def advance(self, count: int) -> None:
        """Note that `count` codes have passed through all layers. A prior's `features` does this at its end."""


@final
class NoCache(Cache):
    """Nothing came before the input, and nothing is kept: the input is the whole sequence."""

    def __init__(self, *, columns: int) -> None:
        self.columns, self.length = columns, 0

    def append(self, name: str, new: Tensor) -> Tensor:
        return new

    def advance(self, count: int) -> None:
        pass


@final
@dataclass(kw_only=True)
class StaticCache(Cache):
    """Keeps what each layer made of the codes so far, in memory that is taken once, for `capacity` codes.

    The memory of a layer is taken when it first comes by, because only then its type is known (autocast) and its
    device. It carries no gradients.
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


class Prior(nn.Module, abc.ABC):
    """Prefix codes and image codes -> scores of the code that comes next, each from the codes before it alone.

    The sequence is the prefix (B, P), which carries the condition or stands for "nothing", and then the image codes in
    the prior's `order`, a name in `smalti.prior.order.ORDERS`. A prior knows its window `grid` = (h, w); for one that
    reads in raster order, a grid that is smaller in some direction is a narrower window, and the cache's `columns`
    tells its width.
    """

    size: int
    prefix_length: int
    grid: tuple[int, int]
    max_grid: tuple[int, int]
    """The largest grid that is read as one: the window, or for a prior that never looks far any there is."""
    order: Order
    head: nn.Module

    @abc.abstractmethod
    def join(self, prefix: Tensor, codes: Tensor) -> Tensor:
        """Prefix codes (B, P) and image codes (B, n) -> the sequence (B, P + n) that `forward` reads."""

    @abc.abstractmethod
    def null_prefix(self, batch: int) -> Tensor:
        """The prefix (batch, P) that says nothing: start of an unconditional prior, empty condition of the guidance.

        All its codes are the same, so that a longer one says nothing as well.

        Raises `SmaltiError` where a prior never learned one.
        """

    @abc.abstractmethod
    def features(self, codes: Tensor, cache: Cache) -> Tensor:
        """A sequence (B, T), or its continuation where `cache` holds the beginning -> what `head` reads (B, T, D).

        Advances the cache by T.
        """

    @abc.abstractmethod
    def features_at(self, codes: Tensor, cache: Cache, index: Tensor) -> Tensor:
        """As `features`, of one code of each sequence: its `index` (B,) int64 among the T -> (B, D).

        It is the last prefix code or an image code. Its last block is spared what nobody asks for.
        """

    def forward(self, codes: Tensor, *, cache: Cache | None = None) -> Tensor:
        """A joined sequence (B, T) int64 -> logits (B, T, V): those at index t are of the code at index t + 1.

        The first K of the V are of image codes. Without a cache the sequence is whole and its image codes fill rows of
        the prior's own width. With one, `codes` continue what it holds, and it is advanced by T.
        """
        context = NoCache(columns=self.grid[1]) if cache is None else cache
        logits: Tensor = self.head(self.features(codes, context))
        return logits

    @final
    def next_logits(self, codes: Tensor, *, cache: Cache) -> Tensor:
        """As `forward`, for the last code alone, of image codes only: (B, T) -> (B, K). The head reads one position."""
        last = torch.full((len(codes),), codes.shape[1] - 1, device=codes.device)
        logits: Tensor = self.head(self.features_at(codes, cache, last))
        return logits[:, : self.size]

    @final
    def sequence_order(self, grid: tuple[int, int], *, device: torch.device) -> Tensor:
        """A grid (h, w) -> the raster places of its codes as they follow one another in the sequence: (h w,) int64.

        Raises `SmaltiError` for another grid than the prior's window where the order is not raster: of such an order
        a prior has learned the steps, and not where it would begin and end in another grid.
        """
        if self.order == "raster":
            return torch.arange(grid[0] * grid[1], device=device)
        if tuple(grid) != tuple(self.grid):
            raise SmaltiError(
                f"this prior reads codes in the order {self.order!r}, which it has learned for grids of {self.grid[0]} x "
                f"{self.grid[1]} codes alone, not for {grid[0]} x {grid[1]}; only a prior in raster order takes any size"
            )
        return torch.tensor(_cached_order(self.order, *self.grid), device=device)

    @final
    def empty_cache(self, *, window: tuple[int, int] | None = None) -> StaticCache:
        """A window (h, w), or the prior's own where none is given -> an empty cache for a prefix and its codes."""
        rows, columns = self.grid if window is None else window
        return StaticCache(columns=columns, capacity=self.prefix_length + rows * columns)


@lru_cache(maxsize=16)
def _cached_order(order: Order, rows: int, columns: int) -> tuple[int, ...]:
    """The raster places of an order, made once. Numbers, because a kept tensor would belong to one device and mode."""
    return tuple(ORDERS[order](rows, columns).tolist())


def nll(prior: Prior, prefix: Tensor, codes: Tensor, *, inputs: Tensor | None = None) -> Tensor:
    """Prefix codes (B, P) and image codes (B, h, w) -> negative log-likelihood of each, in nats: (B, h, w).

    In the prior's order each code is told the prefix and all codes before it: equation 9 of Esser et al., arXiv
    2012.09841. With `inputs` (B, h, w) it is told those in place of the codes before it, and is itself still what is asked
    for: the original's corruption of a share of the codes in training. The grid may be the prior's window or, in raster
    order, a smaller one. The mean is the training loss. It is float32, or float64 where the prior is.

    Raises `SmaltiError` for another grid than the prior's window where its order is not raster.
    """
    order = prior.sequence_order((codes.shape[1], codes.shape[2]), device=codes.device)
    targets = codes.flatten(1)[:, order]
    input_codes = targets if inputs is None else inputs.flatten(1)[:, order]
    sequence = prior.join(prefix, input_codes[:, :-1])
    logits = prior(sequence, cache=NoCache(columns=codes.shape[2]))[:, prefix.shape[1] - 1 :]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    return losses[:, order.argsort()].view_as(codes)


def parameter_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """A network -> the two groups of parameters an optimizer such as AdamW takes: with `weight_decay`, and without.

    Weights of linear maps and convolutions decay. Biases, gains, embeddings and positions do not: they are added or
    looked up, or multiply single numbers. Each group is sorted by the names of its parameters. Parameters that do not
    require a gradient are in neither group.
    """
    decayed_types = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    decayed_ids = {id(layer.weight) for layer in module.modules() if isinstance(layer, decayed_types)}
    named = sorted(module.named_parameters(), key=lambda pair: pair[0])
    trained = [parameter for _, parameter in named if parameter.requires_grad]

    def group(parameters: Iterable[nn.Parameter], decay: float) -> dict[str, Any]:
        return {"params": list(parameters), "weight_decay": decay}

    return [
        group((parameter for parameter in trained if id(parameter) in decayed_ids), weight_decay),
        group((parameter for parameter in trained if id(parameter) not in decayed_ids), 0.0),
    ]
