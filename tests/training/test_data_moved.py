"""Data that was moved or has changed since a run or codes were begun, and damage where a single image is held out."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from smalti.core.errors import SmaltiError
from smalti.data.annotations.objects import stems
from smalti.data.code_shards import open_codes
from smalti.data.config import ImageSettings
from smalti.data.sources import held_out_order, open_source, split
from smalti.encoding.condition_encoding import ConditionSource
from smalti.training.config import CopiesSettings, TokenizerTraining, resolve
from smalti.training.run_folder import read_metrics
from smalti.training.runs import encode_images, train_tokenizer
from tests.small import write_images, write_recipe

QUIET = Console(quiet=True)


def trained(folder: Path, data: Path, *, length: int, out: str = "run", more: tuple[str, ...] = ()) -> Path:
    overrides = (f"run.images={length}", "run.checkpoint_every=8", *more)
    settings = resolve(TokenizerTraining, stage="tokenizer", recipe=str(folder / "small.yaml"), overrides=overrides)
    train_tokenizer(data, folder / out, settings=settings, console=QUIET)
    return folder / out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`images`, and a run on them of 8 images in `run`."""
    write_images(tmp_path / "images")
    write_recipe(tmp_path / "small.yaml")
    trained(tmp_path, tmp_path / "images", length=8)
    return tmp_path


def seen(run: Path) -> int:
    return max(int(line["seen"]) for line in read_metrics(run))


