"""The benchmarks of stage 2: the slow path computes what ours does, both run, and shards are measured beside the
loop."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

# The benchmark with a small network.
SMALL = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import torch
import stage2
from dataclasses import replace
stage2.SIZES = replace(stage2.SIZES, layers=2, embed_dim=32, heads=4, grid=(2, 2), block_size=4)
"""
SAME = (
    SMALL
    + """
codes = stage2.some_codes().flatten(1)
ours = stage2.network()
theirs = stage2.PlainGPT(ours)
torch.testing.assert_close(theirs(codes), ours(codes), rtol=1e-4, atol=1e-5)
assert stage2.plain_stage2().gflop == stage2.stage2().gflop > 0
"""
)
SHARDS = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import shards
changes = ("network.layers=1", "network.embed_dim=16", "network.heads=2", "run.batch=3")
shards.PAIRS = {{"demo": shards.Pair("demo", "demo", changes)}}
shards.run()
"""


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)


def test_the_slow_path_computes_the_same() -> None:
    done = run(SAME)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_both_paths_run() -> None:
    for path, items in {"ours": ["stage2", "stage2-bf16"], "reference": ["stage2"]}.items():
        done = run(
            SMALL + "stage2.run()", "--path", path, "--items", ",".join(items), "--repeat", "1", "--threads", "1"
        )
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line["item"] for line in lines] == items
        assert all(line["seconds"] > 0 and line["gflop"] > 0 for line in lines)


@pytest.mark.slow
def test_shards_are_measured_nearby_the_loop() -> None:
    done = run(SHARDS, "--pairs", "1", "--steps", "1", "--threads", "1")
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    assert (line["of"], line["batch"], line["copies"], line["bytes_a_copy"]) == ("demo", 3, 3, 64 * 2)
    assert line["ratio"] == line["ratios"][0] > 0
    assert line["images_a_second"] > 0 < line["images_a_second_in_the_loop"]
