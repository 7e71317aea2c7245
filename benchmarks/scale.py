"""`smalti encode` and `smalti sample` of very many small images: rate, memory, and what a kill costs.

    python benchmarks/scale.py [--images 20000] [--samples 2000]

Makes tar shards of images of 32 pixels, all different, and a tiny tokenizer and prior with random weights; encodes the
shards by one process, and by two under torchrun that are killed and started again in the middle; and compares the files
byte for byte, which also says that no image is there twice or missing. Memory is that of all processes together, looked
at twice a second. Prints a line for each command, and JSON at the end. Needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from smalti.conditions.labels import Unconditional
from smalti.core.settings import parse
from smalti.pipeline import Pipeline
from smalti.prior import Transformer, TransformerSettings
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings

SIDE, SHARD = 32, 2000
TOKENIZER = {
    "autoencoder": {"base_channels": 8, "channel_multipliers": [1, 1], "patch_size": 4, "res_blocks": 1},
    "quantizer": {"codebook_size": 256, "codebook_dim": 8},
}
PRIOR = {"codebook_size": 256, "condition_size": 1, "grid": [4, 4], "layers": 2, "embed_dim": 32, "heads": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--samples", type=int, default=2000)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as home:
        print(json.dumps(measured(Path(home), options.images, options.samples), indent=2))


def measured(home: Path, images: int, samples: int) -> dict[str, Any]:
    """All measurements, in a folder that is empty."""
    size = write_shards(home / "images", images)
    write_pipeline(home / "model")
    encode = ["encode", "model/tokenizer", "images", "--size", str(SIDE), "--copies", "1", "--zoom", "1", "--out"]
    one = run(home, [sys.executable, "-m", "smalti", *encode, "one"])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "smalti", *encode]
    two = run(home, [*torchrun, "two"])
    killed = run(home, [*torchrun, "killed"], kill_after=two["seconds"] / 2)
    resumed = run(home, [*torchrun, "killed"])
    sample = [
        sys.executable,
        "-m",
        "smalti",
        "sample",
        "model",
        "-n",
        str(samples),
        "--batch",
        "64",
        "--out",
        "samples",
    ]
    sampled = run(home, sample)
    written = len(list((home / "samples").rglob("*.png")))
    return {
        "images": images,
        "shards_bytes": size,
        "codes_bytes": sum(path.stat().st_size for path in (home / "one").iterdir()),
        "one_process": {**one, "images_per_second": images / one["seconds"]},
        "two_processes": {**two, "images_per_second": images / two["seconds"]},
        "killed": killed,
        "resumed": resumed,
        "two_as_one": files(home / "one") == files(home / "two"),
        "resumed_as_one": files(home / "one") == files(home / "killed"),
        "samples": {**sampled, "written": written, "images_per_second": samples / sampled["seconds"]},
    }


def write_shards(folder: Path, count: int) -> int:
    """Tar shards of `count` different images -> their bytes."""
    folder.mkdir()
    chance = np.random.RandomState(0)
    for number, start in enumerate(range(0, count, SHARD)):
        with tarfile.open(folder / f"shard-{number:04d}.tar", "w") as shard:
            for index in range(start, min(start + SHARD, count)):
                ramp = np.linspace(0, 1, SIDE)[:, None, None] * chance.uniform(0, 200, 3) + chance.uniform(0, 55, 3)
                pixels = np.broadcast_to(ramp, (SIDE, SIDE, 3)) + chance.uniform(-5, 5, (SIDE, SIDE, 3))
                made = io.BytesIO()
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(made, "JPEG", quality=90)
                member = tarfile.TarInfo(f"{index:08d}.jpg")
                member.size = made.tell()
                made.seek(0)
                shard.addfile(member, made)
    return sum(path.stat().st_size for path in folder.iterdir())


def write_pipeline(folder: Path) -> None:
    """A tiny pipeline with random weights."""
    torch.manual_seed(0)
    tokenizer = VQGAN(parse(VQGANSettings, TOKENIZER, where="the benchmark"))
    prior = Transformer(parse(TransformerSettings, PRIOR, where="the benchmark"))
    Pipeline(tokenizer, prior, Unconditional()).save_pretrained(folder, about={"size": [SIDE, SIDE]})


def run(home: Path, command: list[str], *, kill_after: float | None = None) -> dict[str, Any]:
    """A command -> its seconds and the MiB of all its processes: at a quarter of its time, at three quarters, at most.

    With `kill_after` seconds all its processes are killed.
    """
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL)
    memory: list[float] = []
    while process.poll() is None:
        memory.append(resident(process.pid))
        if kill_after is not None and time.monotonic() - began > kill_after:
            for each in reversed(descendants(process.pid)):
                os.kill(each, signal.SIGKILL)
        time.sleep(0.5)
    assert process.returncode == (0 if kill_after is None else -signal.SIGKILL), f"{command}: {process.returncode}"
    places = {"a_quarter": len(memory) // 4, "three_quarters": 3 * len(memory) // 4}
    at = {f"mib_at_{name}": round(memory[place]) for name, place in places.items()}
    result = {"seconds": round(time.monotonic() - began, 1), **at, "mib_at_most": round(max(memory))}
    print(" ".join(command[1:]), result, file=sys.stderr, flush=True)
    return result


def descendants(process: int) -> list[int]:
    """A process and all that it started, directly or not."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it has ended
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [process]
    for each in found:  # which grows meanwhile
        found += [child for child, parent in parents.items() if parent == each]
    return found


def resident(process: int) -> float:
    """MiB of memory of a process and its descendants: what each has for itself, and its share of what several map."""
    total = 0
    for each in descendants(process):
        with suppress(OSError):
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


if __name__ == "__main__":
    main()
