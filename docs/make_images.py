"""The images of README.md and docs/model-zoo.md, from the bundled models: `python docs/make_images.py [NAME...]`

Nobody chooses: seeds count from 0, and captions and label maps are those of the first scenes of seed 12, which the
models have not seen.

samples     32 samples, each of a caption
panorama    128 x 1024 pixels, of a text
maps        a label map of 256 x 512 pixels, and the image of that map
completion  an image with a hole, and three completions
landscape   `landscapes`: a label map of 512 x 1024 pixels, and below it the image of that map
wide        `landscapes`: the same at 512 x 2048 pixels, of another scene
materials   `materials`: one image of 256 x 512 pixels of each class
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from smalti.conditions.labels import Labels
from smalti.generation.code_sampler import make_sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import unknown_codes
from smalti.images.io import make_image_grid, to_array, to_tensor
from smalti.pipeline import Pipeline
from smalti.scenes.captions import captions
from smalti.scenes.painter import COLORS, paint

IMAGES = Path(__file__).resolve().parent / "images"
SEED = 12
GUIDANCE = 2.0
TOP_P = 0.9
"""Of `landscapes`."""
PANORAMA = "a lake below mountains, summer evening, trees"


def captions_of_scenes(count: int) -> list[str]:
    """The first caption of each of the first scenes."""
    scenes = (paint(SEED, index, size=(128, 128)) for index in range(count))
    return [captions(scene, seed=SEED, index=index, count=1)[0] for index, scene in enumerate(scenes)]


def samples(pipeline: Pipeline) -> Tensor:
    """Four rows of eight: (3,H,W)."""
    texts = captions_of_scenes(32)
    request = pipeline.request_for(
        [{"text": text} for text in texts],
        unknown_codes(len(texts), pipeline.grid(None)),
        seeds=pipeline.seeds(0, len(texts)),
        sampler=make_sampler(guidance=GUIDANCE),
    )
    return make_image_grid(pipeline.decode(final_codes(generate(pipeline.prior, request))), columns=8, gap=4)


def panorama(pipeline: Pipeline) -> Tensor:
    """(3,128,1024)"""
    return pipeline.sample(1, text=PANORAMA, size=(128, 1024), seed=0, guidance=GUIDANCE)[0]


def maps(pipeline: Pipeline) -> Tensor:
    """The map in the colors of its labels, and the image: (3,256,1028)."""
    return _map_and_image(pipeline, index=1, size=(256, 512), columns=2)


def completion(pipeline: Pipeline) -> Tensor:
    """The image with a gray hole, and completions: (3,128,524)."""
    scene = paint(SEED, 0, size=(128, 128))
    image = to_tensor(scene.image)[None]
    known = torch.ones(128, 128, dtype=torch.bool)
    known[32:96, 32:96] = False
    completed = pipeline.complete(image.repeat(3, 1, 1, 1), known, label=scene.label, seed=0, fill=True)
    return make_image_grid(torch.cat([torch.where(known, image, 0.0), completed]), columns=4, gap=4)


def landscape(pipeline: Pipeline) -> Tensor:
    """The map in the colors of its labels above the image: (3,1028,1024)."""
    return _map_and_image(pipeline, index=1, size=(512, 1024), columns=1, guidance=GUIDANCE, top_p=TOP_P)


def wide(pipeline: Pipeline) -> Tensor:
    """(3,1028,2048)"""
    return _map_and_image(pipeline, index=2, size=(512, 2048), columns=1, guidance=GUIDANCE, top_p=TOP_P)


def _map_and_image(
    pipeline: Pipeline, *, index: int, size: tuple[int, int], columns: int, guidance: float = 1.0, top_p: float = 1.0
) -> Tensor:
    """A scene's map and the image of it, `size` pixels each, in rows of `columns`."""
    scene = paint(SEED, index, size=size)
    colors = np.array(COLORS, dtype=np.uint8)[scene.segmentation]
    image = pipeline.sample(
        1, segmentation=scene.segmentation, label=scene.label, size=size, seed=0, guidance=guidance, top_p=top_p
    )
    return make_image_grid(torch.cat([to_tensor(colors)[None], image]), columns=columns, gap=4)


def materials(pipeline: Pipeline) -> Tensor:
    """Five rows of three classes in alphabetical order: (3,1296,1544)."""
    assert isinstance(pipeline.condition, Labels)
    names = pipeline.condition.names
    images = [pipeline.sample(1, label=name, size=(256, 512), seed=0, guidance=GUIDANCE) for name in names]
    return make_image_grid(torch.cat(images), columns=3, gap=4)


MAKERS: dict[str, tuple[str, Callable[[Pipeline], Tensor]]] = {
    "samples": ("scenes", samples),
    "panorama": ("scenes", panorama),
    "maps": ("scenes", maps),
    "completion": ("scenes", completion),
    "landscape": ("landscapes", landscape),
    "wide": ("landscapes", wide),
    "materials": ("materials", materials),
}
"""Name -> the bundled model, and the function."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MAKERS))
    parser.add_argument("--out", type=Path, default=IMAGES)
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(MAKERS):
        parser.error(f"no such image: {', '.join(sorted(unknown))}; there are {', '.join(MAKERS)}")
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name in chosen.names or MAKERS:
        model, make = MAKERS[name]
        Image.fromarray(to_array(make(Pipeline.from_pretrained(model)))).save(chosen.out / f"{name}.jpg", quality=92)
        print(chosen.out / f"{name}.jpg", flush=True)


if __name__ == "__main__":
    main()
