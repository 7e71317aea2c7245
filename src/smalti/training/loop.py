"""The training loop of either stage: report, sample, validate, checkpoint, done?, step.

It knows no model and no loss: a `Stage` makes one step at a time, and counts images or codes.
"""

from __future__ import annotations

import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, final

import torch
from lightning_fabric import Fabric
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.progress import ProgressReporter
from smalti.data.loader import Examples, batches
from smalti.images.io import save_png
from smalti.training.config import RunSettings
from smalti.training.diagnostics import Diagnoses, Diagnostics, diagnose_skipped_steps
from smalti.training.early_stopping import Best
from smalti.training.optimizer_step import NotFiniteError, sum_of_processes
from smalti.training.run_folder import DIAGNOSTIC, RunFolder
from smalti.training.running_metrics import RunningMetrics

B = TypeVar("B")

SEED_STRIDE = 2**31 - 1
"""Seeds of two steps are apart by an odd number, so that streams of different runs do not meet soon."""


class Stage(ABC):
    """What is trained. The loop calls `step` until enough has been seen."""

    unit: str
    """What is counted: "images" or "codes"."""
    per_example: int
    """How many of them one image is."""
    selection_metric: str
    """The validated metric whose smallest value selects the best model, which is then exported; "" exports the last one."""

    @abstractmethod
    def batches(self, examples: int) -> Iterator[Any]:
        """The endless stream of batches from the given number of examples seen on."""

    @abstractmethod
    def step(self, batch: Any, *, seen: int, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """One optimization step on a batch that brings the count from `seen` to `seen + count` -> named numbers (), of all
        processes.

        Raises `NotFiniteError`, with everything as it was before, where one of them is not finite.
        """

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Named numbers of the averaged model on held-out data."""

    @abstractmethod
    def diagnose(self, means: Mapping[str, float], *, seen: int) -> Diagnoses:
        """The means of a report -> the diagnostics that they allow, see the module `diagnostics`."""

    @abstractmethod
    def image(self) -> Tensor:
        """A grid (C,H,W) in [-1,1] that shows how well it goes."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that the next step depends on: modules, optimizers, and plain values; restored in place."""

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


def stream(dataset: Examples[B], *, start: int, run: RunSettings, fabric: Fabric) -> Iterator[B]:
    """The endless batches of a data set that this process takes, from `start` examples on; see `loading.batches`."""
    rank, world = fabric.global_rank, fabric.world_size
    return batches(dataset, batch=run.batch, seed=run.seed, start=start, rank=rank, world=world, workers=run.workers)


def seed_step(seed: int, seen: int, rank: int) -> torch.Generator:
    """Make all chance of the next step a function of (seed, seen, rank), so that a resumed run draws the same numbers."""
    torch.manual_seed((seed * SEED_STRIDE + seen * 8191 + rank) % 2**63)
    return torch.Generator().manual_seed((seed * SEED_STRIDE + seen * 8191) % 2**63)  # the same on all ranks


def fit(stage: Stage, folder: RunFolder, *, run: RunSettings, fabric: Fabric, progress: ProgressReporter) -> None:
    """Train `stage` until `run.total` has been seen, from where `folder` says it stopped.

    It ends earlier where `run.patience` says so. The model in `folder` is then the best one, where the stage has a selection
    metric, else the last one. Raises `SmaltiError` on a signal to stop (everything is saved), after too many skipped steps in a
    row, and for patience with a stage that has no selection metric.
    """
    if run.patience and not stage.selection_metric:
        raise SmaltiError(
            f"run.patience = {run.patience}: patience waits for better {stage.unit} by one number, which only a prior has (its "
            "likelihood); set run.patience=0"
        )
    state = stage.state()
    seen, notes = folder.load_state(fabric, state)
    stage.restored(state)
    count = run.batch * stage.per_example
    if fabric.is_global_zero:
        folder.cut_metrics(seen)
    metrics = MetricsWriter(folder, progress, fabric, notes, selection_metric=stage.selection_metric)
    if seen >= run.total or metrics.best.exhausted(run.patience):
        metrics.export(stage, seen)  # nothing is left to do, but the last export may have been cut short
        metrics.ended(seen, run=run, unit=stage.unit, before=True)
        return
    progress.begin(seen=seen, length=run.total, unit=stage.unit)
    batches = stage.batches(seen // stage.per_example)
    began, stopping = seen, ""
    with StopRequest().listening() as stop, progress:
        while True:
            done = seen >= run.total
            if metrics.running.steps and (done or _due(seen, count, run.log_every)):
                metrics.report(stage, seen)
            moved = seen > began  # what was due at the state that was read was done before it was written
            if moved and fabric.is_global_zero and (done or _due(seen, count, run.sample_every)):
                save_png(folder.images / f"{seen:010d}.png", stage.image(), settings={"seen": seen})
            if moved and (done or _due(seen, count, run.validate_every)):
                metrics.validation(stage, seen)
            hopeless = metrics.best.exhausted(run.patience)
            if moved and (done or hopeless or stopping or _due(seen, count, run.checkpoint_every)):
                folder.save_state(fabric, stage.state(), seen=seen, notes=metrics.notes())
                metrics.export(stage, seen)
            if done or hopeless:
                break
            if stopping:
                raise SmaltiError(
                    f"stopped by {stopping} after {seen:,} of {run.total:,} {stage.unit}; "
                    "all is saved, and the same command goes on from there"
                )
            generator = seed_step(run.seed, seen, fabric.global_rank)
            batch = next(batches)
            stop_request = agreed_stop(stop, fabric)
            try:
                values = stage.step(batch, seen=seen, count=count, generator=generator)
            except NotFiniteError as error:
                metrics.running.skip(error.names)
                if metrics.running.consecutive >= run.max_skipped_steps:
                    raise SmaltiError(_failed(metrics.running)) from error
            else:
                metrics.running.add(values)
            seen += count
            progress.advance(seen)
            stopping = stop_request()
    metrics.ended(seen, run=run, unit=stage.unit, before=False)


def agreed_stop(stop: StopRequest, fabric: Fabric) -> Callable[[], str]:
    """-> a function that says, after the next step, the signal that asked any process to stop, "" for none.

    A signal reaches the processes at different moments, but all must stop after the same step. What is exchanged here is there
    when the step, which waits for the device anyway, is over.
    """
    if fabric.world_size == 1:
        return lambda: stop.name
    flag = sum_of_processes(fabric, torch.tensor(float(bool(stop.name))))
    return lambda: (stop.name or "a signal to another process") if flag.item() else ""


def _due(seen: int, count: int, every: int) -> bool:
    """Whether a multiple of `every` was passed by the last step."""
    return seen // every > (seen - count) // every


def _failed(running: RunningMetrics) -> str:
    names = ", ".join(running.broken)
    return (
        f"training has failed: {running.consecutive} steps in a row had to be skipped, for {names} is no longer a finite "
        "number; the last saved state is intact. Try a smaller learning rate (--set optimizer.lr=...), or precision 32-true"
    )


@final
class MetricsWriter:
    """Writes and prints the metrics of a run, and exports its models: the first process does all of that."""

    def __init__(
        self,
        folder: RunFolder,
        progress: ProgressReporter,
        fabric: Fabric,
        notes: Mapping[str, Any],
        *,
        selection_metric: str,
    ) -> None:
        """`notes`: what `notes()` gave when the state was saved, empty at the beginning. `selection_metric`: see `Stage`."""
        self._folder, self._progress, self._first = folder, progress, fabric.is_global_zero
        self.running = RunningMetrics(notes.get("running_metrics", {}))
        self.diagnostics = Diagnostics(notes.get("diagnostics", {}))
        self.best = Best(selection_metric, notes.get("best", {}))

    def report(self, stage: Stage, seen: int) -> None:
        """Write the means of the steps since the last report, and the diagnostics."""
        skips = diagnose_skipped_steps(self.running.skipped, self.running.steps, names=self.running.broken)
        means = self.running.report()
        self._write("train", seen, means)
        self._note({**stage.diagnose(means, seen=seen), **skips}, seen)

    def validation(self, stage: Stage, seen: int) -> None:
        """Validate, write the numbers with the best so far, and keep the model if it is that."""
        values = stage.validate()
        if self.best.take(values, seen=seen) and self._first:
            stage.export(self._folder.best(seen), seen=seen)
        self._write("validation", seen, {**values, **self.best.described()})
        self._note(self.best.diagnose(values), seen)

    def export(self, stage: Stage, seen: int) -> None:
        """Make the best model that of the run, or the present one where no best was selected."""
        if self._first and self.best.seen:
            self._folder.publish(self._folder.best(self.best.seen))
        elif self._first:
            stage.export(self._folder.model, seen=seen)

    def ended(self, seen: int, *, run: RunSettings, unit: str, before: bool) -> None:
        """Say why training is over, where it ends early, and which model was kept, where it is not the last.

        `before`: it was over before this command began.
        """
        best = self.best
        kept = f"the model of {best.seen:,} {unit} is kept ({best.name} {best.value:.4g})"
        if seen < run.total:
            self._progress.say(
                f"{'had ' * before}stopped after {seen:,} of {run.total:,} {unit}: {best.name} have not fallen for {best.since} "
                f"validations; {kept}. A larger run.patience goes on from there"
            )
        elif best.since:
            self._progress.say(f"ended after {seen:,} {unit}, {best.since} validations after the best; {kept}")

    def notes(self) -> dict[str, Any]:
        """All that the next report depends on, as plain values."""
        return {
            "running_metrics": self.running.notes(),
            "diagnostics": self.diagnostics.active,
            "best": self.best.notes(),
        }

    def _write(self, part: str, seen: int, values: Mapping[str, float]) -> None:
        """Write measured numbers, and show them."""
        self._line(part, seen, values)
        if self._first:
            self._progress.report(part, seen, values)

    def _note(self, found: Diagnoses, seen: int) -> None:
        """Write and print which diagnostics begin and which are resolved."""
        for change in self.diagnostics.changes(found):
            self._line(DIAGNOSTIC, seen, {"diagnostic": change.name, "state": change.state, "message": change.message})
            self._progress.say(change.described())

    def _line(self, part: str, seen: int, values: Mapping[str, Any]) -> None:
        if self._first:
            clock = {"time": round(time.time(), 1), "elapsed": round(self.running.elapsed, 3)}
            self._folder.append_metrics({"seen": seen, "part": part, **clock, **values})
