"""`smalti sample` and `complete` stopped and gone on with, partial images, and images that go by strips."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from smalti.cli.generation_output import OVERLAP, OutputFile, PartialPreview
from smalti.generation import generation_loop
from smalti.generation.generation_loop import generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.images.io import read_settings, save_png, to_array
from smalti.pipeline import Pipeline
from smalti.prior import Prior
from smalti.tokenizer.tiled import any_size
from tests.cli.test_cli import Runner, pixels
from tests.cli.test_cli import smalti as smalti
from tests.small_pipeline import noise, pipeline, written

SIZE = ("--size", "20x24")
"""5 x 6 codes, under a window of 3 x 4."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    written(tmp_path / "model")
    return tmp_path / "model"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stop_after(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """The first generation from now on gets a SIGTERM when it has generated so many rows."""

    def stopped(prior: Prior, request: GenerationRequest) -> Iterator[Tensor]:
        monkeypatch.setattr(generation_loop, "generate", generate)
        for row, codes in enumerate(generate(prior, request)):
            if row == rows:
                os.kill(os.getpid(), signal.SIGTERM)
            yield codes

    monkeypatch.setattr(generation_loop, "generate", stopped)


def test_a_stopped_sample_goes_on(smalti: Runner, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("sample", model, "-n", 3, "--label", "dusk", "--seed", 7, *SIZE)
    assert smalti(*command, "--out", tmp_path / "whole").status == 0
    out = ("--out", tmp_path / "out")
    before = signal.getsignal(signal.SIGTERM)
    stop_after(monkeypatch, 3)
    smalti.fails(
        *command,
        *out,
        sentence=r"stopped with \d+ of 90 codes generated, saved in .*dusk-000007\.generation; run the same",
    )
    assert signal.getsignal(signal.SIGTERM) is before
    assert names(tmp_path / "out") == ["dusk-000007.generation"]
    message = " ".join(smalti("info", tmp_path / "out" / "dusk-000007.generation").out.split())
    assert "of 90 codes, 3 x 5 x 6 (images x rows x columns)" in message
    assert "label: dusk" in message
    smalti.fails(
        *command,
        *out,
        sentence="holds the partial result of a stopped command; continue it with --resume, or delete it",
    )
    smalti.fails(*command, *out, "--resume", "--top-k", 3, sentence="another generation: top_k 0 there and 3 here")
    done = smalti(*command, *out, "--resume")
    assert done.status == 0, done.err
    assert "resuming from" in done.out
    assert names(tmp_path / "out") == names(tmp_path / "whole") == [f"dusk-00000{seed}.png" for seed in (7, 8, 9)]
    for name in names(tmp_path / "out"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_images_that_are_there_stay(
    smalti: Runner, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("sample", model, "--label", "dusk", "--batch", 1, *SIZE, "--out", tmp_path / "out")
    assert smalti(*command, "-n", 2).status == 0
    kept, other = (tmp_path / "out" / f"dusk-00000{seed}.png" for seed in (0, 1))
    save_png(other, np.zeros((20, 24, 3), np.uint8), settings={**(read_settings(other) or {}), "temperature": 0.5})
    (tmp_path / "out" / "dusk-000000.generation").write_bytes(b"left behind by a kill after the image was written")
    before = os.stat(kept).st_mtime_ns
    generated: list[int] = []

    def counted(prior: Prior, request: GenerationRequest) -> Iterator[Tensor]:
        generated.extend(request.seeds.tolist())
        return generate(prior, request)

    monkeypatch.setattr(generation_loop, "generate", counted)
    assert smalti(*command, "-n", 3, "--resume").status == 0
    assert generated == [1, 2], "one was made with another temperature, and one is not there"
    assert os.stat(kept).st_mtime_ns == before
    assert names(tmp_path / "out") == [f"dusk-00000{seed}.png" for seed in (0, 1, 2)]
    generated.clear()
    assert smalti(*command, "-n", 1, "--resume", "--best-of", 2).status == 0
    assert len(generated) == 2, "it was not chosen among two"
    generated.clear()
    assert smalti(*command, "-n", 1, "--resume", "--best-of", 2).status == 0
    assert generated == []


def test_a_stop_before_the_first_row_keeps_nothing(
    smalti: Runner, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, 0)
    (tmp_path / "out").mkdir()
    command = ("sample", model, "--out", tmp_path / "out", *SIZE)
    smalti.fails(*command, sentence="stopped before the first row of codes was finished; nothing was saved")
    assert names(tmp_path / "out") == []


def test_a_stop_while_decoding_keeps_the_codes(
    smalti: Runner, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    command = ("sample", model, "-n", 1, *SIZE, "--out", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "save", stopped)
        smalti.fails(*command, sentence=r"stopped with 30 of 30 codes generated, saved in .*sample-000000\.generation")
    assert smalti(*command, "--resume").status == 0
    assert names(tmp_path / "out") == ["sample-000000.png"]


def test_a_stopped_completion_goes_on(
    smalti: Runner, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_png(tmp_path / "given.png", noise(3, 20, 24))
    command = ("complete", model, tmp_path / "given.png", "--keep", "left-half", "-n", 2, *SIZE)
    assert smalti(*command, "--out", tmp_path / "whole").status == 0
    out = ("--out", tmp_path / "out")
    stop_after(monkeypatch, 2)
    smalti.fails(*command, *out, sentence=r"saved in .*given-000000\.generation")
    assert smalti(*command, *out, "--resume").status == 0
    assert names(tmp_path / "out") == names(tmp_path / "whole")
    for name in names(tmp_path / "out"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_large_images_go_by_strips_in_every_command(
    smalti: Runner, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_png(tmp_path / "given.png", noise(3, 40, 24))
    commands = {
        "sample": ("sample", model, "-n", 2, "--size", "40x24"),
        "complete": (
            "complete",
            model,
            tmp_path / "given.png",
            "--keep",
            "top-half",
            "-n",
            1,
            "--size",
            "40x24",
            "--no-blend",
        ),
        "reconstruct": ("reconstruct", model / "tokenizer", tmp_path / "given.png"),
    }
    for name, command in commands.items():
        assert smalti(*command, "--out", tmp_path / "whole" / name).status == 0
    monkeypatch.setattr(any_size, "MAX_UNTILED_PIXELS", 40 * 24 - 1)
    monkeypatch.setattr(any_size, "STRIP", 1)
    for name, command in commands.items():
        done = smalti(*command, "--out", tmp_path / "strips" / name)
        assert done.status == 0, done.err
        rows = {"sample": "decoding: 80/80 rows", "complete": "decoding: 40/40 rows", "reconstruct": "1 images"}
        assert rows[name] in done.out
        assert names(tmp_path / "strips" / name) == names(tmp_path / "whole" / name)
        for image in names(tmp_path / "whole" / name):
            one, other = (pixels(tmp_path / way / name / image) for way in ("strips", "whole"))
            assert np.abs(one.astype(int) - other).max() <= 1


def test_info_of_an_image_that_is_never_read_whole(
    smalti: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_png(tmp_path / "a.png", noise(3, 12, 16), settings={"seed": 5})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    message = " ".join(smalti("info", tmp_path / "a.png").out.split())
    assert "size: 12x16 (height x width)" in message
    assert "seed: 5" in message


# --- partial images ----------------------------------------------------------------------------------------------


def test_a_partial_image_while_it_generates(
    smalti: Runner, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smalti.cli.generation_output.MAX_SHARE", 1)
    command = ("sample", model, "-n", 1, *SIZE, "--out", tmp_path)
    stop_after(monkeypatch, 2)
    assert smalti(*command, "--preview", 1e-9).status == 1
    assert pixels(tmp_path / "sample-000000-partial.png").shape == (20, 24, 3)
    assert "partial:" in smalti("info", tmp_path / "sample-000000-partial.png").out
    assert smalti(*command, "--preview", 0, "--resume").status == 0
    assert not list(tmp_path.glob("*partial*")), "the image is there"


@torch.no_grad()
def test_a_partial_image_decodes_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, now, heights = pipeline(), [0.0], []
    grid, decode = (40, 6), Pipeline.decode_partial

    def spy(self: Pipeline, codes: Tensor) -> Tensor:
        heights.append(codes.shape[1])
        now[0] += 2
        return decode(self, codes)

    monkeypatch.setattr(Pipeline, "decode_partial", spy)
    monkeypatch.setattr("smalti.generation.partial_images.time.monotonic", lambda: now[0])
    partial = PartialPreview(pipe, tmp_path / "a.png", grid, every=5)
    rows = list(generate(pipe.prior, pipe.request(unknown_codes(1, grid))))
    times: list[float] = []
    for codes in rows:
        now[0] += 1
        partial.update(codes[0])
        if len(heights) > len(times):
            times.append(now[0])
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert set(gaps) == {2 + 9 * 2}, "nine times as long as it took, which is more than the five seconds asked for"
    assert heights[0] <= 5 + 2
    assert all(height <= 18 + OVERLAP + 2 for height in heights[1:])
    # Rows that are laid are shown, what is not is mid-gray.
    shown = pixels(tmp_path / "a.png")
    last = rows[round(times[-1] - 2 * len(times)) - 1][0]
    generated = (last >= 0).repeat_interleave(4, 0).repeat_interleave(4, 1).numpy()
    assert (shown[~generated] == 128).all()
    assert shown[generated].std() > 10


@torch.no_grad()
def test_a_partial_image_of_a_large_one_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline()
    codes = torch.randint(16, (6, 9), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("smalti.cli.generation_output.MAX_SIDE", 20)  # 9 codes of 2 pixels; of 4 would be more
    partial = PartialPreview(pipe, tmp_path / "a.png", (6, 9), every=1e-9)
    partial.update(codes)
    whole = to_array(torch.nn.functional.avg_pool2d(pipe.decode(codes[None]), 2)[0])
    assert np.abs(pixels(tmp_path / "a.png").astype(int) - whole).max() <= 1
    monkeypatch.setattr("smalti.cli.generation_output.MAX_SIDE", 5)
    PartialPreview(pipe, tmp_path / "b.png", (6, 9), every=1e-9).update(codes)
    assert pixels(tmp_path / "b.png").shape == (6, 9, 3)


def test_other_images_are_not_taken_for_finished(tmp_path: Path) -> None:
    settings = {"seed": 3, "size": [4, 4], "label": None}
    for name, found in (
        ("a", settings),
        ("b", {**settings, "score": 1.5}),
        ("c", {**settings, "best_of": 2}),
        ("d", {}),
    ):
        save_png(tmp_path / f"{name}.png", np.zeros((4, 4, 3), np.uint8), settings=found)
    Image.new("RGB", (4, 4)).save(tmp_path / "e.png")
    finished = {name: OutputFile(tmp_path / f"{name}.png", settings).finished for name in "abcdef"}
    assert finished == {"a": True, "b": True, "c": False, "d": False, "e": False, "f": False}
