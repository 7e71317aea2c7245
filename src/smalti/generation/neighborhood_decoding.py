"""Decoding with a neighborhood transformer: each code costs one position, and only the rows within the radius are
cached.

Notation: B batch, K image codes, P prefix codes, h w grid, m positions of a wave, N heads, d head dimension, r
radius, R cached rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.generation.decoding_strategy import PriorDecoding
from smalti.generation.request import GenerationRequest
from smalti.generation.wavefront import CodePosition
from smalti.prior.base import Prior
from smalti.prior.neighborhood import AttentionContext, Neighborhood, PrefixAttention
from smalti.prior.transformer import apply_rotary
from smalti.prior.window import Window


def neighborhood_waves(missing: Tensor, *, radius: int) -> list[list[CodePosition]]:
    """Missing codes, (h, w) bool -> the positions of each wave, row by row.

    A code attends to the row above up to `radius` columns ahead, so a row starts after the row above has `radius` +
    1 codes: there are w + (h - 1) (r + 1) waves. They contain all codes up to the last missing one, since the
    others attend to known codes too.
    """
    height, width = missing.shape
    last = int(missing.flatten().nonzero().max()) if missing.any() else -1
    lag, window = min(radius + 1, width), Window(0, 0, height, width)
    schedule: list[list[CodePosition]] = [[] for _ in range(width + (height - 1) * lag)]
    for index in range(last + 1):
        row, column = divmod(index, width)
        schedule[row * lag + column].append(CodePosition(row, column, window, index))
    while schedule and not schedule[-1]:
        schedule.pop()
    return schedule


@final
class RowCacheAttention(AttentionContext):
    """Attention of a wave's positions to those of earlier waves: each layer's keys and values of the last rows, in
    a ring buffer.

    Row i replaces row i - R. The rows in progress and the r rows above them fit into R, so no row is overwritten
    too early.
    """

    def __init__(self, grid: tuple[int, int], *, prefix: PrefixAttention, radius: int) -> None:
        height, width = grid
        self.width, self.prefix = width, prefix
        self.rows = min(height, radius + 1 + -(-width // min(radius + 1, width)))
        offsets = [
            (up, right) for up in range(radius, -1, -1) for right in range(-radius, radius + 1) if up or right <= 0
        ]
        self.up, self.right = torch.tensor(offsets).unbind(1)  # (s,) each
        self.keys_values: dict[str, tuple[Tensor, Tensor]] = {}

    def set_positions(self, rows: Tensor, columns: Tensor, rotation: tuple[Tensor, Tensor], *, batch: int) -> None:
        """Set the positions (m,) of the next call, their rotation and the batch size, before each call."""
        row, column = rows[:, None] - self.up.to(rows.device), columns[:, None] + self.right.to(rows.device)  # (m, s)
        visible = (row >= 0) & (column >= 0) & (column < self.width)
        self.mask = visible.repeat(batch, 1)[:, None, None]  # (B m, 1, 1, s)
        self.neighbor_index = (row % self.rows * self.width + column.clamp(0, self.width - 1)).flatten()  # (m s,)
        self.own_index, self.rotation = rows % self.rows * self.width + columns, rotation

    def attend(self, name: str, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        batch, heads, count, width = queries.shape
        if name not in self.keys_values:
            size = (batch, self.rows * self.width, heads * width)
            self.keys_values[name] = values.new_zeros(size), values.new_zeros(size)
        rotated_keys = apply_rotary(keys, self.rotation).type_as(values)
        neighbors = []
        for buffer, new in zip(self.keys_values[name], (rotated_keys, values), strict=True):
            buffer[:, self.own_index] = new.transpose(1, 2).flatten(2)
            read = buffer.index_select(1, self.neighbor_index).view(batch * count, -1, heads, width)  # (B m, s, N, d)
            neighbors.append(read.transpose(1, 2))
        rotated_queries = (
            apply_rotary(queries, self.rotation).type_as(values).transpose(1, 2).reshape(batch * count, heads, 1, width)
        )
        attended = F.scaled_dot_product_attention(
            rotated_queries, neighbors[0], neighbors[1], attn_mask=self.mask
        )  # (B m, N, 1, d)
        return self.prefix.add_prefix(name, queries, attended.view(batch, count, heads, width).transpose(1, 2))


@final
class NeighborhoodDecoding(PriorDecoding):
    """Decoding with a neighborhood transformer: all codes of a wave in one call, one position each."""

    def __init__(self, prior: Neighborhood, request: GenerationRequest, *, null_prefix: Tensor) -> None:
        """`null_prefix` (B, P) is the unconditional prefix, or has no rows without guidance."""
        height, width = request.grid
        self.prior, self.schedule = prior, neighborhood_waves(request.missing_positions, radius=prior.radius)
        prefixes = (request.prefix_at(Window(0, 0, height, width)), null_prefix)
        prefix = torch.cat([self._fit_prefix(part, height, width) for part in prefixes])
        free_codes, maps = prior.split_prefix(prefix, height * width)
        self.maps = maps.view(*maps.shape[:2], height, width)  # (B or 2 B, M, h, w)
        with torch.no_grad():
            self.row_cache = RowCacheAttention(
                (height, width), prefix=prior.encode_prefix(free_codes), radius=prior.radius
            )

    @staticmethod
    def decodes(prior: Prior, request: GenerationRequest) -> bool:
        return isinstance(prior, Neighborhood)

    def _fit_prefix(self, prefix: Tensor, height: int, width: int) -> Tensor:
        """The prefix of an image, or an unconditional one of the trained size -> the prefix of an image."""
        prior = self.prior
        length = prior.free_length + len(prior.hints) * height * width
        if prefix.shape[1] == length:
            return prefix
        if prefix.shape[1] != prior.prefix_length or not torch.equal(prefix, prior.null_prefix(len(prefix)).to(prefix)):
            raise SmaltiError(
                f"the prefix has {prefix.shape[1]} codes, and for {height} x {width} codes this prior reads {length}: "
                f"a code for each position in each of its {len(prior.hints)} maps"
            )
        return prefix[:, :1].expand(-1, length)

    def logits(self, codes: Tensor, wave: int) -> Iterator[tuple[Sequence[CodePosition], Tensor]]:
        prior, positions, no_code = self.prior, self.schedule[wave], self.prior.size
        rows, columns = torch.tensor([position[:2] for position in positions], device=codes.device).unbind(
            1
        )  # (m,) each
        left = codes[:, rows, columns - 1].where(columns > 0, no_code)  # (B, m)
        above = codes[:, rows - 1, columns].where(rows > 0, no_code)  # (B, m)
        copies = len(self.maps) // len(codes)
        x = prior.embed(left.repeat(copies, 1), above.repeat(copies, 1), self.maps[:, :, rows, columns])
        self.row_cache.set_positions(rows, columns, prior.rotation(rows, columns), batch=len(x))
        logits: Tensor = prior.head(prior.run_blocks(x, self.row_cache)).float()  # (B or 2 B, m, K)
        yield positions, logits.view(copies, len(codes), len(positions), -1).transpose(1, 2)
