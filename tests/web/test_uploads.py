"""Uploaded files: images, masks and maps end in pixels or in a sentence, in little memory, and are never paths."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.conditions.layout import Layout
from smalti.conditions.layout_codes import LayoutSettings
from smalti.conditions.precomputed import PrecomputedCodes, PrecomputedCodesSettings
from smalti.conditions.spatial import SpatialCondition, SpatialConditionSettings
from smalti.core.errors import SmaltiError
from smalti.images import resizing
from smalti.web.requests import Color, label_colors
from smalti.web.uploads import (
    UNPAINTED,
    Upload,
    read_edit_mask,
    read_label_map,
    read_whole_tiles,
    with_nearest_labels,
)
from tests.images.test_images import png_of_size
from tests.small_pipeline import tokenizer
from tests.web.pipelines import LIMITS, PLACES, both, file_bytes, pixels, segmentation, studio, upload

SIZE = (12, 16)
COLORS = label_colors(PLACES)
THIN = [(1, 6000), (6000, 1), (3, 16000), (4, 16000), (16000, 4)]


@pytest.fixture(autouse=True)
def small_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is scaled to more pixels than the largest image that may be requested."""

    def guarded(scale: Callable[..., Any]) -> Callable[..., Any]:
        def checked(array: Any, size: Any, *rest: Any) -> Any:
            assert size[0] * size[1] <= 2**16, f"scaled to {size}"
            return scale(array, size, *rest)

        return checked

    for name in ("_lanczos", "_nearest"):
        monkeypatch.setattr(resizing, name, guarded(getattr(resizing, name)))
    monkeypatch.setattr(resizing, "MAX_COVERING_PIXELS", 2**14)
    monkeypatch.setattr("smalti.conditions.spatial.MAX_COVERING_PIXELS", 2**14)


def whole(file: Upload, *, most: int = 64) -> Any:
    return read_whole_tiles(file, channels=3, factor=4, most=most, limits=LIMITS)


def labels_of(file: Upload, *, size: tuple[int, int] = SIZE, unlabeled: int | None = None) -> torch.Tensor:
    return read_label_map(file, names=PLACES, colors=COLORS, unlabeled=unlabeled, size=size, limits=LIMITS)


# --- images --------------------------------------------------------------------------------------------------------


def test_an_image_keeps_its_size_and_its_pixels() -> None:
    given_pixels = pixels(12, 24)
    assert np.array_equal(whole(upload(given_pixels)), given_pixels)
    cropped = whole(upload(pixels(15, 26)))
    assert np.array_equal(cropped, pixels(15, 26)[1:13, 1:25])


def test_a_large_image_is_scaled_down_and_a_small_one_never_up() -> None:
    assert whole(upload(pixels(100, 200))).shape == (32, 64, 3)
    assert whole(upload(pixels(5, 7))).shape == (4, 4, 3)
    with pytest.raises(SmaltiError, match=r"given\.png is 3x2 pixels .* smaller than a tile of 4 x 4"):
        whole(upload(pixels(3, 2)))


