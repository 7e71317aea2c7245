"""Encoding under torchrun: killed in the middle and started again, the codes are those of one process.

benchmarks/scale.py measures memory and rates; docs/scale.md has the figures.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import started
from tests.reliability import damage
from tests.reliability.test_untrusted_files import png
from tests.small_pipeline import written

COUNT = 90
SMALL_SHARDS = (
    "from smalti.encoding import code_writer\ncode_writer.SHARD_IMAGES = 7\nfrom smalti.cli.main import main\nmain()"
)


@pytest.mark.slow
def test_two_processes_that_are_killed_encode_what_one_does(tmp_path: Path) -> None:
    written(tmp_path / "model")
    (tmp_path / "images").mkdir()
    for number in range(3):
        names = [f"{number}-{index:04d}.png" for index in range(COUNT // 3)]
        (tmp_path / "images" / f"{number}.tar").write_bytes(damage.tar_of({name: png() for name in names}))
    command = ["-c", SMALL_SHARDS, "encode", "model/tokenizer", "images", "--size", "12", "--copies", "2", "--out"]
    subprocess.run([sys.executable, *command, "one"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    both = started(tmp_path, [*command, "two"])
    notes = tmp_path / ".two.parts" / ".work"
    while len(list(notes.glob("training-*.json"))) < 2 and not (tmp_path / "two").is_dir():
        assert any(process.poll() is None for process in both)
        time.sleep(0.002)
    for process in both:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    again = started(tmp_path, [*command, "two"])
    for process in again:
        process.communicate(timeout=200)
        assert process.returncode == 0
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    meta = json.loads(one["codes.json"])
    assert sum(meta["training"]["shards"]) + sum(meta["validation"]["shards"]) == COUNT
    assert len(meta["training"]["shards"]) > 5
