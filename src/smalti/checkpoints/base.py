"""The result of reading a foreign checkpoint, and the signature of the functions that read one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

from smalti.conditions.base import Condition, Grid, grid_text
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
    """What `config.json` records of the source."""


class FormatReader(Protocol):
    """A path -> the models of one format in it, in evaluation mode on the CPU; None where it is of another format.

    `grid` (h,w) is the window of its prior, in codes, for checkpoints that do not hold it; None if the caller does not
    give it. Without `prior` only the tokenizer is read, and the rest of the checkpoint is not checked. Raises
    `SmaltiError` for damaged and unsupported checkpoints.
    """

    def __call__(self, path: Path, *, grid: Grid | None = None, prior: bool = True) -> Imported | None: ...


def check_window(prior: Prior | None, grid: Grid | None, *, where: str | Path) -> None:
    """Raises `SmaltiError` if a `grid` was given and the prior of `where` has another one, or there is no prior."""
    if grid is None:
        return
    if prior is None:
        raise SmaltiError(f"{where} holds no prior, so a grid ({grid_text(grid)}) has no effect; leave it out")
    if tuple(prior.grid) != tuple(grid):
        raise SmaltiError(
            f"the prior of {where} has a window of {grid_text(prior.grid)} codes, the grid given is {grid_text(grid)}; "
            "leave it out"
        )
