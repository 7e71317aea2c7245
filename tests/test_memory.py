"""Memory that goes back and forth between process and system costs time: a process that keeps it asks for no new pages."""

from __future__ import annotations

import subprocess
import sys

import pytest

ROUNDS = """
import resource, sys
from smalti.memory import keep_memory
if sys.argv[1] == "keeps" and not keep_memory():
    sys.exit("not here")
blocks = [bytearray(2**26) for _ in range(2)]  # larger than what glibc would ever keep by itself
del blocks
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    blocks = [bytearray(b"1") * 2**26 for _ in range(2)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def new_pages(which: str) -> int:
    done = subprocess.run([sys.executable, "-c", ROUNDS, which], capture_output=True, text=True, check=False)
    if "not here" in done.stderr:
        pytest.skip("there is no glibc here")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_kept_memory_is_used_again() -> None:
    """A block of 64 MiB is 16,384 pages, or 32 huge ones where the system makes such."""
    assert new_pages("keeps") * 5 < new_pages("gives back")
