"""The models that come with smalti: a name -> the folder it was installed into."""

from __future__ import annotations

from pathlib import Path

BUNDLED: dict[str, Path] = {"scenes": Path(__file__).resolve().parent / "models" / "scenes"}
"""`scenes`: landscapes of 64 x 64 pixels and more, told a class, a segmentation, both or nothing."""

SCENES = BUNDLED["scenes"]
"""What is taken where no model is named."""


def named(name: str | Path) -> Path:
    """A path, or a name in `BUNDLED` where there is nothing at that path -> the path, or the folder of that model."""
    path = Path(name).expanduser()
    return path if path.exists() else BUNDLED.get(str(name), path)