@pytest.mark.parametrize("full", THIN)
def test_thin_images_are_refused_before_they_are_enlarged(full: tuple[int, int]) -> None:
    with pytest.raises(SmaltiError, match=rf"given\.png is {full[0]}x{full[1]} pixels .* less narrow image"):
        whole(upload(np.full((*full, 3), 90, np.uint8)))


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("bomb.png", png_of_size(20_000, 20_000), r"bomb\.png has more than 89,478,485 pixels"),
        (
            "large.png",
            file_bytes(np.zeros((1001, 1001), np.uint8)),
            r"large\.png has 1001 x 1001 pixels .* is 1 million",
        ),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", r"drawing\.svg is not an image of any kind"),
        ("empty.png", b"", r"empty\.png is empty"),
        ("cut.png", file_bytes(pixels(40, 40))[:-60], r"cut\.png cannot be read"),
    ],
)
def test_uploads_that_are_no_images_are_reported(
    name: str, data: bytes, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name != "cut.png":  # nothing of these is decoded
        monkeypatch.setattr("smalti.images.io.pixels_of", None)
        monkeypatch.setattr("smalti.images.io.stored_numbers", None)
    for read in (
        lambda file: whole(file),
        lambda file: read_edit_mask(file, (1001, 1001), limits=LIMITS) and None,
        lambda file: labels_of(file),
    ):
        with pytest.raises(SmaltiError, match=sentence.partition(" cannot")[0]):
            read(Upload(name, data))


# --- masks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "white"), [("PNG", 1), ("PNG", 255), ("TIFF", 255), ("WEBP", 255), ("JPEG", 255)])
def test_masks_of_all_formats_mark_what_is_white(kind: str, white: int) -> None:
    mask = np.zeros((16, 16), np.uint8)
    mask[:8] = white
    marked = read_edit_mask(upload(mask, kind=kind), (16, 16), limits=LIMITS)
    assert marked[:7].all()
    assert not marked[9:].any()


def test_masks_that_do_not_fit_are_reported() -> None:
    with pytest.raises(SmaltiError, match=r"mask\.png is 8x8 pixels, and its image 12x16"):
        read_edit_mask(upload(np.zeros((8, 8), np.uint8), name="mask.png"), SIZE, limits=LIMITS)
    half = np.dstack([np.full(SIZE, 255, np.uint8)] * 3 + [np.full(SIZE, 9, np.uint8)])
    with pytest.raises(SmaltiError, match="has transparent pixels"):
        read_edit_mask(upload(half), SIZE, limits=LIMITS)


# --- maps ----------------------------------------------------------------------------------------------------------


def colored(labels: Any, colors: tuple[Color, ...] = COLORS) -> np.ndarray[Any, Any]:
    """Labels (H,W) -> (H,W,4), transparent where unpainted."""
    shown = np.array([*colors, (0, 0, 0)], np.uint8)[labels]
    return np.dstack([shown, np.where(np.asarray(labels) == UNPAINTED, 0, 255).astype(np.uint8)])


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_what_is_painted_arrives(height: int, width: int, seed: int) -> None:
    labels = np.random.RandomState(seed).randint(-1, 3, (height, width))
    assert np.array_equal(labels_of(upload(colored(labels)), size=(height, width)).numpy(), labels)


def test_maps_are_numbers_or_colors_or_close_to_them() -> None:
    labels = np.random.RandomState(0).randint(0, 3, SIZE)
    near = np.clip(
        colored(labels)[:, :, :3].astype(int) + np.random.RandomState(1).randint(-12, 13, (*SIZE, 3)), 0, 255
    )
    for file in (
        upload(labels.astype(np.uint8)),
        upload(labels.astype(np.uint16)),
        upload(colored(labels)[:, :, :3]),
        upload(near.astype(np.uint8)),
    ):
        assert np.array_equal(labels_of(file).numpy(), labels)


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (
            np.full(SIZE, 3, np.uint8),
            r"map\.png is no label map .* row 0, column 0 holds the number 3, and labels are 0 to 2",
        ),
        (
            np.arange(192, dtype=np.uint16).reshape(SIZE) * 300,
            "row 0, column 1 holds the number 300, .* a photo is no map",
        ),
        (pixels(*SIZE), "its color #[0-9a-f]{6} is not that of a label"),
    ],
)
def test_values_outside_are_refused_in_a_sentence(array: Any, sentence: str) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        labels_of(upload(array, name="map.png"))


def test_the_number_for_no_label_is_unpainted() -> None:
    labels = np.full(SIZE, 255, np.uint8)
    labels[0] = 1
    found = labels_of(upload(labels), unlabeled=255)
    assert (found[0] == 1).all()
    assert (found[1:] == UNPAINTED).all()


