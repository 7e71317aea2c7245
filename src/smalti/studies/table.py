"""The studies there are, by name."""

from __future__ import annotations

from typing import Any

from smalti.studies.base import Study
from smalti.studies.conditions import CONDITIONS_OBEYED
from smalti.studies.f_sweep import F_SWEEP
from smalti.studies.modern import MODERN_VS_REFERENCE
from smalti.studies.orders import ORDERS_COMPARED
from smalti.studies.pixelsnail import TRANSFORMER_VS_PIXELSNAIL
from smalti.studies.quantizers import QUANTIZERS_COMPARED
from smalti.studies.reconstruction import RECONSTRUCTION
from smalti.studies.window import WINDOWS_COMPARED

STUDIES: dict[str, Study[Any]] = {
    "reconstruction": RECONSTRUCTION,
    "modern-vs-reference": MODERN_VS_REFERENCE,
    "quantizers": QUANTIZERS_COMPARED,
    "f-sweep": F_SWEEP,
    "transformer-vs-pixelsnail": TRANSFORMER_VS_PIXELSNAIL,
    "orders": ORDERS_COMPARED,
    "conditions": CONDITIONS_OBEYED,
    "window": WINDOWS_COMPARED,
}
