"""A hole filled by its surroundings: smooth, from kept pixels alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smalti.images.hole_filling import filled_hole


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Uniform in [-1, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def with_hole(height: int, width: int) -> Tensor:
    known = torch.ones(height, width, dtype=torch.bool)
    known[height // 4 : height - height // 4, width // 4 : width - width // 4] = False
    return known


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5))
def test_kept_pixels_stay_and_the_hole_depends_on_them_alone(height: int, width: int, seed: int) -> None:
    known = noise(height, width, seed=seed) > 0
    images, others = noise(2, 3, height, width), noise(2, 3, height, width, seed=9)
    filled = filled_hole(images, known)
    assert torch.equal(filled[:, :, known], images[:, :, known])
    assert torch.equal(filled, filled_hole(torch.where(known, images, others), known))
    assert filled.shape == images.shape
    assert filled.abs().max() <= 1


def test_a_hole_in_one_color_gets_that_color() -> None:
    known = with_hole(37, 64)
    images = torch.where(known, torch.tensor([0.5, -0.25, 0.75]).view(1, 3, 1, 1), -1.0)
    expected = torch.tensor([0.5, -0.25, 0.75]).view(1, 3, 1, 1).expand_as(images)
    torch.testing.assert_close(filled_hole(images, known), expected, rtol=0, atol=1e-5)


def test_a_hole_continues_what_surrounds_it() -> None:
    """In an even slope every pixel of the hole is near the slope, and the borders of the hole cannot be seen."""
    slope = torch.linspace(-0.8, 0.8, 64)[None, None, None].expand(1, 1, 64, 64)
    known = with_hole(64, 64)
    filled = filled_hole(torch.where(known, slope, 1.0), known)
    assert (filled - slope).abs().max() < 0.25
    across = filled.diff(dim=3).abs()[0, 0, 32]
    assert across[[15, 47]].max() < 0.15, "a step at the hole's borders"


def test_everything_and_nothing_kept() -> None:
    images = noise(1, 3, 16, 24)
    everything = torch.ones(16, 24, dtype=torch.bool)
    assert filled_hole(images, everything) is images
    assert torch.equal(filled_hole(images, ~everything), torch.zeros_like(images))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_type_of_the_images_stays(dtype: torch.dtype) -> None:
    assert filled_hole(noise(1, 3, 16, 16).to(dtype), with_hole(16, 16)).dtype == dtype
