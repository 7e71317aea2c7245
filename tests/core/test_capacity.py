"""What is beyond the memory of this machine is refused in a sentence, before anything is allocated."""

from __future__ import annotations

import os

import numpy as np
import pytest

from smalti.cli import main
from smalti.core import capacity
from smalti.core.capacity import available_cores, check_memory, machine_memory
from smalti.core.errors import SmaltiError
from smalti.generation.request import check_generation_memory, seed_range, unknown_codes
from smalti.images.resizing import covered_middle, resize_to_cover

MIB = 2**20


def test_this_machine_has_some_memory_or_does_not_say() -> None:
    assert machine_memory() == 0 or machine_memory() > 64 * MIB


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that a batch system pins to 2 of 128 cores started 128 processes."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    assert available_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS and Windows
    assert available_cores() == 128
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


def test_more_than_there_is_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "machine_memory", lambda: 8192 * MIB)
    check_memory(8192 * MIB, "a thing")
    with pytest.raises(
        SmaltiError, match=r"a thing would take about 1\.0 TiB of memory, and this machine has 8\.0 GiB; ask"
    ):
        check_memory(2**40, "a thing")
    monkeypatch.setattr(capacity, "machine_memory", lambda: 0)  # a system that does not say it
    check_memory(2**60, "a thing")


@pytest.mark.parametrize("grid", [(62500, 62500), (1, 2**40), (10**9, 10**9)])
def test_grids_beyond_memory_are_refused(grid: tuple[int, int]) -> None:
    with pytest.raises(SmaltiError, match=r"generating 1 image of .* codes .* would take about .* ask for less"):
        unknown_codes(1, grid)


def test_too_many_images_are_refused() -> None:
    with pytest.raises(SmaltiError, match=r"generating 1,000,000,000,000 images of 4 x 4 codes .* ask for less"):
        check_generation_memory(10**12, (4, 4))
    with pytest.raises(SmaltiError, match=r"seeds of 1,000,000,000,000,000 images would take"):
        seed_range(0, 10**15)


@pytest.mark.parametrize("side", [10**6, 10**9])
def test_images_are_not_scaled_beyond_memory(side: int) -> None:
    array = np.zeros((4, 4, 3), np.uint8)
    for scale in (resize_to_cover, covered_middle):
        for filter in ("lanczos", "nearest"):
            with pytest.raises(SmaltiError, match=f"an image of {side:,} x {side:,} pixels"):
                scale(array, (side, side), filter=filter)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
)
def test_a_command_that_runs_out_of_memory_ends_in_a_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    assert "not enough memory" in " ".join(capsys.readouterr().err.split())


def test_other_errors_of_pytorch_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        main.main()
