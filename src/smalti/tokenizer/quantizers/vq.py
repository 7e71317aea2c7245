"""The codebook Z: features -> nearest codes, and codes -> latents.

Notation: B batch, D dimension of a code, h w code grid, K size of the codebook, N = B h w vectors. Sources: arXiv
2012.09841, Eq. 2 and 4; van den Oord et al. 2017 (VQ-VAE); Yu et al. 2022 (ViT-VQGAN: l2-normalized codes of low
dimension); Dhariwal et al. 2020 (Jukebox: restart of dead codes).

What keeps a codebook alive (`kmeans`, `code_counts`, `forgotten`, `restarted`) is here for the other quantizers with
such a one too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, final

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.core.distributed import broadcast
from smalti.core.settings import Natural, Positive, ProperFraction, settings
from smalti.tokenizer.quantizers.base import Quantized, Quantizer, grid_of, precision, rows_of
from smalti.tokenizer.quantizers.code_table import RemapSettings, check_table_fits, code_table
from smalti.tokenizer.quantizers.gradient_estimators import GRADIENTS, GradientName
from smalti.tokenizer.quantizers.search import nearest

VECTORS_A_CODE = 4
"""Features for each code on which k-means places the codebook."""

CHANCES = 4
"""How often a code must have had its turn, at the mean use, within the time over which its use is remembered."""


@settings
class VQSettings:
    """Nearest-code quantization."""

    name: Literal["vq"] = "vq"
    codebook_size: Annotated[int, Field(ge=2)] = 1024
    """K."""
    codebook_dim: Positive = 8
    """D; 8 to 16 with normalized codes keeps nearly all codes in use, 256 is the paper's."""
    l2_normalize: bool = True
    """Compare directions only: features and codes are scaled to length 1."""
    commitment: Annotated[float, Field(ge=0)] = 0.25
    """Weight beta of the second term of Eq. 4."""
    beta_on: Literal["commitment", "codebook"] = "commitment"
    """"commitment" is the paper; "codebook" is what its code does (beta on the term that moves the codes)."""
    gradient: GradientName = "straight-through"
    """How the decoder's gradient reaches the features: "straight-through" as it is; "rotation" turned back from code to
    feature."""
    kmeans_iterations: Natural = 10
    """k-means rounds that place the codes on the first images' features; 0 starts from uniform noise as the paper's
    code."""
    dead_code_threshold: ProperFraction = 0.1
    """A code used less than this fraction of the mean use is dead and restarts on a feature of the batch; 0 never."""
    usage_decay: ProperFraction = 0.95
    """How much of the running use of a code remains after a step; more, where a step has few features for so many
    codes."""
    remap: RemapSettings = RemapSettings()
    """A table of the codes that are shown outside."""

    @model_validator(mode="after")
    def _table_fits(self) -> VQSettings:
        check_table_fits(self.remap, self.codebook_size)
        return self

    @property
    def size(self) -> int:
        """How many codes the quantizer has outside."""
        return self.remap.outside(self.codebook_size)


def kmeans(vectors: Tensor, size: int, *, rounds: int, normalized: bool, generator: torch.Generator) -> Tensor:
    """vectors (N,D), everyone's -> (size,D) centers, by `rounds` of Lloyd's algorithm from random members.

    A center that no vector is nearest to moves to a random vector. All processes get the centers of the first: a GPU
    adds in any order, and a difference in the last bit of one sum can end in other centers.
    """
    centers = vectors[_draw(len(vectors), size, generator).to(vectors.device)]
    for _ in range(rounds):
        assigned = nearest(vectors, centers)
        counts = code_counts(assigned, size)
        sums = torch.zeros_like(centers).index_add_(0, assigned, vectors)
        means = sums / counts.clamp(min=1).unsqueeze(1)
        fresh = vectors[_draw(len(vectors), size, generator).to(vectors.device)]
        centers = torch.where(counts.unsqueeze(1) > 0, means, fresh)
        if normalized:
            centers = F.normalize(centers, dim=1)
    broadcast(centers)
    return centers


def code_counts(codes: Tensor, size: int) -> Tensor:
    """Codes (..) -> how often each of `size` codes is among them, (size,) float32, exact below 2^24."""
    codes = codes.flatten()
    # Unlike bincount this asks the device nothing, and so does not wait for it.
    return torch.zeros(size, device=codes.device).index_add_(0, codes, torch.ones(len(codes), device=codes.device))


def forgotten(memory: float, *, vectors: int, size: int) -> float:
    """How much of the running use of `size` codes a step with so many vectors replaces: 1 - `memory`, or less.

    A code of mean use is taken vectors / size times per step. Where that is little (16384 codes, 1024 vectors) hardly a
    code is taken within the time that 0.95 remembers, and most would be called dead by chance. So the time is stretched
    until each has had `CHANCES` turns.
    """
    return min(1 - memory, vectors / (CHANCES * size))


