"""Speed of sampling on this machine's CPU, as ratios to a peer in the same run. Prints one JSON line an item, last.

    python benchmarks/sampling.py [--items cached,window-32,window-64,neighborhood-64] [--peer "COMMAND"]

COMMAND is another program that prints such lines: "python bench_original.py --taming CHECKOUT".

items
  cached            256 codes under one window of 16 x 16, batch 4
  window-32         a grid of 32 x 32 under a window of 16 x 16 with a spatial condition (511 positions), batch 1
  window-64         a grid of 64 x 64 under a window of 16 x 16, unconditional, batch 1
  neighborhood-64  a grid of 64 x 64 by a neighborhood transformer of as many weights, batch 1

Vocabulary 1024, 8 layers, 8 heads, width 512, top-k 100; random weights, for the work is the same. A whole image is
generated, in `steps` waves. `ratio` is of codes per second. The peer of `cached` is its own item `cached`, and of
`window-32` and of `neighborhood-64` one code of its sliding window, `window`. For `window-64`, and for all without
--peer, our own plain loop stands in: the whole window through the network for each code.

The floor of a call is the longer of two times: that in which its weights can be read, at the rate at which this machine
sums a long row of numbers, and that of its products with weights, at the rate of a 1024 x 1024 product (attention is
left out). `floor_share` is the sum over all calls as a fraction of the time taken.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pairs import line_of, matrix_rate, middle
from smalti.conditions.base import constant_prefix
from smalti.core.allocator import keep_memory
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import decoding_strategy, final_codes, generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.prior import GPT, GPTSettings, Neighborhood, NeighborhoodSettings, Prior, Window

SIZES = GPTSettings(
    vocab_size=1024, codebook_size=1024, grid=(16, 16), block_size=256, layers=8, embed_dim=512, heads=8, start_code=0
)
NEAR = NeighborhoodSettings(codebook_size=1024, grid=(16, 16), radius=4, layers=8, embed_dim=512, heads=8)
SAMPLER = Sampler(top_k=100)
PLAIN = 3
"""Codes that the plain loop lays: each costs the same."""


class Workload(NamedTuple):
    """An image to generate."""

    prior: Callable[[], Prior]
    batch: int
    grid: tuple[int, int]
    peer: str
    """Its name in the peer, "" where there is none."""


def unconditional() -> Prior:
    return GPT(SIZES)


def map_conditional() -> Prior:
    positions = SIZES.grid[0] * SIZES.grid[1]
    return GPT(replace(SIZES, prefix_length=positions, block_size=2 * positions))


def neighborhood() -> Prior:
    return Neighborhood(NEAR)


ITEMS = {
    "cached": Workload(unconditional, 4, (16, 16), "cached"),
    "window-32": Workload(map_conditional, 1, (32, 32), "window"),
    "window-64": Workload(unconditional, 1, (64, 64), ""),
    "neighborhood-64": Workload(neighborhood, 1, (64, 64), "window"),
}


def read_rate() -> float:
    """Billions of bytes per second: the best of 10 sums of 200 MB."""
    numbers = torch.ones(50_000_000)

    def seconds() -> float:
        began = time.perf_counter()
        numbers.sum()
        return time.perf_counter() - began

    return numbers.nbytes / min(seconds() for _ in range(10)) / 1e9


class Calls:
    """The calls of a prior: the codes that each call reads, and those of them that the head scores."""

    def __init__(self, prior: Prior) -> None:
        self.prior, self.read, self.scored = prior, list[int](), list[int]()
        for name, child in prior.named_children():
            if name in ("embedding", "left", "prefix_codes"):  # once a call: what a position starts from
                child.register_forward_pre_hook(lambda embedding, given: self.read.append(given[0].numel()))
        prior.get_submodule("norm").register_forward_pre_hook(
            lambda norm, given: self.scored.append(given[0].shape[:-1].numel())
        )

    def floor(self, *, gigabytes: float, gflops: float) -> tuple[float, float]:
        """The machine's rates -> the least seconds, and billions of operations."""
        blocks = [weights(block) for block in self.prior.get_submodule("blocks").children()]
        head, keys = (
            weights(self.prior.head),
            2 * SIZES.embed_dim**2,
        )  # the last block makes keys and values of all codes
        seconds = total = 0.0
        for read, scored in zip(self.read, self.scored, strict=True):
            products = read * (sum(blocks[:-1]) + keys) + scored * (blocks[-1] - keys + head)
            seconds += max(4 * (sum(blocks) + head) / 1e9 / gigabytes, 2 * products / 1e9 / gflops)
            total += 2 * products / 1e9
        return seconds, total


def weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim == 2)


def request_of(prior: Prior, workload: Workload) -> GenerationRequest:
    prefix_at, known = constant_prefix(prior.null_prefix(workload.batch)), unknown_codes(workload.batch, workload.grid)
    return GenerationRequest(prefix_at, known, seeds=torch.arange(workload.batch), sampler=SAMPLER)


