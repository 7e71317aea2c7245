"""PixelSNAIL as a prior: causal convolutions on the grid of codes, between them attention over all codes so far.

Notation: B batch, P prefix codes, T codes of one call, t of them that are scored, n places of one call, s places so far
(cache and call), h w grid, D width, A attended numbers, K image codes, C condition codes.

Chen et al. 2017, arXiv 1712.09763, section 2, as VQ-VAE-2 (Razavi et al. 2019, arXiv 1906.00446, section 3.2) puts it
on codes: they are embedded, and the head scores codes. It is the prior that Esser et al. (arXiv 2012.09841, table 1)
compare their transformer with.

Differences: ELU as it is (the authors' code joins that of x and of -x, for twice the weights); no weight normalization,
which the authors' code combines with an initialization from data; a position reads the code before it, so it may attend
to itself, which the authors' code masks (the first position attends to nothing there); attention has several heads, as
in VQ-VAE-2, and its result is added to the features, where the authors' code feeds it into the next block.
"""

from __future__ import annotations

from typing import Annotated, Literal, final

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from smalti.core.settings import LayerCount, Natural, Positive, ProperFraction, settings
from smalti.prior.attention import select
from smalti.prior.base import Prior
from smalti.prior.cache import Cache, NoCache
from smalti.prior.order import Order
from smalti.prior.pixelsnail_layers import CausalConv, GridPositions, SnailBlock

FIRST_OFFSETS = ((1, 1), (1, 0), (1, -1), (0, 1))
"""What the first layer sees: three codes of the row above and the one at the left. The paper's 1 x 3 convolution,
shifted down, and its 2 x 1 convolution, shifted right, see these together."""


@settings
class PixelSNAILSettings:
    """The sizes of a PixelSNAIL.

    `codebook_size`: image codes K. `condition_size`: condition codes C, 0 for none. `prefix_length`: prefix codes
    P, at least the start code. `grid`: the window (h, w), in codes. `order`: "raster" only. `layers`: blocks, each
    of which ends in attention. `res_blocks`: gated residual blocks in each. `kernel_size`: side of their
    convolutions, which read so many rows and columns up to their own position; the paper has 2. `heads`: of the
    attention, which has half the width. `dropout`: a probability, within gated residual blocks and of attention.
    """

    name: Literal["pixelsnail"] = "pixelsnail"
    codebook_size: Positive
    condition_size: Natural = 0
    prefix_length: Positive = 1
    grid: tuple[Positive, Positive] = (16, 16)
    layers: LayerCount = 6
    res_blocks: LayerCount = 2
    embed_dim: Positive = 256
    heads: Positive = 8
    kernel_size: Annotated[int, Field(ge=2)] = 2
    dropout: ProperFraction = 0.0
    order: Order = "raster"

    @field_validator("heads")
    @classmethod
    def _heads_divide_width(cls, heads: int, info: ValidationInfo) -> int:
        width = info.data.get("embed_dim", 2 * heads)
        if width % (2 * heads):
            raise ValueError(f"the width {width} must be a multiple of 2 x heads, for attention has half the width")
        return heads

    @field_validator("order")
    @classmethod
    def _reads_rows(cls, order: Order) -> Order:
        if order != "raster":
            raise ValueError(
                "the convolutions of PixelSNAIL read the codes above and to the left, so they support the order "
                f"raster only, not {order}; use another network for it, such as the transformer"
            )
        return order


