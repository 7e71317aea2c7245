"""What goes wrong while a model is trained, and that the next start ends with the weights of an undisturbed run.

Kills, SIGTERM, a full disk and values that are not numbers are in tests/training; random kills in test_random_kills.py.
"""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from smalti.core import temporary_paths
from smalti.core.errors import SmaltiError
from smalti.training import optimizer_step
from smalti.training.optimizer import set_rate
from tests.processes import finished
from tests.small import write_images, write_recipe
from tests.training.test_training import same_weights, small_tokenizer
from tests.training.test_two_processes import alone, check_same, started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a recipe, and an undisturbed run."""
    path = tmp_path_factory.mktemp("faults")
    write_images(path / "images")
    write_recipe(path / "small.yaml")
    small_tokenizer(path, "tokenizer")
    return path


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    """Do something in the middle of a step of training."""
    calls = 0

    def counted(moved: torch.optim.Optimizer, rate: float) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            act()
        set_rate(moved, rate)

    monkeypatch.setattr(optimizer_step, "set_rate", counted)


def stopped(folder: Path, out: str) -> None:
    """A run with two states, after 16 and after 20 images of 48."""
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 9, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SmaltiError, match=r"stopped by SIGTERM after 20 of 48 images"):
            small_tokenizer(folder, out)


def test_ctrl_c_saves_and_the_same_command_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 9, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(SmaltiError, match=r"stopped by SIGINT after 20 of 48 images.*same command"):
            small_tokenizer(folder, "interrupted")
    assert same_weights(small_tokenizer(folder, "interrupted"), folder / "tokenizer")


@pytest.mark.parametrize(
    "tenths", [pytest.param(n, marks=[] if n in (0, 5, 9) else pytest.mark.slow) for n in range(10)]
)
def test_a_newest_state_that_is_cut_anywhere(tenths: int, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = f"cut-{tenths}"
    if not (folder / "cut").is_dir():
        stopped(folder, "cut")
    shutil.copytree(folder / "cut", folder / out)
    older, newest = sorted(path for path in (folder / out / "state").iterdir() if path.name.isdigit())
    content = (newest / "state.ckpt").read_bytes()
    (newest / "state.ckpt").write_bytes(content[: len(content) * tenths // 10])
    with caplog.at_level(logging.WARNING, "smalti"):
        assert same_weights(small_tokenizer(folder, out), folder / "tokenizer")
    assert f"state {newest} cannot be read and is skipped" in caplog.text
    assert int(older.name) == 16


def test_a_folder_that_may_not_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(folder, "read-only")

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:  # a mode would not stop the administrator, as which tests may run
        patch.setattr(tempfile, "mkstemp", refused)
        patch.setattr(temporary_paths, "lock", refused)
        with pytest.raises(SmaltiError, match=r"cannot write .*read-only.*: Read-only file system"):
            small_tokenizer(folder, "read-only")
    assert same_weights(small_tokenizer(folder, "read-only"), folder / "tokenizer")


def test_an_image_that_vanishes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left out; the next start says that the images have changed."""
    write_images(tmp_path / "images")
    shutil.copy(folder / "small.yaml", tmp_path)
    gone = tmp_path / "images" / "light" / "03.png"
    with monkeypatch.context() as patch:
        at_step(patch, 4, gone.unlink)
        out = small_tokenizer(tmp_path, "vanished", "run.images=96", "images.cache_mib=0")
    assert (out / "model" / "model.safetensors").is_file()


def test_a_clock_that_is_set_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """States are ordered by what was seen, not by their dates; durations are of a clock that nobody sets."""
    stopped(folder, "clock")
    states = sorted((folder / "clock" / "state").iterdir())
    for days, state in enumerate(states):
        for path in (state, *state.iterdir()):
            os.utime(path, (10**9 - 10**5 * days,) * 2)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 10**8)
    assert same_weights(small_tokenizer(folder, "clock"), folder / "tokenizer")


def test_a_worker_that_dies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most are ended by the system, for want of memory; it was once a traceback of PyTorch."""

    def kill_one() -> None:
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        time.sleep(0.2)

    options = ("run.workers=1", "images.cache_mib=0")
    with monkeypatch.context() as patch:
        at_step(patch, 3, kill_one)
        with pytest.raises(SmaltiError, match=r"a process that reads images was killed.*run\.workers"):
            small_tokenizer(folder, "worker", *options)
    small_tokenizer(folder, "worker", "run.workers=0")
    assert same_weights(folder / "worker", folder / "tokenizer")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_two_that_is_killed(rank: int, folder: Path) -> None:
    """The other ends too, within the time of the processes' exchange; both go on as if nothing had been."""
    out = f"two-{rank}"
    one = alone(folder, f"one-{rank}")
    both = started(folder, out)
    while not list((folder / out / "state").glob("0*/state.ckpt")):
        assert all(process.poll() is None for process in both)
        time.sleep(0.02)
    both[rank].send_signal(signal.SIGKILL)
    output = both[1 - rank].communicate(timeout=120)[0]
    both[rank].communicate()
    assert both[1 - rank].returncode == 1, output
    assert "Traceback" not in output, output
    outputs = finished(started(folder, out))
    assert "resuming from" in outputs[0]
    check_same(one, folder / out)
