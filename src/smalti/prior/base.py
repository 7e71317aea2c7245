"""The interface of priors: a causal network over prefix codes and image codes, in raster or another order.

Notation: B batch, P prefix codes, h w grid, n image codes so far, T codes of one call, D width, K codebook size, V
codes that the head scores.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.core.errors import SmaltiError
from smalti.prior.cache import Cache, NoCache, StaticCache
from smalti.prior.order import ORDERS, AnyOrder, Order


class Prior(nn.Module, abc.ABC):
    """Prefix codes and image codes -> logits of the next code, each from the codes before it only.

    The sequence is the prefix (B, P), which carries the condition or is unconditional, and then the image codes in
    the prior's `order`, a name in `smalti.prior.order.ORDERS`; an any-order prior takes it from the cache.
    `grid` = (h, w) is the prior's window. In raster order a grid that is smaller in some direction is a narrower
    window, and the cache's `columns` gives its width.
    """

    settings: Any
    """The network's settings, a frozen dataclass; with its weights all that is needed to build the prior again."""
    max_grid: tuple[int, int]
    """The largest grid that is read at once: the window, or any grid for a prior with local attention."""
    head: nn.Module
    """The last layer, which scores codes: (..., D) -> (..., V)."""

    def __init__(
        self,
        *,
        size: int,
        prefix_length: int,
        grid: tuple[int, int],
        order: AnyOrder,
        condition_start: int,
        null_code: int | None,
    ) -> None:
        """`size`: image codes K. `condition_start`: the number of the first condition code in the vocabulary, 0 if
        image codes have the same numbers. `null_code`: the condition code of the unconditional prefix, None without
        one.
        """
        super().__init__()
        self.size, self.prefix_length, self.grid, self.order = size, prefix_length, grid, order
        self.condition_start, self.null_code = condition_start, null_code

    @final
    def join(self, prefix: Tensor, codes: Tensor) -> Tensor:
        """Prefix codes (B, P) and image codes (B, n) -> the sequence (B, P + n) that `forward` reads."""
        return torch.cat((prefix + self.condition_start, codes), dim=1)

    @final
    def null_prefix(self, batch: int) -> Tensor:
        """The unconditional prefix (batch, P): the start of an unconditional prior, and the unconditional branch of
        guidance.

        All its codes are equal, so a longer one is unconditional as well.

        Raises `SmaltiError` if the prior was not trained with one.
        """
        if self.null_code is None:
            raise SmaltiError(
                "this prior was not trained unconditionally; give every image a condition, and leave guidance at 1"
            )
        device = next(self.parameters()).device
        return torch.full((batch, self.prefix_length), self.null_code, device=device)

    @abc.abstractmethod
    def forward(self, codes: Tensor, *, cache: Cache | None = None, query_index: Tensor | None = None) -> Tensor:
        """A joined sequence (B, T) int64 -> logits (B, T, V): those at index t are of the code at index t + 1.

        The first K of the V are of image codes. Without a cache the sequence is whole and its image codes fill rows of
        the prior's own width. With one, `codes` continue what it holds, and it is advanced by T.

        With `query_index` (B, t), logits (B, t, V) at these indices among the T alone. Each is that of the last prefix
        code or of an image code. The last block computes no other queries.
        """

    @property
    @final
    def knows_any_order(self) -> bool:
        """Whether the order of the image codes is a value of each call, `Cache.order`."""
        return self.order == "any"

    @final
    def covers(self, grid: tuple[int, int]) -> bool:
        """Whether a grid (h, w) lies within one window, so that no window has to move over it."""
        return grid[0] <= self.grid[0] and grid[1] <= self.grid[1]

    @final
    def sequence_order(self, grid: tuple[int, int], *, device: torch.device) -> Tensor:
        """A grid (h, w) -> the raster indices of its codes in sequence order: (h w,) int64.

        An any-order prior reads raster order unless its cache names another.

        Raises `SmaltiError` for a grid other than the prior's window if the order is not raster: the prior has not
        learned such an order for other grids.
        """
        if self.order in ("raster", "any"):
            return torch.arange(grid[0] * grid[1], device=device)
        if tuple(grid) != tuple(self.grid):
            raise SmaltiError(
                f"this prior reads codes in the order {self.order!r}, which it learned for grids of {self.grid[0]} x "
                f"{self.grid[1]} codes only, not for {grid[0]} x {grid[1]}; only a prior in raster order supports "
                "other sizes"
            )
        return torch.tensor(_cached_order(cast(Order, self.order), *self.grid), device=device)

    @final
    def empty_cache(self, *, window: tuple[int, int] | None = None, order: Tensor | None = None) -> StaticCache:
        """A window (h, w), or the prior's own where none is given -> an empty cache for a prefix and its codes.

        `order` as in `Cache`.
        """
        rows, columns = self.grid if window is None else window
        return StaticCache(columns=columns, capacity=self.prefix_length + rows * columns, order=order)


