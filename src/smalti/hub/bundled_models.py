"""The models that come with smalti: a name -> the folder it was installed into."""

from __future__ import annotations

from pathlib import Path

_MODELS = Path(__file__).resolve().parents[1] / "models"

BUNDLED: dict[str, Path] = {name: _MODELS / name for name in ("scenes", "scenes-128")}
"""`scenes`: landscapes of 64 x 64 pixels and more, unconditional or conditioned on a class, a segmentation or both.
`scenes-128`: a tokenizer alone, for such landscapes painted at up to 512 pixels, which is still in training."""

SCENES = BUNDLED["scenes"]
"""What is taken where no model is named."""


def model_path(name: str | Path) -> Path:
    """A path, or a name in `BUNDLED` where there is nothing at that path -> the path, or the folder of that model."""
    path = Path(name).expanduser()
    return path if path.exists() else BUNDLED.get(str(name), path)
