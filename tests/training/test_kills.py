"""The long form of the promise in `test_training.py`: `kill -9` at ten moments that nobody chose."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import equal

from tests.small import write_images, write_recipe

KILLS = 10
COMMANDS = {
    "tokenizer": ["images", "--set", "run.images=640"],
    "prior": ["codes", "--tokenizer", "tokenizer", "--set", "run.codes=9600"],
}


def start(folder: Path, stage: str, out: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "smalti", "train", stage, *COMMANDS[stage], "--recipe", "small.yaml", "--out", out]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kills")
    write_images(path / "images")
    write_recipe(path / "small.yaml")
    assert start(path, "tokenizer", "tokenizer").wait() == 0
    encode = ["encode", "tokenizer", "images", "--out", "codes", "--size", "16", "--validation", "0.2"]
    subprocess.run([sys.executable, "-m", "smalti", *encode], cwd=path, check=True, stdout=subprocess.DEVNULL)
    assert start(path, "prior", "prior").wait() == 0
    return path


@pytest.mark.slow
@pytest.mark.parametrize("stage", sorted(COMMANDS))
def test_ten_kills_change_nothing(folder: Path, stage: str) -> None:
    chance, kills = random.Random(), 0
    began = time.monotonic()
    whole = start(folder, stage, f"{stage}-timed")
    assert whole.wait() == 0
    longest = time.monotonic() - began
    attempt = 0
    while kills < KILLS:
        run = start(folder, stage, f"{stage}-killed-{attempt}")
        try:
            run.wait(chance.uniform(0.3, 0.9) * longest)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            run.wait()
            kills += 1
        else:  # it came to its end between two kills: once more from the beginning
            assert same_weights(folder / stage, folder / f"{stage}-killed-{attempt}")
            attempt, longest = attempt + 1, 0.9 * longest  # the machine may have been busier when this was timed
    assert start(folder, stage, f"{stage}-killed-{attempt}").wait() == 0
    assert same_weights(folder / stage, folder / f"{stage}-killed-{attempt}")


def same_weights(a: Path, b: Path) -> bool:
    one, other = (load_file(run / "model" / "model.safetensors") for run in (a, b))
    return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
