"""The modern prior: a decoder-only transformer with 2-D rotary positions and condition codes in a range of their own.

Notation: B batch, T codes of one call, t of them that are queries in the last block, S codes so far (cache and call), P
prefix codes, h w grid, D width, N heads, d = D / N, K image codes, C condition codes.

It differs from the GPT of the paper (arXiv 2012.09841, section 3.2, a GPT-2) in what the field has learned since:
RMSNorm (1910.07467), SwiGLU (2002.05202), rotary positions (2104.09864) along two axes (2403.13298), normalized queries
and keys (2010.04245), and no biases. With other settings it is the class-conditional GPT of LlamaGen (2406.06525).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, final

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import Tensor, nn

from smalti.core.settings import LayerCount, Natural, Positive, ProperFraction, settings
from smalti.kernels.decode_block import BlockDescription, NormParameters, Rotation
from smalti.kernels.prepacked import DecodableBlock
from smalti.prior.attention import attend_with_cache, select
from smalti.prior.base import Prior
from smalti.prior.cache import Cache, NoCache
from smalti.prior.order import AnyOrder


def check_rotary_heads(heads: int, info: ValidationInfo) -> int:
    """A validator of settings with `embed_dim` before `heads`. Raises ValueError for heads that cannot be rotated."""
    width = info.data.get("embed_dim", 4 * heads)
    if width % (4 * heads):
        raise ValueError(f"the width {width} must be a multiple of 4 x heads, for each head is rotated along two axes")
    return heads


@settings
class TransformerSettings:
    """The sizes of a transformer.

    `codebook_size`: image codes K. `condition_size`: condition codes C, 0 for none. `prefix_length`: prefix codes
    P, at least the start code. `grid`: the window (h, w), in codes. `order`: the order of the image codes; with
    "any" it is an argument of each call, and the position of the next code is an input at each position.
    `mlp_dim`: width of the gated MLP, 0 for 8/3 of the width. `dropout`: a probability, of embeddings and residual
    branches.
    """

    name: Literal["transformer"] = "transformer"
    codebook_size: Positive
    condition_size: Natural = 0
    prefix_length: Positive = 1
    maps: tuple[Natural, ...] = ()
    """Start indices in the prefix of maps with one code per position of the window, row by row."""
    grid: tuple[Positive, Positive] = (16, 16)
    layers: LayerCount = 12
    embed_dim: Positive = 512
    heads: Positive = 8
    mlp_dim: Natural = 0
    dropout: ProperFraction = 0.0
    order: AnyOrder = "raster"
    tied: bool = False
    """Whether the head scores codes by their embeddings (arXiv 1608.05859) instead of having weights of its own."""
    query_key_norm: bool = True
    """Whether the queries and keys of each head are normalized."""
    rotary_base: Annotated[float, Field(gt=0)] = 100.0
    """Rotations fall from 1 radian a code toward 1 / this. Grids are tens of codes wide, not thousands: RoPE for images
    takes 100 (2403.13298) where language, and LlamaGen, take 10000."""
    prefix_rotation: Literal["still", "erased"] = "still"
    """Queries and keys of prefix codes stay as they are, or become zeros, so that all codes see the prefix in the same
    way: LlamaGen multiplies them with an empty row of its table of rotations."""
    norm_epsilon: Annotated[float, Field(gt=0)] = 1e-6
    """What is added to the mean square of a vector before it is normalized."""

    _heads_divide_width = field_validator("heads")(check_rotary_heads)

    @model_validator(mode="after")
    def _maps_fit_the_prefix(self) -> TransformerSettings:
        places = self.grid[0] * self.grid[1]
        for begin in self.maps:
            if begin + places > self.prefix_length:
                raise ValueError(
                    f"a map of {places} codes from {begin} on does not fit into {self.prefix_length} prefix codes"
                )
        return self


@final
class Transformer(Prior):
    """Sequences of prefix and image codes -> logits of the next image code: (B, T) int64 -> (B, T, K).

    Image codes are 0 to K - 1, condition codes follow from K on, and the last of the vocabulary, K + C, is the
    unconditional code. An image code's row and column in the window rotate its queries and keys. A prefix code is
    not rotated; it has a learned position, which also distinguishes it from the image code at (0, 0).

    The codes of a map are rotated like the image codes of their positions, and the map's code at the position of
    the next image code is added to the input of the current one. Thus the prior follows a map from the first training
    steps on (docs/log.md). The paper's GPT has to learn by attention which code of the map belongs to which
    position.

    With the order "any" the position of the next image code has an embedding that is added to the current input: the
    target-aware positions of RAR (arXiv 2411.00776, section 3.2), and its queries are rotated to that position. Without
    the position a code could not know which of the missing ones it is to predict; with the rotation it finds the codes
    around that position by their offsets, as in raster order.
    """

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__(
            size=settings.codebook_size,
            prefix_length=settings.prefix_length,
            grid=settings.grid,
            order=settings.order,
            condition_start=settings.codebook_size,
            null_code=settings.condition_size,
        )
        self.settings = settings
        self.max_grid = settings.grid
        self.embedding = nn.Embedding(settings.codebook_size + settings.condition_size + 1, settings.embed_dim)
        self.prefix_positions = nn.Embedding(settings.prefix_length, settings.embed_dim)
        if self.knows_any_order:
            self.target_embedding = nn.Embedding(settings.grid[0] * settings.grid[1], settings.embed_dim)
        self.hints = nn.ModuleList(nn.Linear(settings.embed_dim, settings.embed_dim, bias=False) for _ in settings.maps)
        self.dropout = nn.Dropout(settings.dropout)
        blocks = [_Block(settings, name=str(index)) for index in range(settings.layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = RMSNorm(settings.embed_dim, epsilon=settings.norm_epsilon)
        self.head = (
            _TiedHead(self.embedding, settings.codebook_size)
            if settings.tied
            else nn.Linear(settings.embed_dim, settings.codebook_size, bias=False)
        )
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)
        # What ends a residual branch starts smaller, by the root of the number of branches, so that their sum does not
        # grow with depth (GPT-2, section 2.3). It does not start at zero: the layers before it then learn from the
        # first step.
        for block in blocks:
            for last in (block.attention.out, block.down):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * settings.layers))

    def forward(self, codes: Tensor, *, cache: Cache | None = None, query_index: Tensor | None = None) -> Tensor:
        cache = NoCache(columns=self.grid[1]) if cache is None else cache
        start, end = cache.length, cache.length + codes.shape[1]
        assert cache.columns <= self.grid[1], f"{cache.columns} columns in a window of {self.grid[1]}"
        assert end <= self.prefix_length + self.grid[0] * cache.columns, f"{end} codes do not fit prefix and window"
        x = embeddings = self.embedding(codes)  # (B, T, D)
        if start < self.prefix_length:
            positions = self.prefix_positions.weight[start:end]  # (p, D)
            x = x + F.pad(positions, (0, 0, 0, x.shape[1] - len(positions)))  # (B, T, D)
        if end >= self.prefix_length and (self.settings.maps or self.knows_any_order):
            predicts_image_code = torch.arange(start, end, device=codes.device) >= self.prefix_length - 1  # (T,)
            next_positions = self._next_positions(start, end, cache)  # (T,) or (B, T)
            if self.knows_any_order:
                x = x + self.target_embedding(next_positions) * predicts_image_code[:, None]  # (B, T, D)
        if self.settings.maps:
            all_embeddings = cache.append("embedded", embeddings)  # (B, S, D)
            if end >= self.prefix_length:  # the call predicts an image code
                x = x + self._map_hints(all_embeddings, next_positions) * predicts_image_code[:, None]  # (B, T, D)
        x = self.dropout(x)  # (B, T, D)
        rotation = self._rotation_tables(start, end, cache)  # 4 x (T, d) or 4 x (B, 1, T, d)
        for block in self.blocks:
            is_last = block is self.blocks[-1]
            x = block(x, cache, rotation=rotation, query_index=query_index if is_last else None)  # (B, T or t, D)
        cache.advance(codes.shape[1])
        logits: Tensor = self.head(self.norm(x))  # (B, t, K)
        return logits

    def _map_hints(self, embeddings: Tensor, positions: Tensor) -> Tensor:
        """Embeddings of all codes so far (B, S, D) -> the sum of the maps' hints at positions of the window (T,) or
        (B, T): (B, T, D)."""
        hints = [
            hint(embeddings[:, begin + positions] if positions.dim() == 1 else select(embeddings, begin + positions))
            for hint, begin in zip(self.hints, self.settings.maps, strict=True)
        ]
        return torch.stack(hints).sum(0)

    def _order(self, cache: Cache) -> Tensor:
        """The raster places of the image codes in sequence order, (n,) or (B, n)."""
        if cache.order is not None:
            return cache.order
        return self.sequence_order((self.grid[0], cache.columns), device=self.embedding.weight.device)

    def _next_positions(self, start: int, end: int, cache: Cache) -> Tensor:
        """The window position of the image code after each index from `start` to `end` of the sequence: (T,) or
        (B, T).

        The first position if that is a prefix code, and the last position after the last code.
        """
        order, columns = self._order(cache), cache.columns
        index = torch.arange(start, end, device=order.device) - (self.prefix_length - 1)
        position = order[..., index.clamp(0, order.shape[-1] - 1)]
        # A window that is narrower than the prior's own has maps without information, the same everywhere.
        return position // columns * self.grid[1] + position % columns

    def _rotation_tables(self, start: int, end: int, cache: Cache) -> Rotation:
        """The rotation of the queries and keys of places `start` to `end` of the sequence.

        Both by the code's own position; with the order "any" queries that predict an image code by that code's
        position.
        """
        if not self.knows_any_order:
            own = self.rotation(start, end, cache)
            return Rotation(*own, *own)
        tables = self.rotation(start, end + 1, cache)  # 2 x (.., T + 1, d)
        cosines, sines = (table[..., :-1, :] for table in tables)
        predicts_image_code = (
            torch.arange(start, end, device=cosines.device)[:, None] >= self.prefix_length - 1
        )  # (T, 1)
        query_cosines, query_sines = (
            table[..., 1:, :].where(predicts_image_code, table[..., :-1, :]) for table in tables
        )
        return Rotation(query_cosines, query_sines, cosines, sines)

    def rotation(self, start: int, end: int, cache: Cache) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of places `start` to `end` of the sequence, in float32 whatever the weights: (T, d),
        or (B, 1, T, d) if each image has an order of its own.

        Number i of a head's first half turns with number i of its second half. Half of these pairs are turned by the
        row, the other half by the column.
        """
        axis = self.settings.embed_dim // self.settings.heads // 4  # pairs an axis
        order, columns = self._order(cache), cache.columns
        frequencies = self.settings.rotary_base ** -(
            torch.arange(axis, device=order.device, dtype=torch.float32) / axis
        )
        index = torch.arange(start - self.prefix_length, end - self.prefix_length, device=order.device)  # (T,)
        is_image = index[:, None] >= 0  # (T, 1)
        positions = order[..., index.clamp(0, order.shape[-1] - 1)]  # (T,) or (B, T)
        coordinates = torch.stack((positions // columns, positions % columns), dim=-1).where(is_image, 0)  # (.., T, 2)
        for begin in self.settings.maps:
            map_index = index + self.prefix_length - begin  # (T,), the position in the map
            in_map = (map_index >= 0) & (map_index < self.grid[0] * self.grid[1])
            coordinates = torch.where(
                in_map[:, None], torch.stack((map_index // self.grid[1], map_index % self.grid[1]), dim=1), coordinates
            )
        angles = (coordinates[..., None] * frequencies).flatten(-2)  # (.., T, d / 2)
        cosines, sines = angles.cos(), angles.sin()
        if self.settings.prefix_rotation == "erased":
            cosines = cosines.where(is_image, 0)
        tables = torch.cat((cosines, cosines), dim=-1), torch.cat((-sines, sines), dim=-1)
        return tables if order.dim() == 1 else (tables[0][:, None], tables[1][:, None])


@final
class _TiedHead(nn.Module):
    """(..., D) -> (..., K): products with the embeddings of the first K codes, which stay the embedding's own."""

    def __init__(self, embedding: nn.Embedding, size: int) -> None:
        super().__init__()
        self._embedding = (embedding,)  # in a tuple, so that its weight is not counted and saved twice
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self._embedding[0].weight[: self.size])


@final
class RMSNorm(nn.Module):
    """RMSNorm: (..., D) -> (..., D), the last axis divided by its root mean square and multiplied by a gain.

    The gain takes the type of its input. With `nn.RMSNorm` autocast mixes the two types, which has no fused kernel
    and warns.
    """

    def __init__(self, width: int, *, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), eps=self.epsilon)

    def norm_parameters(self) -> NormParameters:
        """Its parameters for the C kernel."""
        return NormParameters(self.weight, None, self.epsilon)


@final
class _Block(DecodableBlock):
    """Attention and a gated MLP with residual connections: (B, T, D) -> (B, t, D), the queries."""

    def __init__(self, settings: TransformerSettings, *, name: str) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(settings.embed_dim, epsilon=settings.norm_epsilon)
        self.attention = _Attention(settings, name=name)
        self.mlp_norm = RMSNorm(settings.embed_dim, epsilon=settings.norm_epsilon)
        # Three matrices where a GPT has two: 8/3 of the width instead of 4 keeps the number of weights (2002.05202,
        # section 2).
        hidden = settings.mlp_dim or 16 * math.ceil(settings.embed_dim * 8 / 3 / 16)
        self.up = nn.Linear(settings.embed_dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, settings.embed_dim, bias=False)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor, cache: Cache, *, rotation: Rotation, query_index: Tensor | None = None) -> Tensor:
        attended = self.attention(self.attention_norm(x), cache, rotation, query_index)  # (B, t, D)
        x = select(x, query_index) + self.dropout(attended)  # (B, t, D)
        gate, value = self.up(self.mlp_norm(x)).chunk(2, dim=-1)  # 2 x (B, t, hidden)
        update: Tensor = self.dropout(self.down(F.silu(gate) * value))  # (B, t, D)
        return x + update  # (B, t, D)

    def description(self) -> BlockDescription:
        attention = self.attention
        query_key_norms = [norm for norm in (attention.query_norm, attention.key_norm) if isinstance(norm, RMSNorm)]
        return BlockDescription(
            heads=attention.heads,
            attention_norm=self.attention_norm.norm_parameters(),
            project=(attention.project,),
            query_key_norms=[norm.norm_parameters() for norm in query_key_norms],
            out=attention.out,
            mlp_norm=self.mlp_norm.norm_parameters(),
            up=self.up,
            down=self.down,
        )

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, cache: Cache) -> Tensor:
        return self.attention.attend(queries, keys, values, cache)


