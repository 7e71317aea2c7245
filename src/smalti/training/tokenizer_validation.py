"""Validation of a tokenizer in training: how well it reconstructs held-out images, which the processes share.

Notation: B batch, C channels, H W pixels, h w code grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import final

import torch
from lightning_fabric import Fabric
from torch import Tensor

from smalti.conditions.map_files import label_accuracy
from smalti.data.loader import Batch, Crops, Example, in_order
from smalti.evaluation.metrics import CodeUse, psnr
from smalti.losses.objective import ReconstructionLoss
from smalti.tokenizer.vqgan import VQGAN
from smalti.training.codebook_training import CodeNoise, ProcessSlice, validation_random_numbers
from smalti.training.config import TokenizerTraining
from smalti.training.optimizer_step import sum_of_processes


@final
class ProcessExamples:
    """Examples `rank`, `rank + world`, ... of a data set: those of one of `world` processes."""

    def __init__(self, dataset: Crops, *, rank: int, world: int) -> None:
        self._dataset, self._indices = dataset, range(rank, len(dataset), world)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, key: tuple[int, int], /) -> Example:
        index = self._indices[key[0]]
        return self._dataset[index, index]

    def batch_of(self, *stacked: Tensor) -> Batch:
        """The fields of examples, stacked -> a batch."""
        return self._dataset.batch_of(*stacked)


@torch.no_grad()
def validate_tokenizer(
    tokenizer: VQGAN,
    held_out: Crops,
    *,
    settings: TokenizerTraining,
    score: ReconstructionLoss,
    to_images: Callable[[Batch], Tensor],
    noise: CodeNoise | None,
    fabric: Fabric,
) -> dict[str, float]:
    """A tokenizer in evaluation mode and all held-out images -> named means over them, the codes in use and their
    perplexity.

    The means are the PSNR (for label maps the accuracy), with `noise` also that of reconstructions from codes of which
    some are replaced, and the reconstruction loss and its terms. `score` is in training mode before and after.
    `to_images`: a batch -> images (B,C,H,W) on the device of the tokenizer.
    """
    measure_name, measure = ("accuracy", label_accuracy) if settings.images.file_type == "labels" else ("psnr", psnr)
    terms = loss_terms(settings)
    names = [measure_name, *([f"{measure_name}_replaced"] if noise is not None else []), *terms]
    batch_size = max(settings.run.batch // fabric.world_size, 1)
    own = ProcessExamples(held_out, rank=fabric.global_rank, world=fabric.world_size)
    random_numbers: Iterator[Tensor] = iter(())
    if noise is not None:
        random_numbers = _random_numbers(tokenizer, held_out, settings=settings, fabric=fabric, batch=batch_size)
    used, sums = CodeUse(tokenizer.size), []
    score.eval()
    for batch in in_order(own, batch=batch_size):
        images = to_images(batch)  # (B,C,H,W)
        reconstructions, quantized = tokenizer(images)
        measured = [measure(images, reconstructions)]  # (B,) each
        if noise is not None:
            latents = noise.latents(quantized.codes, next(random_numbers))
            measured.append(measure(images, tokenizer.decode(latents)))
        loss = score(images, reconstructions)._asdict()
        means = [*(each.mean() for each in measured), *(loss[field] for field in terms.values())]
        sums.append(torch.stack(means) * len(images))
        used.add(quantized.codes)
    score.train()
    totals = torch.stack(sums).sum(0) if sums else torch.zeros(len(names), device=fabric.device)
    used.counts = sum_of_processes(fabric, used.counts).cpu()
    means_of_all = (sum_of_processes(fabric, totals) / len(held_out)).tolist()
    return {
        **dict(zip(names, means_of_all, strict=True)),
        "codes_in_use": used.in_use,
        "perplexity": used.perplexity,
        "images": float(len(held_out)),
    }


def loss_terms(settings: TokenizerTraining) -> dict[str, str]:
    """Name of a recorded metric -> field of `Reconstruction`, for the terms that are computed."""
    return {"reconstruction": "total", "pixel": "pixel", **{name: name for name in settings.objective.terms}}


def _random_numbers(
    tokenizer: VQGAN, held_out: Crops, *, settings: TokenizerTraining, fabric: Fabric, batch: int
) -> Iterator[Tensor]:
    """The random numbers that decide which codes of each held-out batch are replaced, the same at every validation."""
    height, width = settings.images.size
    codes = (len(held_out), height // tokenizer.factor, width // tokenizer.factor)
    process_slice = ProcessSlice(fabric.global_rank, fabric.world_size)
    return validation_random_numbers(codes, seed=settings.run.seed, process_slice=process_slice, batch=batch)
