"""The models that come with smalti: a name -> the folder it was installed into."""

from __future__ import annotations

from pathlib import Path

_MODELS = Path(__file__).resolve().parents[1] / "models"

BUNDLED: dict[str, Path] = {name: _MODELS / name for name in ("scenes",)}
"""`scenes`: landscapes of 128 x 128 pixels and more, conditioned on any of class, text and segmentation, or on
nothing."""

SCENES = BUNDLED["scenes"]
"""What is taken where no model is named."""


def model_path(name: str | Path) -> Path:
    """A path, or a name in `BUNDLED` where there is nothing at that path -> the path, or the folder of that model."""
    path = Path(name).expanduser()
    return path if path.exists() else BUNDLED.get(str(name), path)
