"""The layers of PixelSNAIL: causal convolutions over sequences, gated residual blocks, attention.

Shapes: B batch, n places of one call, s places so far (cache and call), D width, I O numbers in and out, N heads,
A attended numbers, d = A / N, h w grid.

Places are kept as the sequence that they are in raster order, (B, n, D), not as a map: a convolution that sees row r - i
and column c - j sees what stood i w + j places earlier. So the same few lines serve a whole grid, the last code of one
that is being laid, and a grid of any width, and a cache remembers what has been computed (arXiv 1704.06001).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.prior.attention import attended
from smalti.prior.base import Cache

SMALL = 0.1
"""What ends a residual branch starts so much smaller, as in the code of Chen et al., so that their sum does not grow with depth."""


class Places(NamedTuple):
    """The places of one call, in raster order."""

    numbers: Tensor
    """(n,) int64, counted from the first of the grid."""
    rows: Tensor
    columns: Tensor
    """(n,) int64 each."""
    where: Tensor
    """(n, 2) rows and columns as shares of the prior's window, from -1/2 on: the "background" of the paper."""
    so_far: int
    """s: these and those before them."""
    cache: Cache

    @classmethod
    def of(cls, first: int, count: int, *, grid: tuple[int, int], cache: Cache, like: Tensor) -> Places:
        """`count` places from the index `first` on, in rows as long as the cache has them; on the device of `like`."""
        numbers = torch.arange(first, first + count, device=like.device)
        rows, columns = numbers // cache.columns, numbers % cache.columns
        where = torch.stack((rows / grid[0] - 0.5, columns / grid[1] - 0.5), dim=1)
        return cls(numbers, rows, columns, where, first + count, cache)

    def kept(self, name: str, new: Tensor) -> Tensor:
        """What layer `name` made of these places (B, ..., n, D) -> the same of all so far (B, ..., s, D)."""
        return self.cache.extended(name, new)[..., -self.so_far :, :]


@final
class Causal(nn.Module):
    """A causal convolution: (B, n, I) -> (B, n, O), a linear map of places above and at the left, side by side.

    `offsets`: rows up and columns to the left of what is seen; columns to the right are negative. `behind`: 1 where the
    input at a place is what stood at the place before it, else 0. What lies outside of the grid is zero.
    """

    def __init__(self, size: int, out: int, *, offsets: Sequence[tuple[int, int]], behind: int, name: str) -> None:
        super().__init__()
        self.offsets, self.behind, self.name = tuple(offsets), behind, name
        self.project = nn.Linear(len(self.offsets) * size, out)

    def forward(self, x: Tensor, places: Places) -> Tensor:
        so_far = places.kept(self.name, x)  # (B, s, I)
        seen = []
        for up, left in self.offsets:
            part = earlier(so_far, up * places.cache.columns + left - self.behind, count=x.shape[1])  # (B, n, I)
            if left:
                column = places.columns - left
                outside = (column < 0) | (column >= places.cache.columns)
                part = part.masked_fill(outside[:, None], 0)
            seen.append(part)
        mapped: Tensor = self.project(torch.cat(seen, dim=2))
        return mapped


def earlier(x: Tensor, by: int, *, count: int) -> Tensor:
    """Values of all places so far (B, s, O) -> those that stood `by` places before each of the last `count`, zeros before the
    first place: (B, count, O).

    A `by` below 0 would be a look at what comes; there the result is of other places, and only for the caller to hide.
    """
    end = x.shape[1] - max(by, 0)
    found = x[:, max(end - count, 0) : max(end, 0)]
    return F.pad(found, (0, 0, count - found.shape[1], 0))


@final
class Pointwise(nn.Module):
    """A 1 x 1 convolution, with the signature of `Causal`: (B, n, I) -> (B, n, O)."""

    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.project = nn.Linear(size, out)

    def forward(self, x: Tensor, places: Places) -> Tensor:
        mapped: Tensor = self.project(x)
        return mapped


def square(kernel: int) -> list[tuple[int, int]]:
    """The offsets of a "down-right" convolution: `kernel` rows and columns up to the place itself."""
    return [(up, left) for up in range(kernel) for left in range(kernel)]


@final
class Gated(nn.Module):
    """The gated residual block of the paper: (B, n, I) -> (B, n, I).

    `inner` and `outer` map I to H and H to 2 I numbers; half of the latter is added, as far as the other half opens the
    gate.
    """

    def __init__(self, inner: Causal | Pointwise, outer: Causal | Pointwise, *, dropout: float) -> None:
        super().__init__()
        self.inner, self.outer = inner, outer
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            outer.project.weight.mul_(SMALL)

    def forward(self, x: Tensor, places: Places) -> Tensor:
        hidden = self.dropout(F.elu(self.inner(F.elu(x), places)))  # (B, n, H)
        change: Tensor = F.glu(self.outer(hidden, places), dim=2)  # (B, n, I)
        return x + change


@final
class SnailBlock(nn.Module):
    """Gated residual blocks, attention over all places so far, and both joined: (B, n, D) -> (B, n, D)."""

    def __init__(self, width: int, *, residuals: int, kernel: int, heads: int, dropout: float, name: str) -> None:
        super().__init__()
        self.name, self.heads, self.dropout = name, heads, dropout
        half = width // 2
        offsets = square(kernel)

        def convolution(out: int, called: str) -> Causal:
            return Causal(width, out, offsets=offsets, behind=0, name=f"{name}.{called}")

        def pointwise(size: int) -> Gated:
            return Gated(Pointwise(size, width), Pointwise(width, 2 * size), dropout=dropout)

        self.residuals = nn.ModuleList(
            Gated(convolution(width, f"{number}.inner"), convolution(2 * width, f"{number}.outer"), dropout=dropout)
            for number in range(residuals)
        )
        self.key_block, self.query_block = pointwise(2 * width + 2), pointwise(width + 2)
        self.keys_values = nn.Linear(2 * width + 2, 2 * half)
        self.queries = nn.Linear(width + 2, half)
        self.mixed = nn.Linear(half, width)
        self.out = pointwise(width)

    def forward(self, x: Tensor, before: Tensor, places: Places) -> Tensor:
        """`before` (B, n, D): the embedded code before each place."""
        for block in self.residuals:
            x = block(x, places)  # (B, n, D)
        where = places.where.to(x.dtype).expand(len(x), -1, -1)  # (B, n, 2)
        told = self.key_block(torch.cat((before.to(x.dtype), x, where), dim=2), places)  # (B, n, 2 D + 2)
        asked = self.query_block(torch.cat((x, where), dim=2), places)  # (B, n, D + 2)
        seen = self._attention(asked, told, places)  # (B, n, A)
        joined: Tensor = self.out(x + self.mixed(F.elu(seen)), places)  # (B, n, D)
        return joined

    def _attention(self, asked: Tensor, told: Tensor, places: Places) -> Tensor:
        keys, values = self.keys_values(told).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, N, n, d)
        queries = self.queries(asked).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, N, n, d)
        keys = places.kept(f"{self.name}.keys", keys)  # (B, N, s, d)
        values = places.kept(f"{self.name}.values", values)  # (B, N, s, d)
        dropout = self.dropout if self.training else 0.0
        return attended(queries, keys, values, dropout=dropout).transpose(1, 2).flatten(2)  # (B, n, A)
