"""The first images of a data set of the library `datasets`, copied into a folder. Needs pip install '.[datasets]'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from smalti.core.errors import SmaltiError
from smalti.data import streaming
from smalti.data.caption_files import captions_among
from smalti.data.sources import open_source
from smalti.data.streaming import STATE, copy_stream
from tests.data.test_image_tables import check_images, table


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with eight images in a Parquet file."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "tables").mkdir()
    table(tmp_path, captions=["a ramp", "a slope"]).to_parquet(str(tmp_path / "tables" / "train.parquet"))
    return tmp_path / "tables"


def shown(done: int, count: int) -> None:
    assert 0 < done <= count


def test_a_copied_stream_has_the_images_classes_and_captions_of_its_rows(stored: Path, tmp_path: Path) -> None:
    copy_stream(stored, tmp_path / "out", count=100, progress=shown)
    check_images(open_source(tmp_path / "out"), tmp_path / "files")
    assert set(captions_among(open_source(tmp_path / "out")).values()) == {("a ramp", "a slope")}
    assert json.loads((tmp_path / "out" / STATE).read_text()) == {"name": str(stored), "rows": 8, "complete": True}


def test_only_the_first_rows_are_copied(stored: Path, tmp_path: Path) -> None:
    copy_stream(stored, tmp_path / "out", count=3, progress=shown)
    assert [path.stem for path in sorted((tmp_path / "out").rglob("*.png"))] == [f"{row:09d}" for row in range(3)]
    copy_stream(stored, tmp_path / "out", count=5, progress=shown)
    assert len(open_source(tmp_path / "out").images) == 5


def test_a_stopped_copy_continues_where_it_was(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "SAVE_EVERY", 2)

    def stop(done: int, count: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_stream(stored, tmp_path / "out", count=8, progress=stop)
    seen: list[int] = []
    copy_stream(stored, tmp_path / "out", count=8, progress=lambda done, count: seen.append(done))
    assert seen == [5, 6, 7, 8], "rows 0 to 3 are not read again"
    check_images(open_source(tmp_path / "out"), tmp_path / "files")


def test_a_folder_of_another_stream_is_refused(stored: Path, tmp_path: Path) -> None:
    copy_stream(stored, tmp_path / "out", count=1, progress=shown)
    with pytest.raises(SmaltiError, match="name another folder for those of hf:other"):
        copy_stream(Path("hf:other"), tmp_path / "out", count=1, progress=shown)


def test_a_stream_that_does_not_exist_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets: Any = pytest.importorskip("datasets")

    def missing(name: str, **options: Any) -> None:
        raise FileNotFoundError(f"no {name}")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(SmaltiError, match="cannot load the data set nobody/nothing from the Hub"):
        copy_stream(Path("hf:nobody/nothing"), tmp_path / "out", count=1, progress=shown)


@pytest.mark.parametrize(
    ("label", "name"), [("a/b", "a-b"), ("..", "unnamed"), (" C:\\x\n", "C--x-"), ("dusk", "dusk")]
)
def test_names_of_classes_are_names_of_folders(label: str, name: str) -> None:
    assert streaming._folder_name(label) == name
