"""The neighborhood transformer: attention to nearby codes only, for images of any size.

Notation: B batch, T positions or codes of one call, t of the codes that are scored, F free prefix codes, M maps, h w
grid, D width, N heads, d = D / N, r radius, K image codes, C condition codes.

Attention is limited to a causal neighborhood, as in Image Transformer (arXiv 1802.05751) and Neighborhood Attention
(arXiv 2204.07143), and positions are relative (rotary positions along two axes, 2403.13298). So nothing depends on
the size of the training images, and no position is computed twice. The receptive field exceeds the radius, since it
grows by r rows per layer.
"""

from __future__ import annotations

import abc
import math
from typing import Annotated, Literal, final

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from smalti.core.settings import LayerCount, Natural, Positive, ProperFraction, settings
from smalti.kernels.decode_block import BlockDescription
from smalti.kernels.prepacked import DecodableBlock
from smalti.prior.attention import select
from smalti.prior.base import Prior
from smalti.prior.cache import Cache, NoCache
from smalti.prior.transformer import RMSNorm, apply_rotary, check_rotary_heads

TILE_SIZE = 32
"""Rows and columns of positions whose attention is computed at once: it limits the size of the mask for any image."""
UNBOUNDED = 2**31


@settings
class NeighborhoodSettings:
    """The sizes of a neighborhood transformer.

    `codebook_size`: image codes K. `condition_size`: condition codes C, 0 for none. `prefix_length`: prefix codes
    for an image of `grid` (h, w) codes, the training size. `radius`: r, the number of rows above a code, and
    columns on both sides, it attends to. `mlp_dim`: width of the gated MLP, 0 for 8/3 of the width. `dropout`: a
    probability, as of the transformer.
    """

    name: Literal["neighborhood"] = "neighborhood"
    codebook_size: Positive
    condition_size: Natural = 0
    prefix_length: Positive = 1
    maps: tuple[Natural, ...] = ()
    """Start indices in the prefix of maps with one code per position of the image, row by row."""
    grid: tuple[Positive, Positive] = (16, 16)
    radius: Positive = 4
    layers: LayerCount = 12
    embed_dim: Positive = 512
    heads: Positive = 8
    mlp_dim: Natural = 0
    dropout: ProperFraction = 0.0
    rotary_base: Annotated[float, Field(gt=0)] = 100.0
    """Rotations fall from 1 radian a code toward 1 / this."""

    _heads_divide_width = field_validator("heads")(check_rotary_heads)

    @model_validator(mode="after")
    def _maps_fit_the_prefix(self) -> NeighborhoodSettings:
        places, end = self.grid[0] * self.grid[1], 0
        for begin in self.maps:
            if begin < end or begin + places > self.prefix_length:
                raise ValueError(
                    f"a map of {places} codes from {begin} on does not fit into {self.prefix_length} prefix codes "
                    f"after {end} others"
                )
            end = begin + places
        return self


