"""How far samples of a model of few photographs are from these photographs: for crops of samples, the most similar
place in the photograph of their class, as a PSNR. Prints one JSON line per class and one for all.

    python benchmarks/memorization.py PHOTOGRAPHS [--model materials] [--out DIR] [--samples 2] [--crop 64]

PHOTOGRAPHS is a folder with a `.jpg` file per class. Each is compared at the scales of training (--heights), mirrored
too, at half resolution and at every position. Two figures stand beside, by the same search:

copies     crops of the photograph itself as the tokenizer reconstructs them: what a sample learned by heart would have
other      crops of the photograph, where the place they come from may not be found: what another place of the same
           photograph resembles them

`--out` receives the samples, and a sheet of crops, each beside the most similar place.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from smalti.images.io import make_image_grid, save_png, to_tensor
from smalti.pipeline import Pipeline

CROPS = 8
"""Crops of each sample."""


class Match(NamedTuple):
    """The most similar place."""

    psnr: float
    place: Tensor
    """(3,h,w)"""


def pixels(image: Image.Image) -> Tensor:
    """(3,H,W)"""
    return to_tensor(np.asarray(image))


def photographs(image: Image.Image, heights: list[int]) -> list[Tensor]:
    """A photograph at some heights, and mirrored: (3,H,W) each, halved."""
    scaled = [image.resize((round(image.width * h / image.height), h), Image.Resampling.LANCZOS) for h in heights]
    tensors = [halved(pixels(each)) for each in scaled]
    return [*tensors, *(each.flip(-1) for each in tensors)]


def halved(image: Tensor) -> Tensor:
    """(3,H,W) -> (3,H/2,W/2)"""
    return F.avg_pool2d(image, 2)


def squared_distances(crop: Tensor, image: Tensor) -> Tensor:
    """(3,h,w), (3,H,W) -> the mean squared difference at every place (H-h+1,W-w+1)."""
    size = image.shape[-2:]
    _, h, w = crop.shape
    spectra = torch.fft.rfft2(image) * torch.fft.rfft2(crop, s=size).conj()
    products = torch.fft.irfft2(spectra, s=size).sum(0)[: size[0] - h + 1, : size[1] - w + 1]
    energy = F.avg_pool2d(image.square().sum(0)[None, None], (h, w), stride=1)[0, 0] * (h * w)
    distances: Tensor = (energy - 2 * products + crop.square().sum()).clamp(min=0) / crop.numel()
    return distances


def best_match(crop: Tensor, images: list[Tensor], *, origin: tuple[int, int] | None = None) -> Match:
    """A crop (3,h,w) and images (3,H,W) -> the most similar place of all.

    With `origin` (y, x) the crop is from there in the first image, and no place that shares pixels with it counts: at
    any scale, and mirrored.
    """
    h, w = crop.shape[-2:]
    best = Match(-torch.inf, crop)
    for index, image in enumerate(images):
        distances = squared_distances(crop, image)
        if origin is not None:
            _exclude(distances, index, images, origin, (h, w))
        flat = int(distances.argmin())
        y, x = divmod(flat, distances.shape[1])
        value = 10 * torch.log10(4 / distances[y, x].clamp(min=1e-10))  # values span -1 to 1
        if value > best.psnr:
            best = Match(float(value), image[:, y : y + h, x : x + w])
    return best


def _exclude(
    distances: Tensor, index: int, images: list[Tensor], origin: tuple[int, int], size: tuple[int, int]
) -> None:
    """Make the places infinitely distant that share pixels with the origin, in place."""
    (y, x), (h, w) = origin, size
    height, width = images[0].shape[-2:]
    if index >= len(images) // 2:  # mirrored
        x = width - x - w
    factor = images[index].shape[-2] / height
    top, left, bottom, right = (round(each * factor) for each in (y, x, y + h, x + w))
    distances[max(top - h + 1, 0) : bottom, max(left - w + 1, 0) : right] = torch.inf


def random_crops(image: Tensor, size: int, generator: torch.Generator) -> list[tuple[tuple[int, int], Tensor]]:
    """Square crops of an image (3,H,W): the upper left corner, and (3,size,size)."""
    h, w = image.shape[-2:]
    corners = [(int(a * (h - size + 1)), int(b * (w - size + 1))) for a, b in torch.rand(CROPS, 2, generator=generator)]
    return [((y, x), image[:, y : y + size, x : x + size]) for y, x in corners]


def reconstruction(pipeline: Pipeline, photograph: Image.Image, height: int) -> Tensor:
    """(3,H,W): the photograph at about this height, through the tokenizer."""
    factor = pipeline.tokenizer.factor
    width = round(photograph.width * height / photograph.height / factor) * factor
    return pipeline.reconstruct(pixels(photograph.resize((width, height), Image.Resampling.LANCZOS))[None])[0]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--model", default="materials")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--samples", type=int, default=2, help="of each class, of 256 x 256 pixels")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--crop", type=int, default=64, help="side of the crops in pixels")
    parser.add_argument("--heights", type=int, nargs="+", default=[512, 576, 640, 704, 768])
    chosen = parser.parse_args()
    pipeline = Pipeline.from_pretrained(chosen.model)
    size, generator = chosen.crop // 2, torch.Generator().manual_seed(0)
    every: dict[str, list[float]] = {}
    shown: list[Tensor] = []
    for path in sorted(chosen.photographs.glob("*.jpg")):
        photograph = Image.open(path).convert("RGB")
        images = photographs(photograph, chosen.heights)
        samples = pipeline.sample(chosen.samples, label=path.stem, size=256, seed=0, guidance=chosen.guidance)
        copy = halved(reconstruction(pipeline, photograph, chosen.heights[0]))
        crops = [crop for sample in map(halved, samples) for _, crop in random_crops(sample, size, generator)]
        matches = [best_match(crop, images) for crop in crops]
        values = {
            "samples": [match.psnr for match in matches],
            "copies": [best_match(crop, images).psnr for _, crop in random_crops(copy, size, generator)],
            "other": [
                best_match(c, images, origin=place).psnr for place, c in random_crops(images[0], size, generator)
            ],
        }
        shown += [image for crop, match in zip(crops[:4], matches, strict=False) for image in (crop, match.place)]
        print(summary(path.stem, values), flush=True)
        for key, each in values.items():
            every.setdefault(key, []).extend(each)
        if chosen.out is not None:
            chosen.out.mkdir(parents=True, exist_ok=True)
            for index, sample in enumerate(samples):
                save_png(chosen.out / f"{path.stem}-{index}.png", sample)
    print(summary("all", every))
    if chosen.out is not None:
        save_png(chosen.out / "matches.png", make_image_grid(torch.stack(shown), columns=8, gap=2))


def summary(name: str, values: dict[str, list[float]]) -> str:
    """One line: the mean of each."""
    return json.dumps({"class": name, **{key: round(sum(each) / len(each), 2) for key, each in values.items()}})


if __name__ == "__main__":
    main()
