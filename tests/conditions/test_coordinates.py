"""Coordinates: where in its image a code lies, and in a part of a larger one, told as codes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings as checked
from hypothesis import strategies as st
from torch import Tensor

from smalti.conditions.coordinates import Coordinates, CoordinatesSettings, ImageCrop, coordinate_image
from smalti.core.errors import SmaltiError
from smalti.prior.window import Window

COORDINATES = Coordinates(CoordinatesSettings(levels=63, codebook_size=64, factor=2, grid=(4, 4)))


def slowly(condition: Coordinates, height: int, width: int) -> list[list[int]]:
    """The codes of an image of its own, by exact fractions: mean over each tile, halves to even."""
    f, levels = condition.settings.factor, condition.settings.levels
    rows: list[list[int]] = []
    for top in range(0, height, f):
        rows.append([])
        for left in range(0, width, f):
            before = sum((top + i) * width + left + j for i in range(f) for j in range(f))
            rows[-1].append(min(round(Fraction(before * levels, f * f * height * width)), condition.size - 1))
    return rows


@checked(max_examples=30, deadline=None)
@drawn(h=st.integers(1, 9), w=st.integers(1, 9), factor=st.integers(1, 4), levels=st.integers(1, 300))
def test_coordinates_are_the_share_of_the_image_before_a_code(h: int, w: int, factor: int, levels: int) -> None:
    condition = Coordinates(CoordinatesSettings(levels=levels, codebook_size=levels + 1, factor=factor, grid=(h, w)))
    got = condition.encode([None]).view(h, w)
    expected = torch.tensor(slowly(condition, h * factor, w * factor))
    assert (got - expected).abs().max() <= 1  # at a tie, float32 may fall to either side
    assert (got != expected).float().mean() < 0.5
    assert (got.flatten().diff() >= 0).all() or factor > 1


def test_coordinates_by_eye() -> None:
    condition = Coordinates(CoordinatesSettings(levels=1024, codebook_size=1024, factor=16, grid=(16, 16)))
    codes = condition.encode([None])[0]
    assert (int(codes[0]), int(codes[-1])) == (30, 994)  # the numbers that the original gives for 256 x 256 pixels
    assert codes.view(16, 16).tolist() == slowly(condition, 256, 256)
    assert (condition.key, condition.size, condition.length) == ("coordinates", 1024, 256)


def test_halves_are_rounded_to_even() -> None:
    condition = Coordinates(CoordinatesSettings(levels=4, codebook_size=5, factor=1, grid=(1, 4)))
    assert condition.codes(torch.tensor([[[[0.125, 0.375, 0.625, 0.875]]]])).tolist() == [[[0, 2, 2, 4]]]


@pytest.mark.parametrize(("size", "last"), [(4, 3), (5, 4)])
def test_the_last_level_is_reached_where_there_is_a_code_for_it(size: int, last: int) -> None:
    condition = Coordinates(CoordinatesSettings(levels=4, codebook_size=size, factor=1, grid=(1, 2)))
    assert condition.codes(torch.tensor([[[[0.0, 1.0]]]])).tolist() == [[[0, last]]]


def test_a_part_of_a_larger_image_has_that_one_s_coordinates() -> None:
    whole = coordinate_image((40, 60))
    assert whole.shape == (1, 40, 60)
    assert whole.dtype == torch.float32
    assert whole[0, 0, :2].tolist() == pytest.approx([0.0, 1 / 2400])
    part = COORDINATES.encode([ImageCrop(6, 10, full_size=(40, 60))])
    assert torch.equal(part, COORDINATES.codes(whole[None, :, 6:14, 10:18]).flatten(1))
    assert COORDINATES.read("6, 10, 40x60") == ImageCrop(6, 10, full_size=(40, 60))
    assert torch.equal(
        part, COORDINATES.encode_windows([ImageCrop(6, 10, full_size=(40, 60))], grid=(6, 5))(Window(0, 0, 4, 4))
    )


def test_a_window_reads_the_coordinates_of_the_whole_image() -> None:
    whole = COORDINATES.codes(coordinate_image((12, 18))[None])[0]
    at = COORDINATES.encode_windows([None], grid=(6, 9))
    assert torch.equal(at(Window(2, 5, 4, 4))[0].view(4, 4), whole[2:6, 5:9])


def test_coordinates_come_back_but_for_rounding() -> None:
    given = coordinate_image((8, 8))[None]
    back = COORDINATES.decode(COORDINATES.codes(given))
    assert back.shape == given.shape
    assert (back - given).abs().max() <= 0.5 / 63 + 4.5 / 64  # half a level, and the spread within a tile
    assert torch.equal(back[..., 0::2, 0::2], back[..., 1::2, 1::2])
    assert torch.equal(COORDINATES.codes(back), COORDINATES.codes(given))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (
            (0, 0),
            r"\(0, 0\) is not a crop of a larger image; leave it out, or "
            r"give ImageCrop\(top, left, full_size=\(H, W\)\)",
        ),
        (
            ImageCrop(-1, 0, full_size=(40, 60)),
            r"an image of 8 x 8 pixels .* at \(-1, 0\) reaches beyond .* 40 x 60; begin",
        ),
        (ImageCrop(0, -1, full_size=(40, 60)), r"at \(0, -1\) reaches beyond"),
        (ImageCrop(33, 0, full_size=(40, 60)), r"at \(33, 0\) reaches beyond .* begin between \(0, 0\) and \(32, 52\)"),
        (ImageCrop(0, 53, full_size=(40, 60)), r"at \(0, 53\) reaches beyond .* begin between \(0, 0\) and \(32, 52\)"),
    ],
)
def test_places_that_are_invalid_raise_errors(value: object, sentence: str) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        COORDINATES.encode([value])


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (torch.zeros(1, 1, 7, 8), "coordinates of 7 x 8 pixels .* are not made of tiles of 2; crop them to 6 x 8"),
        (torch.zeros(1, 1, 8, 5), "crop them to 8 x 4"),
        (torch.full((1, 1, 8, 8), 1.5), "from 0 to 1, and these are from 1.5 to 1.5"),
        (torch.full((1, 1, 8, 8), -0.5), "from 0 to 1, and these are from -0.5 to -0.5"),
        (torch.full((1, 1, 8, 8), torch.nan), "from 0 to 1, and these are from nan to nan"),
    ],
)
def test_coordinate_images_that_are_invalid_raise_errors(images: Tensor, sentence: str) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        COORDINATES.codes(images)


@pytest.mark.parametrize("text", ["1,2", "a,b,4x4", "1,2,3,4", "-1,0,4x4"])
def test_typed_places_that_are_none_raise_errors(text: str) -> None:
    with pytest.raises(SmaltiError, match=rf"'{text}' is not a crop of a larger image; write TOP,LEFT,HEIGHTxWIDTH"):
        COORDINATES.read(text)


@pytest.mark.parametrize("size", [62, 65])
def test_coordinates_have_as_many_codes_as_levels_or_one_more(size: int) -> None:
    with pytest.raises(SmaltiError, match=f"coordinates of 63 levels have 63 or 64 codes, not {size}"):
        Coordinates(CoordinatesSettings(levels=63, codebook_size=size, factor=2, grid=(4, 4)))


def test_the_preview_of_coordinates_grows_lighter() -> None:
    image = COORDINATES.preview(COORDINATES.encode([None])[0]).astype(int)
    assert image.shape == (8, 8, 3)
    assert (np.diff(image[:, 0, 0]) >= 0).all()
    assert image[0, 0, 0] < 60 < 180 < image[-1, -1, 0]
