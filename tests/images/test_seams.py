"""Kept pixels of completed images: to the bit, with a seam that cannot be seen."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.generation.request import center_on_canvas
from smalti.images.seams import on_canvas, with_kept_pixels

REACH = 8
SIZE = (48, 64)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Uniform in [-1, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def left_half() -> Tensor:
    known = torch.zeros(SIZE, dtype=torch.bool)
    known[:, :32] = True
    return known


def test_kept_pixels_are_the_given_ones_to_the_bit() -> None:
    given, completed = noise(2, 3, *SIZE), noise(2, 3, *SIZE, seed=1)
    known = noise(*SIZE, seed=2) > 0
    found = with_kept_pixels(completed, given, known, reach=REACH)
    assert torch.equal(found[:, :, known], given[:, :, known])
    assert found.abs().max() <= 1


def test_a_constant_offset_disappears_at_the_seam_and_fades_away_from_it() -> None:
    given = 0.4 * noise(1, 3, *SIZE)
    offset = torch.tensor([0.2, -0.1, 0.05]).view(1, 3, 1, 1)
    completed = given + offset  # the decoder's error is a color
    found = with_kept_pixels(completed, given, left_half(), reach=REACH)
    left_over = ((found - given) / offset)[0, :, 24, 32:]  # (C, W/2): 1 is the whole offset
    torch.testing.assert_close(left_over, left_over[:1].expand(3, -1), rtol=0, atol=1e-4)
    assert left_over[0, 0] < 0.15
    assert (left_over[0].diff() > -1e-5).all()
    assert torch.allclose(left_over[0, 2 * REACH :], torch.ones(()), atol=1e-4)


def test_the_hole_changes_little_where_decoded_and_given_agree() -> None:
    given = noise(1, 3, *SIZE)
    hole = ~left_half()
    completed = torch.where(hole, noise(1, 3, *SIZE, seed=1), given)
    assert torch.equal(with_kept_pixels(completed, given, ~hole, reach=REACH), completed)


def test_all_kept_is_the_given_image_and_nothing_kept_the_decoded_one() -> None:
    given, completed = noise(2, 3, *SIZE), noise(2, 3, *SIZE, seed=1)
    everything = torch.ones(SIZE, dtype=torch.bool)
    assert torch.equal(with_kept_pixels(completed, given, everything, reach=REACH), given)
    assert torch.equal(with_kept_pixels(completed, given, ~everything, reach=REACH), completed)


@pytest.mark.parametrize("channels", [1, 3])
def test_any_number_of_channels_and_small_images(channels: int) -> None:
    given, completed = noise(1, channels, 5, 7), noise(1, channels, 5, 7, seed=1)
    known = torch.zeros(5, 7, dtype=torch.bool)
    known[2, 3] = True
    found = with_kept_pixels(completed, given, known, reach=REACH)
    assert torch.equal(found[:, :, known], given[:, :, known])
    assert found.isfinite().all()


def test_other_sizes_are_refused() -> None:
    image = noise(1, 3, *SIZE)
    for completed, given, known in (
        (image, image, torch.ones(48, 48, dtype=torch.bool)),
        (image, image[:, :, :40], left_half()),
        (image, image[:, :1], left_half()),
    ):
        sentence = re.escape(f"a mask of {tuple(known.shape)} and given images of {tuple(given.shape[1:])} do not fit")
        with pytest.raises(SmaltiError, match=sentence):
            with_kept_pixels(completed, given, known, reach=REACH)


@pytest.mark.parametrize("grid", [(6, 8), (6, 9), (9, 8), (11, 13)])
def test_a_given_image_lies_where_its_codes_do(grid: tuple[int, int]) -> None:
    given = noise(1, 3, *SIZE)
    image, known = on_canvas(given, left_half(), grid, factor=8)
    codes = center_on_canvas(torch.ones(1, 6, 8, dtype=torch.int64), grid)[0] >= 0
    place = codes.repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert torch.equal(image[:, :, place], given.flatten(2))
    assert torch.equal(known[place], left_half().flatten())
    assert not known[~place].any()
    assert image[:, :, ~place].abs().sum() == 0
