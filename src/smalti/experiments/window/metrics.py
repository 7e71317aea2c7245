"""What the experiment `window` measures of each generation method: likelihood, steps, and on pixels how well parts fit
together.

Notation: B images, C channels, H W pixels, f pixels per code, h w grid of codes, n tiles of a grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from smalti.conditions.base import code_crops as under
from smalti.conditions.base import constant_prefix
from smalti.experiments.page_parts import pixels
from smalti.experiments.tokenizer_comparison import difference
from smalti.experiments.window.findings import COORDINATES, TILES
from smalti.generation.generation_loop import decoding_strategy
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.images.io import to_tensor
from smalti.prior import Prior
from smalti.prior.code_likelihood import window_nll

BATCH = 8
"""Images per batch."""


@torch.no_grad()
def nats_of(prior: Prior, way: str, codes: Tensor, coordinates: Tensor, *, window: tuple[int, int]) -> Tensor:
    """Codes (B,h,w) of real images, and where each lies -> nats per code of each image (B,), as they are generated in
    this `way`."""
    device = next(prior.parameters()).device
    found = []
    for some, where in zip(
        torch.split(codes.to(device), BATCH), torch.split(coordinates.to(device), BATCH), strict=True
    ):
        parts = split_into_tiles(some, window).flatten(0, 1) if way == TILES else some
        prefix = under(where) if way == COORDINATES else constant_prefix(prior.null_prefix(len(parts)))
        found.append(window_nll(prior, prefix, parts).reshape(len(some), -1).mean(1).cpu())
    return torch.cat(found)


def likelihood(values: Sequence[float], others: Sequence[float]) -> dict[str, float | None]:
    """Nats per code of images in one way, and under the window -> the mean, and how much more it is with its standard
    error."""
    gain = difference(values, others)
    return {
        "nats": sum(values) / len(values),
        "over_window": gain.mean,
        "error": gain.error if gain.images > 1 else None,
    }


def sequential(prior: Prior, grid: tuple[int, int]) -> int:
    """Number of sequential steps to generate a grid (h,w)."""
    prefix_at, seeds = constant_prefix(prior.null_prefix(1)), torch.zeros(1, dtype=torch.int64)
    request = GenerationRequest(prefix_at, unknown_codes(1, grid), seeds=seeds)
    return len(decoding_strategy(prior, request).schedule)


def seam_scores(folder: Path, window: int, f: int) -> dict[str, float | None]:
    """A folder of images -> how well their codes of f pixels fit, and tiles that are `window` of them wide."""
    images = torch.stack(list(images_in(folder)))
    return {"seams": seams(images, f, window=window), "roughness": roughness(images, f)}


def images_in(folder: Path) -> Iterator[Tensor]:
    """The images of a folder in the order of their names, (C,H,W) in [-1,1] each."""
    for path in sorted(folder.glob("*.png")):
        yield to_tensor(pixels(path))


def jumps(images: Tensor) -> Tensor:
    """Images (B,C,H,W) -> the mean difference between the pixels of neighboring columns, before columns 1, 2, ...:
    (W-1,).

    Columns alone, for from left to right a scene is the same kind of thing everywhere, while from top to bottom it has
    a horizon, which would pass for a seam.
    """
    return images.diff(dim=3).abs().mean((0, 1, 2))


def roughness(images: Tensor, f: int) -> float:
    """Images (B,C,H,W) of tiles of f pixels per code -> the mean jump from one code to the next, in the pixels' own
    units.

    Where it is larger than in real images, neighboring codes do not match, or change too fast.
    """
    return float(jumps(images)[f - 1 :: f].mean())


def seams(images: Tensor, f: int, *, window: int) -> float | None:
    """The same, and how many codes wide a window is -> the mean jump where one tile of a window's width would end and
    the next begin, over that at all other borders of codes. None where there is one such tile, or tiles of a single
    code.

    Where nothing sets those borders apart it is 1, whatever the decoder does at the borders of codes.
    """
    at_codes = jumps(images)[f - 1 :: f]  # (w-1,)
    at_tiles = torch.arange(1, len(at_codes) + 1) % window == 0
    if not at_tiles.any() or at_tiles.all():
        return None
    return float(at_codes[at_tiles].mean() / at_codes[~at_tiles].mean().clamp(min=1e-9))


def split_into_tiles(codes: Tensor, window: tuple[int, int]) -> Tensor:
    """Codes (B,h,w) of whole tiles of a window (h',w') -> the tiles (B,n,h',w'), row by row."""
    B, h, w = codes.shape
    rows, columns = h // window[0], w // window[1]
    tiles = codes.view(B, rows, window[0], columns, window[1]).transpose(2, 3)  # (B, rows, columns, h', w')
    return tiles.reshape(B, rows * columns, *window)


def join_tiles(tiles: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tiles (B,n,h',w') -> codes (B,h,w) of a `grid`: the inverse of `split_into_tiles`."""
    B, _, *window = tiles.shape
    rows, columns = grid[0] // window[0], grid[1] // window[1]
    return tiles.view(B, rows, columns, *window).transpose(2, 3).reshape(B, *grid)
