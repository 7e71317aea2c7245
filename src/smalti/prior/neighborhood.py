"""The neighborhood transformer: each code sees those near it, so that an image may be of any size.

Letters: B batch, T places of one call, F free prefix codes, M maps, h w grid, D width, N heads, d = D / N, r reach, K image
codes, C condition codes.

Attention is limited to a causal neighborhood, as in Image Transformer (arXiv 1802.05751) and Neighborhood Attention (arXiv
2204.07143), and places are told apart by how far they are from one another (rotary positions along two axes, 2403.13298). So
nothing hangs on the size of the image that it was trained on, and what was computed for a place is never computed again. It sees
further than its reach, for what it sees has looked around as well: r rows a layer.
"""

from __future__ import annotations

import abc
import math
from typing import Annotated, Literal, final

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from smalti.core.settings import Natural, Positive, settings
from smalti.kernels.decode_block import Step, panels
from smalti.kernels.prepacked import Block
from smalti.prior import flex_attention
from smalti.prior.base import Cache, Prior
from smalti.prior.transformer import Norm, heads_for_rotation, rotated

TILE = 32
"""Rows and columns of places whose attention is computed at once: its mask is never larger, however large the image."""
EVERYWHERE = 2**31


@settings
class NeighborhoodSettings:
    """The sizes of a neighborhood transformer.

    `size`: image codes K. `condition_size`: condition codes C, 0 for none. `prefix`: prefix codes for an image of `grid` (h, w)
    codes, the size it is trained on. `reach`: r, how many rows above a code, and columns to both sides of it, the code sees.
    `hidden`: width of the gated perceptron, 0 for 8/3 of the width. `dropout`: a probability, as of the transformer.
    """

    name: Literal["neighborhood"] = "neighborhood"
    codebook_size: Positive
    condition_size: Natural = 0
    prefix_length: Positive = 1
    maps: tuple[Natural, ...] = ()
    """Where in the prefix a map of the image begins, with a code for each of its places, row by row."""
    grid: tuple[Positive, Positive] = (16, 16)
    radius: Positive = 4
    layers: Positive = 12
    embed_dim: Positive = 512
    heads: Positive = 8
    mlp_dim: Natural = 0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rotary_base: Annotated[float, Field(gt=0)] = 100.0
    """Rotations fall from 1 radian a code toward 1 / this."""

    _heads_divide_width = field_validator("heads")(heads_for_rotation)

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