@lru_cache(maxsize=16)
def _cached_order(order: Order, rows: int, columns: int) -> tuple[int, ...]:
    """The raster indices of an order, computed once. A tuple, since a cached tensor would belong to one device and
    mode."""
    return tuple(ORDERS[order](rows, columns).tolist())


def nll(
    prior: Prior, prefix: Tensor, codes: Tensor, *, inputs: Tensor | None = None, order: Tensor | None = None
) -> Tensor:
    """Prefix codes (B, P) and image codes (B, h, w) -> negative log-likelihood of each code in nats: (B, h, w).

    In the prior's order each code is conditioned on the prefix and on all codes before it: equation 9 of Esser et
    al., arXiv 2012.09841. With `inputs` (B, h, w) it is conditioned on those codes instead, and the targets stay
    the same: the original's corruption of a fraction of the codes in training. The grid may be the prior's window or,
    in raster order, a smaller one. `order` (h w,) or (B, h w) are the raster places of the codes in sequence order,
    for any-order priors; None is the prior's own. The mean is the training loss. It is float32, or float64
    if the prior is.

    Raises `SmaltiError` for a grid other than the prior's window if its order is not raster.
    """
    assert order is None or prior.knows_any_order, f"a prior of the order {prior.order} and another order"
    own_order = prior.sequence_order((codes.shape[1], codes.shape[2]), device=codes.device)
    places = (own_order if order is None else order).expand(len(codes), -1)  # (B, h w)
    targets = codes.flatten(1).gather(1, places)
    input_codes = targets if inputs is None else inputs.flatten(1).gather(1, places)
    sequence = prior.join(prefix, input_codes[:, :-1])
    logits = prior(sequence, cache=NoCache(columns=codes.shape[2], order=order))[:, prefix.shape[1] - 1 :]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    return losses.gather(1, places.argsort(dim=1)).view_as(codes)


def parameter_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """A network -> the two groups of parameters an optimizer such as AdamW takes: with `weight_decay`, and without.

    Weights of linear maps and convolutions decay. Biases, gains, embeddings and positions do not: they are added or
    looked up, or multiply single numbers. Each group is sorted by the names of its parameters. Parameters that do not
    require a gradient are in neither group.
    """
    decayed_types = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    decayed_ids = {id(layer.weight) for layer in module.modules() if isinstance(layer, decayed_types)}
    named_parameters = sorted(module.named_parameters(), key=lambda pair: pair[0])
    trained = [parameter for _, parameter in named_parameters if parameter.requires_grad]

    def group(parameters: Iterable[nn.Parameter], decay: float) -> dict[str, Any]:
        return {"params": list(parameters), "weight_decay": decay}

    return [
        group((parameter for parameter in trained if id(parameter) in decayed_ids), weight_decay),
        group((parameter for parameter in trained if id(parameter) not in decayed_ids), 0.0),
    ]
