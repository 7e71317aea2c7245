"""Commands of smalti in processes that start within milliseconds and can be killed: they are forked from one that has
imported everything."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["smalti.cli.main", "smalti.training.runs", "tests.reliability.commands"])

LONGEST = 300.0
"""Seconds after which a command counts as hanging."""


def start(
    folder: Path, arguments: Sequence[str], *, log: Path, prepare: Callable[[], object] | None = None
) -> ForkServerProcess:
    """Start `smalti` with arguments in a folder; what it prints is appended to a file. `prepare` is called first."""
    process = SERVER.Process(target=_run, args=(folder, list(arguments), log, prepare))
    process.start()
    return process


def run(folder: Path, arguments: Sequence[str], *, log: Path, prepare: Callable[[], object] | None = None) -> int:
    """As `start`, to its end -> the exit status, negative for a signal."""
    process = start(folder, arguments, log=log, prepare=prepare)
    process.join(LONGEST)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"smalti {' '.join(arguments)} did not end within {LONGEST:.0f} s; see {log}")
    return process.exitcode


def kill_after(process: ForkServerProcess, seconds: float) -> bool:
    """Kill a process after some time -> whether it was still running."""
    process.join(seconds)
    if process.exitcode is not None:
        return False
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def wait_for(condition: Callable[[], bool], process: ForkServerProcess) -> None:
    """Wait until a condition holds while a process runs."""
    began = time.monotonic()
    while not condition():
        assert process.exitcode is None, f"it ended too early, with {process.exitcode}"
        assert time.monotonic() - began < LONGEST, "it never happened"
        time.sleep(0.005)


def _run(folder: Path, arguments: list[str], log: Path, prepare: Callable[[], object] | None) -> None:
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a fork server ignores Ctrl-C
    torch.set_num_threads(1)
    os.chdir(folder)
    sys.argv = ["smalti", *arguments]
    if prepare is not None:
        prepare()

    from smalti.cli.main import main  # after what is prepared

    main()
