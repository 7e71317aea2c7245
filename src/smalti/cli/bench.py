"""`smalti bench`: speed and memory of encoding, decoding and generation on this machine."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from smalti.cli.console import CONSOLE, size_option
from smalti.cli.model_options import GridOption, ModelArgument, announce_default, grid_option
from smalti.hub.bundled_models import SCENES

if TYPE_CHECKING:
    import torch

    from smalti.checkpoints.base import Imported

SECONDS = 1.0
"""Seconds over which a task is repeated, after one warm-up run."""
MIB = 2**20


class Task(NamedTuple):
    """A measured task: `units_per_image` units per image; `run` processes a batch of a given size and waits for the
    device."""

    name: str
    unit: str
    units_per_image: int
    run: Callable[[int], object]


def bench(
    model: ModelArgument = SCENES,
    size: Annotated[
        str | None, typer.Option(help="Size in pixels: 64, or height x width; the training size by default.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Batch size to measure, besides 1.")] = 16,
    grid: GridOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Measure images per second, codes per second and memory of a tokenizer or a pipeline on this machine."""
    import torch
    from rich.table import Table

    from smalti.core.devices import pick_device
    from smalti.model_loading import read_models

    announce_default(model)
    torch_device, models = pick_device(device), read_models(model, grid=grid_option(grid))
    height_width = size_option(size) or _trained_size(models)
    tasks = _tasks(models, height_width, batch, torch_device)
    table = Table("task", "batch", "per second", "memory", box=None, pad_edge=False)
    for count in sorted({1, batch}):
        for task in tasks:
            rate = count * task.units_per_image / _seconds(task, count)
            table.add_row(
                task.name, str(count), f"{rate:,.1f} {task.unit}", f"{_peak_memory(torch_device) / MIB:,.0f} MiB"
            )
    size_note = "images of {}x{} (height x width)".format(*height_width)
    threads = f" with {torch.get_num_threads()} threads" if torch_device.type == "cpu" else ""
    CONSOLE.print(f"{model.resolve().name}, {size_note}, {torch_device}{threads}", soft_wrap=True)
    CONSOLE.print(table)
    CONSOLE.print(f"memory: peak of {'PyTorch' if torch_device.type == 'cuda' else 'the process'} up to that task")


def _trained_size(models: Imported) -> tuple[int, int]:
    """(H,W) of the prior's window, else of the images that the tokenizer was trained on, else 256 x 256."""
    if models.tokenizer is not None and models.prior is not None:
        h, w = models.prior.grid
        return h * models.tokenizer.factor, w * models.tokenizer.factor
    height, width = models.about.get("size", (256, 256))
    return height, width


def _tasks(models: Imported, size: tuple[int, int], batch: int, device: torch.device) -> list[Task]:
    """Encoding noise and decoding its codes; with a prior, also unconditional generation."""
    import torch

    from smalti.core.errors import SmaltiError
    from smalti.generation.code_sampler import Sampler
    from smalti.generation.generation_loop import final_codes, generate
    from smalti.generation.request import unknown_codes
    from smalti.pipeline import Pipeline
    from smalti.tokenizer.tiled.any_size import decode_of_any_size, encode_of_any_size

    if models.tokenizer is None:
        raise SmaltiError("this model is a prior without a tokenizer; give a tokenizer or a pipeline")
    tokenizer = models.tokenizer.to(device)
    noise = torch.rand(
        batch, tokenizer.settings.autoencoder.channels, *size, generator=torch.Generator().manual_seed(0)
    )
    images = (2 * noise - 1).to(device)  # (B,C,H,W)
    latents = encode_of_any_size(tokenizer, images).latents  # (B,D,h,w)
    tasks = [
        Task("encoding", "images", 1, lambda count: encode_of_any_size(tokenizer, images[:count]).codes.cpu()),
        Task("decoding", "images", 1, lambda count: decode_of_any_size(tokenizer, latents[:count])),
    ]
    if models.prior is not None and models.condition is not None:
        pipeline = Pipeline(tokenizer, models.prior, models.condition).to(device)
        grid = pipeline.grid(size)

        def generate_count(count: int) -> object:
            known, seeds = unknown_codes(count, grid), pipeline.seeds(0, count)
            request = pipeline.request_for([None] * count, known, seeds=seeds, sampler=Sampler())
            return final_codes(generate(pipeline.prior, request)).cpu()

        tasks.append(Task("generation", "codes", grid[0] * grid[1], generate_count))
    return tasks


def _seconds(task: Task, count: int) -> float:
    """The median seconds of one run with a batch of `count`."""
    task.run(count)
    taken: list[float] = []
    while sum(taken) < SECONDS:
        began = time.perf_counter()
        task.run(count)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of PyTorch on a GPU, else of the process."""
    import resource

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
