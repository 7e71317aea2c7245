"""Files that visitors of the studio load: thin, large and odd ones end in a sentence or an image, in little memory."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.conditions.spatial import SpatialCondition, SpatialConditionSettings
from smalti.core.errors import SmaltiError
from smalti.images import resizing
from smalti.web.code_images import from_text
from smalti.web.requests import Limits
from tests.web.test_studio import both, studio, tokenizer

THIN = [(1, 6000), (6000, 1), (3, 16000), (16000, 3)]
SIZE = (12, 16)


@pytest.fixture(autouse=True)
def small_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is scaled to more pixels than the largest image that may be asked for."""

    def guarded(scale: Callable[..., Any]) -> Callable[..., Any]:
        def checked(array: Any, size: Any, *rest: Any) -> Any:
            assert size[0] * size[1] <= 2**16, f"scaled to {size}"
            return scale(array, size, *rest)

        return checked

    for name in ("_lanczos", "_nearest"):
        monkeypatch.setattr(resizing, name, guarded(getattr(resizing, name)))
    monkeypatch.setattr(resizing, "MOST_COVERING", 2**14)
    monkeypatch.setattr("smalti.conditions.spatial.MOST_COVERING", 2**14)


def saved(path: Path, pixels: Any) -> Path:
    Image.fromarray(np.asarray(pixels)).save(path)
    return path


@pytest.mark.parametrize("full", THIN)
def test_thin_images_are_cut_or_refused(full: tuple[int, int], tmp_path: Path) -> None:
    work, file = studio(), saved(tmp_path / "thin.png", np.full((*full, 3), 90, np.uint8))
    assert work.image(file, SIZE).shape == (3, *SIZE)
    with pytest.raises(
        SmaltiError, match=rf"thin.png is {full[0]}x{full[1]} pixels .* smaller than the downsampling factor 4"
    ):
        work.read_photo(file)
    mask = saved(tmp_path / "mask.png", np.full(full, 255, np.uint8))
    assert work.mask(mask, SIZE).all()


@pytest.mark.parametrize("full", THIN)
@pytest.mark.parametrize(("kind", "channels"), [("segmentation", 3), ("depth", 1), ("edges", 1), ("image", 3)])
def test_thin_maps_are_cut(kind: Any, channels: int, full: tuple[int, int], tmp_path: Path) -> None:
    work = studio(SpatialCondition(SpatialConditionSettings(kind=kind, key=kind, grid=(3, 4)), tokenizer(channels)))
    shape = full if kind in ("segmentation", "depth") else (*full, 3)
    pixels = np.zeros(shape, np.uint8)
    if kind in ("edges", "image"):
        pixels[..., 0] = 90
    value = work.condition_value({kind: saved(tmp_path / "thin.png", pixels)}, SIZE)
    value = value[kind] if isinstance(value, dict) else value
    assert value.shape[-2:] == SIZE


def masked(rows: slice, white: int = 255) -> np.ndarray[Any, Any]:
    mask = np.zeros(SIZE, np.uint8)
    mask[rows] = white
    return mask


@pytest.mark.parametrize("name", ["m.png", "m.jpg", "m.webp", "m.tif"])
@pytest.mark.parametrize("white", [1, 255])
def test_masks_of_all_formats_erase_what_is_white(name: str, white: int, tmp_path: Path) -> None:
    if white == 1 and name in ("m.jpg", "m.webp"):
        pytest.skip("what is damped by a lossy file")
    erased = studio().mask(saved(tmp_path / name, masked(slice(0, 8), white)), SIZE)
    assert erased[:7].all()
    assert not erased[9:].any()


def test_masks_of_two_colors_and_of_one_bit(tmp_path: Path) -> None:
    mask = Image.fromarray(masked(slice(0, 8)))
    mask.convert("1").save(tmp_path / "bit.png")
    mask.convert("P").save(tmp_path / "palette.png")
    mask.convert("RGB").save(tmp_path / "colors.png")
    for name in ("bit.png", "palette.png", "colors.png"):
        erased = studio().mask(tmp_path / name, SIZE)
        assert erased[:8].all(), name
        assert not erased[8:].any(), name


@pytest.mark.parametrize(
    ("pixels", "sentence"),
    [
        (np.dstack([masked(slice(0, 8))] * 3 + [masked(slice(0, 8))]), r"m\.png has transparent pixels"),
        (masked(slice(0, 8), 60), r"m\.png is dark everywhere"),
    ],
)
def test_masks_that_are_neither_black_nor_white_are_reported(pixels: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        studio().mask(saved(tmp_path / "m.png", pixels), SIZE)


def test_small_files_of_many_pixels_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of 240 KB has 81 million pixels, which as a map took 4.6 GB."""
    file = saved(tmp_path / "large.png", np.zeros((1001, 1001), np.uint8))
    monkeypatch.setattr("smalti.images.pixel_formats.pixels_of", None)
    monkeypatch.setattr("smalti.images.pixel_formats.stored_numbers", None)
    work = studio(both(), Limits(side=64, pixels=1))
    for read in (
        lambda: work.image(file, SIZE),
        lambda: work.read_photo(file),
        lambda: work.mask(file, SIZE),
        lambda: work.condition_value({"segmentation": file}, SIZE),
    ):
        with pytest.raises(SmaltiError, match=r"^large\.png has 1001 x 1001 pixels .* the limit is 1 million"):
            read()


def test_a_painted_mask_has_no_more_pixels_than_characters_are_allowed() -> None:
    file = io.BytesIO()
    Image.new("L", (300, 300)).save(file, "PNG")
    text = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    assert len(text) < 4 * 64**2
    with pytest.raises(SmaltiError, match="the map painted for the mask has 300 x 300 pixels, and the limit is 16,384"):
        studio().mask(text, SIZE)
    assert torch.equal(from_text(text, max_length=10**6, name="mask"), torch.zeros(300, 300, dtype=torch.int64))