def generate_all(prior: Prior, workload: Workload) -> Tensor:
    return final_codes(generate(prior, request_of(prior, workload)))


def ours(name: str) -> dict[str, Any]:
    """An item, generated once after a warm-up of a few codes -> its line."""
    torch.manual_seed(0)
    work, gflops, gigabytes = ITEMS[name], matrix_rate(), read_rate()
    prior = work.prior().eval()
    generate_all(prior, work._replace(grid=(1, 2)))
    count = steps(prior, work)
    calls = Calls(prior)
    began, worked = time.perf_counter(), time.process_time()
    codes = generate_all(prior, work)
    seconds, processor = time.perf_counter() - began, time.process_time() - worked
    floor, gflop = calls.floor(gigabytes=gigabytes, gflops=gflops)
    return {
        "item": name,
        "seconds": seconds,
        "processor_seconds": processor,
        "codes_per_second": codes.numel() / seconds,
        "steps": count,
        "calls": len(calls.read),
        "codes_read": sum(calls.read),
        "floor_share": floor / seconds,
        "gflop": gflop,
        "gflops": gflops,
        "read_gb": gigabytes,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def steps(prior: Prior, work: Workload) -> int:
    """Waves in which the image is generated, one after the other."""
    return len(decoding_strategy(prior, request_of(prior, work)).schedule)


@torch.no_grad()
def plain(name: str) -> dict[str, Any]:
    """An item by the plain loop: the whole window through the network for each code, without cache or schedule."""
    torch.manual_seed(0)
    work = ITEMS[name]
    prior = (unconditional if name == "neighborhood-64" else work.prior)().eval()
    window, prefix = Window(0, 0, *SIZES.grid), prior.null_prefix(work.batch)
    codes = torch.randint(SIZES.codebook_size, (work.batch, window.rows * window.columns))

    def code() -> Tensor:
        scored = prior(prior.join(prefix, codes)[:, :-1])[:, prefix.shape[1] - 1 + codes.shape[1] // 2]
        kept = scored.where(scored >= scored.topk(SAMPLER.top_k).values[:, -1:], -torch.inf)
        return torch.multinomial(kept.softmax(1), 1)

    code()
    began = time.perf_counter()
    for _ in range(PLAIN):
        code()
    per_code = (time.perf_counter() - began) / PLAIN / work.batch
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"item": name, "per_code": per_code, "peak_mib": peak}


def compare(name: str, own: list[str], peer: str | None, *, pairs: int) -> dict[str, Any]:
    """An item, measured in smalti and in the peer in turn -> its line."""
    peer_command, peer_item = (
        (shlex.split(peer), ITEMS[name].peer) if peer and ITEMS[name].peer else ([*own, "plain"], name)
    )
    lines, peer_lines = [], []
    for _ in range(pairs):
        lines.append(line_of([*own, "ours"], name))
        peer_lines.append(line_of(peer_command, peer_item))
        print(json.dumps(lines[-1]), json.dumps(peer_lines[-1]), sep="\n", flush=True)

    ratios = [line["codes_per_second"] * other["per_code"] for line, other in zip(lines, peer_lines, strict=True)]
    timed = ("codes_per_second", "seconds", "processor_seconds", "floor_share", "gflops", "read_gb", "peak_mib")
    return {
        "item": name,
        "ratio": round(statistics.median(ratios), 3),
        "steps": lines[0]["steps"],
        **{key: middle(lines, key) for key in timed},
        "peer_codes_per_second": round(1 / middle(peer_lines, "per_code"), 4),
        "peer_peak_mib": middle(peer_lines, "peak_mib"),
        "peer": "the plain loop" if peer_item == name and peer_command[-1] == "plain" else peer_item,
        "calls": lines[0]["calls"],
        "codes_read": lines[0]["codes_read"],
        "gflop": lines[0]["gflop"],
        "pairs": pairs,
    }


def main() -> None:
    """The command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--items", default=",".join(ITEMS), help="which, with commas between; default: all")
    arguments.add_argument(
        "--peer", help="a command that prints such lines for --items ITEM; default: the plain loop of this file"
    )
    arguments.add_argument("--pairs", type=int, default=3, help="how often smalti and the peer run in turn")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--path", choices=["ours", "plain"], help="measure this path here, with nothing beside it")
    options = arguments.parse_args()
    items = options.items.split(",")
    unknown_items = [name for name in items if name not in ITEMS]
    if unknown_items:
        arguments.error(f"there is no item {unknown_items[0]!r}; there are {', '.join(ITEMS)}")
    if options.path:
        torch.set_num_threads(options.threads)
        keep_memory()  # as smalti's commands do
        for name in items:
            print(json.dumps(ours(name) if options.path == "ours" else plain(name)), flush=True)
        return
    own = [sys.executable, sys.argv[0], "--threads", str(options.threads), "--path"]
    results = [compare(name, own, options.peer, pairs=options.pairs) for name in items]
    for result in results:
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
