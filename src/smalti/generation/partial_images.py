"""Partial images during generation, and how often they are made."""

from __future__ import annotations

import time
from types import TracebackType
from typing import NamedTuple, final

from torch import Tensor

from smalti.generation.generation_loop import GenerationState


class PartialImages(NamedTuple):
    """Images that are being generated."""

    state: GenerationState
    images: Tensor
    """(B,C,H,W) in [-1,1] on the CPU, mid-gray where codes are missing."""


@final
class PreviewSchedule:
    """Spaces out previews. A context manager around the making of each, which measures how long it takes."""

    def __init__(self, *, every: float, max_share: float, first: float = 0.0) -> None:
        """`every`: the least time between the end of a preview and the next one, in seconds. `max_share`: the largest
        share of the time that previews may take, above 0; 1 for no limit. `first`: seconds until the first one."""
        self._every, self._max_share = every, max_share
        self._due = time.monotonic() + first
        self._began = 0.0

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next preview."""
        return time.monotonic() >= self._due

    def __enter__(self) -> PreviewSchedule:
        self._began = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        now = time.monotonic()
        self._due = now + max(self._every, (now - self._began) * (1 / self._max_share - 1))
