"""Stage 2 for any tokenizer of an experiment: codes of crops, a prior on them, images laid by the sliding window.

A tokenizer here is a `VQGAN` or what has its methods.

H W pixels, f = H/h, h w the prior's window, N images.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from smalti.conditions.labels import Nothing
from smalti.core.devices import pick_device
from smalti.core.files import write_atomically
from smalti.core.progress import counting
from smalti.data.code_shards import open_codes
from smalti.data.crops import RandomCrop
from smalti.data.loader import Crops
from smalti.data.sources import open_source, split
from smalti.encoding.code_writer import write_codes
from smalti.evaluation.image_sets import measure_sets
from smalti.evaluation.protocols import FeatureProtocol, ImageProtocol, SetProtocol
from smalti.experiments.base import StepContext
from smalti.generation.code_sampler import Sampler, unknown
from smalti.hub.pretrained import find_model
from smalti.images.io import save_png
from smalti.pipeline import Pipeline
from smalti.prior_folder import load_prior
from smalti.training.config import PriorTraining
from smalti.training.run_folder import read_metrics
from smalti.training.runs import train_prior_on

ENCODED = 64
"""Crops that are encoded at once."""
TOGETHER = 64
"""Images that are laid at once."""
KEPT_EVERY = 20.0
"""Seconds after which what has been laid so far is kept."""
FEWEST = 64
"""Samples below which no Frechet distance is computed: it would tell of their number."""


def zoom_of(side: tuple[int, int], size: tuple[int, int]) -> float:
    """Crops of `side` and images of `size` (H,W) -> how many times a crop the image covers, just as large as it is."""
    return min(size[0] / side[0], size[1] / side[1])


def codes_of_crops(
    tokenizer: Any,
    data: Path,
    context: StepContext,
    *,
    window: tuple[int, int],
    size: tuple[int, int],
    held_out: float,
    copies: tuple[int, int],
) -> dict[str, Any]:
    """Images, each scaled to cover `size` (H,W) -> codes of random crops of h f x w f pixels, in the step's folder.

    `copies`: crops of each training image and of each held-out one.
    """
    source, f, device = open_source(data), tokenizer.factor, pick_device("auto")
    tokenizer = tokenizer.to(device)
    training, validation = split(source.images, validation=held_out)
    side = window[0] * f, window[1] * f
    zoom = zoom_of(side, size)
    crops = partial(Crops, source, size=side, channels=3)

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        codes: Tensor = tokenizer.encode(images.to(device)).codes
        return codes

    with counting(context.console, title="encoding", unit="crops") as progress:
        write_codes(
            context.folder / "codes",
            training=crops(training, crop=RandomCrop(zoom=(zoom, zoom)), seed=0),
            # Shards hold one crop of each held-out image, so that an image is named as often as crops are wanted.
            validation=crops(validation * copies[1], crop=RandomCrop(zoom=(zoom, zoom), flip=False), seed=1),
            encode=encode,
            fingerprint=tokenizer.fingerprint(),
            size=tokenizer.size,
            factor=f,
            labels=(),
            copies=copies[0],
            seed=0,
            batch=ENCODED,
            progress=progress,
        )
    return {"training": len(training) * copies[0], "held_out": len(validation) * copies[1]}


def train_prior_on_codes(
    tokenizer: Any, codes: Path, context: StepContext, *, settings: PriorTraining
) -> dict[str, Any]:
    """Codes -> a prior that is told nothing else, trained in the step's folder; how likely the kept one finds held-out
    codes."""
    shards = open_codes(codes)
    shards.check_fingerprint(tokenizer.fingerprint())
    train_prior_on(shards, tokenizer, Nothing(), context.folder, settings=settings, console=context.console)
    lines = [line for line in read_metrics(context.folder) if line["part"] == "validation"]
    return {
        "nats_per_code": lines[-1]["best_nats"],
        "nats_per_pixel": lines[-1]["best_nats"] / shards.meta.factor**2,
        "code_entropy_nats": lines[-1]["code_entropy_nats"],
        "curve": [{"codes": line["seen"], "nats": line["nats"]} for line in lines],
    }


class SampleSettings(NamedTuple):
    """The samples that are wanted."""

    number: int
    size: tuple[int, int]
    """(H,W)"""
    with_frechet: bool
    """Whether the weights of the feature network can be had."""


def generate_images(
    tokenizer: Any, prior: Path, images: Path, context: StepContext, *, wanted: SampleSettings
) -> dict[str, Any]:
    """A tokenizer and the run folder of its prior -> images with the seeds 0, 1, ... in `samples` of the step's folder,
    how long an image takes, and where they suffice their Frechet distance from all `images` in SqueezeNet's
    features."""
    network, condition = load_prior(find_model(prior, kind="prior"))
    pipeline = Pipeline(tokenizer, network, condition).to(pick_device("auto"))
    (H, W), f = wanted.size, tokenizer.factor
    took = []
    for first in range(0, wanted.number, TOGETHER):
        seeds = torch.arange(first, min(first + TOGETHER, wanted.number))
        codes, seconds = _generate(pipeline, seeds, (H // f, W // f), context)
        took.append(seconds)
        for seed, image in zip(seeds.tolist(), pipeline.decode(codes), strict=True):
            save_png(context.folder / "samples" / f"{seed:04d}.png", image, settings={"seed": seed})
    found: dict[str, Any] = {"codes": (H // f) * (W // f), "seconds_per_image": sum(took) / len(took)}
    if wanted.with_frechet and wanted.number >= FEWEST:
        protocol = SetProtocol(
            about="Samples against all images of the experiment.",
            reference=ImageProtocol(size=wanted.size),
            features=FeatureProtocol(network="squeezenet", scores=("frechet",)),
        )
        samples, device = open_source(context.folder / "samples"), pick_device("auto")
        scores = measure_sets(samples, open_source(images), protocol=protocol, device=device).scores
        found["frechet"] = scores["frechet_squeezenet"]
    return found


def _generate(pipeline: Pipeline, seeds: Tensor, grid: tuple[int, int], context: StepContext) -> tuple[Tensor, float]:
    """Seeds (B,) -> codes (B,h,w) of a `grid` of any size, and seconds an image.

    What has been laid is kept now and then, and is what a later call goes on from: an image depends on its seed alone.
    """
    kept = context.folder / f"codes-{int(seeds[0]):04d}.npy"
    known = torch.from_numpy(np.load(kept)) if kept.is_file() else unknown(len(seeds), grid)
    missing = max(int((known < 0).sum()), 1)
    codes, began = known, time.monotonic()
    saved = began
    with counting(context.console, title="laying", unit="codes") as progress:
        for codes in pipeline.lay([None] * len(seeds), known, sampler=Sampler(), seeds=seeds):
            progress(int((codes >= 0).sum()), codes.numel())
            if time.monotonic() - saved > KEPT_EVERY:
                _keep(kept, codes)
                saved = time.monotonic()
    seconds = (time.monotonic() - began) / missing * grid[0] * grid[1]  # of those that were laid now
    _keep(kept, codes)
    return codes, seconds


def _keep(path: Path, codes: Tensor) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, codes.cpu().numpy())

    write_atomically(path, write)
