"""`kill -9` at random moments: in `fit` with both trainings and encoding, while images are generated and saved.

SMALTI_KILLS is how many there are of each kind of command; docs/reliability.md says how many were made.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from smalti.fit import fit_run
from smalti.generation import generation_checkpoint
from smalti.training import pace
from tests.reliability.commands import kill_after, run, start
from tests.small import write_images, write_recipe
from tests.small_pipeline import written

KILLS = int(os.environ.get("SMALTI_KILLS", "8"))
"""Kills of each kind of command."""

FIT = ["fit", "set", "--out", "run", "--recipe", "small.yaml"]
SAMPLE = ["sample", "model", "-n", "4", "--size", "80x96", "--seed", "3", "--batch", "2", "--resume", "--out", "run"]


def short_fit() -> None:
    """Paces are taken in few steps."""
    fit_run.PACE_SECONDS, pace.PLACES, pace.MIN_TIMED_STEPS = 0.0, 2, 1


def every_row() -> None:
    """A generation is written to its file after every row."""
    generation_checkpoint.WRITE_INTERVAL = 0.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands read."""
    folder = tmp_path_factory.mktemp("kills")
    write_images(folder / "set")
    write_recipe(folder / "small.yaml")
    written(folder / "model")
    assert run(folder, ["recipes"], log=folder / "recipes.log") == 0  # from now on a process starts at once
    return folder


def kept(folder: Path) -> dict[str, bytes]:
    """The weights and the images that a command wrote, by name: what must not depend on kills."""
    files = sorted(path for kind in ("*.safetensors", "*.png") for path in folder.rglob(kind))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and unfinished generations."""
    return [path for kind in (".*.tmp", "*.generation") for path in folder.rglob(kind)]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "prepare"), [(FIT, short_fit), (SAMPLE, every_row)], ids=["fit", "sample"])
def test_kills_change_nothing(home: Path, arguments: list[str], prepare: Callable[[], None]) -> None:
    seed = random.SystemRandom().randrange(2**32)
    chance, kills, ended = random.Random(seed), 0, 0
    log = home / f"{arguments[0]}.log"
    shutil.rmtree(home / "run", ignore_errors=True)
    began = time.monotonic()
    assert run(home, arguments, log=log, prepare=prepare) == 0, log.read_text()
    whole, longest = kept(home / "run"), time.monotonic() - began
    assert whole
    shutil.rmtree(home / "run")
    while kills < KILLS:
        process = start(home, arguments, log=log, prepare=prepare)
        if kill_after(process, chance.uniform(0, longest)):
            kills += 1
            continue
        assert process.exitcode == 0, log.read_text()
        assert kept(home / "run") == whole, f"the kills of seed {seed}, after {kills}"
        assert not leftovers(home / "run")
        shutil.rmtree(home / "run")
        ended, longest = ended + 1, 0.9 * longest  # the machine may have been busier when this was timed
    assert run(home, arguments, log=log, prepare=prepare) == 0, log.read_text()
    assert kept(home / "run") == whole, f"the kills of seed {seed}"
    assert not leftovers(home / "run")
    text = log.read_text("utf-8", "replace")
    assert "Traceback" not in text
    print(f"{arguments[0]}: {kills} kills, {ended + 1} finished runs, each as the undisturbed one (seed {seed})")
