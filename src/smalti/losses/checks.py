"""What the distances between images ask of their arguments."""

from __future__ import annotations

from torch import Tensor

from smalti.core.errors import SmaltiError


def check_same_shape(images: Tensor, others: Tensor, *, what: str) -> None:
    """Raise `SmaltiError` unless both are of one shape; `what` is the distance, as it begins the sentence."""
    if images.shape != others.shape:
        raise SmaltiError(
            f"{what} compares images of one shape, these are {tuple(images.shape)} and {tuple(others.shape)}"
        )
