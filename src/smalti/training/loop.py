"""The loop that runs either stage: report, image, validate, checkpoint, done?, step.

It knows no model and no loss: a `Stage` does one step at a time, and says how much it has seen in its own unit.
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
from smalti.core.progress import Watch
from smalti.data.loader import Examples, batches
from smalti.images.io import save_png
from smalti.training.config import RunSettings
from smalti.training.diagnostics import Alarms, Judged, judge_skips
from smalti.training.early_stopping import Best
from smalti.training.optimizer_step import NotFiniteError, sum_of_processes
from smalti.training.run_folder import ALARM, RunFolder
from smalti.training.running_metrics import Record

B = TypeVar("B")

SEED_STRIDE = 2**31 - 1
"""Seeds of two steps are apart by an odd number, so that streams of different runs do not meet soon."""


class Stage(ABC):
    """What is trained. The loop calls `step` until enough has been seen."""

    unit: str
    """What is counted: "images" or "codes"."""
    per_example: int
    """How many of them one image is."""
    judged_by: str
    """The validated number whose smallest value makes the best model, which is then kept; "" keeps the last one."""

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
    def alarms(self, means: Mapping[str, float], *, seen: int) -> Judged:
        """The means of a report -> what they say of each alarm that can be judged by them, see `alarms`."""

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


def fit(stage: Stage, folder: RunFolder, *, run: RunSettings, fabric: Fabric, watch: Watch) -> None:
    """Train `stage` until `run.length` has been seen, from where `folder` says it stopped.

    It ends before where `run.patience` says so. What `folder` holds as the model is then the best one, where the stage is judged
    by a number, else the last one. Raises `SmaltiError` when it was asked to stop (everything is saved), when too many steps in a
    row had to be skipped, and for patience with a stage that no number judges.
    """
    if run.patience and not stage.judged_by:
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
    book = Book(folder, watch, fabric, notes, judged_by=stage.judged_by)
    if seen >= run.length or book.best.exhausted(run.patience):
        book.export(stage, seen)  # nothing is left to do, but the last export may have been cut short
        book.ended(seen, run=run, unit=stage.unit, before=True)
        return
    watch.begin(seen=seen, length=run.length, unit=stage.unit)
    batches = stage.batches(seen // stage.per_example)
    began, stopping = seen, ""
    with StopRequest().listening() as stop, watch:
        while True:
            done = seen >= run.length
            if book.record.steps and (done or _due(seen, count, run.log_every)):
                book.report(stage, seen)
            moved = seen > began  # what was due at the state that was read was done before it was written
            if moved and fabric.is_global_zero and (done or _due(seen, count, run.sample_every)):
                save_png(folder.images / f"{seen:010d}.png", stage.image(), settings={"seen": seen})
            if moved and (done or _due(seen, count, run.validate_every)):
                book.validation(stage, seen)
            hopeless = book.best.exhausted(run.patience)
            if moved and (done or hopeless or stopping or _due(seen, count, run.checkpoint_every)):
                folder.save_state(fabric, stage.state(), seen=seen, notes=book.notes())
                book.export(stage, seen)
            if done or hopeless:
                break
            if stopping:
                raise SmaltiError(
                    f"stopped by {stopping} after {seen:,} of {run.length:,} {stage.unit}; "
                    "all is saved, and the same command goes on from there"
                )
            generator = seed_step(run.seed, seen, fabric.global_rank)
            batch = next(batches)
            asked = everyones_request(stop, fabric)
            try:
                values = stage.step(batch, seen=seen, count=count, generator=generator)
            except NotFiniteError as error:
                book.record.skip(error.names)
                if book.record.in_a_row >= run.max_skipped_steps:
                    raise SmaltiError(_failed(book.record)) from error
            else:
                book.record.add(values)
            seen += count
            watch.advance(seen)
            stopping = asked()
    book.ended(seen, run=run, unit=stage.unit, before=False)


def everyones_request(stop: StopRequest, fabric: Fabric) -> Callable[[], str]:
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


def _failed(record: Record) -> str:
    names = ", ".join(record.broken)
    return (
        f"training has failed: {record.in_a_row} steps in a row had to be skipped, for {names} is no longer a finite number; the "
        "last saved state is intact. Try a smaller learning rate (--set optimizer.lr=...), or precision 32-true"
    )


@final
class Book:
    """What is written down of a run and shown, and the models that it gives: the first process does all of that."""

    def __init__(
        self, folder: RunFolder, watch: Watch, fabric: Fabric, notes: Mapping[str, Any], *, judged_by: str
    ) -> None:
        """`notes`: what `notes()` gave when the state was saved, empty at the beginning. `judged_by`: see `Stage`."""
        self._folder, self._watch, self._first = folder, watch, fabric.is_global_zero
        self.record = Record(notes.get("record", {}))
        self.alarms = Alarms(notes.get("alarms", {}))
        self.best = Best(judged_by, notes.get("best", {}))

    def report(self, stage: Stage, seen: int) -> None:
        """Write the means of the steps since the last report, and what they give reason to tell."""
        skips = judge_skips(self.record.skipped, self.record.steps, names=self.record.broken)
        means = self.record.report()
        self._write("train", seen, means)
        self._tell({**stage.alarms(means, seen=seen), **skips}, seen)

    def validation(self, stage: Stage, seen: int) -> None:
        """Validate, write the numbers with the best so far, and keep the model if it is that."""
        values = stage.validate()
        if self.best.take(values, seen=seen) and self._first:
            stage.export(self._folder.best(seen), seen=seen)
        self._write("validation", seen, {**values, **self.best.described()})
        self._tell(self.best.judged(values), seen)

    def export(self, stage: Stage, seen: int) -> None:
        """Make the best model that of the run, or the present one where none was judged."""
        if self._first and self.best.seen:
            self._folder.publish(self._folder.best(self.best.seen))
        elif self._first:
            stage.export(self._folder.model, seen=seen)

    def ended(self, seen: int, *, run: RunSettings, unit: str, before: bool) -> None:
        """Say why training is over, where it is before its length, and which model was kept, where it is not the last.

        `before`: it was over before this command began.
        """
        best = self.best
        kept = f"the model of {best.seen:,} {unit} is kept ({best.name} {best.value:.4g})"
        if seen < run.length:
            self._watch.say(
                f"{'had ' * before}stopped after {seen:,} of {run.length:,} {unit}: {best.name} have not fallen for {best.since} "
                f"validations; {kept}. A larger run.patience goes on from there"
            )
        elif best.since:
            self._watch.say(f"ended after {seen:,} {unit}, {best.since} validations after the best; {kept}")

    def notes(self) -> dict[str, Any]:
        """All that the next report depends on, as plain values."""
        return {"record": self.record.notes(), "alarms": self.alarms.active, "best": self.best.notes()}

    def _write(self, part: str, seen: int, values: Mapping[str, float]) -> None:
        """Write measured numbers, and show them."""
        self._line(part, seen, values)
        if self._first:
            self._watch.report(part, seen, values)

    def _tell(self, judged: Judged, seen: int) -> None:
        """Write and say which alarms begin and which are over."""
        for change in self.alarms.changes(judged):
            self._line(ALARM, seen, {"alarm": change.name, "state": change.state, "message": change.message})
            self._watch.say(change.told())

    def _line(self, part: str, seen: int, values: Mapping[str, Any]) -> None:
        if self._first:
            clock = {"time": round(time.time(), 1), "elapsed": round(self.record.elapsed, 3)}
            self._folder.append_metrics({"seen": seen, "part": part, **clock, **values})
