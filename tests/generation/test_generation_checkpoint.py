"""What is laid, kept in a file: a stop anywhere, and then the same image, code for code."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from smalti.conditions.base import code_crops
from smalti.core.errors import SmaltiError
from smalti.generation.generation_checkpoint import (
    GenerationCheckpoint,
    SavedGeneration,
    generation_fingerprint,
    read_generation,
    save_generation,
)
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.pipeline import Pipeline
from tests.small_pipeline import pipeline


def make_checkpoint(
    pipe: Pipeline, path: Path, known: Tensor, *, label: str = "dusk", seed: int = 3, **options: Any
) -> GenerationCheckpoint:
    request = pipe.request(known, conditions={"label": label}, seed=seed, **options)
    return GenerationCheckpoint(path, pipe.prior, request, settings={"label": label, "seed": seed, **options})


def leave(checkpoint: GenerationCheckpoint) -> None:
    """As Ctrl-C does."""
    with pytest.raises(KeyboardInterrupt), checkpoint:
        raise KeyboardInterrupt


def generation_steps(pipe: Pipeline, known: Tensor, **options: Any) -> Iterator[Tensor]:
    return generate(pipe.prior, pipe.request(known, conditions={"label": "dusk"}, seed=3, **options))


@given(
    height=st.integers(1, 7),
    width=st.integers(1, 9),
    batch=st.integers(1, 2),
    guidance=st.sampled_from([1.0, 2.5]),
    stops=st.lists(st.integers(0, 7), min_size=1, max_size=3),
    holes=st.floats(0, 1),
)
@settings(max_examples=25)
def test_a_stopped_generation_goes_on_to_the_same_codes(
    tmp_path_factory: pytest.TempPathFactory,
    height: int,
    width: int,
    batch: int,
    guidance: float,
    stops: list[int],
    holes: float,
) -> None:
    pipe, path = pipeline(), tmp_path_factory.mktemp("kept") / "a.generation"
    chance = torch.Generator().manual_seed(height * 10 + width)
    given_codes = torch.randint(16, (batch, height, width), generator=chance)
    known = torch.where(torch.rand(batch, height, width, generator=chance) < holes, -1, given_codes)
    options: dict[str, Any] = {"guidance": guidance, "guidance_schedule": "cosine"}
    whole = final_codes(generation_steps(pipe, known, **options))
    for stop in stops:
        with suppress(KeyboardInterrupt), make_checkpoint(pipe, path, known, **options) as checkpoint:
            before = checkpoint.codes
            assert torch.equal(torch.where(before < 0, whole, before), whole)
            for row, _ in enumerate(checkpoint.states()):
                if row == stop:
                    raise KeyboardInterrupt
        assert checkpoint.count >= checkpoint.initial_count
    with make_checkpoint(pipe, path, known, **options) as checkpoint:
        assert list(checkpoint.states())[-1].is_complete
        assert torch.equal(checkpoint.codes, whole)
    assert not list(path.parent.iterdir())


def test_a_generation_is_kept_when_its_block_is_left_early(tmp_path: Path) -> None:
    pipe, path, known = pipeline(), tmp_path / "a.generation", unknown_codes(2, (5, 6))
    checkpoint = make_checkpoint(pipe, path, known)
    rows = list(generation_steps(pipe, known))
    checkpoint.update(rows[1])
    assert not path.exists(), "written every ten seconds, not at every row"
    leave(checkpoint)
    found = read_generation(path)
    assert torch.equal(found.codes, rows[1])
    assert found.codes.dtype == torch.int64
    assert found.settings == {"label": "dusk", "seed": 3}
    before = path.read_bytes()
    again = make_checkpoint(pipe, path, known)
    assert again.initial_count == again.count == int((rows[1] >= 0).sum())
    leave(again)  # nothing new
    assert path.read_bytes() == before


def test_nothing_is_kept_of_nothing(tmp_path: Path) -> None:
    known = unknown_codes(1, (3, 4))
    known[0, 2] = 5
    leave(make_checkpoint(pipeline(), tmp_path / "a.generation", known))
    assert not list(tmp_path.iterdir())


def test_it_is_written_every_so_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, path, now = pipeline(), tmp_path / "a.generation", [100.0]
    monkeypatch.setattr("smalti.generation.generation_checkpoint.time.monotonic", lambda: now[0])
    checkpoint, written = make_checkpoint(pipe, path, unknown_codes(1, (5, 6))), []
    for codes in generation_steps(pipe, checkpoint.codes):
        now[0] += 6
        checkpoint.update(codes)
        written.append(int((read_generation(path).codes >= 0).sum()) if path.exists() else 0)
    counts = [int((codes >= 0).sum()) for codes in generation_steps(pipe, checkpoint.codes * 0 - 1)]
    assert written == [0, counts[1], counts[1], counts[3], counts[3]]


def stopped(pipe: Pipeline, path: Path, known: Tensor) -> None:
    checkpoint = make_checkpoint(pipe, path, known)
    checkpoint.update(next(generation_steps(pipe, known)))
    leave(checkpoint)


def test_another_generation_is_refused(tmp_path: Path) -> None:
    pipe, path, known = pipeline(), tmp_path / "a.generation", unknown_codes(1, (5, 6))
    stopped(pipe, path, known)
    with pytest.raises(
        SmaltiError, match=r"another generation: label 'dusk' there and 'dawn' here; repeat that request"
    ):
        make_checkpoint(pipe, path, known, label="dawn")
    with pytest.raises(SmaltiError, match="another generation: seed 3 there and 4 here"):
        make_checkpoint(pipe, path, known, seed=4)
    with pytest.raises(SmaltiError, match="another generation: top_k None there and 5 here"):
        make_checkpoint(pipe, path, known, top_k=5)
    changed = "another generation: the model or a file of its condition has changed since"
    for other in (unknown_codes(1, (6, 5)), unknown_codes(2, (5, 6)), known.index_fill(1, torch.tensor([4]), 2)):
        with pytest.raises(SmaltiError, match=changed):
            make_checkpoint(pipe, path, other)
    with torch.no_grad():
        next(pipe.prior.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(SmaltiError, match=changed):
        make_checkpoint(pipe, path, known)
    assert read_generation(path).settings["label"] == "dusk"


def test_all_of_a_map_counts() -> None:
    """Also what does not lie under the first place of the window, of 3 x 4 codes."""
    pipe, grid, prints = pipeline(), (5, 7), set()
    for place in range(36):
        codes = torch.zeros(1, 36, dtype=torch.int64)
        codes[0, place] = 1  # the last outside the grid: none
        prefix_at = code_crops(codes[:, :35].view(1, *grid))
        made = generation_fingerprint(
            pipe.prior,
            GenerationRequest(prefix_at, unknown_codes(1, grid), seeds=pipe.seeds(0, 1)),
        )
        prints.add(made)
    assert len(prints) == 36


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "text"])
def test_damaged_files_raise_errors(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.generation"
    save_generation(path, SavedGeneration(unknown_codes(1, (2, 2)), "f", {}))
    whole = path.read_bytes()
    if damage == "other":
        save_file({"weight": torch.zeros(2)}, path)
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello" * 50}[damage])
    with pytest.raises(
        SmaltiError,
        match=r"a\.generation is not a generation checkpoint, or is damaged \(.*\); delete it to start again",
    ):
        read_generation(path)
    with pytest.raises(SmaltiError, match=r"there is no file .*nowhere"):
        read_generation(tmp_path / "nowhere")


def test_newer_files_raise_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("smalti.generation.generation_checkpoint.FORMAT", 9)
        save_generation(tmp_path / "a.generation", SavedGeneration(unknown_codes(1, (2, 2)), "f", {}))
    with pytest.raises(SmaltiError, match=r"written by a newer smalti \(format 9\); update smalti"):
        read_generation(tmp_path / "a.generation")


def test_a_full_disk_keeps_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, path, known = pipeline(), tmp_path / "a.generation", unknown_codes(1, (5, 6))
    stopped(pipe, path, known)
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("smalti.generation.generation_checkpoint.save_file", full)
    checkpoint = make_checkpoint(pipe, path, known)
    checkpoint.update(list(generation_steps(pipe, checkpoint.codes))[2])
    with pytest.raises(SmaltiError, match=r"cannot write .*a\.generation: No space left"), checkpoint:
        raise KeyboardInterrupt
    assert path.read_bytes() == before


# --- the stream of a pipeline --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_stream_goes_on_where_it_was_left(tmp_path: Path, stop: int) -> None:
    pipe, path = pipeline(), tmp_path / "wide.generation"
    whole = pipe.sample(label="dusk", seed=3, size=(20, 24))[0]

    def stream() -> Iterator[Tensor]:
        return pipe.stream(label="dusk", seed=3, size=(20, 24), checkpoint=path)

    for row, _ in enumerate(stream(), start=1):
        if row == stop:
            break
    assert int((read_generation(path).codes >= 0).sum()) >= 6 * stop
    again = list(stream())
    assert len(again) == max(5 - stop, 1), "it did not start from scratch"
    assert torch.equal(again[-1], whole)
    assert not path.exists()
    next(stream())
    with pytest.raises(SmaltiError, match="another generation: label"):
        next(pipe.stream(label="dawn", seed=3, size=(20, 24), checkpoint=str(path)))
