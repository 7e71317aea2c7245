"""Every reader, with files that chance has damaged: a value, or one sentence; no traceback, hang, crash or bomb.

SMALTI_DAMAGED is how many files of each kind are tried; docs/reliability.md says how many were.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smalti.core.errors import SmaltiError
from tests.reliability.damaged_files import KINDS, FileKind, check_sentence

EXAMPLES = int(os.environ.get("SMALTI_DAMAGED", "8"))
"""Files of each kind."""
SECONDS = 60
"""Of computing for all readers of one file, after which reading counts as hanging; most take milliseconds."""
GROWTH = 2**30
"""Bytes that reading a file of kilobytes may add to the memory of the process at its peak."""


class Hanging(BaseException):
    """No reader catches it."""


@contextmanager
def limited() -> Iterator[None]:
    """Reading within `SECONDS` and `GROWTH`. Raises `Hanging`, and `AssertionError` for memory."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hanging(f"longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop), signal.signal(signal.SIGPROF, stop)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)  # for readers that wait
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before[0])
        signal.signal(signal.SIGPROF, before[1])
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
    assert grown < GROWTH, f"{grown:,} bytes more"


def read(kind: FileKind, folder: Path) -> None:
    with limited(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow and numpy, of odd values
        try:
            kind.read(folder)
        except SmaltiError as error:
            check_sentence(error)


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_a_value_or_a_sentence(name: str, caplog: pytest.LogCaptureFixture) -> None:
    kind = KINDS[name]
    caplog.set_level(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        kind.write(folder)
        path = folder / kind.file
        whole = path.read_bytes()
        kind.read(folder)  # as it is, it is read

        @settings(max_examples=EXAMPLES, database=None, suppress_health_check=list(HealthCheck))
        @given(st.integers(0, 2**63))
        def try_one(seed: int) -> None:
            path.write_bytes(kind.damage(Random(seed), whole))
            read(kind, folder)

        try_one()
        assert not (folder / "ran").exists()
    assert not Path("ran").exists()
