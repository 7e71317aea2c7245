"""How a run reports its progress: a progress bar with rate and time left on a terminal, plain lines elsewhere,
TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

SECONDS_A_LINE = 10.0
"""Without a terminal, counting prints a line at most this often."""
SHOWN = 6
"""How many of the numbers of a report are printed on one line; all are in `metrics.jsonl`."""


def plain_console(*, stderr: bool = False) -> Console:
    """A console that prints what it is given, letter for letter: names of files and labels are no markup and no emoji.

    The commands print through consoles made here, so that none has to think of it: the path `[v2]` would vanish,
    `[/red]` end in a traceback, and `:car:` become an image of one.
    """
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def say(console: Console, sentence: str) -> None:
    """Print a sentence on one line, without markup, on any console."""
    console.print(sentence, soft_wrap=True, markup=False, emoji=False, highlight=False)


def plain_column(template: str) -> TextColumn:
    """A column of a progress bar, as plain as the consoles."""
    return TextColumn(template, markup=False)


@final
@dataclass(frozen=True, kw_only=True)
class WorkPlan:
    """The position of one part in a longer work, so that its progress shows the time left for the whole."""

    step: str = ""
    """Such as "step 2 of 5"; "" for a work of one part."""
    later_seconds: float = 0.0
    """How long the parts after this one are expected to take."""

    def titled(self, title: str) -> str:
        """The title of this part, with its number in the whole."""
        return f"{self.step}, {title}" if self.step else title

    def left(self, seconds: float) -> str:
        """Seconds that this part still takes -> the time left for it and for the whole, in words."""
        if not self.step:
            return f"{_duration(seconds)} left"
        return f"{_duration(seconds)} left, {_duration(seconds + self.later_seconds)} for the whole"


SINGLE = WorkPlan()
"""A work of one part."""


@final
class ProgressReporter:
    """Reports one run. A context manager: the bar is drawn inside the block."""

    def __init__(
        self, console: Console, *, title: str, tensorboard: Path | None, quiet: bool, work: WorkPlan = SINGLE
    ) -> None:
        """`tensorboard`: the folder for its event files, None writes none. `quiet`: the processes that are not the
        first. `work`: the position of the run in a longer work."""
        self._console = console
        self._title, self._work = title, work
        self._quiet = quiet
        self._folder = None if quiet else tensorboard
        self._writer: Any = None
        self._began, self._first, self._seen, self._length, self._unit = 0.0, 0, 0, 0, ""
        self._task: TaskID | None = None
        self._progress = Progress(
            plain_column("{task.description}"),
            BarColumn(),
            plain_column("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
            plain_column("{task.fields[rate]}"),
            TimeElapsedColumn(),
            plain_column("{task.fields[left]}"),
            console=console,
            disable=quiet or not console.is_terminal,
        )

    def begin(self, *, seen: int, length: int, unit: str) -> None:
        """Say where the run stands before its first step."""
        self._began, self._first, self._seen, self._length, self._unit = time.monotonic(), seen, seen, length, unit
        self._task = self._progress.add_task(
            self._work.titled(self._title), total=length, completed=seen, unit=unit, rate="", left=""
        )
        if seen and not self._quiet:
            say(self._console, f"{self._work.titled(self._title)}: resuming from {seen:,} of {length:,} {unit}")
        if self._folder is not None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._writer = SummaryWriter(str(self._folder), purge_step=seen)

    def __enter__(self) -> ProgressReporter:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()
        if self._writer is not None:
            self._writer.close()

    def advance(self, seen: int) -> None:
        """A step has been done."""
        self._seen = seen
        if self._task is not None:
            rate = f"{self._rate():,.1f} {self._unit}/s"
            self._progress.update(self._task, completed=seen, rate=rate, left=self._left())

    def report(self, part: str, seen: int, values: Mapping[str, float]) -> None:
        """Numbers have been measured."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{part}/{name}", value, seen)
        if self._quiet:
            return
        shown = "  ".join(f"{name} {value:.4g}" for name, value in list(values.items())[:SHOWN])
        rate = f"{self._rate():,.1f} {self._unit}/s, {self._left()}"
        say(self._console, f"{self._work.titled(self._title)} {part} {seen:,}/{self._length:,}  {shown}  ({rate})")

    def say(self, sentence: str) -> None:
        """Something else a person should know now."""
        if not self._quiet:
            say(self._console, f"{self._title} {sentence}")

    def _left(self) -> str:
        """The time left, in words."""
        rest = max(self._length - self._seen, 0)  # the last step may go beyond the length
        return self._work.left(rest / self._rate() if self._rate() else 0.0)

    def _rate(self) -> float:
        return (self._seen - self._first) / max(time.monotonic() - self._began, 1e-9)


@contextmanager
def progress_bar(
    console: Console, *, title: str, unit: str, work: WorkPlan = SINGLE
) -> Iterator[Callable[[int, int], None]]:
    """Yield a function (done, total) that shows how far `title` has come: a bar on a terminal, else plain lines.

    `work`: its position in a longer work.
    """
    title = work.titled(title)
    began = last = time.monotonic()
    columns = (
        plain_column("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        plain_column("{task.fields[unit]}"),
        plain_column("{task.fields[left]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None, unit=unit, left="")

        def show(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            rate = done / max(now - began, 1e-9)
            left = work.left((total - done) / rate) if rate else "? left"
            bar.update(task, completed=done, total=total, left=left)
            if not console.is_terminal and (done == total or now - last > SECONDS_A_LINE):
                last = now
                say(console, f"{title}: {done:,}/{total:,} {unit} ({rate:,.1f}/s, {left})")

        yield show


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
