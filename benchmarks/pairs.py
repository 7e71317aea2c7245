"""How benchmarks measure: each item in a process of its own, smalti and its peer in turn, ratios pair by pair.

The floor of an item is the time its operations would take at the rate at which this machine multiplies matrices,
measured in the same process just before. Machines share their cores with others: rates differ by a third from minute to
minute, so only ratios of neighboring runs mean anything, and medians of those are what is printed.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Workload(NamedTuple):
    """What is timed."""

    run: Callable[[], object]
    gflop: float
    """Operations of one run in billions, a multiplication and an addition counted as two."""


Item = Callable[[], Workload]


def matrix_rate() -> float:
    """Billions of operations a second: the best of 15 float32 products of two 1024 x 1024 matrices."""
    import torch

    a = torch.randn(1024, 1024)

    def seconds() -> float:
        began = time.perf_counter()
        a @ a
        return time.perf_counter() - began

    return 2 * 1024**3 / min(seconds() for _ in range(15)) / 1e9


def measure(name: str, item: Item, *, repeat: int) -> dict[str, Any]:
    """Run an item once to warm up, then `repeat` times -> its line."""
    import torch

    rate = matrix_rate()
    work = item()
    work.run()
    seconds = []
    for _ in range(repeat):
        began = time.perf_counter()
        work.run()
        seconds.append(time.perf_counter() - began)
    typical = statistics.median(seconds)
    return {
        "item": name,
        "seconds": typical,
        "best": min(seconds),
        "gflop": work.gflop,
        "gflops": rate,
        "floor_share": work.gflop / rate / typical,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def line_of(command: list[str], name: str) -> dict[str, Any]:
    """Run a command for one item -> the line it printed."""
    done = subprocess.run([*command, "--items", name], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        sys.exit(f"{shlex.join(command)} --items {name} failed:\n{done.stderr[-2000:]}")
    line: dict[str, Any] = json.loads(lines[-1])
    return line


def middle(lines: list[dict[str, Any]], key: str) -> float:
    """Lines of the same item -> the median of what they say under `key`."""
    return round(statistics.median(line[key] for line in lines), 4)


def _pairs(name: str, own: list[str], peer: list[str], *, compare: str, pairs: int) -> dict[str, Any]:
    """Run the commands `own` and `peer` in turn on the items `name` and `compare` -> the line of results."""
    lines, peer_lines = [], []
    for _ in range(pairs):
        lines.append(line_of(own, name))
        peer_lines.append(line_of(peer, compare))
        ratio = peer_lines[-1]["seconds"] / lines[-1]["seconds"]
        print(
            f"{name}: {lines[-1]['seconds']:.4f} s, peer {peer_lines[-1]['seconds']:.4f} s, ratio {ratio:.2f}",
            flush=True,
        )

    ratios = [other["seconds"] / line["seconds"] for line, other in zip(lines, peer_lines, strict=True)]
    return {
        "item": name,
        "ratio": round(statistics.median(ratios), 3),
        "seconds": middle(lines, "seconds"),
        "peer_seconds": middle(peer_lines, "seconds"),
        "floor_share": middle(lines, "floor_share"),
        "peak_mib": middle(lines, "peak_mib"),
        "peer_peak_mib": middle(peer_lines, "peak_mib"),
        "gflop": lines[0]["gflop"],
        "gflops": middle(lines, "gflops"),
        "pairs": pairs,
    }


def main(doc: str, paths: Mapping[str, Mapping[str, Item]], *, compare: Mapping[str, str] | None = None) -> None:
    """The command line of a benchmark: `paths` are "ours" (smalti's) and "reference", each with its items by name.

    `compare`: item -> the peer's item that it is compared with, where that has another name.
    """
    from smalti.core.allocator import keep_memory

    names = list(paths["ours"])
    arguments = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--items", default=",".join(names), help="which, with commas between; default: all")
    arguments.add_argument(
        "--peer", help="a command that prints such lines for --items ITEM; default: the reference path of this file"
    )
    arguments.add_argument("--pairs", type=int, default=5, help="how often smalti and the peer run in turn")
    arguments.add_argument("--repeat", type=int, default=5, help="timed runs within one process of smalti")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument(
        "--path", choices=list(paths), help="measure this path in this process, with nothing beside it"
    )
    options = arguments.parse_args()
    items = options.items.split(",")
    unknown = [name for name in items if name not in names]
    if unknown:
        arguments.error(f"there is no item {unknown[0]!r}; there are {', '.join(names)}")
    if options.path:
        import torch

        torch.set_num_threads(options.threads)
        if options.path == "ours":
            keep_memory()  # as smalti's commands do
        for name in items:
            print(json.dumps(measure(name, paths[options.path][name], repeat=options.repeat)), flush=True)
        return
    own = [sys.executable, sys.argv[0], "--threads", str(options.threads), "--repeat", str(options.repeat), "--path"]
    peer = shlex.split(options.peer) if options.peer else [*own, "reference"]
    results = [
        _pairs(name, [*own, "ours"], peer, compare=(compare or {}).get(name, name), pairs=options.pairs)
        for name in items
    ]
    for result in results:
        print(json.dumps(result), flush=True)