class AttentionContext(abc.ABC):
    """The keys and values that the positions of one call attend to in each layer."""

    @abc.abstractmethod
    def attend(self, name: str, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Layer `name`'s queries, keys and values of the positions of this call, (B, N, T, d) each -> attention
        output (B, N, T, d)."""


@final
class PrefixAttention(AttentionContext):
    """The free prefix codes: they attend to one another, and all positions attend to them."""

    def __init__(self) -> None:
        self.keys_values: dict[str, tuple[Tensor, Tensor]] = {}

    def attend(self, name: str, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        self.keys_values[name] = keys, values
        return F.scaled_dot_product_attention(queries, keys, values)

    def add_prefix(self, name: str, queries: Tensor, attended: Tensor) -> Tensor:
        """Attention output over positions (B, N, T, d) -> the same plus the attention output over the prefix."""
        if name not in self.keys_values:
            return attended
        return attended + F.scaled_dot_product_attention(queries, *self.keys_values[name])


@final
class TiledGridAttention(AttentionContext):
    """All positions of a grid (h, w), tile by tile, so that no mask is as large as T x T."""

    def __init__(
        self, grid: tuple[int, int], *, prefix: PrefixAttention, radius: int, rotation: tuple[Tensor, Tensor]
    ) -> None:
        self.grid, self.prefix, self.radius, self.rotation = grid, prefix, radius, rotation
        self.masks: dict[tuple[tuple[int, ...], tuple[int, ...]], Tensor] = {}

    def attend(self, name: str, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        rotated = (
            apply_rotary(queries, self.rotation).type_as(values),
            apply_rotary(keys, self.rotation).type_as(values),
            values,
        )
        q, k, v = (tensor.reshape(*tensor.shape[:2], *self.grid, -1) for tensor in rotated)  # 3 x (B, N, h, w, d)
        rows = []
        for top in range(0, self.grid[0], TILE_SIZE):
            above, bottom = max(top - self.radius, 0), min(top + TILE_SIZE, self.grid[0])
            tiles = []
            for left in range(0, self.grid[1], TILE_SIZE):
                before, right = max(left - self.radius, 0), min(left + TILE_SIZE, self.grid[1])
                after = min(right + self.radius, self.grid[1])
                tile_queries = q[:, :, top:bottom, left:right]
                keys_values = [tensor[:, :, above:bottom, before:after].flatten(2, 3) for tensor in (k, v)]
                tile = (top - above, bottom - above, left - before, right - before)
                neighborhood = (0, bottom - above, 0, after - before)
                if (tile, neighborhood) not in self.masks:  # there are few: most tiles are alike
                    self.masks[tile, neighborhood] = neighborhood_mask(tile, neighborhood, self.radius, q.device)
                mask = self.masks[tile, neighborhood]
                attended = F.scaled_dot_product_attention(
                    tile_queries.flatten(2, 3), keys_values[0], keys_values[1], attn_mask=mask
                )
                tiles.append(attended.view(tile_queries.shape))  # (B, N, tile, tile, d)
            rows.append(torch.cat(tiles, dim=3))
        return self.prefix.add_prefix(name, queries, torch.cat(rows, dim=2).flatten(2, 3))


def neighborhood_mask(queries: tuple[int, ...], keys: tuple[int, ...], radius: int, device: torch.device) -> Tensor:
    """Two parts of a grid (top, bottom, left, right) -> which positions of the second each of the first attends to,
    (t, s) bool.

    Those in the `radius` rows above, up to as many columns on both sides, and those before it in its own row, with
    itself.
    """

    def positions(part: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        rows, columns = torch.arange(*part[:2], device=device), torch.arange(*part[2:], device=device)
        return rows.repeat_interleave(len(columns)), columns.repeat(len(rows))

    (row, column), (key_row, key_column) = positions(queries), positions(keys)
    up, right = row[:, None] - key_row, key_column - column[:, None]
    return (up >= 0) & (up <= radius) & (right.abs() <= radius) & ((up > 0) | (right <= 0))


@final
class Neighborhood(Prior):
    """Sequences of prefix and image codes -> logits of the next image code: (B, T) int64 -> (B, T, K).

    Image codes are 0 to K - 1, condition codes follow from K on, and the last of the vocabulary, K + C, is the
    unconditional code. A sequence is whole, for a grid of any size: the prefix, with as many codes in each of its
    maps as the grid has, and the image codes but the last.

    The input of a position is the code to its left, the code above, and the maps' codes at the position. It is not
    the previous code in the sequence, which is far away for the first code of a row. Maps cost no attention, so
    they can be as large as the image. All positions attend to the other prefix codes.

    It uses no `Cache`: `generation.neighborhood_decoding` caches the rows within the radius.
    """

    def __init__(self, settings: NeighborhoodSettings) -> None:
        super().__init__(
            size=settings.codebook_size,
            prefix_length=settings.prefix_length,
            grid=settings.grid,
            order="raster",
            condition_start=settings.codebook_size,
            null_code=settings.condition_size,
        )
        self.settings = settings
        self.max_grid, self.radius = (UNBOUNDED, UNBOUNDED), settings.radius
        self.free_length = settings.prefix_length - len(settings.maps) * settings.grid[0] * settings.grid[1]
        width = settings.embed_dim
        self.left, self.above = (
            nn.Embedding(settings.codebook_size + 1, width) for _ in range(2)
        )  # the last: there is none
        self.prefix_codes = nn.Embedding(settings.condition_size + 1, width)
        self.prefix_positions = nn.Embedding(self.free_length, width)
        self.hints = nn.ModuleList(nn.Embedding(settings.condition_size + 1, width) for _ in settings.maps)
        self.dropout = nn.Dropout(settings.dropout)
        blocks = [_Block(settings, name=str(index)) for index in range(settings.layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = RMSNorm(width, epsilon=1e-6)
        self.head = nn.Linear(width, settings.codebook_size, bias=False)
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)
        for block in blocks:  # smaller, as in the transformer
            for last in (block.out, block.down):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * settings.layers))

    def forward(self, codes: Tensor, *, cache: Cache | None = None, query_index: Tensor | None = None) -> Tensor:
        cache = NoCache(columns=self.grid[1]) if cache is None else cache
        assert cache.length == 0, "a neighborhood transformer reads whole images"
        count, remainder = divmod(codes.shape[1] + 1 - self.free_length, 1 + len(self.hints))
        assert remainder == 0, f"{codes.shape[1]} codes are no prefix and grid"
        assert count % cache.columns == 0, f"{count} codes are no rows of {cache.columns}"
        grid = (count // cache.columns, cache.columns)
        prefix, image = codes[:, : codes.shape[1] - count + 1], codes[:, codes.shape[1] - count + 1 :]
        free_codes, maps = self.split_prefix(prefix - self.size, count)  # (B, F), (B, M, h w)
        image = F.pad(image, (0, 1)).view(-1, *grid)  # (B, h, w), the last never looked at
        left = F.pad(image[:, :, :-1], (1, 0), value=self.size).flatten(1)  # (B, h w)
        above = F.pad(image[:, :-1], (0, 0, 1, 0), value=self.size).flatten(1)  # (B, h w)
        positions = torch.arange(count, device=codes.device)
        rotation = self.rotation(positions // grid[1], positions % grid[1])  # 2 x (h w, d)
        context = TiledGridAttention(grid, prefix=self.encode_prefix(free_codes), radius=self.radius, rotation=rotation)
        x = self.dropout(self.embed(left, above, maps))  # (B, h w, D)
        # Prefix codes have no logits: there the head reads zeros.
        x = F.pad(self.run_blocks(x, context), (0, 0, prefix.shape[1] - 1, 0))  # (B, T, D)
        logits: Tensor = self.head(select(x, query_index))  # (B, t, K)
        return logits

    def split_prefix(self, prefix: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The prefix of a grid of `count` positions (B, P) -> its free codes (B, F), and its maps (B, M, count)."""
        map_length, at, read = self.grid[0] * self.grid[1], 0, 0
        free_codes, maps = [], []
        for begin in self.settings.maps:
            between = begin - at
            free_codes.append(prefix[:, read : read + between])
            maps.append(prefix[:, read + between : read + between + count])
            at, read = begin + map_length, read + between + count
        free_codes.append(prefix[:, read:])
        return torch.cat(free_codes, dim=1), torch.stack(maps, dim=1) if maps else prefix.new_empty(
            len(prefix), 0, count
        )

    def encode_prefix(self, free_codes: Tensor) -> PrefixAttention:
        """Free prefix codes (B, F) -> their keys and values."""
        prefix = PrefixAttention()
        if self.free_length:
            self.run_blocks(self.dropout(self.prefix_codes(free_codes) + self.prefix_positions.weight), prefix)
        return prefix

    def embed(self, left: Tensor, above: Tensor, maps: Tensor) -> Tensor:
        """The codes to the left and above of places, K where there is none (B, T), and the maps there (B, M, T) -> (B,
        T, D)."""
        x = self.left(left) + self.above(above)
        for number, hint in enumerate(self.hints):
            x = x + hint(maps[:, number])
        return x  # type: ignore[no-any-return]

    def run_blocks(self, x: Tensor, context: AttentionContext) -> Tensor:
        """Positions (B, T, D) -> the input of the head (B, T, D)."""
        for block in self.blocks:
            x = block(x, context)
        features: Tensor = self.norm(x)
        return features

    def rotation(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns (T,) -> cosines and signed sines (T, d), float32, as the transformer's."""
        axis = self.settings.embed_dim // self.settings.heads // 4  # pairs an axis
        frequencies = self.settings.rotary_base ** -(torch.arange(axis, device=rows.device, dtype=torch.float32) / axis)
        angles = (torch.stack((rows, columns), dim=1)[:, :, None] * frequencies).flatten(1)  # (T, d / 2)
        cosines, sines = angles.cos(), angles.sin()
        return torch.cat((cosines, cosines), dim=1), torch.cat((-sines, sines), dim=1)


@final
class _Block(DecodableBlock):
    """Attention and a gated MLP with residual connections: (B, T, D) -> (B, T, D)."""

    def __init__(self, settings: NeighborhoodSettings, *, name: str) -> None:
        super().__init__()
        self.name, self.heads = name, settings.heads
        width, head = settings.embed_dim, settings.embed_dim // settings.heads
        self.attention_norm, self.mlp_norm = (RMSNorm(width, epsilon=1e-6) for _ in range(2))
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.query_norm, self.key_norm = (RMSNorm(head, epsilon=1e-6) for _ in range(2))
        self.out = nn.Linear(width, width, bias=False)
        hidden = settings.mlp_dim or 16 * math.ceil(width * 8 / 3 / 16)  # as in the transformer
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        qkv = self.project(self.attention_norm(x)).unflatten(2, (3, self.heads, -1))  # (B, T, 3, N, d)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # 3 x (B, N, T, d)
        queries, keys = self.query_norm(queries).type_as(values), self.key_norm(keys).type_as(values)
        attended = self.attend(queries, keys, values, context)  # (B, N, T, d)
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))  # (B, T, D)
        gate, value = self.up(self.mlp_norm(x)).chunk(2, dim=-1)  # 2 x (B, T, hidden)
        update: Tensor = self.dropout(self.down(F.silu(gate) * value))  # (B, T, D)
        return x + update

    def description(self) -> BlockDescription:
        return BlockDescription(
            heads=self.heads,
            attention_norm=self.attention_norm.norm_parameters(),
            project=(self.project,),
            query_key_norms=(self.query_norm.norm_parameters(), self.key_norm.norm_parameters()),
            out=self.out,
            mlp_norm=self.mlp_norm.norm_parameters(),
            up=self.up,
            down=self.down,
        )

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, context: AttentionContext) -> Tensor:
        return context.attend(self.name, queries, keys, values)
