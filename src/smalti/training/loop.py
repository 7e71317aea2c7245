"""The training loop of either stage: report, sample, validate, checkpoint, done?, step.

It depends on no model and no loss: a `Stage` makes one step at a time, and counts images or codes.
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
"""Distance of the seeds of two runs: an odd number, so that their random streams do not coincide."""


class Stage(ABC):
    """A stage of training. The loop calls `step` until the run has its length."""

    unit: str
    """What `seen` counts: "images" or "codes"."""
    per_example: int
    """How many units one training example is."""
    selection_metric: str
    """The validation metric whose smallest value selects the exported model; "" exports the last model."""

    @abstractmethod
    def batches(self, examples: int) -> Iterator[Any]:
        """The endless stream of batches after the given number of examples."""

    @abstractmethod
    def step(self, batch: Any, *, seen: int, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """One optimization step, from `seen` to `seen + count` units -> named metrics (), over all processes.

        Raises `NotFiniteError` if one of them is not finite; model and optimizers are then unchanged.
        """

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Named metrics of the exported weights on held-out data."""

    @abstractmethod
    def diagnose(self, means: Mapping[str, float], *, seen: int) -> Diagnoses:
        """The mean metrics of a report -> the diagnostics that can be decided from them (`training.diagnostics`)."""

    @abstractmethod
    def image(self) -> Tensor:
        """A grid (C,H,W) in [-1,1] of reconstructions or samples, saved during training."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that the next step depends on: modules, optimizers, and plain values; restored in place."""

    @abstractmethod
    def restored(self, state: Mapping[str, Any]) -> None:
        """Restore the plain values of a loaded state; modules and optimizers are restored in place."""

    @abstractmethod
    def export(self, folder: Path, *, seen: int) -> None:
        """Write the exported weights to a model folder."""


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
    """The endless stream of this process's batches of a data set after `start` examples; see `data.loader.batches`."""
    rank, world = fabric.global_rank, fabric.world_size
    return batches(dataset, batch=run.batch, seed=run.seed, start=start, rank=rank, world=world, workers=run.workers)


def seed_step(seed: int, seen: int, rank: int) -> torch.Generator:
    """Seed the next step by (seed, seen, rank), so that a resumed run draws the same numbers
    -> a generator equal on all ranks."""
    torch.manual_seed((seed * SEED_STRIDE + seen * 8191 + rank) % 2**63)
    return torch.Generator().manual_seed((seed * SEED_STRIDE + seen * 8191) % 2**63)  # the same on all ranks


def train_stage(
    stage: Stage, folder: RunFolder, *, run: RunSettings, fabric: Fabric, progress: ProgressReporter
) -> None:
    """Train `stage` to `run.total`, from the saved state in `folder` if there is one.

    `run.patience` can end the training earlier. Exports the best model if the stage has a selection metric, else the
    last one. Raises `SmaltiError` on a signal to stop (after saving the state), after too many skipped steps in a row,
    and for patience with a stage that has no selection metric.
    """
    if run.patience and not stage.selection_metric:
        raise SmaltiError(
            f"run.patience = {run.patience}: patience needs a metric that selects the best model, which only a prior "
            "has (its likelihood); set run.patience=0"
        )
    state = stage.state()
    seen, notes = folder.load_state(fabric, state)
    stage.restored(state)
    count = run.batch * stage.per_example
    if fabric.is_global_zero:
        folder.cut_metrics(seen)
    metrics = MetricsWriter(folder, progress, fabric, notes, selection_metric=stage.selection_metric)
    if seen >= run.total or metrics.best.exhausted(run.patience):
        metrics.export(stage, seen)  # training is complete, but the last export may have been interrupted
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
            progressed = seen > began  # what was due at the loaded state was done before it was saved
            if progressed and fabric.is_global_zero and (done or _due(seen, count, run.sample_every)):
                save_png(folder.images / f"{seen:010d}.png", stage.image(), settings={"seen": seen})
            if progressed and (done or _due(seen, count, run.validate_every)):
                metrics.validation(stage, seen)
            out_of_patience = metrics.best.exhausted(run.patience)
            if progressed and (done or out_of_patience or stopping or _due(seen, count, run.checkpoint_every)):
                folder.save_state(fabric, stage.state(), seen=seen, notes=metrics.notes())
                metrics.export(stage, seen)
            if done or out_of_patience:
                break
            if stopping:
                raise SmaltiError(
                    f"stopped by {stopping} after {seen:,} of {run.total:,} {stage.unit}; "
                    "the state is saved, and the same command resumes from it"
                )
            generator = seed_step(run.seed, seen, fabric.global_rank)
            batch = next(batches)
            stop_request = agreed_stop(stop, fabric)
            try:
                values = stage.step(batch, seen=seen, count=count, generator=generator)
            except NotFiniteError as error:
                metrics.running.skip(error.names)
                if metrics.running.consecutive >= run.max_skipped_steps:
                    raise SmaltiError(_failure_message(metrics.running)) from error
            else:
                metrics.running.add(values)
            seen += count
            progress.advance(seen)
            stopping = stop_request()
    metrics.ended(seen, run=run, unit=stage.unit, before=False)


