"""Scene layouts: lists of objects as codes and back, seen whole, in part and mirrored, and drawn."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume
from hypothesis import given as drawn
from hypothesis import settings as checked
from hypothesis import strategies as st

from smalti.conditions.condition_registry import build_condition
from smalti.conditions.layout import Layout
from smalti.conditions.layout_codes import (
    Annotation,
    LayoutSettings,
    decode_layout,
    encode_layout,
    shuffle_objects,
    truncate_objects,
)
from smalti.conditions.location_codes import FULL_IMAGE, Box
from smalti.core.errors import SmaltiError
from smalti.prior.window import Window

CLASSES = ("tree", "house", "cloud")
# 64 codes: 8 x 8 points, and "none" is 63.
BOXES = LayoutSettings(classes=CLASSES, max_objects=3, codebook_size=64, group=True, flags=True)
CENTERS = LayoutSettings(classes=CLASSES, max_objects=3, codebook_size=64, geometry="centers", encode_crop=False)
TREE, HOUSE = Annotation(0, Box(0.0, 0.0, 0.5, 1.0)), Annotation(1, Box(0.5, 0.5, 0.5, 0.5), group=True)


def test_layouts_by_eye() -> None:
    # 0.5 of 7 steps is 3.5, which rounds to the even 4.
    assert encode_layout([TREE, HOUSE], BOXES) == (0, 0, 7 * 8 + 4, 1 + 3, 4 * 8 + 4, 63, 63, 63, 63, 0, 63)
    assert BOXES.length == 11
    # Centers: (0.25, 0.5) -> column 1.75, row 3.5; (0.75, 0.75) -> 5.25, 5.25.
    assert encode_layout([TREE, HOUSE], CENTERS) == (0, 4 * 8 + 2, 1, 5 * 8 + 5, 63, 63)
    assert CENTERS.length == 6
    # With 6 x 6 points there are 5 steps, and 0.5 of them is 2.5, which rounds to the even 2.
    few = LayoutSettings(classes=CLASSES, max_objects=1, codebook_size=36, geometry="centers", encode_crop=False)
    assert encode_layout([Annotation(0, FULL_IMAGE)], few) == (0, 2 * 6 + 2)


def test_a_layout_seen_in_part() -> None:
    crop = Box(0.0, 0.0, 0.5, 1.0)  # the house is outside
    assert encode_layout([TREE, HOUSE], BOXES, crop=crop) == (0, 0, 7 * 8 + 4, *[63] * 6, 0, 7 * 8 + 4)
    assert encode_layout([TREE, HOUSE], CENTERS, crop=crop) == (0, 4 * 8 + 4, *[63] * 4)
    right = Box(0.25, 0.0, 0.75, 1.0)
    # The tree begins outside: it is moved to the border and keeps its width, 0.5 / 0.75 of what is seen.
    corners = LayoutSettings(classes=CLASSES, max_objects=1, codebook_size=64, encode_crop=False)
    assert encode_layout([TREE], corners, crop=right) == (0, 0, 7 * 8 + 5)
    # What reaches beyond the right and the bottom is cut off, however much it is.
    assert encode_layout([Annotation(0, FULL_IMAGE)], corners, crop=Box(0.0, 0.0, 0.5, 0.5)) == (0, 0, 63)
    assert encode_layout([Annotation(2, Box(0.0, 0.0, 0.505, 0.01))], corners, crop=Box(0.5, 0.0, 0.5, 0.5)) == (
        2,
        0,
        7,
    )


def test_a_layout_in_a_mirror() -> None:
    # The crop is the left half; in the mirror it is the right one, and the tree stands there.
    assert encode_layout([TREE], BOXES, crop=Box(0.0, 0.0, 0.5, 1.0), flip=True) == (0, 4, 63, *[63] * 6, 4, 63)
    assert encode_layout([TREE], CENTERS, flip=True) == (0, 4 * 8 + 5, *[63] * 4)


@pytest.mark.parametrize(
    ("properties", "bits"),
    [({"group": True}, 1), ({"occluded": True}, 2), ({"depiction": True}, 4), ({"inside": True}, 8), ({}, 0)],
)
def test_properties_are_multiples_of_the_number_of_classes(properties: dict[str, bool], bits: int) -> None:
    one = Annotation(2, FULL_IMAGE, **properties)
    assert encode_layout([one], BOXES)[0] == 2 + 3 * bits
    read = decode_layout(encode_layout([one], BOXES), BOXES).objects[0]
    assert {
        key: getattr(read, key) for key in ("group", "occluded", "depiction", "inside") if getattr(read, key)
    } == properties
    assert encode_layout([one], CENTERS)[0] == 2  # told of neither
    only = LayoutSettings(classes=CLASSES, max_objects=3, codebook_size=64, group=True)
    assert encode_layout([one], only)[0] == 2 + 3 * (bits & 1)
    assert not decode_layout([2 + 3 * 2, *[0] * 10], only).objects[0].occluded


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    """Boxes on the points of a grid of 8 x 8, so that nothing is rounded."""
    x = sorted(draw(st.lists(st.integers(0, 7), min_size=2, max_size=2, unique=True)))
    y = sorted(draw(st.lists(st.integers(0, 7), min_size=2, max_size=2, unique=True)))
    return Box(x[0] / 7, y[0] / 7, (x[1] - x[0]) / 7, (y[1] - y[0]) / 7)


OBJECTS: st.SearchStrategy[Annotation] = st.builds(
    Annotation, st.integers(0, 2), boxes(), st.booleans(), st.booleans(), st.booleans(), st.booleans()
)


@checked(max_examples=100, deadline=None)
@drawn(objects=st.lists(OBJECTS, max_size=3), crop=boxes(), flip=st.booleans())
def test_codes_say_what_was_written(objects: list[Annotation], crop: Box, flip: bool) -> None:
    codes = encode_layout(objects, BOXES, crop=crop, flip=flip)
    assert all(0 <= code < 64 for code in codes)
    read = decode_layout(codes, BOXES)

    def seen(box: Box) -> tuple[float, ...]:
        return (1 - box.left - box.width if flip else box.left, *box[1:])

    def shared(box: Box, axis: int) -> float:
        return min(box[axis] + box[axis + 2], crop[axis] + crop[axis + 2]) - max(box[axis], crop[axis])

    # Whether boxes that only touch share a hair's breadth is a matter of rounding.
    assume(all(abs(shared(one.box, axis)) > 1e-9 for one in objects for axis in (0, 1)))
    displayed = [one for one in objects if min(shared(one.box, 0), shared(one.box, 1)) > 0]
    assert read.crop == pytest.approx(seen(crop))
    assert [one.category for one in read.objects] == [one.category for one in displayed]
    for result, one in zip(read.objects, displayed, strict=True):
        assert result.geometry == pytest.approx(seen(one.box))
        assert (result.group, result.occluded, result.depiction, result.inside) == (
            one.group,
            one.occluded,
            one.depiction,
            one.inside,
        )


def test_the_last_point_is_not_taken_for_none() -> None:
    corner = Annotation(1, Box(0.95, 0.95, 0.05, 0.05))
    assert encode_layout([corner], CENTERS)[:2] == (1, CENTERS.none)
    assert [one.geometry for one in decode_layout(encode_layout([corner], CENTERS), CENTERS).objects] == [(1.0, 1.0)]


def test_what_there_is_no_room_for_is_left_out_with_a_warning() -> None:
    objects = [TREE, HOUSE, TREE, HOUSE]
    with pytest.warns(UserWarning, match="a layout of 4 objects; there is room for 3, and the last ones are left out"):
        assert truncate_objects(objects, BOXES) == objects[:3]
    assert truncate_objects(objects[:3], BOXES) == objects[:3]
    # Before the crop, so that an object may be missing though there is room for it:
    # the last house alone is in the crop.
    with pytest.warns(UserWarning, match="a layout of 4 objects"):
        codes = encode_layout([TREE, TREE, TREE, HOUSE], BOXES, crop=Box(0.5, 0.5, 0.5, 0.5))
    assert decode_layout(codes, BOXES).objects == ()


def test_shuffling_leaves_the_list_that_was_given_alone() -> None:
    objects = [Annotation(number, FULL_IMAGE) for number in range(3)] * 4
    before = list(objects)
    order = shuffle_objects(objects, random.Random(3))
    assert objects == before
    assert order != before
    theirs = list(objects)
    random.Random(3).shuffle(theirs)
    assert order == theirs
    assert shuffle_objects(objects, random.Random(3)) == order


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ((-1, FULL_IMAGE), "the class -1 of an object is negative"),
        ((0, Box(120, 40, 60, 80)), r"\(120, 40, 60, 80\) is not a box: give .* as fractions .* not in pixels"),
        ((0, Box(float("nan"), 0, 1, 1)), "is not a box"),
        ((0, (0.0, 0.0, 1.0)), "is not a box"),
        ((0, Box(0.5, 0.5, -0.1, 0.2)), "has a negative width or height"),
        ((0, Box(0.5, 0.5, 0.1, -0.2)), "has a negative width or height"),
    ],
)
def test_objects_that_are_invalid_raise_errors(values: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        Annotation(*values)


def test_an_object_without_area_or_outside_is_not_seen() -> None:
    for box in (Box(0.5, 0.5, 0.0, 0.2), Box(1.2, 0.5, 0.2, 0.2), Box(-0.5, 0.1, 0.4, 0.2)):
        assert decode_layout(encode_layout([Annotation(0, box)], BOXES), BOXES).objects == ()


@pytest.mark.parametrize(
    "crop", [Box(0.5, 0.0, 0.6, 1.0), Box(-0.1, 0.0, 0.6, 1.0), Box(0.0, 0.5, 1.0, 0.6), Box(0, 0, 0, 1)]
)
def test_crops_that_are_invalid_raise_errors(crop: Box) -> None:
    with pytest.raises(
        SmaltiError, match="is not a part of an image; give left, top, width, height as fractions of it"
    ):
        encode_layout([TREE], BOXES, crop=crop)


def test_a_crop_may_reach_beyond_its_image_by_a_hair() -> None:
    hair = 1e-9  # such as fractions in decimals have when they are added
    for crop in (Box(0.5, 0.5, 0.5 + hair, 0.5 + hair), Box(-hair, -hair, 1.0, 1.0)):
        whole = tuple(round(number, 3) for number in crop)
        assert encode_layout([TREE, HOUSE], BOXES, crop=crop) == encode_layout([TREE, HOUSE], BOXES, crop=Box(*whole))


def test_objects_without_a_code_raise_errors() -> None:
    with pytest.raises(SmaltiError, match="there is no object class 3; classes are 0 to 2"):
        encode_layout([Annotation(3, FULL_IMAGE)], BOXES)
    narrow = LayoutSettings(classes=CLASSES, max_objects=3, codebook_size=16, flags=True)
    assert encode_layout([Annotation(2, FULL_IMAGE, occluded=True, depiction=True)], CENTERS)[0] == 2
    with pytest.raises(
        SmaltiError, match="properties 6 has the code 20, and codes of objects are 0 to 14; raise size to 22"
    ):
        encode_layout([Annotation(2, FULL_IMAGE, occluded=True, depiction=True)], narrow)
    # The last code is "none": an object that had it would vanish.
    narrow = LayoutSettings(classes=CLASSES, max_objects=3, codebook_size=16, group=True, flags=True)
    with pytest.raises(SmaltiError, match="has the code 15, and codes of objects are 0 to 14; raise size to 17"):
        encode_layout([Annotation(0, FULL_IMAGE, group=True, depiction=True)], narrow)


def test_layouts_of_another_length_cannot_be_read() -> None:
    with pytest.raises(SmaltiError, match="a layout of this kind has 11 codes, and 6 were given"):
        decode_layout([0] * 6, BOXES)


# --- the condition -------------------------------------------------------------------------------------------------

LAYOUT = Layout(BOXES)
PLAIN: list[dict[str, Any]] = [
    {"class": "tree", "box": [0, 0, 0.5, 1]},
    {"class": "house", "box": [0.5, 0.5, 0.5, 0.5], "group": True},
]


def test_objects_are_given_by_name_or_as_annotations(tmp_path: Path) -> None:
    expected = [list(encode_layout([TREE, HOUSE], BOXES))]
    assert LAYOUT.encode([[TREE, HOUSE]]).tolist() == expected
    assert LAYOUT.encode([PLAIN]).tolist() == expected
    assert LAYOUT.encode([(TREE, PLAIN[1])]).tolist() == expected
    (tmp_path / "layout.json").write_text(json.dumps(PLAIN))
    assert LAYOUT.encode([LAYOUT.read(str(tmp_path / "layout.json"))]).tolist() == expected
    assert (LAYOUT.key, LAYOUT.size, LAYOUT.length) == ("layout", 64, 11)


def test_the_order_of_objects_is_kept() -> None:
    assert LAYOUT.encode([[HOUSE, TREE]]).tolist() == [list(encode_layout([HOUSE, TREE], BOXES))]
    assert not torch.equal(LAYOUT.encode([[HOUSE, TREE]]), LAYOUT.encode([[TREE, HOUSE]]))


@pytest.mark.parametrize("settings", [BOXES, CENTERS])
def test_under_a_window_the_window_is_the_crop(settings: LayoutSettings) -> None:
    at = Layout(settings).encode_windows([[TREE, HOUSE], [HOUSE]], grid=(5, 8))
    got = at(Window(1, 2, 4, 4))
    crop = Box(2 / 8, 1 / 5, 4 / 8, 4 / 5)
    assert got.tolist() == [list(encode_layout(objects, settings, crop=crop)) for objects in ([TREE, HOUSE], [HOUSE])]


def test_too_many_objects_are_reported_once_for_all_windows() -> None:
    with pytest.warns(UserWarning, match="a layout of 4 objects"):
        at = LAYOUT.encode_windows([[TREE] * 4], grid=(5, 8))
    at(Window(0, 0, 4, 4))  # warnings are errors here
    assert torch.equal(at(Window(1, 2, 4, 4)), LAYOUT.encode_windows([[TREE] * 3], grid=(5, 8))(Window(1, 2, 4, 4)))


def test_all_windows_of_a_grid_are_crops() -> None:
    for length in range(2, 60):
        at, side = LAYOUT.encode_windows([[TREE]], grid=(length, length)), length // 2
        for start in range(length - side + 1):
            assert at(Window(start, start, side, side)).shape == (1, 11)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("tree", "a layout is a list of objects, not 'tree'"),
        ({"class": "tree"}, "a layout is a list of objects, not {'class': 'tree'}"),
        (None, "a layout is a list of objects, not None"),
        ([TREE, {"class": "tree"}], "object 2 of the layout is {'class': 'tree'}; write"),
        (["tree"], "object 1 of the layout is 'tree'; write"),
        ([{**PLAIN[0], "grup": True}], "object 1 of the layout: unknown key 'grup'; did you mean 'group'"),
        ([{**PLAIN[0], "class": "hause"}], "object 1 of the layout: there is no class 'hause'; did you mean 'house'"),
        ([{**PLAIN[0], "class": 1}], "there is no class 1"),
        ([{**PLAIN[0], "box": [0, 0, 1]}], r"object 1 of the layout: the box \[0, 0, 1\] is not four numbers"),
        ([{**PLAIN[0], "box": ["a", 0, 1, 1]}], "is not four numbers"),
        ([{**PLAIN[0], "box": 3}], "the box 3 is not four numbers"),
        (
            [{**PLAIN[0], "box": [0, 0, 64, 64]}],
            r"the box \[0, 0, 64, 64\] reaches beyond the image; .* not in pixels",
        ),
        ([{**PLAIN[0], "box": [0.5, 0.5, 0.6, 0.5]}], "object 1 of the layout: the box .* reaches beyond the image"),
        ([{**PLAIN[0], "box": [1.2, 0.5, 0.2, 0.2]}], "object 1 of the layout: the box .* reaches beyond the image"),
        ([{**PLAIN[0], "box": [0, 0, 1, True]}], "is not four numbers"),
        ([{**PLAIN[0], "box": [0, 0, 1, float("nan")]}], "is not four numbers"),
        ([{**PLAIN[0], "group": 1}], "object 1 of the layout: group is true or false, not 1"),
    ],
)
def test_layouts_that_are_invalid_raise_errors(value: Any, sentence: str) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        LAYOUT.encode([value])


def test_files_that_hold_no_layout_raise_errors(tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match="there is no file"):
        LAYOUT.read(str(tmp_path / "nowhere.json"))
    (tmp_path / "one.json").write_text(json.dumps(PLAIN[0]))
    with pytest.raises(SmaltiError, match=r"one\.json holds no list of objects; write \["):
        LAYOUT.read(str(tmp_path / "one.json"))


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("classes", ["tree", "house", "tree"], "classes = .*: the class 'tree' is named twice"),
        ("classes", [], "classes = "),
        ("geometry", "corners", "geometry = 'corners'"),
        ("max_objects", 0, "max_objects = 0"),
        ("codebook_size", 3, "codebook_size = 3"),
    ],
)
def test_settings_that_are_invalid_raise_errors(key: str, value: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        build_condition({**LAYOUT.save(tmp_path), key: value}, tmp_path)


def test_previews_draw_boxes_centers_and_crops() -> None:
    def inked(image: Any, row: float, column: float) -> bool:
        i, j = round(row * 255), round(column * 255)
        return bool((image[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2] < 250).any())

    whole = LAYOUT.preview(LAYOUT.encode([[TREE]])[0])
    assert whole.shape == (256, 256, 3)
    assert whole.dtype == np.uint8
    assert inked(whole, 0.5, 4 / 7)  # the right border of the tree, rounded
    assert not inked(whole, 0.5, 0.75)
    assert inked(whole, 0.5, 1.0)  # the crop
    centers = Layout(CENTERS)
    dots = centers.preview(centers.encode([[TREE]])[0])
    assert inked(dots, 4 / 7, 2 / 7)
    assert not inked(dots, 0.5, 1.0)
    assert np.array_equal(centers.preview(centers.encode([[]])[0]), np.full((256, 256, 3), 255))
    LAYOUT.preview(torch.randint(63, (11,)))  # a prior of its own may exchange corners; that is not an error