def test_maps_are_scaled_by_nearest_neighbors() -> None:
    labels = np.array([[0, 1], [2, 0]])
    found = labels_of(upload(colored(labels)), size=(4, 4))
    assert np.array_equal(found.numpy(), labels.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("full", THIN)
@pytest.mark.parametrize(("kind", "channels"), [("segmentation", 3), ("depth", 1), ("edges", 1), ("image", 3)])
def test_thin_maps_are_cut(kind: Any, channels: int, full: tuple[int, int]) -> None:
    work = studio(
        SpatialCondition(SpatialConditionSettings(kind=kind, key=kind, grid=(3, 4)), tokenizer(channels=channels))
    )
    given_pixels = np.zeros(full if kind in ("segmentation", "depth") else (*full, 3), np.uint8)
    if kind in ("edges", "image"):
        given_pixels[..., 0] = 90
    value = work.condition_value({}, {kind: upload(given_pixels)}, SIZE)
    value = value[kind] if isinstance(value, dict) else value
    assert value.shape[-2:] == SIZE
    work.close()


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_unpainted_pixels_take_a_near_label(height: int, width: int, seed: int, count: int) -> None:
    chance = np.random.RandomState(seed)
    labels = torch.full((height, width), UNPAINTED)
    places = [(chance.randint(height), chance.randint(width)) for _ in range(count)]
    for number, (row, column) in enumerate(places):
        labels[row, column] = number
    filled = with_nearest_labels(labels)
    assert torch.equal(filled[labels != UNPAINTED], labels[labels != UNPAINTED])
    rows, columns = np.nonzero((labels != UNPAINTED).numpy())
    for row in range(height):
        for column in range(width):
            distance = np.hypot(rows - row, columns - column)
            mine = distance[labels[rows, columns].numpy() == int(filled[row, column])].min()
            assert mine <= distance.min() + 1.5  # jump flooding errs by little


def test_unpainted_means_no_label_where_the_model_knows_that() -> None:
    work = studio(segmentation(unlabeled=255))
    labels = np.full(SIZE, UNPAINTED)
    labels[:, :4] = 1
    value = work.condition_value({}, {"segmentation": upload(colored(labels))}, SIZE)
    assert (value[:, :4] == 1).all()
    assert (value[:, 4:] == 255).all()
    other = studio(both())
    filled = other.condition_value({}, {"segmentation": upload(colored(labels))}, SIZE)["segmentation"]
    assert (filled == 1).all()
    nothing = upload(colored(np.full(SIZE, UNPAINTED)))
    with pytest.raises(SmaltiError, match="the map is unpainted"):
        other.condition_value({}, {"segmentation": nothing}, SIZE)
    for one in (work, other):
        one.close()


# --- other conditions ----------------------------------------------------------------------------------------------


def test_files_and_texts_are_not_mistaken() -> None:
    layout = studio(Layout(LayoutSettings(classes=("tree",), codebook_size=101)))
    boxes = Upload("boxes.json", b'[{"class": "tree", "box": [0.1, 0.1, 0.5, 0.5]}]')
    assert layout.condition_value({}, {"layout": boxes}, SIZE)[0].category == 0
    with pytest.raises(SmaltiError, match="the layout takes a file"):
        layout.condition_value({"layout": "boxes.json"}, {}, SIZE)  # a text never opens a file of this machine
    with pytest.raises(SmaltiError, match="the label takes text"):
        studio().condition_value({}, {"label": boxes}, SIZE)
    with pytest.raises(SmaltiError, match="takes 'label', color = 'red' was given"):
        studio().condition_value({"color": "red"}, {}, SIZE)
    codes = studio(PrecomputedCodes(PrecomputedCodesSettings(codebook_size=4, length=2)))
    assert codes.condition_value({"codes": "1, 3"}, {}, SIZE) == (1, 3)


def test_empty_inputs_are_unconditional() -> None:
    work = studio(both())
    assert work.condition_value({"label": " "}, {}, SIZE) is None
    assert work.condition_value({}, {}, SIZE) is None


def test_no_message_names_a_path_of_the_server() -> None:
    layout = studio(Layout(LayoutSettings(classes=("tree",), codebook_size=101)))
    for data in (b"", b"nonsense", b'{"a": 1}', b'[{"class": "car", "box": [0, 0, 1, 1]}]'):
        with pytest.raises(SmaltiError) as error:
            layout.condition_value({}, {"layout": Upload("boxes.json", data)}, SIZE)
        assert not re.search(r"/\w+/|smalti-web-", str(error.value)), str(error.value)
    assert list(layout.scratch.folder.iterdir()) == []
    assert layout.scratch.folder.stat().st_mode & 0o777 == 0o700
    layout.close()
    assert not layout.scratch.folder.exists()
