"""Masks: what is kept of an image, from every kind of file in which people paint black and white."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from smalti.core.errors import SmaltiError
from smalti.images import large_planes
from smalti.images.io import DamagedImage
from smalti.images.masks import kept_by_mask, read_mask, whole_tiles

UPPER = np.zeros((32, 32), dtype=bool)
UPPER[:16] = True


def kept(path: Path, image: Image.Image, **options: Any) -> npt.NDArray[Any]:
    image.save(path, **options)
    found: npt.NDArray[Any] = kept_by_mask(path, image=(32, 32), size=(32, 32)).numpy()
    return found


def colored(transparency: Any) -> Image.Image:
    """A palette image, white above and black below, with some of its places transparent."""
    image = Image.fromarray(np.where(UPPER, 1, 0).astype(np.uint8)).convert("L")
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.info["transparency"] = transparency
    return image


OPAQUE: dict[str, Image.Image] = {
    "L 0 and 255": Image.fromarray(UPPER.astype(np.uint8) * 255),
    "L 0 and 1": Image.fromarray(UPPER.astype(np.uint8)),
    "L 0 and 200": Image.fromarray(UPPER.astype(np.uint8) * 200),
    "1 bit": Image.fromarray(UPPER),
    "16 bits": Image.fromarray(UPPER.astype(np.uint16) * 65535),
    "16 bits 0 and 1": Image.fromarray(UPPER.astype(np.uint16)),
    "RGB 0 and 1": Image.fromarray(np.repeat(UPPER[:, :, None], 3, axis=2).astype(np.uint8)),
    "RGBA": Image.fromarray(UPPER.astype(np.uint8) * 255).convert("RGBA"),
    "LA": Image.fromarray(UPPER.astype(np.uint8) * 255).convert("LA"),
    "palette": Image.fromarray(UPPER.astype(np.uint8) * 255).convert("P"),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_white_is_kept_however_it_is_stored(name: str, tmp_path: Path) -> None:
    """A mask of the numbers 0 and 1 was black everywhere, and so all of the image was laid again without a word."""
    assert (kept(tmp_path / "mask.png", OPAQUE[name]) == UPPER).all()


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpeg_masks_are_cut_in_the_middle_between_black_and_white(quality: int, tmp_path: Path) -> None:
    assert (kept(tmp_path / "mask.jpg", OPAQUE["L 0 and 255"], quality=quality) == UPPER).all()


def transparent_where(where: npt.NDArray[Any], color: int) -> Image.Image:
    levels = np.full((32, 32, 4), color, dtype=np.uint8)
    levels[:, :, 3] = np.where(where, 0, 255)
    return Image.fromarray(levels)


@pytest.mark.parametrize(
    "image",
    [
        transparent_where(~UPPER, 255),
        transparent_where(UPPER, 0),
        transparent_where(~UPPER, 90),
        transparent_where(UPPER, 255).convert("LA"),
        colored(0),
        colored(b"\xff\x80"),
    ],
    ids=["white on nothing", "black on nothing", "a photo with a hole", "LA", "palette", "palette, half transparent"],
)
def test_transparent_masks_are_refused_for_nobody_knows_what_they_say(image: Image.Image, tmp_path: Path) -> None:
    with pytest.raises(DamagedImage, match=r"mask\.png has transparent pixels.*save it without transparency"):
        kept(tmp_path / "mask.png", image)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (UPPER.astype(np.uint8) * 2, "its brightest pixel is 2 of 255"),
        (UPPER.astype(np.uint8) * 127, "its brightest pixel is 127 of 255"),
        (UPPER.astype(np.uint16) * 255, "its brightest pixel is 255 of 65535"),
    ],
)
def test_masks_that_are_dark_everywhere_are_reported(levels: npt.NDArray[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedImage, match=f"is dark everywhere.*{message}.*save it with white"):
        kept(tmp_path / "mask.png", Image.fromarray(levels))


def test_masks_that_keep_nothing_are_reported(tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match="is black wherever the image is seen, and white is kept: nothing would be"):
        kept(tmp_path / "mask.png", Image.new("L", (32, 32)))


def test_masks_that_keep_pixels_but_no_whole_tile_are_reported() -> None:
    """All of the image was replaced without a word, from Python and from the page."""
    mask = np.zeros((16, 16), dtype=bool)
    assert not whole_tiles(mask, factor=4, image=(16, 16)).any(), "who keeps nothing has all of it laid again"
    mask[1:7, 1:7] = True
    with pytest.raises(SmaltiError, match=r"no tile of 4 x 4 pixels is kept as a whole, .* keep more of the image"):
        whole_tiles(mask, factor=4, image=(16, 16))
    mask[4:8, 4:8] = True
    assert whole_tiles(mask, factor=4, image=(16, 16)).sum() == 1


@pytest.mark.parametrize("name", OPAQUE)
def test_a_mask_in_strips_is_the_mask_at_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mask.png"
    OPAQUE[name].save(path)
    at_once = read_mask(path, name="mask")
    monkeypatch.setattr(large_planes, "MAX_PIXELS_AT_ONCE", 5 * 32)  # 5 rows
    np.testing.assert_array_equal(read_mask(path, name="mask"), at_once)
