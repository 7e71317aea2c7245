"""Long and thin images wherever they come in: a file of a hundred bytes never takes gigabytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.conditions.map_files import read_edges
from smalti.core.errors import SmaltiError
from smalti.data.crops import CenterCrop
from smalti.data.file_types import FILE_TYPES
from smalti.data.loader import Crops
from smalti.data.sources import open_source
from smalti.evaluation.prepared_images import FILTERS, scale_and_crop
from smalti.images import resizing
from smalti.images.io import DamagedImage
from smalti.images.resizing import is_excessive
from tests.conditions.test_spatial import maps, value

THIN = (1, 6000)
SIZE = (256, 256)


@pytest.fixture(autouse=True)
def small_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is scaled to more than four times the pixels of `SIZE`."""

    def guarded(scale: Callable[..., Any]) -> Callable[..., Any]:
        def checked(array: Any, size: Any, *rest: Any) -> Any:
            assert size[0] * size[1] <= 4 * SIZE[0] * SIZE[1], f"scaled to {size}"
            return scale(array, size, *rest)

        return checked

    for name in ("_lanczos", "_nearest"):
        monkeypatch.setattr(resizing, name, guarded(getattr(resizing, name)))
    assert is_excessive(THIN, SIZE)


@pytest.mark.parametrize("kind", ["color", "labels", "depth", "edges"])
@pytest.mark.parametrize("full", [THIN, THIN[::-1]])
def test_training_leaves_thin_images_out_before_it_scales_them(
    kind: str, full: tuple[int, int], tmp_path: Path
) -> None:
    for name, size in (("good.png", (200, 200)), ("thin.png", full)):
        Image.new("L" if kind in ("labels", "depth") else "RGB", size[::-1]).save(tmp_path / name)
    source = open_source(tmp_path, file_type=FILE_TYPES[kind](None))
    channels = {"color": 3, "labels": 5}.get(kind, 1)
    crops = Crops(source, source.images, size=SIZE, channels=channels, crop=CenterCrop(), seed=0)
    crops.example(0, 0)
    with pytest.raises(DamagedImage, match=f"thin.png is {full[0]}x{full[1]} pixels, too small for size 256x256"):
        crops.example(1, 0)
    assert list(crops.damaged) == ["thin.png"]


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_evaluation_cuts_the_middle_out(filter: Any, channels: int) -> None:
    thin = np.zeros((*THIN, channels), np.uint8)
    thin[:, 3000:] = 200
    found = scale_and_crop(thin, size=SIZE, filter=filter)
    assert found.shape == (*SIZE, channels)
    assert found[:, 0].max() <= 10  # from the middle of one pixel to that of the next
    assert found[:, -1].min() >= 190
    assert np.abs(found[:, 127:129].astype(int) - 100).max() <= 3


@pytest.mark.parametrize("kind", ["segmentation", "depth", "edges", "image"])
def test_maps_for_a_size_are_cut_and_others_are_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.conditions.spatial.MAX_COVERING_PIXELS", 2**16)
    monkeypatch.setattr(resizing, "MAX_COVERING_PIXELS", 2**16)
    condition, thin = maps(kind), value(kind, *THIN)
    resized, grid = condition.resize_to_grid(thin, grid=(16, 16))
    assert grid == (16, 16)
    assert resized.shape[-2:] == (64, 64)
    assert resized.dtype == thin.dtype
    with pytest.raises(
        SmaltiError, match=r"is 1x6000 pixels .* the smallest image of its shape has 2x12000 codes; crop"
    ):
        condition.resize_to_grid(thin, grid=None)


def test_labels_become_channels_only_once_they_have_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A photo of 24 million labels, each with 150 channels, would take 14 GiB."""
    condition, most = maps("segmentation"), 0
    image = type(condition)._image

    def watched(self: Any, given: torch.Tensor) -> torch.Tensor:
        nonlocal most
        most = max(most, given.numel())
        return image(self, given)

    monkeypatch.setattr(type(condition), "_image", watched)
    labels = value("segmentation", 8 * 50, 12 * 50)
    assert condition.codes([labels], grid=(2, 3)).shape == (1, 2, 3)
    assert most == 8 * 12


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_drawn_edges_of_zeros_and_ones_are_black_and_white(kind: Any, tmp_path: Path) -> None:
    drawn = np.zeros((20, 30), kind)
    drawn[7] = 1
    Image.fromarray(drawn).save(tmp_path / "edges.png")
    found = read_edges(tmp_path / "edges.png")
    assert found.shape == (1, 20, 30)
    assert found[0, 7].eq(1).all()
    assert found[0, 8].eq(-1).all()
