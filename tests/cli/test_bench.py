"""`smalti bench`: a table of rates that are those of its work, for pipelines and tokenizers."""

from __future__ import annotations

from pathlib import Path

import pytest

from smalti.cli import bench
from tests.cli.test_cli import Runner
from tests.cli.test_cli import smalti as smalti
from tests.small_pipeline import written


def rows(out: str) -> list[list[str]]:
    """The cells of the lines below the head of the table."""
    lines = [line.split() for line in out.splitlines()]
    first = next(place for place, line in enumerate(lines) if line[:1] == ["task"])
    return lines[first + 1 : -1]


def test_a_pipeline_and_its_tokenizer(smalti: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line takes half a second, as its clock says: what it makes in that is known."""
    written(tmp_path / "model")
    monkeypatch.setattr(bench, "_seconds", lambda work, count: 0.5 if work.run(count) is not None else None)
    done = smalti("bench", tmp_path / "model", "--batch", 3, "--device", "cpu")
    assert done.status == 0, done.err
    assert "model, images of 12x16 (height x width), cpu with" in done.out
    assert [row[:4] for row in rows(done.out)] == [
        ["encoding", "1", "2.0", "images"],
        ["decoding", "1", "2.0", "images"],
        ["generation", "1", "24.0", "codes"],
        ["encoding", "3", "6.0", "images"],
        ["decoding", "3", "6.0", "images"],
        ["generation", "3", "72.0", "codes"],
    ]
    assert all(row[5] == "MiB" and int(row[4].replace(",", "")) > 50 for row in rows(done.out))
    done = smalti("bench", tmp_path / "model" / "tokenizer", "--batch", 1, "--size", "8x4", "--device", "cpu")
    assert "tokenizer, images of 8x4 (height x width)" in done.out
    assert [row[:2] for row in rows(done.out)] == [["encoding", "1"], ["decoding", "1"]]


def test_the_typical_run_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run warms up; of the others, until they have taken a second, the median."""
    now, lasting = [0.0], [9.0, 0.1, 0.2, 0.6, 0.3, 5.0]
    counts: list[int] = []

    def run(count: int) -> None:
        now[0] += lasting[len(counts)]
        counts.append(count)

    monkeypatch.setattr("smalti.cli.bench.time.perf_counter", lambda: now[0])
    assert bench._seconds(bench.Task("generation", "codes", 1, run), 7) == pytest.approx(0.25)
    assert counts == [7] * 5


def test_what_cannot_be_measured_is_reported(smalti: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    smalti.fails("bench", "model", "--size", "13x16", sentence="13 x 16 .* cannot be cut into tiles of 4 pixels; crop")
    smalti.fails("bench", "modle", sentence="there is no model folder modle")
    smalti.fails("bench", "model/prior", sentence="holds a prior, a tokenizer is needed here")
