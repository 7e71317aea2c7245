"""Networks from the settings in untrusted files: refused before memory is allocated if the file has too few weights
for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from smalti.core.errors import SmaltiError

Network = TypeVar("Network", bound=nn.Module)

_SPARE = 2**24
"""Numbers of a network beyond those in its file, up to which the names that are missing say what is wrong."""


def number_count(weights: Mapping[str, Tensor]) -> int:
    """Weights by name -> how many numbers they are."""
    return sum(weight.numel() for weight in weights.values())


def build_network(build: Callable[[], Network], *, stored: int, where: str) -> Network:
    """`build` a network, for which a file has `stored` numbers or fewer.

    It is first built without memory for its weights. Raises `SmaltiError` with `where`, the file of its settings, for
    settings that no network can have, and for those of a network much larger than the file.
    """
    try:
        with torch.device("meta"):
            size = sum(weight.numel() for weight in build().parameters())
    except (
        RuntimeError,
        OverflowError,
        TypeError,
        MemoryError,
    ) as error:  # of numbers beyond 64 bits
        reason = str(error).split("\n")[0] or type(error).__name__
        raise SmaltiError(f"{where}: there is no network of such settings ({reason}); copy it again") from error
    if size > stored + _SPARE:
        raise SmaltiError(
            f"{where}: its settings are those of a network of {size:,} numbers, and its weights are {stored:,} at "
            "most; copy both again"
        )
    return build()
