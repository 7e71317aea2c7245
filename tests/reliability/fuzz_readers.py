"""Coverage-guided fuzzing of the readers, for as long as is wanted: `python -m tests.reliability.fuzz_readers`

    python -m tests.reliability.fuzz_readers [KIND ...] [--seconds 30]

KIND is a key of `damaged_files.KINDS`, by default every one. Needs atheris (`pip install atheris`), which watches the
branches that an input takes through smalti's own modules and keeps inputs that take new ones. As in
test_damaged_files.py each input must give a value or one sentence. Prints one line per kind; an input that fails is
written to the current folder, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MAX_BYTES = 65536
"""Of an input, if the file as it was written is smaller."""


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one kind in this process, which libFuzzer ends without cleaning up."""
    import atheris

    with atheris.instrument_imports(include=["smalti"]):
        from tests.reliability.damaged_files import KINDS
        from tests.reliability.test_damaged_files import read

    logging.disable(logging.CRITICAL)
    kind, folder, corpus = KINDS[name], Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
    kind.write(folder)
    path = folder / kind.file
    whole = path.read_bytes()
    (corpus / "whole").write_bytes(whole)

    def try_one(data: Any) -> None:
        path.write_bytes(data)
        read(kind, folder)

    size = max(MAX_BYTES, 2 * len(whole))
    atheris.Setup([sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-max_len={size}", "-timeout=60"], try_one)
    atheris.Fuzz()


def main() -> int:
    """The command: each kind in a process of its own, since libFuzzer ends its process."""
    from tests.reliability.damaged_files import KINDS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="KIND")
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(KINDS):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    if chosen.here:
        fuzz(chosen.names[0], chosen.seconds)
    failed = False
    for name in chosen.names or KINDS:
        options = ["--seconds", str(chosen.seconds), "--here"]
        command = [sys.executable, "-m", "tests.reliability.fuzz_readers", name, *options]
        with tempfile.TemporaryDirectory() as scratch:
            variables = {**os.environ, "TMPDIR": scratch}
            ended = subprocess.run(command, capture_output=True, text=True, errors="replace", env=variables)
        runs = re.findall(r"Done (\d+) runs", ended.stderr)
        failed |= ended.returncode != 0 or not runs
        print(f"{name}: {int(runs[-1]):,} inputs" if runs else f"{name}: FAILED\n{ended.stderr[-4000:]}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
