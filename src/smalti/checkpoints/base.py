"""What every foreign format is read into."""

from __future__ import annotations

from typing import Any, NamedTuple

from smalti.conditions.base import Condition
from smalti.prior import Prior
from smalti.tokenizer.vqgan import VQGAN


class Imported(NamedTuple):
    """The models that a foreign checkpoint holds, in evaluation mode on the CPU."""

    format: str
    tokenizer: VQGAN | None
    prior: Prior | None
    condition: Condition | None
    """With a prior, what it is told; else None."""
    about: dict[str, Any]
    """What is worth keeping of the source, for `config.json`."""
