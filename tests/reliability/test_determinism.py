"""The same command with the same seed writes the same files, byte for byte, whatever the batch and the workers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from smalti.core.settings import parse
from smalti.fit import fit_run
from smalti.scenes.scene_files import write_scenes
from smalti.training import pace
from smalti.training.config import CopiesSettings
from smalti.training.runs import encode_images
from tests.cli.test_cli import Runner, smalti
from tests.small import write_images, write_recipe
from tests.small_pipeline import written

__all__ = ["smalti"]

SILENT = lambda *done: None  # noqa: E731


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder by their paths."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("workers", [1, 2])
def test_scenes(workers: int, tmp_path: Path) -> None:
    for out, used in (("one", 1), ("two", workers)):
        write_scenes(tmp_path / out, count=5, size=(64, 64), seed=3, progress=SILENT, workers=used)
    assert len(files(tmp_path / "one")) > 15
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "images")
    written(tmp_path / "model")
    settings = parse(CopiesSettings, {"copies": 3, "images": {"size": (16, 16), "validation": 0.2}}, where="test")
    made = []
    for out, workers in (("one", 0), ("two", 0), ("three", 2)):
        arguments = tmp_path / "model" / "tokenizer", tmp_path / "images", tmp_path / out
        encode_images(*arguments, settings=settings, seed=5, progress=SILENT, device="cpu", workers=workers)
        made.append(files(tmp_path / out))
    assert len(made[0]) == 5
    assert made[0] == made[1] == made[2]


def test_samples(smalti: Runner, tmp_path: Path) -> None:
    written(tmp_path / "model")
    command = ["sample", tmp_path / "model", "-n", "5", "--size", "16x24", "--seed", "7", "--device", "cpu"]
    for batch in (1, 2, 5, 5):
        out = tmp_path / f"batch-{batch}"
        shutil.rmtree(out, ignore_errors=True)
        assert smalti(*command, "--batch", batch, "--out", out).status == 0
    whole = files(tmp_path / "batch-5")
    assert sum(name.endswith(".png") for name in whole) >= 5
    for batch in (1, 2):
        assert files(tmp_path / f"batch-{batch}") == whole


TIMED = re.compile(r"[\d.,]+ (?:s|min|h|hours?|minutes?|seconds?)\b|\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::[\d.]+)?")
"""Dates and how long things took, in reports."""
CHART = re.compile(r"<svg.*?</svg>", re.DOTALL)
"""Some are of durations."""
CLOCKS = {"time", "elapsed"}


def untimed(content: bytes, name: str) -> object:
    """A file without what is measured with a clock."""
    if name.endswith(".jsonl"):
        lines = [json.loads(line) for line in content.splitlines()]
        return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines]
    if name.endswith(".html"):
        return TIMED.sub("", CHART.sub("", content.decode()))
    return content


@pytest.mark.slow
def test_fit(smalti: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights, the samples and the whole of a fit's report."""
    monkeypatch.setattr(fit_run, "PACE_SECONDS", 0.0)
    monkeypatch.setattr(pace, "PLACES", 2)
    monkeypatch.setattr(pace, "MIN_TIMED_STEPS", 1)
    write_images(tmp_path / "set")
    write_recipe(tmp_path / "small.yaml")
    monkeypatch.chdir(tmp_path)
    made = []
    for _ in range(2):
        shutil.rmtree("run", ignore_errors=True)
        assert smalti("fit", "set", "--out", "run", "--recipe", "small.yaml").status == 0
        made.append(files(tmp_path / "run"))
    one, two = made
    assert one.keys() == two.keys()
    exact = [name for name in one if name.endswith((".safetensors", ".png", ".npy", ".yaml"))]
    assert len(exact) > 8
    for name in exact:
        assert one[name] == two[name], name
    for name in one:
        if name.endswith((".html", ".jsonl")):
            assert untimed(one[name], name) == untimed(two[name], name), name
