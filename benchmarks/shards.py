"""Training a prior on code shards, beside the same training with the tokenizer in the loop. Prints one JSON line a pair
of recipes.

    python benchmarks/shards.py [--of demo,small] [--pairs 2] [--steps 2] [--threads 1]

of        a tokenizer and a prior, as recipes have them
  gpt       f16 (width 128, 256 px), and the GPT of the item stage2: 8 layers, width 512, batch 4
  f16       f16, and the prior of the recipe small: a transformer of 5 layers, width 224, batch 16
  paper     reference-imagenet (f16), and the GPT of reference-drin: 24 layers, width 1024, batch 2
  small     small (f8, 64 px), and its own prior
  demo      demo (f8, 64 px), and its own prior

Both are whole steps of `smalti train prior`, which differ in where codes come from. On shards: read from the files. In
the loop: a JPEG file of 375 x 500 is read, scaled, cut and encoded, for each image of each batch. Times are processor
time of this process; steps of both kinds run in turn, and the ratio is the median over pairs of them. Networks have
learned nothing, which takes as long.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from smalti.conditions.labels import Unconditional
from smalti.core.allocator import keep_memory
from smalti.core.progress import progress_bar
from smalti.data.code_shards import CodeBatch, dtype_of, open_codes
from smalti.data.sources import open_source
from smalti.data.splits import split_crops
from smalti.encoding.condition_encoding import tokenizer_encoder
from smalti.model_loading import load_tokenizer
from smalti.tokenizer.vqgan import VQGAN
from smalti.training.config import PriorTraining, TokenizerTraining, resolve
from smalti.training.launcher import launch
from smalti.training.loop import stream
from smalti.training.runs import encode_images
from smalti.training.stage2 import PriorStage

IMAGES = 24


class Pair(NamedTuple):
    """Recipes, and what is changed in that of the prior."""

    tokenizer: str
    prior: str
    changes: tuple[str, ...] = ()


PAIRS = {
    "gpt": Pair("f16", "small", ("network={name: gpt, layers: 8, embed_dim: 512, heads: 8}", "run.batch=4")),
    "f16": Pair("f16", "small"),
    "paper": Pair("reference-imagenet", "reference-drin"),
    "small": Pair("small", "small"),
    "demo": Pair("demo", "demo"),
}


def paint(folder: Path) -> None:
    """Write JPEG files of smooth noise."""
    folder.mkdir()
    chance = np.random.RandomState(0)
    for number in range(IMAGES):
        small = Image.fromarray(chance.randint(256, size=(24, 32, 3)).astype(np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.jpg", quality=90)


class Ready(NamedTuple):
    """Both ways to make a step, and what the shards have cost."""

    on_shards: Callable[[], object]
    in_the_loop: Callable[[], object]
    batch: int
    copies: int
    """What the recipe asks for, of each image."""
    encoding: float
    """Seconds that an image takes to become codes on the disk."""
    kept: int
    """Bytes of a copy of them."""


def made_ready(pair: Pair, folder: Path) -> Ready:
    """A tokenizer, images and their codes in a folder, and a prior that is trained on them."""
    torch.manual_seed(0)
    recipe = resolve(TokenizerTraining, stage="tokenizer", recipe=pair.tokenizer, overrides=[])
    VQGAN(recipe.model).save_pretrained(folder / "tokenizer", about={})
    paint(folder / "images")
    size = list(recipe.images.size)
    fixed = (f"encode.images.size={size}", "encode.images.cache_mib=0", "encode.images.validation=0.1")
    alone = ("condition=unconditional", "condition_dropout=0", "run.workers=0")
    options = resolve(PriorTraining, stage="prior", recipe=pair.prior, overrides=[*pair.changes, *fixed, *alone])
    once = replace(options.encode, copies=1)
    began = time.process_time()
    with progress_bar(Console(stderr=True), title="encoding", unit="images") as progress:
        encode_images(
            folder / "tokenizer", folder / "images", folder / "codes", settings=once, seed=0, progress=progress
        )
    encoding = (time.process_time() - began) / IMAGES
    shards, tokenizer = open_codes(folder / "codes"), load_tokenizer(folder / "tokenizer")
    stage = PriorStage(options, shards, Unconditional(), tokenizer, fabric=launch(options.run), about={})
    training, _ = split_crops(open_source(folder / "images"), options.encode.images, channels=3, seed=0)
    kept, read = stage.batches(0), stream(training, start=0, run=options.run, fabric=stage.fabric)
    encode, chance = tokenizer_encoder(tokenizer, training.to_images).encode, torch.Generator()

    def step(batch: CodeBatch) -> None:
        stage.step(batch, seen=options.run.codes // 2, count=1, generator=chance)

    def in_the_loop() -> None:
        images, labels = next(read)
        step(CodeBatch(encode(images), labels, torch.empty(len(images), 0, dtype=torch.int64)))

    size_kept = math.prod(shards.meta.grid) * dtype_of(shards.meta.size).itemsize
    return Ready(lambda: step(next(kept)), in_the_loop, options.run.batch, options.encode.copies, encoding, size_kept)


def seconds(run: Callable[[], object], *, steps: int) -> float:
    """CPU time of one run, of several in a row."""
    began = time.process_time()
    for _ in range(steps):
        run()
    return (time.process_time() - began) / steps


def measured(name: str, *, pairs: int, steps: int) -> dict[str, Any]:
    """A pair of recipes -> its line."""
    with tempfile.TemporaryDirectory() as folder:
        ready = made_ready(PAIRS[name], Path(folder))
        ready.on_shards()
        ready.in_the_loop()
        kept, looped = [], []
        for _ in range(pairs):
            kept.append(seconds(ready.on_shards, steps=steps))
            looped.append(seconds(ready.in_the_loop, steps=steps))
    ratios = [loop / shards for loop, shards in zip(looped, kept, strict=True)]
    return {
        "of": name,
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "images_a_second": round(ready.batch / statistics.median(kept), 3),
        "images_a_second_in_the_loop": round(ready.batch / statistics.median(looped), 3),
        "seconds_to_encode_a_image": round(ready.encoding, 4),
        "copies": ready.copies,
        "bytes_a_copy": ready.kept,
        "batch": ready.batch,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def run() -> None:
    """The command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--of", default=",".join(PAIRS), help="which, with commas between; default: all")
    arguments.add_argument("--pairs", type=int, default=5, help="how often steps of both kinds run in turn")
    arguments.add_argument("--steps", type=int, default=2, help="steps of a kind in a row")
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    names = options.of.split(",")
    if unknown := [name for name in names if name not in PAIRS]:
        arguments.error(f"there is no pair {unknown[0]!r}; there are {', '.join(PAIRS)}")
    torch.set_num_threads(options.threads)
    keep_memory()  # as smalti's commands do
    for name in names:
        print(json.dumps(measured(name, pairs=options.pairs, steps=options.steps)), flush=True)


if __name__ == "__main__":
    run()
