"""Generation requests: all that the generated codes depend on, apart from the prior, in one frozen value.

Notation: B batch, P prefix codes, h w grid.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import final

import torch
from torch import Tensor

from smalti.conditions.base import WindowPrefix
from smalti.core.arguments import center_offset, whole_number
from smalti.core.capacity import check_memory
from smalti.core.errors import SmaltiError
from smalti.generation.code_sampler import Sampler
from smalti.prior.window import Middle, after_middle

_CODE_BYTES, _POSITION_BYTES = 4 * 8, 300
"""Memory of a code: the known ones, those so far and copies of them, int64; and of its position in the schedule, which
all images share."""


@final
@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """B images to generate. Raises `SmaltiError` that names the value which is invalid with any prior.

    The noise of a code depends only on the image's seed and the code's position, not on the batch; known codes that
    are an image's own do not change the image.
    """

    prefix_at: WindowPrefix
    """The encoded condition values: a position of the prior's window -> prefix codes (B, P). A neighborhood
    transformer has one window, the whole image. `conditions.base.constant_prefix` makes one without positions."""
    known: Tensor
    """(B, h, w) integers: codes to keep, and -1 for codes to generate. See `unknown_codes`."""
    _: KW_ONLY
    seeds: Tensor
    """(B,) int64, not negative. See `seed_range`."""
    sampler: Sampler = Sampler()  # noqa: RUF009 - frozen
    middle: Middle = after_middle
    """The index in a freely placed window of the code that is generated, as the condition has it."""
    speculate: int = 0
    """The number of draft codes per call of the prior (`generation.speculative`): the generated codes are the same,
    with fewer calls. 0 for none."""
    order: Tensor | None = None
    """For any-order priors: the raster positions of the grid in the order of generation, (h w,) int64. Known
    codes are read first in any case. None for raster order."""
    resumed: Tensor | None = None
    """The codes so far (B, h, w) of an interrupted generation of this request, which resumes from them: each remaining
    code is conditioned as it would have been. None starts from the known codes."""
    parallel: int = 0
    """The number of steps in which several codes are generated at once (`generation.parallel_decoding`), for priors
    that know any order. 0 generates one code after the other."""

    def __post_init__(self) -> None:
        known, seeds = self.known, self.seeds
        if known.dim() != 3 or known.is_floating_point() or known.dtype == torch.bool:
            raise SmaltiError(
                f"known codes are integers of the shape (batch, height, width), -1 where a code is to be "
                f"generated, not {known.dtype} of shape {tuple(known.shape)}"
            )
        batch, height, width = known.shape
        if not batch:
            raise SmaltiError("there is no image to generate; request one or more")
        if min(height, width) < 1:
            raise SmaltiError(f"a grid of {height} x {width} codes is empty; request at least 1 x 1")
        if seeds.shape != (batch,):
            raise SmaltiError(
                f"for {batch} images seeds must have the shape ({batch},); they have {tuple(seeds.shape)}"
            )
        if seeds.is_floating_point() or seeds.dtype == torch.bool:
            raise SmaltiError(f"seeds are whole numbers from 0 on, not {seeds.dtype}; give int64")
        if seeds.min() < 0:
            raise SmaltiError(f"the seed {int(seeds.min())} is negative; seeds are whole numbers from 0 on")
        if whole_number(self.speculate, "speculate") < 0:
            raise SmaltiError(
                f"speculate = {self.speculate} is not a number of codes; give 0 for no speculation, or 1 or more"
            )
        if whole_number(self.parallel, "parallel") < 0:
            raise SmaltiError(f"parallel = {self.parallel} is not a number of steps; give 0 for one code at a time")
        if self.parallel and self.speculate:
            raise SmaltiError(
                f"parallel = {self.parallel} and speculate = {self.speculate} do not go together; leave one of them at "
                "0"
            )
        count = height * width
        if self.order is not None and not torch.equal(self.order.sort().values.cpu(), torch.arange(count)):
            raise SmaltiError(f"an order names each of the {count} positions of the grid once, from 0 to {count - 1}")

    @property
    def batch(self) -> int:
        """B."""
        return len(self.known)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return self.known.shape[1], self.known.shape[2]

    @property
    def codes(self) -> Tensor:
        """(B, h, w): the codes to start from, -1 for codes to generate."""
        return self.known if self.resumed is None else self.resumed

    @property
    def num_missing(self) -> int:
        """The number of codes to generate, of all images."""
        return int((self.codes < 0).sum())

    @property
    def missing_positions(self) -> Tensor:
        """(h, w) bool on the CPU: True for codes that are generated in any image."""
        return (self.codes < 0).any(dim=0).cpu()

    @property
    def known_positions(self) -> Tensor:
        """(h, w) bool on the CPU: where the codes of all images are known, apart from those generated so far."""
        return (self.known >= 0).all(dim=0).cpu()

    def to(self, device: torch.device) -> GenerationRequest:
        """The request with its tensors on a device. Prefixes are on the device of the prior already."""
        order, resumed = (None if each is None else each.to(device) for each in (self.order, self.resumed))
        return replace(self, known=self.known.to(device), seeds=self.seeds.to(device), order=order, resumed=resumed)


def unknown_codes(batch: int, grid: tuple[int, int]) -> Tensor:
    """A grid (h, w) for a `batch` of images with no known code: (batch, h, w) int64, all -1.

    Raises `SmaltiError` for fewer than one image, and for grids that exceed the memory of this machine.
    """
    check_generation_memory(whole_number(batch, "the number of images", least=1), grid)
    return torch.full((batch, *grid), -1)


def center_on_canvas(codes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Codes (B,h,w) -> the same in the center of a larger `grid`, with -1 around them, where codes are to be
    generated.

    If the margins cannot be equal, the one below or to the right is larger by one. Raises `SmaltiError` for a
    smaller grid.
    """
    height, width = codes.shape[1:]
    if grid[0] < height or grid[1] < width:
        raise SmaltiError(
            f"an image of {height} x {width} codes (height x width) does not fit on a canvas of {grid[0]} x {grid[1]}; "
            "make the canvas larger or the image smaller"
        )
    top, left = center_offset((height, width), grid)
    canvas = codes.new_full((len(codes), *grid), -1)
    canvas[:, top : top + height, left : left + width] = codes
    return canvas


def seed_range(seed: int, count: int) -> Tensor:
    """seed, seed + 1, ... (count,) int64. Raises `SmaltiError` for seeds outside [0, 2^63), and for a count below
    one."""
    seed, count = whole_number(seed, "seed"), whole_number(count, "count", least=1)
    if seed < 0 or seed + count >= 2**63:
        raise SmaltiError(f"the seed {seed} is not from 0 to {2**63 - 1 - count}; choose a smaller one, not negative")
    check_memory(8 * count, f"seeds of {count:,} images")
    return torch.arange(seed, seed + count)


def check_generation_memory(batch: int, grid: tuple[int, int]) -> None:
    """Raise `SmaltiError` if generating a `batch` of images of a grid (h, w) takes more memory than this machine
    has."""
    codes = grid[0] * grid[1]
    check_memory(
        batch * codes * _CODE_BYTES + codes * _POSITION_BYTES,
        f"generating {batch:,} image{'s' * (batch != 1)} of {grid[0]:,} x {grid[1]:,} codes (height x width)",
    )
