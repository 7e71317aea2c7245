"""The loop that runs either stage: report, picture, validate, checkpoint, done?, step.

It knows no model and no loss: a `Stage` does one step at a time, and says how much it has seen in its own unit.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, final

import torch
from lightning_fabric import Fabric
from torch import Tensor

from smalti.data.loading import Examples, batches
from smalti.errors import SmaltiError
from smalti.images import save_png
from smalti.training.config import RunSettings
from smalti.training.folder import RunFolder
from smalti.training.watching import Watch

B = TypeVar("B")

SEED_STRIDE = 2**31 - 1
"""Seeds of two steps are apart by an odd number, so that streams of different runs do not meet soon."""


class Stage(ABC):
    """What is trained. The loop calls `step` until enough has been seen."""

    unit: str
    """What is counted: "images" or "codes"."""
    per_example: int
    """How many of them one picture is."""

    @abstractmethod
    def batches(self, examples: int) -> Iterator[Any]:
        """The endless stream of batches from the given number of examples seen on."""

    @abstractmethod
    def step(self, batch: Any, *, seen: int, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """One optimisation step on a batch that brings the count from `seen` to `seen + count` -> named numbers ()."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Named numbers of the averaged model on held-out data."""

    @abstractmethod
    def picture(self) -> Tensor:
        """A grid (C,H,W) in [-1,1] that shows how well it goes."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that the next step depends on: modules, optimisers, and plain values; restored in place."""

    @abstractmethod
    def restored(self, state: Mapping[str, Any]) -> None:
        """Take back the plain values of a state that was read."""

    @abstractmethod
    def export(self, folder: Path, *, seen: int) -> None:
        """Write the averaged model into a model folder."""


@final
class StopRequest:
    """Set by Ctrl-C and SIGTERM: the loop saves and ends after the current step. A second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.name = ""

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Listen while the block runs; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, self._note)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


def launch(run: RunSettings) -> Fabric:
    """The processes and devices of a run; under `torchrun` and Slurm this joins the others."""
    try:
        fabric = Fabric(
            accelerator=run.accelerator, devices=run.devices, strategy=run.strategy, precision=run.precision
        )
        fabric.launch()
    except (ValueError, RuntimeError) as error:  # Fabric's words for a device or strategy this machine does not have
        raise SmaltiError(
            f"cannot run on {run.devices} x {run.accelerator!r} with {run.strategy!r}: {error}"
        ) from error
    return fabric


def stream(dataset: Examples[B], *, start: int, run: RunSettings, fabric: Fabric) -> Iterator[B]:
    """The endless batches of a data set that this process takes, from `start` examples on; see `loading.batches`."""
    rank, world = fabric.global_rank, fabric.world_size
    return batches(dataset, batch=run.batch, seed=run.seed, start=start, rank=rank, world=world, workers=run.workers)


def seed_step(seed: int, seen: int, rank: int) -> torch.Generator:
    """Make all chance of the next step a function of (seed, seen, rank), so that a resumed run draws the same numbers."""
    torch.manual_seed((seed * SEED_STRIDE + seen * 8191 + rank) % 2**63)
    return torch.Generator().manual_seed((seed * SEED_STRIDE + seen * 8191) % 2**63)  # the same on all ranks


def fit(stage: Stage, folder: RunFolder, *, run: RunSettings, fabric: Fabric, watch: Watch) -> None:
    """Train `stage` until `run.length` has been seen, from where `folder` says it stopped.

    Raises `SmaltiError` when it was asked to stop (everything is saved), and when the losses are no longer numbers.
    """
    state = stage.state()
    seen = folder.load_state(fabric, state)
    stage.restored(state)
    count = run.batch * stage.per_example
    if fabric.is_global_zero:
        folder.cut_metrics(seen)
    watch.begin(seen=seen, length=run.length, unit=stage.unit)
    if seen >= run.length:  # nothing is left to do, but the last export may have been cut short
        if fabric.is_global_zero:
            stage.export(folder.model, seen=seen)
        return
    batches = stage.batches(seen // stage.per_example)
    began = seen
    gathered: list[dict[str, Tensor]] = []
    with StopRequest().listening() as stop, watch:
        while True:
            done = seen >= run.length
            if gathered and (done or _due(seen, count, run.report_every)):
                _report(folder, watch, fabric, "train", seen, _means(gathered))
                gathered = []
            moved = seen > began  # what was due at the state that was read was done before it was written
            if moved and fabric.is_global_zero and (done or _due(seen, count, run.picture_every)):
                save_png(folder.images / f"{seen:010d}.png", stage.picture(), settings={"seen": seen})
            if moved and (done or _due(seen, count, run.validate_every)):
                _report(folder, watch, fabric, "validation", seen, stage.validate())
            if moved and (done or stop.name or _due(seen, count, run.checkpoint_every)):
                folder.save_state(fabric, stage.state(), seen=seen)
                if fabric.is_global_zero:
                    stage.export(folder.model, seen=seen)
            if done:
                break
            if stop.name:
                raise SmaltiError(
                    f"stopped by {stop.name} after {seen:,} of {run.length:,} {stage.unit}; "
                    "all is saved, and the same command goes on from there"
                )
            generator = seed_step(run.seed, seen, fabric.global_rank)
            values = stage.step(next(batches), seen=seen, count=count, generator=generator)
            seen += count
            gathered.append(values)
            watch.advance(seen)


def _due(seen: int, count: int, every: int) -> bool:
    """Whether a multiple of `every` was passed by the last step."""
    return seen // every > (seen - count) // every


def _means(gathered: list[dict[str, Tensor]]) -> dict[str, float]:
    """The mean of each name over the steps that have it. Raises `SmaltiError` when one is not a number."""
    names = dict.fromkeys(name for values in gathered for name in values)
    means = {
        name: float(torch.stack([values[name].float() for values in gathered if name in values]).mean())
        for name in names
    }
    broken = [name for name, mean in means.items() if not math.isfinite(mean)]
    if broken:
        raise SmaltiError(
            f"training has failed: {', '.join(broken)} is no longer a finite number; the last saved state is intact. "
            "Try a smaller learning rate (--set optimiser.rate=...), or precision 32-true"
        )
    return means


def _report(folder: RunFolder, watch: Watch, fabric: Fabric, part: str, seen: int, values: Mapping[str, float]) -> None:
    if fabric.is_global_zero:
        folder.append_metrics({"seen": seen, "part": part, "time": round(time.time(), 1), **values})
        watch.report(part, seen, values)
