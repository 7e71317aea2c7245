"""Which images of a source are damaged, and when these are too many.

N images of a part.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import final

import numpy as np
import numpy.typing as npt
import torch

from smalti.data.sources import Source, too_many_damaged

GOOD, DAMAGED = 1, 2
"""States of an image; 0: it was not looked at yet."""


@final
class DamageRecord:
    """Which images of a source were found damaged, of all parts that it is split into and in all worker processes.

    Each part reports what it finds, under its own numbers. The verdict is on all parts together: a held-out part may be
    a single image, and be damaged.
    """

    def __init__(self, source: Source, parts: Sequence[int]) -> None:
        """`parts`: how many images each of them has."""
        self.path = source.path
        self._starts = tuple(itertools.accumulate(parts, initial=0))
        self._states = torch.zeros(self._starts[-1], dtype=torch.uint8)
        self._states.share_memory_()  # type: ignore[no-untyped-call]

    def states(self, part: int) -> npt.NDArray[np.uint8]:
        """The states of the images of a part, (N,), as a view."""
        states: npt.NDArray[np.uint8] = self._states.numpy()[self._starts[part] : self._starts[part + 1]]
        return states

    @property
    def looked_at(self) -> int:
        """How many were read, or found damaged."""
        return int(np.count_nonzero(self._states.numpy()))

    @property
    def damaged(self) -> int:
        """How many were found damaged."""
        return int(np.count_nonzero(self._states.numpy() == DAMAGED))

    @property
    def exceeds_limit(self) -> bool:
        """Whether too many are damaged, once 100 or all were looked at."""
        looked = self.looked_at
        enough = looked >= min(len(self._states), 100)
        return enough and self.damaged > 0 and too_many_damaged(self.damaged, of=looked)
