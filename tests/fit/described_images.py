"""A small folder of images with classes, and with captions, label maps, depths and boxes beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.small import write_images, write_recipe

COLORS = ("red", "blue")


def write_described(folder: Path, *, count: int = 10) -> Path:
    """Write `images`, `masks`, `depths`, `objects.json` and the recipe `small.yaml` into a folder."""
    images = write_images(folder / "images", count=count)
    write_recipe(folder / "small.yaml")
    listed = []
    for file in sorted(images.rglob("*.png")):
        name = file.relative_to(images)
        file.with_suffix(".txt").write_text(f"a {file.parent.name} ramp, number {file.stem}\n")
        with Image.open(file) as image:
            gray = np.asarray(image)[:, :, 0]
        save(folder / "masks" / name, (gray > 128).astype(np.uint8))
        save(folder / "depths" / name, gray)
        box = {"class": COLORS[int(file.stem) % 2], "box": [0.25, 0.25, 0.5, 0.5]}
        listed.append({"key": name.with_suffix("").as_posix(), "objects": [box]})
    (folder / "objects.json").write_text(json.dumps({"images": listed}))
    return images


def save(path: Path, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    """Write an image, and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
