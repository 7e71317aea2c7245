"""The benchmark of sampling: its items run, and its last line has the ratio to a peer whose items have other names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

SMALL = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
from dataclasses import replace
import sampling
sampling.SIZES = replace(sampling.SIZES, layers=2, embed_dim=32, heads=4, grid=(4, 4), block_size=16)
sampling.NEAR = replace(sampling.NEAR, layers=2, embed_dim=32, heads=4, grid=(4, 4), radius=2)
sampling.ITEMS = {{name: work._replace(grid=(4, 4) if name == "cached" else (6, 9))
                  for name, work in sampling.ITEMS.items()}}
"""
THEIRS = """
import json, sys
assert sys.argv[1] == "--items"
print(json.dumps({"item": sys.argv[2], "per_code": 1000.0, "peak_mib": 7.0}))
"""


def run(folder: Path, *arguments: str) -> list[dict[str, object]]:
    (folder / "ours.py").write_text(SMALL + "sampling.main()\n")
    command = [sys.executable, str(folder / "ours.py"), "--threads", "1", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_all_items_run_on_both_paths(tmp_path: Path) -> None:
    ours = {str(line["item"]): line for line in run(tmp_path, "--path", "ours")}
    assert list(ours) == ["cached", "window-32", "window-64", "neighborhood-64"]
    assert [line["steps"] for line in ours.values()] == [16, 9 + 5 * 4, 9 + 5 * 4, 9 + 5 * 3]
    assert ours["cached"]["codes_read"] == 4 * 16
    assert ours["neighborhood-64"]["codes_read"] == 1 + 6 * 9
    assert all(line["floor_share"] > 0 for line in ours.values())  # type: ignore[operator]
    assert all(line["per_code"] > 0 for line in run(tmp_path, "--path", "plain"))  # type: ignore[operator]


@pytest.mark.slow
def test_a_peer_is_requested_by_its_own_names(tmp_path: Path) -> None:
    peer = tmp_path / "theirs.py"
    peer.write_text(THEIRS)
    lines = run(tmp_path, "--peer", f"{sys.executable} {peer}", "--items", "cached,window-32", "--pairs", "1")
    assert [line["item"] for line in lines] == ["cached", "cached", "window-32", "window", "cached", "window-32"]
    for line in lines[-2:]:
        assert line["ratio"] == pytest.approx(1000 * float(str(line["codes_per_second"])), rel=1e-3)
        assert line["peer_peak_mib"] == 7.0
