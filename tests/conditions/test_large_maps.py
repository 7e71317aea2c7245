"""Large maps: scaled, drawn and encoded strip by strip, with the results of the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from smalti.conditions import spatial as module
from smalti.images import large_planes, resizing
from smalti.images.resizing import resize
from tests.conditions.test_spatial import maps, value

KINDS = ["segmentation", "depth", "edges", "image"]


@pytest.mark.parametrize("size", [(20, 30), (90, 41), (200, 300), (45, 300)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_are_scaled_in_strips_as_pillow_scales_the_whole(
    channels: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.RandomState(0).randint(0, 65536, (90, 130, channels)).astype(np.uint16)
    whole = resize(pixels, size, filter="lanczos")
    if channels == 1:
        plane = Image.fromarray(pixels[:, :, 0].astype(np.float32))
        pillow = np.array(plane.resize(size[::-1], Image.Resampling.LANCZOS)).round().clip(0, 65535)
        assert np.array_equal(whole[:, :, 0], pillow.astype(np.uint16))
    monkeypatch.setattr(large_planes, "MAX_PIXELS_AT_ONCE", 7 * 130)
    monkeypatch.setattr(large_planes, "WHOLE", 1)
    strips = resize(pixels, size, filter="lanczos")
    assert np.abs(strips.astype(int) - whole).max() <= 1  # which Pillow may scale in the other order


@pytest.mark.parametrize("full", [(6000, 3), (3, 6000)])
def test_the_middle_of_a_thin_image_is_cut_out_in_strips(
    full: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.RandomState(0).randint(0, 65536, (*full, 1)).astype(np.uint16)
    monkeypatch.setattr(resizing, "MAX_COVERING_PIXELS", 2**10)
    whole = resizing.covered_middle(pixels, (24, 16))
    monkeypatch.setattr(large_planes, "MAX_PIXELS_AT_ONCE", 60)
    monkeypatch.setattr(large_planes, "WHOLE", 1)
    assert np.abs(resizing.covered_middle(pixels, (24, 16)).astype(int) - whole).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", [(16, 16), None])
def test_maps_are_fitted_in_strips(kind: str, grid: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    condition, given = maps(kind), value(kind, 100, 130)
    whole, _ = condition.resize_to_grid(given, grid=grid)
    monkeypatch.setattr(large_planes, "MAX_PIXELS_AT_ONCE", 7 * 130)
    resized, _ = condition.resize_to_grid(given, grid=grid)
    assert resized.dtype == whole.dtype
    assert torch.equal(resized, whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1, 2])
def test_large_maps_are_encoded_in_strips(kind: str, scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were encoded whole: of 4096 x 4096 pixels with 150 labels the channels alone take 10 GB."""
    condition, grid = maps(kind), (40, 24)
    given = [value(kind, scale * 160, scale * 96), value(kind, scale * 160, scale * 96)]
    whole = condition.codes(given, grid=grid)
    monkeypatch.setattr(module, "MAX_UNTILED_PIXELS", 2**10)
    monkeypatch.setattr(module, "tile_rows", lambda tokenizer, width: 16)
    image, most = type(condition)._image, []

    def watched(self: Any, part: Tensor) -> Tensor:
        most.append(part.shape[-2])
        return image(self, part)

    monkeypatch.setattr(type(condition), "_image", watched)
    assert torch.equal(condition.codes(given, grid=grid), whole)
    assert max(most) < 32
    assert condition.codes([], grid=grid).shape == (0, *grid)


def test_nearest_pixels_are_those_of_training() -> None:
    """Labels are scaled without a copy of them in floats."""
    condition, labels = maps("segmentation"), value("segmentation", 96, 144).to(torch.uint8)
    resized, _ = condition.resize_to_grid(labels, grid=(2, 3))
    assert torch.equal(resized, torch.from_numpy(resize(labels.numpy()[..., None], (8, 12), filter="nearest")[..., 0]))
