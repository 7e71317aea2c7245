"""The fixture that reads what an experiment has written; `home` is the test file's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def found(home: Path) -> dict[str, Any]:
    """The steps in `out/result.json` of the folder `home`."""
    steps: dict[str, Any] = json.loads((home / "out" / "result.json").read_text())["steps"]
    return steps
