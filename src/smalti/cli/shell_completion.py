"""What the shell offers after Tab: names of recipes, experiments and formats, without loading what they name."""

from __future__ import annotations

from importlib import resources

FORMATS = ("smalti", "taming", "llamagen", "diffusers", "transformers", "onnx", "export")
EXPERIMENTS = (
    "reconstruction",
    "modern-vs-reference",
    "quantizers",
    "f-sweep",
    "transformer-vs-pixelsnail",
    "orders",
    "conditions",
    "window",
)
"""Written down here, since their tables load PyTorch; a test holds them against those."""


def formats() -> list[str]:
    """What `smalti convert --to` takes."""
    return list(FORMATS)


def experiments() -> list[str]:
    """What `smalti experiment` takes."""
    return list(EXPERIMENTS)


def recipes() -> list[str]:
    """What `smalti train --recipe` takes besides files."""
    entries = (resources.files("smalti") / "recipes").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))
