"""`smalti bench`: how fast this machine encodes, decodes and lays images with a model, and in how much memory."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from smalti.cli.console import CONSOLE, size_option
from smalti.cli.model_options import Grid, Model, grid_option, tell_default
from smalti.hub.bundled_models import SCENES

if TYPE_CHECKING:
    import torch

    from smalti.checkpoints.base import Imported

SECONDS = 1.0
"""How long a line is repeated, after once to warm up."""
MIB = 2**20


class Work(NamedTuple):
    """What is measured: so many `unit` of each image; `run` does it to so many images at once, and waits for the
    device."""

    name: str
    unit: str
    each: int
    run: Callable[[int], object]


def bench(
    model: Model = SCENES,
    size: Annotated[str | None, typer.Option(help="Pixels: 64, or height x width; as trained by default.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at once, beside one alone.")] = 16,
    grid: Grid = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Measure what this machine does with a tokenizer or a pipeline: images and codes a second, and memory."""
    import torch
    from rich.table import Table

    from smalti.core.devices import pick_device
    from smalti.model_loading import read_models

    tell_default(model)
    place, models = pick_device(device), read_models(model, grid=grid_option(grid))
    height_width = size_option(size) or _trained_size(models)
    works = _works(models, height_width, batch, place)
    table = Table("what", "at once", "a second", "memory", box=None, pad_edge=False)
    for count in sorted({1, batch}):
        for work in works:
            rate = count * work.each / _seconds(work, count)
            table.add_row(work.name, str(count), f"{rate:,.1f} {work.unit}", f"{_most_memory(place) / MIB:,.0f} MiB")
    size_told = "images of {}x{} (height x width)".format(*height_width)
    threads = f" with {torch.get_num_threads()} threads" if place.type == "cpu" else ""
    CONSOLE.print(f"{model.resolve().name}, {size_told}, {place}{threads}", soft_wrap=True)
    CONSOLE.print(table)
    CONSOLE.print(f"memory: the most that {'PyTorch' if place.type == 'cuda' else 'the process'} had held by then")


def _trained_size(models: Imported) -> tuple[int, int]:
    """(H,W) of the prior's window, else of the images that the tokenizer was trained on, else 256 x 256."""
    if models.tokenizer is not None and models.prior is not None:
        h, w = models.prior.grid
        return h * models.tokenizer.factor, w * models.tokenizer.factor
    height, width = models.about.get("size", (256, 256))
    return height, width


def _works(models: Imported, size: tuple[int, int], batch: int, device: torch.device) -> list[Work]:
    """Encoding noise and decoding its codes; where there is a prior, laying images of which nothing is said."""
    import torch

    from smalti.core.errors import SmaltiError
    from smalti.generation.code_sampler import Sampler, finished, unknown
    from smalti.pipeline import Pipeline
    from smalti.tokenizer.tiled.any_size import decode_of_any_size, encode_of_any_size

    if models.tokenizer is None:
        raise SmaltiError("there is a prior alone, which makes no images; name a tokenizer or a pipeline")
    tokenizer = models.tokenizer.to(device)
    noise = torch.rand(
        batch, tokenizer.settings.autoencoder.channels, *size, generator=torch.Generator().manual_seed(0)
    )
    images = (2 * noise - 1).to(device)  # (B,C,H,W)
    latents = encode_of_any_size(tokenizer, images).latents  # (B,D,h,w)
    works = [
        Work("encoding", "images", 1, lambda count: encode_of_any_size(tokenizer, images[:count]).codes.cpu()),
        Work("decoding", "images", 1, lambda count: decode_of_any_size(tokenizer, latents[:count])),
    ]
    if models.prior is not None and models.condition is not None:
        pipeline = Pipeline(tokenizer, models.prior, models.condition).to(device)
        grid = pipeline.grid(size)

        def lay(count: int) -> object:
            known, seeds = unknown(count, grid), pipeline.seeds(0, count)
            return finished(pipeline.lay([None] * count, known, sampler=Sampler(), seeds=seeds)).cpu()

        works.append(Work("laying", "codes", grid[0] * grid[1], lay))
    return works


def _seconds(work: Work, count: int) -> float:
    """Of one run with so many images: the median."""
    work.run(count)
    taken: list[float] = []
    while sum(taken) < SECONDS:
        began = time.perf_counter()
        work.run(count)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _most_memory(device: torch.device) -> int:
    """Bytes: on a GPU of PyTorch's memory there, else of the process."""
    import resource

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
