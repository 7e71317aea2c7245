"""How long work reports its progress to its caller: a callback, which may do nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], object]
"""Called with (done, total), in units that the function that calls it names; total is 0 where it is unknown."""


def no_progress(done: int, total: int) -> None:
    """A progress callback that does nothing."""
