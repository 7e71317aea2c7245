"""The layers of PixelSNAIL: causal convolutions over sequences, gated residual blocks, attention.

Notation: B batch, n places of one call, s places so far (cache and call), D width, I O numbers in and out, N heads,
A attended numbers, d = A / N, h w grid.

Places are kept as the sequence that they are in raster order, (B, n, D), not as a map: a convolution that sees row r -
i and column c - j sees what stood i w + j places earlier. So the same few lines serve a whole grid, the last code of
one that is being generated, and a grid of any width, and a cache remembers what has been computed (arXiv 1704.06001).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.prior.attention import attend
from smalti.prior.cache import Cache

RESIDUAL_INIT_SCALE = 0.1
"""The factor of the initial weights at the end of residual branches, as in the code of Chen et al., so that their
sum does not grow with depth."""


class GridPositions(NamedTuple):
    """The positions of one call, in raster order."""

    indices: Tensor
    """(n,) int64, counted from the first of the grid."""
    rows: Tensor
    columns: Tensor
    """(n,) int64 each."""
    coordinates: Tensor
    """(n, 2) rows and columns as fractions of the prior's window, from -1/2 on: the "background" of the paper."""
    total: int
    """s: the number of these and the positions before them."""
    cache: Cache

    @classmethod
    def of(cls, first: int, count: int, *, grid: tuple[int, int], cache: Cache, like: Tensor) -> GridPositions:
        """`count` positions from the index `first` on, in rows of the cache's width; on the device of `like`."""
        indices = torch.arange(first, first + count, device=like.device)
        rows, columns = indices // cache.columns, indices % cache.columns
        coordinates = torch.stack((rows / grid[0] - 0.5, columns / grid[1] - 0.5), dim=1)
        return cls(indices, rows, columns, coordinates, first + count, cache)

    def append(self, name: str, new: Tensor) -> Tensor:
        """Layer `name`'s output for these positions (B, ..., n, D) -> the same for all so far (B, ..., s, D)."""
        return self.cache.append(name, new)[..., -self.total :, :]


@final
class CausalConv(nn.Module):
    """A causal convolution: (B, n, I) -> (B, n, O), a linear map of the concatenated inputs above and to the left.

    `offsets`: rows up and columns to the left of each input; columns to the right are negative. `behind`: 1 if the
    input at a position belongs to the position before it, else 0. Inputs outside the grid are zero.
    """

    def __init__(self, size: int, out: int, *, offsets: Sequence[tuple[int, int]], behind: int, name: str) -> None:
        super().__init__()
        self.offsets, self.behind, self.name = tuple(offsets), behind, name
        self.project = nn.Linear(len(self.offsets) * size, out)

    def forward(self, x: Tensor, positions: GridPositions) -> Tensor:
        inputs = positions.append(self.name, x)  # (B, s, I)
        taps = []
        for up, left in self.offsets:
            tap = shifted(inputs, up * positions.cache.columns + left - self.behind, count=x.shape[1])  # (B, n, I)
            if left:
                column = positions.columns - left
                outside = (column < 0) | (column >= positions.cache.columns)
                tap = tap.masked_fill(outside[:, None], 0)
            taps.append(tap)
        output: Tensor = self.project(torch.cat(taps, dim=2))
        return output


def shifted(x: Tensor, by: int, *, count: int) -> Tensor:
    """Values of all positions so far (B, s, O) -> those `by` positions before each of the last `count`, zeros
    before the first: (B, count, O).

    For a `by` below 0 the result belongs to other positions, and the caller must mask it.
    """
    end = x.shape[1] - max(by, 0)
    values = x[:, max(end - count, 0) : max(end, 0)]
    return F.pad(values, (0, 0, count - values.shape[1], 0))


@final
class PointwiseConv(nn.Module):
    """A 1 x 1 convolution, with the signature of `CausalConv`: (B, n, I) -> (B, n, O)."""

    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.project = nn.Linear(size, out)

    def forward(self, x: Tensor, positions: GridPositions) -> Tensor:
        output: Tensor = self.project(x)
        return output


