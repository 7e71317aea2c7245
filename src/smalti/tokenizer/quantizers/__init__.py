"""Features -> codes and latents: the interface (`base`), nearest codes (`vq`), drawn codes (`gumbel`), code tables (`table`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from smalti.tokenizer.quantizers.base import Quantized, Quantizer
from smalti.tokenizer.quantizers.gumbel import Gumbel, GumbelSettings, TemperatureSettings
from smalti.tokenizer.quantizers.search import SEARCH_ELEMENTS, nearest
from smalti.tokenizer.quantizers.table import RemapSettings
from smalti.tokenizer.quantizers.vq import VQ, VQSettings, kmeans


def _named(values: Any) -> Any:
    """Plain values without a name are those of the default, VQ."""
    return {"name": "vq", **values} if isinstance(values, Mapping) else values


QuantizerSettings = Annotated[VQSettings | GumbelSettings, Field(discriminator="name"), BeforeValidator(_named)]
"""The settings of any quantizer; their `name` tells which."""

QUANTIZERS: dict[str, Callable[[Any], Quantizer]] = {"vq": VQ, "gumbel": Gumbel}

__all__ = [
    "QUANTIZERS",
    "SEARCH_ELEMENTS",
    "VQ",
    "Gumbel",
    "GumbelSettings",
    "Quantized",
    "Quantizer",
    "QuantizerSettings",
    "RemapSettings",
    "TemperatureSettings",
    "VQSettings",
    "kmeans",
    "nearest",
]