class Sight(abc.ABC):
    """What the places of one call see in each layer."""

    @abc.abstractmethod
    def seen(self, name: str, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Layer `name`'s queries, keys and values of the places of this call, (B, N, T, d) each -> what each sees (B, N, T, d)."""


@final
class Told(Sight):
    """The free prefix codes: they see one another, and all places see them, wherever they are."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[Tensor, Tensor]] = {}

    def seen(self, name: str, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        self.kept[name] = keys, values
        return F.scaled_dot_product_attention(queries, keys, values)

    def added(self, name: str, queries: Tensor, seen: Tensor) -> Tensor:
        """What places see of one another (B, N, T, d) -> the same, and added to it what they see of the prefix."""
        if name not in self.kept:
            return seen
        return seen + F.scaled_dot_product_attention(queries, *self.kept[name])


@final
class WholeGrid(Sight):
    """All places of a grid (h, w), tile by tile, so that no mask is as large as T x T."""

    def __init__(self, grid: tuple[int, int], *, told: Told, reach: int, rotation: tuple[Tensor, Tensor]) -> None:
        self.grid, self.told, self.reach, self.rotation = grid, told, reach, rotation
        self.masks: dict[tuple[tuple[int, ...], tuple[int, ...]], Tensor] = {}

    def seen(self, name: str, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        maps = (rotated(queries, self.rotation).type_as(values), rotated(keys, self.rotation).type_as(values), values)
        q, k, v = (one.reshape(*one.shape[:2], *self.grid, -1) for one in maps)  # 3 x (B, N, h, w, d)
        rows = []
        for top in range(0, self.grid[0], TILE):
            above, bottom = max(top - self.reach, 0), min(top + TILE, self.grid[0])
            tiles = []
            for left in range(0, self.grid[1], TILE):
                before, right = max(left - self.reach, 0), min(left + TILE, self.grid[1])
                after = min(right + self.reach, self.grid[1])
                asked = q[:, :, top:bottom, left:right]
                others = [one[:, :, above:bottom, before:after].flatten(2, 3) for one in (k, v)]
                tile = (top - above, bottom - above, left - before, right - before)
                around = (0, bottom - above, 0, after - before)
                if (tile, around) not in self.masks:  # there are few: most tiles are alike
                    self.masks[tile, around] = visible(tile, around, self.reach, q.device)
                mask = self.masks[tile, around]
                seen = F.scaled_dot_product_attention(asked.flatten(2, 3), others[0], others[1], attn_mask=mask)
                tiles.append(seen.view(asked.shape))  # (B, N, tile, tile, d)
            rows.append(torch.cat(tiles, dim=3))
        return self.told.added(name, queries, torch.cat(rows, dim=2).flatten(2, 3))


@final
class FlexGrid(Sight):
    """As `WholeGrid`, by FlexAttention: not in tiles, but by one kernel that passes over blocks of places out of reach."""

    def __init__(self, grid: tuple[int, int], *, told: Told, reach: int, rotation: tuple[Tensor, Tensor]) -> None:
        self.told, self.rotation = told, rotation
        self.mask = flex_attention.near(grid, reach, rotation[0].device)

    def seen(self, name: str, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k = (rotated(one, self.rotation).type_as(values) for one in (queries, keys))  # 2 x (B, N, T, d)
        return self.told.added(name, queries, flex_attention.seen(q, k, values, self.mask))


def visible(asked: tuple[int, ...], around: tuple[int, ...], reach: int, device: torch.device) -> Tensor:
    """Two parts of a grid (top, bottom, left, right) -> which places of the second each of the first sees, (t, s) bool.

    Those in the `reach` rows above, up to as many columns to both sides, and those before it in its own row, with itself.
    """

    def places(part: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        rows, columns = torch.arange(*part[:2], device=device), torch.arange(*part[2:], device=device)
        return rows.repeat_interleave(len(columns)), columns.repeat(len(rows))

    (row, column), (other_row, other_column) = places(asked), places(around)
    up, right = row[:, None] - other_row, other_column - column[:, None]
    return (up >= 0) & (up <= reach) & (right.abs() <= reach) & ((up > 0) | (right <= 0))


@final
class Neighborhood(Prior):
    """Sequences of prefix and image codes -> logits of the next image code: (B, T) int64 -> (B, T, K).

    Image codes are 0 to K - 1, condition codes follow from K on, and the last of the vocabulary, K + C, says "nothing". A sequence
    is whole, for a grid of any size: the prefix, with as many codes in each of its maps as the grid has, and the image codes but
    the last.

    A place starts from the code at its left, the code above, and what the maps say there. It does not start from the code before
    it in the sequence, because for the first of a row that one is far away. A map is told where it is and costs no attention, so
    that it can be as large as the image. Other prefix codes are seen by all places.

    A cache holds nothing of use to it: `prior.neighbors` lays images with a memory of the rows in reach.
    """

    def __init__(self, settings: NeighborhoodSettings) -> None:
        super().__init__()
        self.settings = settings
        self.size, self.prefix, self.grid, self.order = (
            settings.codebook_size,
            settings.prefix_length,
            settings.grid,
            "raster",
        )
        self.limit, self.reach = (EVERYWHERE, EVERYWHERE), settings.radius
        self.free = settings.prefix_length - len(settings.maps) * settings.grid[0] * settings.grid[1]
        width = settings.embed_dim
        self.left, self.above = (
            nn.Embedding(settings.codebook_size + 1, width) for _ in range(2)
        )  # the last: there is none
        self.prefix_codes = nn.Embedding(settings.condition_size + 1, width)
        self.prefix_positions = nn.Embedding(self.free, width)
        self.hints = nn.ModuleList(nn.Embedding(settings.condition_size + 1, width) for _ in settings.maps)
        self.dropout = nn.Dropout(settings.dropout)
        blocks = [_Block(settings, name=str(index)) for index in range(settings.layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = Norm(width, epsilon=1e-6)
        self.head = nn.Linear(width, settings.codebook_size, bias=False)
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)
        for block in blocks:  # smaller, as in the transformer
            for last in (block.out, block.down):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * settings.layers))

    def join(self, prefix: Tensor, codes: Tensor) -> Tensor:
        return torch.cat((prefix + self.size, codes), dim=1)

    def null_prefix(self, batch: int) -> Tensor:
        device = self.left.weight.device
        return torch.full((batch, self.prefix), self.settings.condition_size, device=device)

    def features(self, codes: Tensor, cache: Cache) -> Tensor:
        assert cache.length == 0, "a neighborhood transformer reads whole images"
        count, left_over = divmod(codes.shape[1] + 1 - self.free, 1 + len(self.hints))
        assert left_over == 0, f"{codes.shape[1]} codes are no prefix and grid"
        assert count % cache.columns == 0, f"{count} codes are no rows of {cache.columns}"
        grid = (count // cache.columns, cache.columns)
        prefix, image = codes[:, : codes.shape[1] - count + 1], codes[:, codes.shape[1] - count + 1 :]
        free, maps = self.parted(prefix - self.size, count)
        image = F.pad(image, (0, 1)).view(-1, *grid)  # (B, h, w), the last never looked at
        left = F.pad(image[:, :, :-1], (1, 0), value=self.size).flatten(1)  # (B, h w)
        above = F.pad(image[:, :-1], (0, 0, 1, 0), value=self.size).flatten(1)  # (B, h w)
        places = torch.arange(count, device=codes.device)
        rotation = self.rotation(places // grid[1], places % grid[1])
        sight = self.whole(codes.device)(grid, told=self.told(free), reach=self.reach, rotation=rotation)
        x = self.dropout(self.start(left, above, maps))  # (B, h w, D)
        # Nothing is asked for before the last prefix code: there the head reads zeros.
        return F.pad(self.through(x, sight), (0, 0, prefix.shape[1] - 1, 0))  # (B, T, D)

    def whole(self, device: torch.device) -> type[WholeGrid] | type[FlexGrid]:
        """How all places of a grid see one another: in tiles, but by FlexAttention where blocks are compiled for a GPU.

        Only compiled it is one kernel, and only there it has gradients. (Not run on a GPU.)
        """
        compiled = self.blocks[0]._compiled_call_impl is not None  # what `nn.Module.compile` leaves
        head = self.settings.embed_dim // self.settings.heads
        return FlexGrid if compiled and device.type == "cuda" and head >= flex_attention.NARROWEST else WholeGrid

    def features_at(self, codes: Tensor, cache: Cache, index: Tensor) -> Tensor:
        features = self.features(codes, cache)
        return features[torch.arange(len(features), device=features.device), index]

    def parted(self, prefix: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The prefix of a grid of `count` places (B, P) -> its free codes (B, F), and its maps (B, M, count)."""
        trained, at, done = self.grid[0] * self.grid[1], 0, 0
        free, maps = [], []
        for begin in self.settings.maps:
            between = begin - at
            free.append(prefix[:, done : done + between])
            maps.append(prefix[:, done + between : done + between + count])
            at, done = begin + trained, done + between + count
        free.append(prefix[:, done:])
        return torch.cat(free, dim=1), torch.stack(maps, dim=1) if maps else prefix.new_empty(len(prefix), 0, count)

    def told(self, free: Tensor) -> Told:
        """Free prefix codes (B, F) -> what places see of them."""
        told = Told()
        if self.free:
            self.through(self.dropout(self.prefix_codes(free) + self.prefix_positions.weight), told)
        return told

    def start(self, left: Tensor, above: Tensor, maps: Tensor) -> Tensor:
        """The codes to the left and above of places, K where there is none (B, T), and the maps there (B, M, T) -> (B, T, D)."""
        x = self.left(left) + self.above(above)
        for number, hint in enumerate(self.hints):
            x = x + hint(maps[:, number])
        return x  # type: ignore[no-any-return]

    def through(self, x: Tensor, sight: Sight) -> Tensor:
        """Places (B, T, D) -> what the head reads of them (B, T, D)."""
        for block in self.blocks:
            x = block(x, sight)
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
class _Block(Block):
    """Attention and a gated perceptron, each added to what it reads: (B, T, D) -> (B, T, D)."""

    def __init__(self, settings: NeighborhoodSettings, *, name: str) -> None:
        super().__init__()
        self.name, self.heads = name, settings.heads
        width, head = settings.embed_dim, settings.embed_dim // settings.heads
        self.attention_norm, self.mlp_norm = (Norm(width, epsilon=1e-6) for _ in range(2))
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.query_norm, self.key_norm = (Norm(head, epsilon=1e-6) for _ in range(2))
        self.out = nn.Linear(width, width, bias=False)
        hidden = settings.mlp_dim or 16 * math.ceil(width * 8 / 3 / 16)  # as in the transformer
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        together = self.project(self.attention_norm(x)).unflatten(2, (3, self.heads, -1))  # (B, T, 3, N, d)
        queries, keys, values = together.permute(2, 0, 3, 1, 4)  # 3 x (B, N, T, d)
        queries, keys = self.query_norm(queries).type_as(values), self.key_norm(keys).type_as(values)
        seen = sight.seen(self.name, queries, keys, values)  # (B, N, T, d)
        x = x + self.dropout(self.out(seen.transpose(1, 2).flatten(2)))  # (B, T, D)
        gate, value = self.up(self.mlp_norm(x)).chunk(2, dim=-1)  # 2 x (B, T, hidden)
        change: Tensor = self.dropout(self.down(F.silu(gate) * value))  # (B, T, D)
        return x + change

    def step(self) -> Step:
        return Step(
            heads=self.heads,
            attention=self.attention_norm.said(),
            project=[panels(self.project)],
            turned=(self.query_norm.said(), self.key_norm.said()),
            out=panels(self.out),
            mlp=self.mlp_norm.said(),
            up=panels(self.up),
            down=panels(self.down),
        )

    def stepped(self, step: Step, x: Tensor, sight: Sight) -> Tensor:
        return step.finish(x, sight.seen(self.name, *step.project(x)))