def agreed_stop(stop: StopRequest, fabric: Fabric) -> Callable[[], str]:
    """-> a function that returns, after the next step, the signal that requested any process to stop, "" for none.

    A signal reaches the processes at different moments, but all must stop after the same step. The exchange starts here
    and is complete when the step is, which waits for the device anyway.
    """
    if fabric.world_size == 1:
        return lambda: stop.name
    flag = sum_of_processes(fabric, torch.tensor(float(bool(stop.name))))
    return lambda: (stop.name or "a signal to another process") if flag.item() else ""


def _due(seen: int, count: int, every: int) -> bool:
    """Whether the last step reached or passed a multiple of `every`."""
    return seen // every > (seen - count) // every


def _failure_message(running: RunningMetrics) -> str:
    names = ", ".join(running.broken)
    return (
        f"training has failed: {running.consecutive} steps in a row had to be skipped, for {names} is no longer a "
        "finite number; the last saved state is intact. Try a lower learning rate (--set optimizer.lr=...), or "
        "precision 32-true"
    )


@final
class MetricsWriter:
    """Writes and prints the metrics of a run, and exports its models. Only the first process writes."""

    def __init__(
        self,
        folder: RunFolder,
        progress: ProgressReporter,
        fabric: Fabric,
        notes: Mapping[str, Any],
        *,
        selection_metric: str,
    ) -> None:
        """`notes`: the result of `notes()` when the state was saved, empty in a new run. `selection_metric`:
        see `Stage`."""
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
        """Validate, write the metrics with the best so far, and keep the model if it is the best."""
        values = stage.validate()
        if self.best.take(values, seen=seen) and self._first:
            stage.export(self._folder.best(seen), seen=seen)
        self._write("validation", seen, {**values, **self.best.described()})
        self._note(self.best.diagnose(values), seen)

    def export(self, stage: Stage, seen: int) -> None:
        """Export the best model, or the current one if none was selected."""
        if self._first and self.best.seen:
            self._folder.publish(self._folder.best(self.best.seen))
        elif self._first:
            stage.export(self._folder.model, seen=seen)

    def ended(self, seen: int, *, run: RunSettings, unit: str, before: bool) -> None:
        """Print why training ended early, and which model was kept if it is not the last one.

        `before`: training had ended before this command.
        """
        best = self.best
        kept = f"the model of {best.seen:,} {unit} is kept ({best.name} {best.value:.4g})"
        if seen < run.total:
            self._progress.say(
                f"{'had ' * before}stopped after {seen:,} of {run.total:,} {unit}: {best.name} have not fallen for "
                f"{best.since} validations; {kept}. With a larger run.patience the same command resumes it"
            )
        elif best.since:
            self._progress.say(f"ended after {seen:,} {unit}, {best.since} validations after the best; {kept}")

    def notes(self) -> dict[str, Any]:
        """The state of the metrics as plain values, from which the constructor restores it."""
        return {
            "running_metrics": self.running.notes(),
            "diagnostics": self.diagnostics.active,
            "best": self.best.notes(),
        }

    def _write(self, part: str, seen: int, values: Mapping[str, float]) -> None:
        """Write and print metrics."""
        self._append(part, seen, values)
        if self._first:
            self._progress.report(part, seen, values)

    def _note(self, found: Diagnoses, seen: int) -> None:
        """Write and print which diagnostics begin and which are resolved."""
        for change in self.diagnostics.changes(found):
            self._append(
                DIAGNOSTIC, seen, {"diagnostic": change.name, "state": change.state, "message": change.message}
            )
            self._progress.say(change.described())

    def _append(self, part: str, seen: int, values: Mapping[str, Any]) -> None:
        if self._first:
            clock = {"time": round(time.time(), 1), "elapsed": round(self.running.elapsed, 3)}
            self._folder.append_metrics({"seen": seen, "part": part, **clock, **values})