def kernel_offsets(kernel: int) -> list[tuple[int, int]]:
    """The offsets of a "down-right" convolution: `kernel` rows and columns up to the position itself."""
    return [(up, left) for up in range(kernel) for left in range(kernel)]


@final
class GatedResBlock(nn.Module):
    """The gated residual block of the paper: (B, n, I) -> (B, n, I).

    `inner` and `outer` map I to H and H to 2 I numbers; half of the latter is added, as far as the other half opens the
    gate.
    """

    def __init__(self, inner: CausalConv | PointwiseConv, outer: CausalConv | PointwiseConv, *, dropout: float) -> None:
        super().__init__()
        self.inner, self.outer = inner, outer
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            outer.project.weight.mul_(RESIDUAL_INIT_SCALE)

    def forward(self, x: Tensor, positions: GridPositions) -> Tensor:
        hidden = self.dropout(F.elu(self.inner(F.elu(x), positions)))  # (B, n, H)
        update: Tensor = F.glu(self.outer(hidden, positions), dim=2)  # (B, n, I)
        return x + update


@final
class SnailBlock(nn.Module):
    """Gated residual blocks and attention over all positions so far, combined: (B, n, D) -> (B, n, D)."""

    def __init__(self, width: int, *, residuals: int, kernel: int, heads: int, dropout: float, name: str) -> None:
        super().__init__()
        self.name, self.heads, self.dropout = name, heads, dropout
        half = width // 2
        offsets = kernel_offsets(kernel)

        def convolution(out: int, part: str) -> CausalConv:
            return CausalConv(width, out, offsets=offsets, behind=0, name=f"{name}.{part}")

        def pointwise(size: int) -> GatedResBlock:
            return GatedResBlock(PointwiseConv(size, width), PointwiseConv(width, 2 * size), dropout=dropout)

        self.residuals = nn.ModuleList(
            GatedResBlock(
                convolution(width, f"{number}.inner"), convolution(2 * width, f"{number}.outer"), dropout=dropout
            )
            for number in range(residuals)
        )
        self.key_block, self.query_block = pointwise(2 * width + 2), pointwise(width + 2)
        self.keys_values = nn.Linear(2 * width + 2, 2 * half)
        self.queries = nn.Linear(width + 2, half)
        self.mixed = nn.Linear(half, width)
        self.out = pointwise(width)

    def forward(self, x: Tensor, previous: Tensor, positions: GridPositions) -> Tensor:
        """`previous` (B, n, D): the embedded code before each position."""
        for block in self.residuals:
            x = block(x, positions)  # (B, n, D)
        coordinates = positions.coordinates.to(x.dtype).expand(len(x), -1, -1)  # (B, n, 2)
        key_inputs = self.key_block(
            torch.cat((previous.to(x.dtype), x, coordinates), dim=2), positions
        )  # (B, n, 2 D + 2)
        query_inputs = self.query_block(torch.cat((x, coordinates), dim=2), positions)  # (B, n, D + 2)
        attended = self._attention(query_inputs, key_inputs, positions)  # (B, n, A)
        output: Tensor = self.out(x + self.mixed(F.elu(attended)), positions)  # (B, n, D)
        return output

    def _attention(self, query_inputs: Tensor, key_inputs: Tensor, positions: GridPositions) -> Tensor:
        keys, values = (
            self.keys_values(key_inputs).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # (B, N, n, d)
        queries = self.queries(query_inputs).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, N, n, d)
        keys = positions.append(f"{self.name}.keys", keys)  # (B, N, s, d)
        values = positions.append(f"{self.name}.values", values)  # (B, N, s, d)
        dropout = self.dropout if self.training else 0.0
        return attend(queries, keys, values, dropout=dropout).transpose(1, 2).flatten(2)  # (B, n, A)
