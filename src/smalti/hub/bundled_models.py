"""The models that come with smalti: a name -> the folder it was installed into."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from smalti.core.errors import SmaltiError

_MODELS = Path(__file__).resolve().parents[1] / "models"

BUNDLED: dict[str, Path] = {name: _MODELS / name for name in ("scenes", "landscapes", "materials")}
"""`scenes`: landscapes of 128 x 128 pixels and more, conditioned on any of class, text and segmentation, or on
nothing. `landscapes`: landscapes about 512 pixels high of any width, conditioned on class and segmentation.
`materials`: photographs of leaves, snow, lanterns, clouds and more, of any size, conditioned on the class."""

SCENES = BUNDLED["scenes"]
"""What is taken where no model is named."""


def model_path(name: str | Path) -> Path:
    """A path, or a name in `BUNDLED` where there is nothing at that path -> the path, or the folder of that model."""
    path = Path(name).expanduser()
    return path if path.exists() else BUNDLED.get(str(name), path)


def bundled_part(name: Any, *, where: str) -> Path:
    """What `same_as` in the settings of a bundled model names, such as "scenes/tokenizer" -> that folder.

    Raises `SmaltiError`, with `where`, for anything but a folder inside a bundled model.
    """
    if isinstance(name, str) and re.fullmatch(r"[a-z]+(/[a-z0-9-]+)+", name):
        model, _, part = name.partition("/")
        if model in BUNDLED and (folder := BUNDLED[model] / part).is_dir():
            return folder
    raise SmaltiError(f"same_as in {where} must name a part of a bundled model, such as scenes/tokenizer, not {name!r}")
