"""The benchmark of stage 2: its slow path computes what ours does, and both of its items run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

# The benchmark with a small network, and pictures of 32 x 32 (at f16 a grid of 2 x 2).
SMALL = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import torch
import stage2
from dataclasses import replace
stage2.SIDE = 32
stage2.SIZES = replace(stage2.SIZES, layers=2, width=32, heads=4, grid=(2, 2), block=4)
"""
SAME = (
    SMALL
    + """
codes = stage2.some_codes().flatten(1)
ours = stage2.network()
theirs = stage2.PlainGPT(ours)
torch.testing.assert_close(theirs(codes), ours(codes), rtol=1e-4, atol=1e-5)
assert stage2.plain_stage2().gflop == stage2.stage2().gflop < stage2.pictures_in_the_loop().gflop
"""
)
RUN = (
    SMALL
    + """
stage2.tokenizer = lambda: made
from smalti.tokenizer.encoder import PyramidSettings
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings
made = VQGAN(VQGANSettings(pyramid=PyramidSettings(stem=4, width=8, multipliers=(1, 1, 1), latent_channels=8))).eval()
stage2.run()
"""
)


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)


def test_the_slow_path_computes_the_same() -> None:
    done = run(SAME)
    assert done.returncode == 0, done.stderr


def test_both_items_run_on_both_paths() -> None:
    for path in ("ours", "reference"):
        done = run(RUN, "--path", path, "--repeat", "1", "--threads", "1")
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line["item"] for line in lines] == ["stage2", "shards"]
        assert all(line["seconds"] > 0 and line["gflop"] > 0 for line in lines)
