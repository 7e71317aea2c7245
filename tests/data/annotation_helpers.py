"""What the tests of annotation files share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def about(*numbers: float) -> Any:
    return pytest.approx(numbers)
