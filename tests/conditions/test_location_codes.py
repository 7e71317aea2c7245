"""Boxes as codes of a grid: which places a box has, in what is seen, and what layouts and keypoints draw."""

from __future__ import annotations

import pytest

from smalti.conditions.keypoints import Keypoints, KeypointsSettings, decode_keypoints, encode_keypoints
from smalti.conditions.layout import Layout
from smalti.conditions.layout_codes import Annotation, LayoutSettings, decode_layout, encode_layout
from smalti.conditions.location_codes import FULL_IMAGE, Box, rasterize, relative_to_crop

NONE = 9


@pytest.mark.parametrize(
    ("box", "places"),
    [
        (Box(0, 0, 1, 1), list(range(12))),
        (Box(0, 0, 0.5, 0.34), [0, 1]),  # three rows and four columns: the middles at 1/6 and 1/8, 3/8
        (Box(0.3, 0.4, 0.01, 0.01), [5]),  # holds no middle, and has the place of its own
        (Box(-0.5, 0.4, 0.7, 0.2), [4]),  # cut by the border
        (Box(1.2, 0.4, 0.3, 0.2), []),  # outside
        (Box(1.0, 1.0, 0.0, 0.0), [11]),
        (Box(0.0, 0.0, 0.0, 0.0), [0]),
    ],
)
def test_which_places_a_box_has(box: Box, places: list[int]) -> None:
    codes = rasterize([(box, 1)], (3, 4), empty=NONE)
    assert [place for place, code in enumerate(codes) if code == 1] == places
    assert set(codes) <= {1, NONE}


def test_small_boxes_lie_on_large_ones() -> None:
    small, large = (Box(0, 0, 0.5, 0.5), 1), (FULL_IMAGE, 2)
    assert (
        rasterize([small, large], (2, 2), empty=NONE) == rasterize([large, small], (2, 2), empty=NONE) == [1, 2, 2, 2]
    )
    assert rasterize([], (2, 2), empty=NONE) == [NONE] * 4
    assert rasterize([large], (0, 0), empty=NONE) == []


def test_a_box_as_it_is_seen() -> None:
    crop = Box(0.5, 0.0, 0.5, 0.5)
    assert relative_to_crop(crop, Box(0.5, 0.25, 0.25, 0.25), flip=False) == (0.0, 0.5, 0.5, 0.5)
    assert relative_to_crop(crop, Box(0.5, 0.25, 0.25, 0.25), flip=True) == (0.5, 0.5, 0.5, 0.5)


def test_layouts_draw_what_is_seen() -> None:
    settings = LayoutSettings(classes=("tree", "house"), max_objects=2, codebook_size=65, drawn=(2, 2))
    objects = [Annotation(1, Box(0.0, 0.0, 0.5, 0.5)), Annotation(0, Box(0.75, 0.75, 0.1, 0.1))]
    condition = Layout(settings)
    assert condition.maps == (8,)
    assert condition.length == 12
    assert encode_layout(objects, settings)[8:] == (1, 64, 64, 0)
    assert encode_layout(objects, settings, flip=True)[8:] == (64, 1, 0, 64)
    assert encode_layout(objects, settings, crop=Box(0.25, 0.25, 0.5, 0.5))[8:] == (1, 64, 64, 64)
    plain = LayoutSettings(classes=("tree", "house"), max_objects=2, codebook_size=65)
    assert Layout(plain).maps == ()
    assert encode_layout(objects, plain) == encode_layout(objects, settings)[:8]
    assert decode_layout(encode_layout(objects, settings), settings) == decode_layout(
        encode_layout(objects, plain), plain
    )


def test_keypoints_draw_what_is_seen() -> None:
    settings = KeypointsSettings(points=("left hand", "right hand"), max_figures=1, codebook_size=65, drawn=(2, 2))
    figures = [((0.1, 0.1), (0.9, 0.9))]
    condition = Keypoints(settings)
    assert condition.maps == (4,)
    assert encode_keypoints(figures, settings)[4:] == (0, 64, 64, 1)
    # Mirrored, the right hand is at the left below, and is called the left one.
    assert encode_keypoints(figures, settings, flip=True)[4:] == (64, 1, 0, 64)
    assert encode_keypoints(figures, settings, crop=Box(0.5, 0.5, 0.5, 0.5))[4:] == (64, 64, 64, 1)
    plain = KeypointsSettings(points=("left hand", "right hand"), max_figures=1, codebook_size=65)
    assert decode_keypoints(encode_keypoints(figures, settings), settings) == decode_keypoints(
        encode_keypoints(figures, plain), plain
    )