@final
class _Attention(nn.Module):
    """Causal self-attention over the codes so far: (B, T, D) -> (B, t, D), the queries. `name` is its name in the
    cache."""

    def __init__(self, settings: TransformerSettings, *, name: str) -> None:
        super().__init__()
        self.name, self.heads = name, settings.heads
        self.project = nn.Linear(settings.embed_dim, 3 * settings.embed_dim, bias=False)
        width = settings.embed_dim // settings.heads
        self.query_norm, self.key_norm = (
            RMSNorm(width, epsilon=settings.norm_epsilon) if settings.query_key_norm else nn.Identity()
            for _ in range(2)
        )
        self.out = nn.Linear(settings.embed_dim, settings.embed_dim, bias=False)

    def forward(self, x: Tensor, cache: Cache, rotation: Rotation, query_index: Tensor | None) -> Tensor:
        qkv = self.project(x).unflatten(2, (3, self.heads, -1))  # (B, T, 3, N, d)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # 3 x (B, N, T, d)
        queries = apply_rotary(self.query_norm(queries), rotation[:2]).type_as(values)  # (B, N, T, d)
        keys = apply_rotary(self.key_norm(keys), rotation[2:]).type_as(values)  # (B, N, T, d)
        queries = select(queries.transpose(1, 2), query_index).transpose(1, 2)  # (B, N, t, d)
        attended = self.attend(queries, keys, values, cache, query_index)  # (B, N, t, d)
        output: Tensor = self.out(attended.transpose(1, 2).flatten(2))  # (B, t, D)
        return output

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, cache: Cache, query_index: Tensor | None = None
    ) -> Tensor:
        return attend_with_cache(queries, keys, values, cache=cache, name=self.name, query_index=query_index)


def apply_rotary(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys (B, N, T, d), cosines and signed sines (T, d) or (B, 1, T, d) -> each rotated by the angles of
    its position."""
    cosines, signed_sines = rotation
    return x * cosines + x.roll(x.shape[-1] // 2, dims=-1) * signed_sines  # (B, N, T, d)