@final
class PixelSNAIL(Prior):
    """Sequences of prefix and image codes -> logits of the next image code: (B, T) int64 -> (B, T, K).

    Image codes are 0 to K - 1, condition codes follow from K on, and the last of the vocabulary, K + C, says "nothing".

    Image codes alone have a position in the grid. What the prefix says is added to what all positions start from. Where
    it has as many codes as the grid (P = h w) it is a map of it, and each position gets the code at that position; the
    convolutions and attention carry it on to later places, never to earlier ones. Otherwise all positions get the mean
    of its codes, each weighted number by number by what is learned for its position; that suits a label or a
    coordinate, and is little for a long list such as a layout. Logits before the last prefix code would be of prefix
    codes, which are never used; there the head reads zeros.

    A cache holds the codes so far and, of each position, what convolutions read and attention made, so that a code that
    follows costs the work of one position. Attention reads the rows and columns of the window, in a narrower one as in
    the whole.
    """

    def __init__(self, settings: PixelSNAILSettings) -> None:
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
        width = settings.embed_dim
        self.embedding = nn.Embedding(settings.codebook_size + settings.condition_size + 1, width)
        # Not all ones, so that two prefix codes that change places are told apart from the first step.
        self.prefix_gains = nn.Parameter(torch.empty(settings.prefix_length, width).normal_(mean=1.0, std=0.02))
        self.first = CausalConv(width, width, offsets=FIRST_OFFSETS, behind=1, name="first")
        self.blocks = nn.ModuleList(
            SnailBlock(
                width,
                residuals=settings.res_blocks,
                kernel=settings.kernel_size,
                heads=settings.heads,
                dropout=settings.dropout,
                name=str(index),
            )
            for index in range(settings.layers)
        )
        self.head = nn.Linear(width, settings.codebook_size)
        # A fresh prior finds all codes about equally likely.
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, codes: Tensor, *, cache: Cache | None = None, query_index: Tensor | None = None) -> Tensor:
        cache = NoCache(columns=self.grid[1]) if cache is None else cache
        new = codes.shape[1]
        end = cache.length + new
        assert cache.columns <= self.grid[1], f"{cache.columns} columns in a window of {self.grid[1]}"
        assert end <= self.prefix_length + self.grid[0] * cache.columns, f"{end} codes do not fit prefix and window"
        # The last prefix code is at the position that scores the first image code: position 0.
        without_position = min(max(self.prefix_length - 1 - cache.length, 0), new)
        all_codes = cache.append("codes", codes[:, :, None])[:, -end:, 0]  # (B, end)
        cache.advance(without_position)
        x = self._run_blocks(all_codes, new - without_position, cache)  # (B, n, D)
        cache.advance(new - without_position)
        x = F.pad(x, (0, 0, without_position, 0))  # (B, T, D)
        logits: Tensor = self.head(select(x, query_index))  # (B, t, K)
        return logits

    def _run_blocks(self, codes: Tensor, count: int, cache: Cache) -> Tensor:
        """All codes so far -> the input of the head at the last `count` positions: (B, end) -> (B, n, D)."""
        if count == 0:
            return self.embedding.weight.new_empty(len(codes), 0, self.settings.embed_dim)
        positions = GridPositions.of(
            codes.shape[1] - self.prefix_length + 1 - count, count, grid=self.grid, cache=cache, like=codes
        )
        is_first = (positions.indices == 0)[
            :, None
        ]  # (n, 1): before this position there is the prefix, and no image code
        previous = self.embedding(codes[:, -count:]).masked_fill(is_first, 0)  # (B, n, D)
        bias = self._condition_bias(codes[:, : self.prefix_length], positions)  # (B, n or 1, D)
        x: Tensor = self.first(previous, positions) + bias  # (B, n, D)
        for block in self.blocks:
            x = block(x, previous, positions)  # (B, n, D)
        return F.elu(x)

    def _condition_bias(self, prefix: Tensor, positions: GridPositions) -> Tensor:
        """Prefix codes (B, P) -> the condition's input to each position: (B, n, D), or the same for all positions:
        (B, 1, D)."""
        embeddings: Tensor = self.embedding(prefix) * self.prefix_gains  # (B, P, D)
        if self.prefix_length == self.grid[0] * self.grid[1]:
            return embeddings[:, positions.rows * self.grid[1] + positions.columns]
        return embeddings.mean(dim=1, keepdim=True)
