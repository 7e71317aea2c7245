"""Data sets of the library `datasets` as sources of images. Most tests need it: pip install '.[datasets]'."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smalti.core.errors import SmaltiError
from smalti.data.caption_files import captions_among
from smalti.data.image_tables import is_hub_name
from smalti.data.sources import Source, holds_many, open_source
from tests.small import LABELS, write_images


def table(folder: Path, *, captions: Any = "a ramp") -> Any:
    """The small images as a data set with the columns image, label and text."""
    datasets = pytest.importorskip("datasets")
    files = sorted(write_images(folder / "files", count=4).rglob("*.png"))
    names = sorted(LABELS)
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    text = datasets.Value("string") if isinstance(captions, str) else datasets.Sequence(datasets.Value("string"))
    columns = {
        "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
        "label": [names.index(file.parent.name) for file in files],
        "text": [captions] * len(files),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features({**features, "text": text}))


def check_images(source: Source, files: Path) -> None:
    """The images of a source are those of the files, in that order, with their classes."""
    others = open_source(files)
    assert source.labels == others.labels
    assert [image.label for image in source.images] == [image.label for image in others.images]
    for image, other in zip(source.images, others.images, strict=True):
        assert source.length(image) == others.length(other)
        np.testing.assert_array_equal(source.read(image, 3), others.read(other, 3))


def test_a_saved_data_set_is_a_source(tmp_path: Path) -> None:
    table(tmp_path).save_to_disk(str(tmp_path / "saved"))
    source = open_source(tmp_path / "saved")
    check_images(source, tmp_path / "files")
    check_images(pickle.loads(pickle.dumps(source)), tmp_path / "files")
    assert set(captions_among(source).values()) == {("a ramp",)}


def test_of_several_splits_train_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    datasets = pytest.importorskip("datasets")
    rows = table(tmp_path, captions=["a ramp", "a slope"])
    datasets.DatasetDict({"test": rows.select(range(2)), "train": rows}).save_to_disk(str(tmp_path / "splits"))
    source = open_source(tmp_path / "splits")
    assert len(source.images) == 8
    assert "the splits test, train; train is read" in caplog.text
    assert set(captions_among(source).values()) == {("a ramp", "a slope")}


def test_a_folder_of_parquet_files_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "tables" / "data").mkdir(parents=True)
    rows = table(tmp_path)
    rows.to_parquet(str(tmp_path / "tables" / "data" / "train-00000-of-00001.parquet"))
    rows.select(range(2)).to_parquet(str(tmp_path / "tables" / "data" / "test-00000-of-00001.parquet"))
    check_images(open_source(tmp_path / "tables"), tmp_path / "files")


def test_tables_without_images_are_refused(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(SmaltiError, match="has no column of images; there are: text"):
        open_source(tmp_path / "saved")


def test_a_damaged_table_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.parquet").write_bytes(b"no table")
    with pytest.raises(SmaltiError, match=r"cannot read the tables in .*tables: "):
        open_source(tmp_path / "tables")


def test_without_the_library_its_install_line_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "a.arrow").write_bytes(b"")
    for path in (tmp_path, Path("hf:somebody/something")):
        with pytest.raises(SmaltiError, match=r"pip install 'smalti\[datasets\]'"):
            open_source(path)


def test_names_on_the_hub_have_a_prefix() -> None:
    assert is_hub_name(Path("hf:somebody/something"))
    assert holds_many(Path("hf:somebody/something"))
    assert not is_hub_name(Path("somebody/something"))


def test_images_in_the_folder_of_tables_come_first(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    (tmp_path / "images" / "notes.parquet").write_bytes(b"")
    assert len(open_source(tmp_path / "images").images) == 20
