"""The prior of the paper: a GPT-2 with learned positions and one vocabulary for condition and image codes.

Notation: B batch, T codes of one call, t of them that are queries in the last block, S codes so far (cache and call), P
prefix codes, h w grid, D width, N heads, d = D / N, K image codes, V codes of condition and image.

Esser et al., arXiv 2012.09841, section 3.2, after GPT-2 (Radford et al., 2019) as in minGPT. Unlike GPT-2, it does
not scale the initial weights at the end of residual branches, and its head has its own weights.
"""

from __future__ import annotations

from typing import Literal, final

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from smalti.core.settings import LayerCount, Natural, Positive, ProperFraction, settings
from smalti.kernels.decode_block import BlockDescription, NormParameters
from smalti.kernels.prepacked import DecodableBlock
from smalti.prior.attention import attend_with_cache, select
from smalti.prior.base import Prior
from smalti.prior.cache import Cache, NoCache
from smalti.prior.order import Order


@settings
class GPTSettings:
    """The sizes of a GPT, and the meaning of its codes.

    `vocab_size`: V, codes of condition and image, which share their numbers; the first `codebook_size`, K, can be
    image codes. `prefix_length`: prefix codes P. `grid`: the window (h, w), in codes. `block_size`: learned
    positions. `unmasked`: how many of the prefix codes, from the first on, attend to one another and not only to
    those before them. `start_code`: the unconditional prefix code; None if there always is a condition. `order`:
    the order of the image codes. Dropouts are probabilities.
    """

    name: Literal["gpt"] = "gpt"
    vocab_size: Positive
    codebook_size: Positive
    prefix_length: Positive = 1
    grid: tuple[Positive, Positive] = (16, 16)
    block_size: Positive = 256
    layers: LayerCount = 12
    embed_dim: Positive = 256
    heads: Positive = 8
    embedding_dropout: ProperFraction = 0.0
    attention_dropout: ProperFraction = 0.0
    residual_dropout: ProperFraction = 0.0
    unmasked: Natural = 0
    start_code: Natural | None = None
    order: Order = "raster"

    @model_validator(mode="after")
    def _check_consistency(self) -> GPTSettings:
        length = self.prefix_length + self.grid[0] * self.grid[1] - 1  # the last code is never read
        if self.codebook_size > self.vocab_size:
            raise ValueError(
                f"size = {self.codebook_size} image codes are more than the vocabulary = {self.vocab_size} has"
            )
        if self.block_size < length:
            raise ValueError(
                f"block = {self.block_size} positions are too few for prefix = {self.prefix_length} and a grid of "
                f"{self.grid[0]} x {self.grid[1]} codes, of which {length} are read; make it {length} or more"
            )
        if self.embed_dim % self.heads:
            raise ValueError(f"width = {self.embed_dim} is not a multiple of heads = {self.heads}")
        if self.unmasked > self.prefix_length:
            raise ValueError(
                f"unmasked = {self.unmasked} reaches beyond the prefix = {self.prefix_length}: image codes would see "
                "what comes after them"
            )
        if self.start_code is not None and self.start_code >= self.vocab_size:
            raise ValueError(f"start = {self.start_code} is not in the vocabulary, 0 to {self.vocab_size - 1}")
        return self


