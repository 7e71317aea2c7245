"""Memory that goes back and forth between process and system costs time: a process that keeps it asks for no new
pages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = """
import multiprocessing, resource, sys
from concurrent.futures import ProcessPoolExecutor
from smalti.scenes import scene_files
from smalti.core.allocator import keep_memory

def new_pages():
    blocks = [bytearray(2**26) for _ in range(2)]  # larger than what glibc would ever keep by itself
    del blocks
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        blocks = [bytearray(b"1") * 2**26 for _ in range(2)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if __name__ == "__main__":
    if sys.argv[1] != "gives back" and not keep_memory():
        sys.exit("not here")
    if sys.argv[1] == "paints scenes":
        fresh = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, fresh, initializer=scene_files._start_worker) as pool:
            print(pool.submit(new_pages).result())
    else:
        print(new_pages())
"""


def new_pages(which: str, folder: Path) -> int:
    script = folder / "rounds.py"  # a file, as a process that is started afresh reads it again
    script.write_text(ROUNDS)
    done = subprocess.run([sys.executable, script, which], capture_output=True, text=True, check=False)
    if "not here" in done.stderr:
        pytest.skip("there is no glibc here")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("which", ["keeps", "paints scenes"])
def test_kept_memory_is_used_again(which: str, tmp_path: Path) -> None:
    """A block of 64 MiB is 16,384 pages, or 32 huge ones where the system makes such.

    The processes that paint scenes are started afresh and had none of it from the main process: a third of their time
    went into new pages.
    """
    assert new_pages(which, tmp_path) * 5 < new_pages("gives back", tmp_path)
