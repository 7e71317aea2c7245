"""The interface of decoding strategies: a schedule of positions, and the logits of each wave.

Shapes: B batch, K image codes, P prefix codes, h w grid, m positions of a batch.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from smalti.generation.request import GenerationRequest
from smalti.generation.wavefront import CodePosition
from smalti.prior.base import Prior


class DecodingStrategy(abc.ABC):
    """An image's codes -> logits of the codes to generate next, wave after wave."""

    schedule: list[list[CodePosition]]
    """The positions of each wave."""

    @abc.abstractmethod
    def logits(self, codes: Tensor, wave: int) -> Iterator[tuple[Sequence[CodePosition], Tensor]]:
        """Codes so far (B, h, w), complete up to wave number `wave` -> batches of its positions with their float32
        logits.

        Logits are (1, m, B, K), or (2, m, B, K) with guidance: conditional, then unconditional. Call it once per
        wave, in order. Codes of the same wave that are generated in the meantime do not matter.
        """


class PriorDecoding(DecodingStrategy):
    """A strategy that is chosen by the prior and the request; see `generation_loop.STRATEGIES`."""

    @abc.abstractmethod
    def __init__(self, prior: Any, request: GenerationRequest, *, null_prefix: Tensor) -> None:
        """`null_prefix` (B, P) is the unconditional prefix, or has no rows without guidance."""

    @staticmethod
    @abc.abstractmethod
    def decodes(prior: Prior, request: GenerationRequest) -> bool:
        """Whether this strategy decodes this request, unless one before it in the list does."""