def test_a_run_goes_on_where_its_data_was_moved(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It was refused as one with other settings, for the path of the data was all that was known of it."""
    moved = folder / "elsewhere" / "photos"
    moved.parent.mkdir()
    (folder / "images").rename(moved)
    with caplog.at_level(logging.WARNING, logger="smalti"):
        run = trained(folder, moved, length=16)
    assert seen(run) == 16
    assert not caplog.records
    assert yaml.safe_load((run / "config.yaml").read_text("utf-8"))["data"] == str(moved.resolve())


def list_of(data: Path, path: Path) -> Path:
    """A list of the absolute paths of the images in a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{file.absolute()}\n" for file in sorted(data.rglob("*.png"))), "utf-8")
    return path


def test_a_run_goes_on_where_the_images_of_its_list_were_moved(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Absolute paths were taken for names: all images were others, and so were those that are held out."""
    listed = list_of(folder / "images", folder / "lists" / "train.txt")
    run = trained(folder, listed, length=8, out="listed")
    held_out = {image.portable_name for image in split(open_source(listed).images, validation=0.2)[1]}
    moved = folder / "elsewhere" / "photos"
    moved.parent.mkdir()
    (folder / "images").rename(moved)
    listed = list_of(moved, folder / "other" / "all.txt")
    with caplog.at_level(logging.WARNING, logger="smalti"):
        assert seen(trained(folder, listed, length=16, out="listed")) == 16
    assert not caplog.records
    assert {image.portable_name for image in split(open_source(listed).images, validation=0.2)[1]} == held_out
    next(iter(sorted(moved.rglob("*.png")))).unlink()
    other = list_of(moved, folder / "third" / "all.txt")
    with pytest.raises(SmaltiError, match=r"holds a run with other settings \(data is .*all.txt' there"):
        trained(folder, other, length=24, out=run.name)


def test_codes_are_those_of_the_same_list_of_images(folder: Path) -> None:
    list_of(folder / "images", folder / "lists" / "train.txt")
    assert encoded(folder, "lists/train.txt")
    shutil.copytree(folder / "images", folder / "moved")
    list_of(folder / "moved", folder / "others.txt").rename(folder / "lists" / "others.txt")
    assert not encoded(folder, "lists/others.txt")


def test_what_lies_nearby_images_is_found_by_their_paths_below_the_root_of_a_list(folder: Path) -> None:
    listed = open_source(list_of(folder / "images", folder / "lists" / "train.txt")).images
    known = dict.fromkeys(image.key.removesuffix(".png") for image in open_source(folder / "images").images)
    assert stems(listed, known) == list(known)
    assert stems(listed, {}) == [image.key.removesuffix(".png") for image in listed]
    shutil.copytree(folder / "images", folder / "maps")
    conditions = (ConditionSource("image", folder / "run", folder / "maps"),)
    assert encoded(folder, "lists/train.txt", conditions=conditions)


@pytest.mark.parametrize("change", ["more", "fewer", "other"])
def test_images_that_changed_before_a_run_goes_on_are_reported(
    change: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = folder / "images" / "dark" / "00.png"
    if change == "more":
        shutil.copy(first, first.with_name("new.png"))
    elif change == "fewer":
        first.unlink()
    else:
        first.write_bytes(first.read_bytes() + b"more")
    counts = {"more": (20, "21"), "fewer": (20, "19"), "other": (20, "20, but not the same files")}[change]
    with caplog.at_level(logging.WARNING, logger="smalti"):
        assert seen(trained(folder, folder / "images", length=16)) == 16
    (warning,) = [record.getMessage() for record in caplog.records if "changed" in record.getMessage()]
    assert warning.endswith(
        f"there were {counts[0]}, and there are {counts[1]}; training continues with those that are there now"
    )
    caplog.clear()
    trained(folder, folder / "images", length=24)
    assert "changed" not in caplog.text


def test_a_run_does_not_go_on_with_other_data(folder: Path) -> None:
    """Other images of the same names and number are other data."""
    shutil.copytree(folder / "images", folder / "others")
    first = folder / "others" / "dark" / "00.png"
    first.write_bytes(first.read_bytes() + b"more")
    with pytest.raises(
        SmaltiError, match=r"holds a run with other settings \(data is .*images' there and .*others' here"
    ):
        trained(folder, folder / "others", length=16)


def encoded(folder: Path, data: str, *, conditions: tuple[ConditionSource, ...] = (), validation: float = 0.2) -> bool:
    settings = CopiesSettings(copies=1, images=ImageSettings(size=(16, 16), validation=validation))
    return encode_images(
        folder / "run",
        folder / data,
        folder / "codes",
        settings=settings,
        seed=0,
        progress=lambda done, total: None,
        conditions=conditions,
    )


def test_codes_are_those_of_the_same_images_wherever_they_lie(folder: Path) -> None:
    assert encoded(folder, "images")
    shutil.copytree(folder / "images", folder / "moved")
    assert not encoded(folder, "moved")
    first = next(iter(sorted((folder / "moved").rglob("*.png"))))
    first.write_bytes(first.read_bytes() + b"more")
    with pytest.raises(SmaltiError, match=r"holds other codes already: (training|validation)\.(source|files) is "):
        encoded(folder, "moved")


def first_held_out(data: Path) -> str:
    images = open_source(data).images
    return images[held_out_order(images)[0]].key


def test_training_goes_on_where_the_only_held_out_image_is_damaged(folder: Path) -> None:
    """One damaged file of many ended training where it was the one to validate on."""
    (folder / "images" / first_held_out(folder / "images")).write_bytes(b"")
    run = trained(folder, folder / "images", length=8, out="second", more=("images.validation=0.001",))
    assert [line["images"] for line in read_metrics(run) if line["part"] == "validation"] == [2]


@pytest.mark.parametrize("damaged", ["images", "maps"])
def test_some_image_is_held_out_of_codes(damaged: str, folder: Path) -> None:
    shutil.copytree(folder / "images", folder / "maps")
    (folder / damaged / first_held_out(folder / "images")).write_bytes(b"")
    conditions = (ConditionSource("image", folder / "run", folder / "maps"),)
    assert encoded(folder, "images", conditions=conditions, validation=0.001)
    meta = open_codes(folder / "codes").meta
    assert (sum(meta.training.shards), sum(meta.validation.shards), meta.validation.damaged) == (18, 1, 1)