@final
class GPT(Prior):
    """Sequences of prefix and image codes -> logits of the next code: (B, T) int64 -> (B, T, V).

    A prefix code and an image code of the same number share an embedding; only their positions differ. In raster
    order an image code in row i and column j of its window has the position P + i w + j, in a narrower window too
    (there, the original uses the index in the sequence, and so reads the codes as if they stood elsewhere). In any
    other order positions count along the sequence.
    """

    def __init__(self, settings: GPTSettings) -> None:
        super().__init__(
            size=settings.codebook_size,
            prefix_length=settings.prefix_length,
            grid=settings.grid,
            order=settings.order,
            condition_start=0,
            null_code=settings.start_code,
        )
        self.settings = settings
        self.max_grid = settings.grid
        self.embedding = nn.Embedding(settings.vocab_size, settings.embed_dim)
        self.positions = nn.Embedding(settings.block_size, settings.embed_dim)
        self.dropout = nn.Dropout(settings.embedding_dropout)
        self.blocks = nn.ModuleList(_Block(settings, name=str(index)) for index in range(settings.layers))
        self.norm = nn.LayerNorm(settings.embed_dim)
        self.head = nn.Linear(settings.embed_dim, settings.vocab_size, bias=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)
        nn.init.zeros_(self.positions.weight)

    def forward(self, codes: Tensor, *, cache: Cache | None = None, query_index: Tensor | None = None) -> Tensor:
        cache = NoCache(columns=self.grid[1]) if cache is None else cache
        start, end = cache.length, cache.length + codes.shape[1]
        assert cache.columns <= self.grid[1], f"{cache.columns} columns in a window of {self.grid[1]}"
        assert end <= self.prefix_length + self.grid[0] * cache.columns, f"{end} codes do not fit prefix and window"
        embeddings = self.embedding(codes)  # (B, T, D)
        x = self.dropout(embeddings + self._positions(start, end, cache.columns))  # (B, T, D)
        for block in self.blocks:
            is_last = block is self.blocks[-1]
            x = block(x, cache, query_index=query_index if is_last else None)  # (B, T or t, D)
        cache.advance(codes.shape[1])
        logits: Tensor = self.head(self.norm(x))  # (B, t, V)
        return logits

    def _positions(self, start: int, end: int, columns: int) -> Tensor:
        """Learned positions `start` to `end` of the sequence: (T, D)."""
        learned = self.positions.weight  # (block, D)
        if columns == self.grid[1] or self.order != "raster":
            assert end <= len(learned), f"{end} codes and {len(learned)} positions"
            return learned[start:end]
        index = torch.arange(start, end, device=learned.device)
        rows = (index - self.prefix_length).clamp(min=0) // columns
        # A narrow row leaves out the positions at the right of the window.
        return learned[index + rows * (self.grid[1] - columns)]


@final
class _Block(DecodableBlock):
    """Attention and an MLP with residual connections: (B, T, D) -> (B, t, D), the queries."""

    def __init__(self, settings: GPTSettings, *, name: str) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(settings.embed_dim)
        self.attention = _Attention(settings, name=name)
        self.mlp_norm = nn.LayerNorm(settings.embed_dim)
        self.up = nn.Linear(settings.embed_dim, 4 * settings.embed_dim)
        self.down = nn.Linear(4 * settings.embed_dim, settings.embed_dim)
        self.dropout = nn.Dropout(settings.residual_dropout)

    def forward(self, x: Tensor, cache: Cache, *, query_index: Tensor | None = None) -> Tensor:
        attended = self.attention(self.attention_norm(x), cache, query_index)  # (B, t, D)
        x = select(x, query_index) + self.dropout(attended)  # (B, t, D)
        hidden = F.gelu(self.up(self.mlp_norm(x)))  # (B, t, 4 D)
        update: Tensor = self.dropout(self.down(hidden))  # (B, t, D)
        return x + update  # (B, t, D)

    def description(self) -> BlockDescription:
        attention = self.attention
        attention_norm, mlp_norm = (
            NormParameters(norm.weight, norm.bias, norm.eps) for norm in (self.attention_norm, self.mlp_norm)
        )
        return BlockDescription(
            heads=attention.heads,
            attention_norm=attention_norm,
            project=(attention.query, attention.key, attention.value),
            query_key_norms=(),
            out=attention.out,
            mlp_norm=mlp_norm,
            up=self.up,
            down=self.down,
        )

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, cache: Cache) -> Tensor:
        return self.attention.attend(queries, keys, values, cache)


@final
class _Attention(nn.Module):
    """Self-attention over the codes so far: (B, T, D) -> (B, t, D), the queries. `name` is its name in the cache."""

    def __init__(self, settings: GPTSettings, *, name: str) -> None:
        super().__init__()
        self.name, self.heads = name, settings.heads
        self.unmasked, self.dropout = settings.unmasked, settings.attention_dropout
        self.query = nn.Linear(settings.embed_dim, settings.embed_dim)
        self.key = nn.Linear(settings.embed_dim, settings.embed_dim)
        self.value = nn.Linear(settings.embed_dim, settings.embed_dim)
        self.out = nn.Linear(settings.embed_dim, settings.embed_dim)

    def forward(self, x: Tensor, cache: Cache, query_index: Tensor | None) -> Tensor:
        projected = self.query(select(x, query_index)), self.key(x), self.value(x)  # (B, t, D), 2 x (B, T, D)
        queries, keys, values = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in projected)
        attended = self.attend(queries, keys, values, cache, query_index)  # (B, N, t, d)
        output: Tensor = self.out(attended.transpose(1, 2).flatten(2))  # (B, t, D)
        return output

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, cache: Cache, query_index: Tensor | None = None
    ) -> Tensor:
        return attend_with_cache(
            queries,
            keys,
            values,
            cache=cache,
            name=self.name,
            query_index=query_index,
            dropout=self.dropout if self.training else 0.0,
            unmasked=self.unmasked,
        )
