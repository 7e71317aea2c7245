"""The studies there are, by name."""

from __future__ import annotations

from typing import Any

from smalti.studies.base import Study
from smalti.studies.reconstruction import RECONSTRUCTION

STUDIES: dict[str, Study[Any]] = {
    "reconstruction": RECONSTRUCTION,
}