def restarted(
    use: Tensor, known: Tensor, *, below: float, among: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Running use (K,) with the mean 1 -> the codes that are to restart, and for each on which of `among` vectors.

    They are those of `known` whose use is less than `below`, but no more than a quarter of the vectors, so that
    restarted codes do not all sit on the same few images; the least used first. Their use becomes 1, in place, so that
    they have time to be found. The vectors are drawn evenly, and so most of them lie where most features are,
    which is where codes are wanting.
    """
    dead = known[use[known] < below]
    limit = max(1, among // 4)
    if len(dead) > limit:
        dead = dead[use[dead].argsort(stable=True)[:limit]]
    use[dead] = 1.0
    return dead, _draw(among, len(dead), generator).to(use.device) if len(dead) else dead


def _draw(among: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` indices below `among`, without repetition while there are enough."""
    orders = [torch.randperm(among, generator=generator) for _ in range(-(-count // among))]
    return torch.cat(orders)[:count]


@final
class VQ(Quantizer):
    """The paper's quantizer (Eq. 2), with the options that keep a codebook alive."""

    use: Tensor

    def __init__(self, settings: VQSettings) -> None:
        super().__init__()
        self.settings = settings
        bound = 1 / settings.codebook_size  # the initialization of the paper's code
        self.codebook = nn.Parameter(torch.empty(settings.codebook_size, settings.codebook_dim).uniform_(-bound, bound))
        self.register_buffer("use", torch.ones(settings.codebook_size))  # running count of uses, 1 = the mean
        self.table = code_table(settings.remap, codebook_size=settings.codebook_size)
        self.size = self.table.size

    @property
    def identity(self) -> str:
        return ("vq normalized" if self.settings.l2_normalize else "vq") + self.table.identity

    def vectors(self) -> Tensor:
        """The codes' vectors (K,D), of length 1 where codes are normalized."""
        return F.normalize(self.codebook, dim=1) if self.settings.l2_normalize else self.codebook

    def forward(self, features: Tensor) -> Quantized:
        B, _, h, w = features.shape
        with torch.autocast(features.device.type, enabled=False):
            flat = self._flat(features)  # (N,D)
            vectors = self.vectors()  # (K,D)
            codes = nearest(flat.detach(), vectors.detach())  # (N,)
            chosen = F.embedding(codes, vectors)  # (N,D)
            commitment = F.mse_loss(flat, chosen.detach())
            codebook = F.mse_loss(chosen, flat.detach())
            beta = self.settings.commitment  # Eq. 4: |sg[E(x)] - z_q|^2 + beta |sg[z_q] - E(x)|^2
            loss = (
                codebook + beta * commitment if self.settings.beta_on == "commitment" else beta * codebook + commitment
            )
            latents = GRADIENTS[self.settings.gradient](flat, chosen)  # (N,D); straight-through in section 3.1
            return Quantized(grid_of(latents, features), self.table.outside(codes).view(B, h, w), loss)

    def schedule(self, seen: int, *, length: int) -> Callable[[Tensor], Quantized]:
        """The quantizer itself: it is the same in training and evaluation, early and late."""
        return self

    def bypass(self, features: Tensor) -> Quantized:
        B, _, h, w = features.shape
        flat = self._flat(features)  # (N,D)
        codes = self.table.outside(nearest(flat.detach(), self.vectors().detach()))  # (N,)
        nothing = 0.0 * self.codebook.sum()  # in the graph, so that every parameter has a gradient on all devices
        return Quantized(grid_of(flat, features), codes.view(B, h, w), nothing)

    def likeliest_codes(self, features: Tensor) -> Tensor:
        return self.bypass(features).codes

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(self.table.inside(codes), self.vectors()).permute(0, 3, 1, 2)

    @property
    def init_features(self) -> int:
        return VECTORS_A_CODE * self.settings.codebook_size if self.settings.kmeans_iterations else 0

    @torch.no_grad()
    def init_codebook(self, features: Tensor, *, generator: torch.Generator) -> None:
        flat, size = self._flat(features), self.settings.codebook_size
        rounds, normalized = self.settings.kmeans_iterations, self.settings.l2_normalize
        self.codebook.copy_(kmeans(flat, size, rounds=rounds, normalized=normalized, generator=generator))

    @torch.no_grad()
    def update_codebook(self, features: Tensor, codes: Tensor, *, generator: torch.Generator) -> int:
        """As `Quantizer.update_codebook`. Where there is a code table only its codes are counted, and only they
        restart."""
        size, settings, vectors = self.settings.codebook_size, self.settings, codes.numel()
        known = self.table.select_used(torch.arange(size, device=codes.device), dim=0)
        counts = code_counts(self.table.inside(codes), size).to(self.use.dtype)
        share = forgotten(settings.usage_decay, vectors=vectors, size=len(known))
        self.use.lerp_(counts * (len(known) / vectors), share)
        below = settings.dead_code_threshold
        dead, places = restarted(self.use, known, below=below, among=vectors, generator=generator)
        if len(dead):
            self.codebook[dead] = self._flat(features)[places].to(self.codebook.dtype)
        return len(dead)

    def _flat(self, features: Tensor) -> Tensor:
        """(B,D,h,w) -> (N,D) in raster order, in float32 at least, of length 1 where codes are normalized."""
        flat = rows_of(features, dtype=precision(features, self.codebook))
        return F.normalize(flat, dim=1) if self.settings.l2_normalize else flat
