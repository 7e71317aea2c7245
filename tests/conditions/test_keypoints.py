"""Keypoints: figures as codes and back, seen whole, in part and mirrored, and drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings as checked
from hypothesis import strategies as st

from smalti.conditions.condition_registry import build_condition
from smalti.conditions.keypoints import (
    Figure,
    Keypoints,
    KeypointsSettings,
    decode_keypoints,
    encode_keypoints,
    truncate_figures,
)
from smalti.conditions.location_codes import FULL_IMAGE, Box, window_crop
from smalti.core.errors import SmaltiError
from smalti.data.annotations.annotation_files import read_annotations
from smalti.prior.window import Window
from smalti.scenes.scene_files import write_scenes

POINTS = ("nose", "left eye", "right eye")
# 65 codes: 8 x 8 places, and "none" is 64.
WITH_CROP = KeypointsSettings(points=POINTS, max_figures=2, codebook_size=65)
ALONE = KeypointsSettings(points=POINTS, max_figures=2, codebook_size=65, encode_crop=False)
FACE: Figure = ((0.5, 1.0), (0.25, 0.0), None)
OTHER: Figure = ((0.75, 0.5), None, (1.0, 0.25))


def test_keypoints_by_eye() -> None:
    # 0.5 of 7 steps is 3.5, which rounds to the even 4; 0.25 is 1.75 -> 2; 0.75 is 5.25 -> 5.
    assert encode_keypoints([FACE, OTHER], ALONE) == (7 * 8 + 4, 2, 64, 4 * 8 + 5, 64, 2 * 8 + 7)
    assert encode_keypoints([FACE], WITH_CROP) == (7 * 8 + 4, 2, 64, 64, 64, 64, 0, 63)
    assert encode_keypoints([], ALONE) == (64,) * 6
    assert (WITH_CROP.length, ALONE.length) == (8, 6)
    usual = KeypointsSettings(points=POINTS)
    assert (usual.sections, usual.none, usual.length) == (32, 1024, 4 * 3 + 2)
    assert KeypointsSettings(points=POINTS, codebook_size=64).sections == 7  # the place and "none" share no code


def test_figures_seen_in_part() -> None:
    left = Box(0.0, 0.0, 0.5, 1.0)  # the other is outside, and the nose on the border
    assert encode_keypoints([OTHER, FACE], WITH_CROP, crop=left) == (60, 2, 64, 64, 64, 64, 0, 7 * 8 + 4)
    assert encode_keypoints([OTHER, FACE], ALONE, crop=left) == (63, 4, 64, 64, 64, 64)
    below = Box(0.25, 0.5, 0.5, 0.5)
    assert encode_keypoints([FACE, OTHER], ALONE, crop=below) == (7 * 8 + 4, 64, 64, 7, 64, 64)


def test_a_point_outside_the_image_is_not_seen() -> None:
    outside: Figure = ((-0.1, 0.5), (0.5, 1.2), (0.0, 1.0))
    assert encode_keypoints([outside], ALONE) == (64, 64, 7 * 8, 64, 64, 64)
    hair: Figure = ((1 + 1e-9, -1e-9), None, None)
    assert encode_keypoints([hair], ALONE)[0] == 7


def test_in_a_mirror_left_is_right() -> None:
    assert WITH_CROP.flip_permutation == (0, 2, 1)
    # The left eye at 0.25 is the right one at 0.75.
    assert encode_keypoints([FACE], ALONE, flip=True) == (7 * 8 + 4, 64, 5, 64, 64, 64)
    left = Box(0.0, 0.0, 0.5, 1.0)
    assert encode_keypoints([FACE], WITH_CROP, crop=left, flip=True)[-2:] == (4, 63)
    assert encode_keypoints([FACE], ALONE, crop=left, flip=True) == (7 * 8, 64, 4, 64, 64, 64)


@pytest.mark.parametrize(
    ("points", "mirrored"),
    [
        (("apex", "left eave", "right eave", "right foot", "left foot"), (0, 2, 1, 4, 3)),
        (("left_ear", "right_ear"), (1, 0)),
        (("LeftHand", "RightHand", "LEFT", "RIGHT"), (1, 0, 3, 2)),
        (("left wing", "tail"), (0, 1)),  # no right wing to exchange it with
        (("bright", "bleft"), (1, 0)),
    ],
)
def test_points_that_differ_by_their_side_change_places(points: tuple[str, ...], mirrored: tuple[int, ...]) -> None:
    assert KeypointsSettings(points=points).flip_permutation == mirrored


# Places on the points of a grid of 8 x 8, so that nothing is rounded.
PLACES = st.none() | st.tuples(st.integers(0, 7), st.integers(0, 7)).map(lambda place: (place[0] / 7, place[1] / 7))


@checked(max_examples=100, deadline=None)
@drawn(figures=st.lists(st.tuples(PLACES, PLACES, PLACES), max_size=2), flip=st.booleans())
def test_codes_say_what_was_written(figures: list[Figure], flip: bool) -> None:
    codes = encode_keypoints(figures, WITH_CROP, flip=flip)
    assert all(0 <= code < 65 for code in codes)
    read = decode_keypoints(codes, WITH_CROP)
    assert read.crop == FULL_IMAGE
    seen = [figure for figure in figures if any(figure)]
    assert len(read.figures) == len(seen)
    for result, (nose, left, right) in zip(read.figures, seen, strict=True):
        for place, given in zip(result, (nose, right, left) if flip else (nose, left, right), strict=True):
            assert (place is None) == (given is None)
            if place is not None and given is not None:
                assert place == pytest.approx((1 - given[0] if flip else given[0], given[1]))
    assert flip or encode_keypoints(read.figures, WITH_CROP) == codes


def test_what_there_is_no_room_for_is_left_out_with_a_warning() -> None:
    with pytest.warns(
        UserWarning, match="3 figures with keypoints; there is room for 2, and the last ones are left out"
    ):
        assert truncate_figures([FACE, OTHER, FACE], ALONE) == [FACE, OTHER]
    assert truncate_figures([FACE, OTHER], ALONE) == [FACE, OTHER]


def test_crops_and_lengths_that_are_invalid_raise_errors() -> None:
    with pytest.raises(
        SmaltiError, match="is not a part of an image; give left, top, width, height as fractions of it"
    ):
        encode_keypoints([FACE], ALONE, crop=Box(0.5, 0.0, 0.6, 1.0))
    with pytest.raises(SmaltiError, match="keypoints of this kind have 8 codes, and 6 were given"):
        decode_keypoints([0] * 6, WITH_CROP)


# --- the condition -------------------------------------------------------------------------------------------------

KEYPOINTS = Keypoints(WITH_CROP)


def test_figures_are_given_by_name_or_in_order(tmp_path: Path) -> None:
    expected = [list(encode_keypoints([FACE, OTHER], WITH_CROP))]
    named = [{"left eye": [0.25, 0], "nose": [0.5, 1]}, {"right eye": [1, 0.25], "nose": [0.75, 0.5], "left eye": None}]
    assert KEYPOINTS.encode([[FACE, OTHER]]).tolist() == expected
    assert KEYPOINTS.encode([named]).tolist() == expected
    for content in (named, [FACE, named[1]]):
        (tmp_path / "pose.json").write_text(json.dumps(content))
        assert KEYPOINTS.encode([KEYPOINTS.read(str(tmp_path / "pose.json"))]).tolist() == expected
    assert (KEYPOINTS.key, KEYPOINTS.size, KEYPOINTS.length) == ("keypoints", 65, 8)


@pytest.mark.parametrize("settings", [WITH_CROP, ALONE])
def test_under_a_window_the_window_is_the_crop(settings: KeypointsSettings) -> None:
    at = Keypoints(settings).encode_windows([[FACE, OTHER], [OTHER]], grid=(5, 8))
    crop = Box(2 / 8, 1 / 5, 4 / 8, 4 / 5)
    assert window_crop(Window(1, 2, 4, 4), grid=(5, 8)) == crop
    expected = [list(encode_keypoints(figures, settings, crop=crop)) for figures in ([FACE, OTHER], [OTHER])]
    assert at(Window(1, 2, 4, 4)).tolist() == expected


def test_too_many_figures_are_reported_once_for_all_windows() -> None:
    with pytest.warns(UserWarning, match="3 figures"):
        at = KEYPOINTS.encode_windows([[FACE, OTHER, FACE]], grid=(5, 8))
    at(Window(0, 0, 4, 4))  # warnings are errors here


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("nose", "keypoints are a list of figures, not 'nose'"),
        ({"nose": [0, 0]}, "keypoints are a list of figures, not {'nose'"),
        (None, "keypoints are a list of figures, not None"),
        ([FACE, 3], r'figure 2 of the keypoints is 3; write {"nose": \[x, y\], \.\.\.}'),
        (["nose"], "figure 1 of the keypoints is 'nose'"),
        ([{"noise": [0, 0]}], r"figure 1 of the keypoints: there is no point 'noise'; did you mean 'nose'\?"),
        ([FACE[:2]], r"figure 1 of the keypoints has 2 points, and 3 have names \(nose, left eye, right eye\)"),
        ([[[40, 30], None, None]], r"figure 1 of the keypoints: nose is at \[40, 30\]; give x and y .* not in pixels"),
        ([[None, [0.5], None]], r"left eye is at \[0.5\]"),
        ([[None, ["a", 0], None]], "left eye is at "),
        ([[None, 0.5, None]], "left eye is at 0.5"),
        ([[None, [float("nan"), 0.5], None]], r"left eye is at \[nan, 0.5\]"),
    ],
)
def test_figures_that_are_invalid_raise_errors(value: Any, sentence: str) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        KEYPOINTS.encode([value])


def test_files_that_hold_no_figures_raise_errors(tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match="there is no file"):
        KEYPOINTS.read(str(tmp_path / "nowhere.json"))
    (tmp_path / "one.json").write_text(json.dumps({"nose": [0, 0]}))
    with pytest.raises(
        SmaltiError, match=r'one\.json holds no list of figures; write \[{"nose": \[x, y\], \.\.\.}, \.'
    ):
        KEYPOINTS.read(str(tmp_path / "one.json"))


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("points", ["nose", "ear", "nose"], "points = .*: the point 'nose' is named twice"),
        ("points", [], "points = "),
        ("max_figures", 0, "max_figures = 0"),
        ("codebook_size", 4, "codebook_size = 4"),
    ],
)
def test_settings_that_are_invalid_raise_errors(key: str, value: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        build_condition({**KEYPOINTS.save(tmp_path), key: value}, tmp_path)


def test_it_comes_back_from_what_it_saved(tmp_path: Path) -> None:
    again = build_condition(json.loads(json.dumps(KEYPOINTS.save(tmp_path))), tmp_path)
    assert isinstance(again, Keypoints)
    assert again.settings == WITH_CROP
    assert KEYPOINTS.encode([]).shape == (0, 8)


def test_previews_draw_points_and_crops() -> None:
    def color(image: Any, x: float, y: float) -> tuple[int, ...]:
        return tuple(image[round(y * 255), round(x * 255)].tolist())

    whole = KEYPOINTS.preview(KEYPOINTS.encode([[FACE]])[0])
    assert whole.shape == (256, 256, 3)
    assert whole.dtype == np.uint8
    nose, eye = color(whole, 4 / 7, 1.0), color(whole, 2 / 7, 0.0)
    assert len({nose, eye, (160, 160, 160), (255, 255, 255)}) == 4
    line = whole[128]
    assert (line == 160).all(axis=1).sum() > 3  # the line between them and the crop's two sides
    bare = Keypoints(ALONE)
    assert np.array_equal(bare.preview(bare.encode([[]])[0]), np.full((256, 256, 3), 255))
    dot = bare.preview(bare.encode([[((0.0, 1.0), None, None)]])[0])
    assert color(dot, 0.0, 1.0) == nose
    KEYPOINTS.preview(torch.randint(65, (8,)))  # a prior of its own may lay anything; that is not an error


def test_the_houses_of_scenes_are_figures(tmp_path: Path) -> None:
    write_scenes(tmp_path, count=12, size=(32, 32))
    annotated = read_annotations(tmp_path)
    condition = Keypoints(KeypointsSettings(points=annotated.keypoints, max_figures=8))
    values = [
        [annotation.keypoints for annotation in objects if annotation.keypoints]
        for objects in annotated.images.values()
    ]
    codes = condition.encode(values)
    assert any(values)
    for value, row in zip(values, codes, strict=True):
        inside = [[place for place in figure if place and min(place) >= 0 and max(place) <= 1] for figure in value]
        result = decode_keypoints(row.tolist(), condition.settings).figures
        assert [sum(place is not None for place in figure) for figure in result] == [len(one) for one in inside if one]
