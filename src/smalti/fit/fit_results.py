"""What a finished fit can do: reconstructions, samples, a panorama by the sliding window, completions.

Notation: B batch, C channels, H W pixels, h w grid of codes, P prefix codes.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from smalti.conditions.base import Condition, constant_prefix
from smalti.core.devices import pick_device
from smalti.data.code_shards import CodeShards, open_codes
from smalti.data.loader import Crops, evenly_spaced_batch, in_order
from smalti.data.sources import Source
from smalti.data.splits import split_crops
from smalti.evaluation.metrics import CodeUse, psnr
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.images.io import Array, make_image_grid, save_png
from smalti.images.masks import kept_part
from smalti.images.seams import with_kept_pixels
from smalti.pipeline import Pipeline
from smalti.training.config import PriorTraining, TokenizerTraining
from smalti.training.run_folder import read_metrics

SAMPLES, COMPLETED, SHOWN = 16, 4, 8
WIDER = 4
"""Width of the panorama in widths of the training images."""
TOP_P, GUIDANCE = 0.97, 1.5
BATCH = 16
CONSTANT = ("label", "text")
"""Keys of conditions that hold anywhere in an image of any size."""


class FitResults(NamedTuple):
    """Figures, and images (B,C,H,W) in [-1,1]."""

    figures: dict[str, float]
    counts: Tensor
    """How often each code (K,) is used on held-out images."""
    originals: Tensor
    reconstructions: Tensor
    samples: Tensor
    previews: list[Array]
    """The conditions of the samples as images (H,W,3) uint8; empty without conditions that are stored with the
    codes."""
    captions: list[str]
    """What each sample is."""
    panorama: Tensor
    """(C,H,W)"""
    panorama_conditioned: bool
    """Whether it has the condition of the first sample: maps and boxes hold for the size of a sample alone."""
    hole: bool
    """Whether the middle of the completed images was missing, or the lower half, for a prior in raster order."""
    kept: Tensor
    completed: Tensor
    complete: Tensor


@torch.no_grad()
def fit_results(out: Path, source: Source, *, tokenizer: TokenizerTraining, prior: PriorTraining) -> FitResults:
    """A folder with a trained tokenizer, codes and prior, and the images -> figures and images, which are also saved
    in it: `samples`, `panorama.png`, `completion.png`."""
    pipeline, shards = Pipeline.from_pretrained(out).to(pick_device("auto")), open_codes(out / "codes")
    channels = tokenizer.model.autoencoder.channels
    held_out = split_crops(source, tokenizer.images, channels=channels, seed=tokenizer.run.seed)[1]
    ratios, use = [], CodeUse(pipeline.tokenizer.size)
    for batch in in_order(held_out, batch=BATCH):
        codes = pipeline.encode(batch.images)
        use.add(codes)
        ratios.append(psnr(batch.images, pipeline.decode(codes)))
    originals = evenly_spaced_batch(held_out, SHOWN).images
    guidance = GUIDANCE if pipeline.condition.size and prior.condition_dropout else 1.0
    sampler = Sampler(top_p=TOP_P, guidance=guidance)
    prefix = _sample_prefix(pipeline, shards)
    samples = _generated(pipeline, prefix, unknown_codes(SAMPLES, pipeline.prior.grid), seed=0, sampler=sampler)
    captions = _captions(pipeline.condition, prefix)
    constant = _constant_prefix(pipeline, prefix[:1])
    h, w = pipeline.prior.grid
    panorama = _generated(pipeline, constant, unknown_codes(1, (h, WIDER * w)), seed=1, sampler=sampler)[0]
    hole = pipeline.prior.knows_any_order
    completion = _completion(pipeline, held_out, shards, hole=hole, sampler=sampler)
    last = [line for line in read_metrics(out / "prior") if line["part"] == "validation"][-1]
    for seed, (image, caption) in enumerate(zip(samples, captions, strict=True)):
        save_png(out / "samples" / f"{seed:04d}.png", image, settings={"seed": seed, "condition": caption})
    save_png(out / "panorama.png", panorama, settings={"seed": 1})
    rows = torch.cat(completion)
    save_png(out / "completion.png", make_image_grid(rows, columns=len(completion[0]), gap=2), settings={"seed": 2})
    return FitResults(
        figures={
            "psnr": float(torch.cat(ratios).mean()),
            "codes_in_use": use.in_use,
            "prior_nats": float(last["best_nats"]),
            "code_entropy_nats": float(last["code_entropy_nats"]),
            "images": float(len(source.images)),
            "held_out_images": float(len(held_out)),
        },
        counts=use.counts,
        originals=originals,
        reconstructions=pipeline.reconstruct(originals),
        samples=samples,
        previews=[pipeline.condition.preview(row) for row in prefix.cpu()] if pipeline.condition.is_stored else [],
        captions=captions,
        panorama=panorama,
        panorama_conditioned=torch.equal(constant, prefix[:1]),
        hole=hole,
        kept=completion.kept,
        completed=completion.completed,
        complete=completion.complete,
    )


def _generated(pipeline: Pipeline, prefix: Tensor, known: Tensor, *, seed: int, sampler: Sampler) -> Tensor:
    """Prefix codes (B,P), and codes (B,h,w) with -1 for those to generate -> images (B,C,H,W)."""
    request = GenerationRequest(
        constant_prefix(prefix),
        known.to(pipeline.device),
        seeds=pipeline.seeds(seed, len(known)),
        sampler=sampler,
        middle=pipeline.condition.middle,
    )
    return pipeline.decode(final_codes(generate(pipeline.prior, request)))


def _sample_prefix(pipeline: Pipeline, shards: CodeShards) -> Tensor:
    """The conditions of the samples (B,P): all classes in turn, those of held-out images, or none."""
    condition = pipeline.condition
    if condition.from_labels:
        return (torch.arange(SAMPLES, device=pipeline.device) % condition.size).reshape(-1, 1)
    if not condition.size:
        return pipeline.prior.null_prefix(SAMPLES)
    prefix = evenly_spaced_batch(shards.validation, SAMPLES).prefix.to(pipeline.device)
    return prefix.repeat(-(-SAMPLES // len(prefix)), 1)[:SAMPLES]


def _constant_prefix(pipeline: Pipeline, prefix: Tensor) -> Tensor:
    """The condition (1,P) of an image -> the same without what holds for the positions of an image of that size."""
    condition = pipeline.condition
    moving = [part.key not in CONSTANT for part in condition.members]
    if not condition.size or not any(moving):
        return prefix
    if not all(moving):
        return condition.drop_parts(prefix, torch.tensor([moving], device=prefix.device))
    return pipeline.prior.null_prefix(1)


def _captions(condition: Condition, prefix: Tensor) -> list[str]:
    """The names of the classes of samples, or their seeds."""
    if condition.from_labels:
        return [condition.names[int(row[0])] for row in prefix]
    return [f"seed {number}" for number in range(len(prefix))]


class _Completion(NamedTuple):
    """Images (B,C,H,W): what is kept of them, completed, and whole."""

    kept: Tensor
    completed: Tensor
    complete: Tensor


def _completion(
    pipeline: Pipeline, held_out: Crops, shards: CodeShards, *, hole: bool, sampler: Sampler
) -> _Completion:
    """Held-out images -> the same completed, with their own conditions."""
    images = evenly_spaced_batch(held_out, COMPLETED).images
    size = images.shape[2], images.shape[3]
    known = ~kept_part("center", size) if hole else kept_part("top-half", size)  # (H,W)
    codes = pipeline.known_codes(images, known)
    prefix = pipeline.prior.null_prefix(len(images))
    if pipeline.condition.size and len(shards.validation) == len(held_out):  # none of them was damaged
        examples = evenly_spaced_batch(shards.validation, COMPLETED)
        prefix = pipeline.condition.example_prefix(examples.labels, examples.prefix).to(pipeline.device)
    completed = _generated(pipeline, prefix, codes, seed=2, sampler=sampler)
    blended = with_kept_pixels(completed, images, known, reach=pipeline.tokenizer.factor)
    return _Completion(torch.where(known, images, 0.0), blended, images)
