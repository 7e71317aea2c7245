"""Features -> codes and latents: the interface (`base`) and the table of those there are, one file each.

Nearest codes (`vq`, `ema`, `simvq`), drawn codes (`gumbel`), rounding and signs (`fsq`, `lfq`); how gradients pass
(`gradients`), the search (`search`), and tables of used codes (`table`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from smalti.tokenizer.quantizers.base import Quantized, Quantizer
from smalti.tokenizer.quantizers.code_table import RemapSettings
from smalti.tokenizer.quantizers.ema import EMA, EMASettings
from smalti.tokenizer.quantizers.fsq import FSQ, FSQSettings
from smalti.tokenizer.quantizers.gumbel import Gumbel, GumbelSettings, TemperatureSettings
from smalti.tokenizer.quantizers.lfq import LFQ, LFQSettings
from smalti.tokenizer.quantizers.search import SEARCH_ELEMENTS, nearest
from smalti.tokenizer.quantizers.simvq import SimVQ, SimVQSettings
from smalti.tokenizer.quantizers.vq import VQ, VQSettings, kmeans


def _named(values: Any) -> Any:
    """Plain values without a name are those of the default, VQ."""
    return {"name": "vq", **values} if isinstance(values, Mapping) else values


QuantizerSettings = Annotated[
    VQSettings | EMASettings | SimVQSettings | GumbelSettings | FSQSettings | LFQSettings,
    Field(discriminator="name"),
    BeforeValidator(_named),
]
"""The settings of any quantizer; their `name` selects one."""

QUANTIZERS: dict[str, Callable[[Any], Quantizer]] = {
    "vq": VQ,
    "ema": EMA,
    "simvq": SimVQ,
    "gumbel": Gumbel,
    "fsq": FSQ,
    "lfq": LFQ,
}


__all__ = [
    "EMA",
    "FSQ",
    "LFQ",
    "QUANTIZERS",
    "SEARCH_ELEMENTS",
    "VQ",
    "EMASettings",
    "FSQSettings",
    "Gumbel",
    "GumbelSettings",
    "LFQSettings",
    "Quantized",
    "Quantizer",
    "QuantizerSettings",
    "RemapSettings",
    "SimVQ",
    "SimVQSettings",
    "TemperatureSettings",
    "VQSettings",
    "kmeans",
    "nearest",
]
