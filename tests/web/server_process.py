"""A server of the page in a process of its own, and what the system says of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple


class ServerProcess(NamedTuple):
    """The process and the address of its page."""

    process: subprocess.Popen[str]
    address: str

    def memory(self, name: str = "VmRSS") -> float:
        """MiB of memory now ("VmRSS"), or at most so far ("VmHWM")."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{name}:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def end(self, number: signal.Signals) -> int:
        """Send a signal and wait -> the exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


@contextmanager
def server_process(model: Path, *options: str, temporary: Path) -> Iterator[ServerProcess]:
    """`smalti web MODEL` with options, whose temporary files are in a folder; it is killed at the end."""
    command = [sys.executable, "-m", "smalti", "web", str(model), "--device", "cpu", *options]
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    # Tests that run in the background of a shell ignore Ctrl-C, and so would the server.
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, preexec_fn=listening
    )
    try:
        assert process.stdout is not None
        printed = ""
        for line in process.stdout:
            printed += line
            found = re.search(r"the web page is at (http://\S+)", line)
            if found:
                yield ServerProcess(process, found[1])
                break
        else:
            raise AssertionError(f"the server did not start: {printed}")
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
