"""What every foreign format is read into."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

from smalti.conditions.base import Condition, Grid
from smalti.core.errors import SmaltiError
from smalti.prior import Prior
from smalti.tokenizer.vqgan import VQGAN


class Imported(NamedTuple):
    """The models that a foreign checkpoint holds, in evaluation mode on the CPU."""

    format: str
    tokenizer: VQGAN | None
    prior: Prior | None
    condition: Condition | None
    """The condition of the prior; None without one."""
    about: dict[str, Any]
    """What is worth keeping of the source, for `config.json`."""


class Read(Protocol):
    """A path -> the models of one format in it, in evaluation mode on the CPU; None where it is of another format.

    `grid` (h,w) is the window of its prior, in codes, for checkpoints that do not hold it; None where nobody said it.
    Without `prior` the tokenizer alone is read, and nothing else needs to be known or sound. Raises `SmaltiError` for
    what is damaged or not supported.
    """

    def __call__(self, path: Path, *, grid: Grid | None = None, prior: bool = True) -> Imported | None: ...


def check_window(prior: Prior | None, grid: Grid | None, *, where: str | Path) -> None:
    """Raises `SmaltiError` if a `grid` was given and the prior of `where` has another one, or there is no prior."""
    if grid is None:
        return
    if prior is None:
        raise SmaltiError(
            f"{where} holds no prior, so there is no window to give the grid {in_text(grid)}; leave it out"
        )
    if tuple(prior.grid) != tuple(grid):
        raise SmaltiError(
            f"the prior of {where} has a window of {in_text(prior.grid)} codes, the grid given is {in_text(grid)}; "
            "leave it out"
        )


def in_text(grid: Grid) -> str:
    """A grid (h,w) as `--grid` takes it.

    >>> in_text((6, 10))
    '6x10'
    """
    return f"{grid[0]}x{grid[1]}"
