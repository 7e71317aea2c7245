"""What the commands share of the terminal: where they print, how they count, how they read sizes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

CONSOLE = Console(highlight=False)
ERRORS = Console(stderr=True)
SECONDS_A_LINE = 10.0
"""Without a terminal, progress is a plain line at most this often."""


@contextmanager
def counting(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function (done, total) that shows how far `title` has come: a bar on a terminal, else plain lines."""
    began = last = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with Progress(*columns, console=CONSOLE, disable=not CONSOLE.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def show(done: int, total: int) -> None:
            nonlocal last
            bar.update(task, completed=done, total=total)
            now = time.monotonic()
            if not CONSOLE.is_terminal and (done == total or now - last > SECONDS_A_LINE):
                last = now
                rate = done / max(now - began, 1e-9)
                CONSOLE.print(f"{title}: {done:,}/{total:,} {unit} ({rate:,.1f}/s, {(total - done) / rate if rate else 0:.0f} s left)")

        yield show


def size_option(text: str | None) -> tuple[int, int] | None:
    """`64` or `HxW` (height first) -> (H,W); None stays None. Anything else is wrong usage."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:[xX](\d+))?", text.strip())
    if match is None or int(match[1]) == 0 or (match[2] is not None and int(match[2]) == 0):
        raise typer.BadParameter(f"{text!r} is not a size; write pixels as 64, or height x width as 64x128")
    return int(match[1]), int(match[2] or match[1])
