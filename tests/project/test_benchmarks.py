"""The frame of the benchmarks: ours and theirs in turn, and last a line for each item with the ratio."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

OURS = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
from pairs import Workload, main
items = {{"wait": lambda: Workload(lambda: sum(range(10**5)), 0.001)}}
main("a benchmark", {{"ours": items, "reference": items}})
"""
THEIRS = """
import json, sys
assert sys.argv[1:] == ["--items", "wait"]
print("a word before")
print(json.dumps({"item": "wait", "seconds": 1000.0, "peak_mib": 7.0}))
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "ours.py").write_text(OURS)
    (folder / "theirs.py").write_text(THEIRS)
    command = [sys.executable, str(folder / "ours.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_peer_runs_nearby_ours_and_the_last_line_has_the_ratio(tmp_path: Path) -> None:
    peer = f"{sys.executable} {tmp_path / 'theirs.py'}"
    done = run(tmp_path, "--peer", peer, "--pairs", "1", "--repeat", "1", "--threads", "1")
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["item"] == "wait"
    assert line["ratio"] > 1000
    assert line["peer_peak_mib"] == 7.0 < line["peak_mib"]
    assert line["floor_share"] > 0


def test_an_unknown_item_is_reported(tmp_path: Path) -> None:
    done = run(tmp_path, "--items", "weight")
    assert done.returncode == 2
    assert "there is no item 'weight'; there are wait" in done.stderr
