"""Shell completion: names of recipes, experiments and formats, without importing PyTorch."""

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
    "inpainting",
    "conditions",
    "window",
)
"""Listed here, since their registries import PyTorch; a test compares both."""


def formats() -> list[str]:
    """Values of `smalti convert --to`."""
    return list(FORMATS)


def experiments() -> list[str]:
    """Values of `smalti experiment`."""
    return list(EXPERIMENTS)


def recipes() -> list[str]:
    """Values of `smalti train --recipe` besides files."""
    entries = (resources.files("smalti") / "recipes").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))
