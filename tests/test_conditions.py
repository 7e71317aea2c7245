"""Conditions and masks: what a person names or paints, as codes and as kept pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.conditions.base import as_prefix
from smalti.conditions.labels import CONDITIONS, Labels, Nothing, build_condition
from smalti.errors import SmaltiError
from smalti.images import DamagedImage
from smalti.masks import PARTS, kept_by_mask, kept_part

EXAMPLES = {"labels": Labels(["dawn", "dusk", "night"]), "nothing": Nothing()}


def test_a_label_becomes_its_place() -> None:
    labels = EXAMPLES["labels"]
    assert (labels.key, labels.size, labels.length) == ("label", 3, 1)
    codes = labels.encode(["night", "dawn", "night"])
    assert codes.tolist() == [[2], [0], [2]]
    assert codes.dtype == torch.int64
    assert labels.encode([]).shape == (0, 1)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("dask", r"there is no label 'dask'; did you mean 'dusk'\? There are: dawn, dusk, night"),
        ("winter", r"there is no label 'winter'; there are: dawn, dusk, night"),
        (1, r"there is no label 1; there are: dawn, dusk, night"),
        (None, r"there is no label None; "),
    ],
)
def test_an_unknown_label_lists_those_there_are(value: object, sentence: str) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        EXAMPLES["labels"].encode(["dawn", value])


def test_no_condition_takes_no_value() -> None:
    nothing = Nothing()
    assert (nothing.key, nothing.size, nothing.length) == ("", 0, 1)
    assert nothing.encode([None, None]).tolist() == [[0], [0]]
    with pytest.raises(SmaltiError, match="this model takes no condition, 'dusk' was given; leave it out"):
        nothing.encode([None, "dusk"])


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_come_back_from_their_settings(name: str) -> None:
    condition = EXAMPLES[name]
    plain = json.loads(json.dumps(condition.settings()))
    again = build_condition(plain)
    assert plain["name"] == name
    assert type(again) is type(condition)
    assert again.settings() == condition.settings()
    assert (again.key, again.size, again.length) == (condition.key, condition.size, condition.length)


@pytest.mark.parametrize("name", CONDITIONS)
def test_previews_are_pictures_that_differ(name: str) -> None:
    condition = EXAMPLES[name]
    pictures = [condition.preview(torch.tensor([code])) for code in range(max(condition.size, 1))]
    for picture in pictures:
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3
        assert picture.min() < 100  # ink
        assert (picture[[0, -1]] == 255).all()  # and a margin
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


@pytest.mark.parametrize("name", ["lables", None])
def test_an_unknown_condition_is_told(name: str | None) -> None:
    with pytest.raises(SmaltiError, match=rf"unknown condition {name!r}; .*here are: labels, nothing"):
        build_condition({"name": name})


def test_prefixes_have_one_column() -> None:
    assert as_prefix([4, 2]).tolist() == [[4], [2]]
    assert as_prefix([]).shape == (0, 1)


# --- masks ---------------------------------------------------------------------------------------------------------


def test_parts_by_eye() -> None:
    shown = {name: ["".join(".#"[kept] for kept in row) for row in kept_part(name, (4, 8)).tolist()] for name in PARTS}
    assert shown == {
        "top-half": ["########"] * 2 + ["........"] * 2,
        "bottom-half": ["........"] * 2 + ["########"] * 2,
        "left-half": ["####...."] * 4,
        "right-half": ["....####"] * 4,
        "centre": ["........", "..####..", "..####..", "........"],
    }


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (2, 3)])
def test_halves_share_no_pixel_and_leave_none_out(size: tuple[int, int]) -> None:
    for one, other in (("top-half", "bottom-half"), ("left-half", "right-half")):
        assert (kept_part(one, size) ^ kept_part(other, size)).all()


def test_an_unknown_part_lists_those_there_are() -> None:
    with pytest.raises(
        SmaltiError, match=r"unknown part 'top' to keep; .*There are: bottom-half, centre, left-half, r"
    ):
        kept_part("top", (4, 4))


def test_white_is_kept(tmp_path: Path) -> None:
    pixels = np.array([[0, 255, 127, 128], [255, 0, 255, 0]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    kept = kept_by_mask(tmp_path / "mask.png", picture=(2, 4), size=(2, 4))
    assert kept.dtype == torch.bool
    assert kept.tolist() == [[False, True, False, True], [True, False, True, False]]


def test_a_mask_is_scaled_and_cropped_with_its_picture(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, 20:] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    kept = kept_by_mask(tmp_path / "mask.png", picture=(20, 40), size=(8, 8))
    assert kept.tolist() == [[False] * 4 + [True] * 4] * 8  # the middle 8 of 8 x 16


def test_masks_that_do_not_fit_are_told(tmp_path: Path) -> None:
    Image.new("L", (8, 4)).save(tmp_path / "mask.png")
    with pytest.raises(SmaltiError, match=r"mask\.png is 4x8 pixels, its picture 8x4; a mask has the size of its"):
        kept_by_mask(tmp_path / "mask.png", picture=(8, 4), size=(4, 4))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DamagedImage, match="is not a picture of any kind that is read"):
        kept_by_mask(tmp_path / "text.png", picture=(8, 4), size=(4, 4))
    with pytest.raises(DamagedImage, match="is missing"):
        kept_by_mask(tmp_path / "nowhere.png", picture=(8, 4), size=(4, 4))
