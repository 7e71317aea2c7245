"""The page in a browser: label maps are painted, filled, undone, saved, loaded and kept."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest

from smalti.images.io import read_settings
from tests.web.browser import PageUnderTest, decoded
from tests.web.pipelines import file_bytes, pixels

pytestmark = pytest.mark.web

SKY, GROUND, WATER = 0, 1, 2
SIZE = (12, 16)


def numbers(page: PageUnderTest) -> np.ndarray:
    """The map on the canvas as saved by the page: label numbers (H,W), -1 where unpainted."""
    name, data = page.download("#map-save")
    assert name == "map.png"
    tab = page.tab
    colors = [tab.eval_on_selector(f'input[name="map-label"][value="{label}"] + span i', COLOR) for label in range(3)]
    from PIL import Image

    saved = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(int)
    found = np.full(saved.shape[:2], -1)
    for label, color in enumerate(colors):
        found[(saved[:, :, 3] == 255) & (saved[:, :, :3] == color).all(2)] = label
    assert np.array_equal(found == -1, saved[:, :, 3] == 0)  # every pixel is a label, or transparent
    return found


COLOR = "(it) => getComputedStyle(it).backgroundColor.match(/\\d+/g).map(Number)"


@pytest.fixture
def painting(page: PageUnderTest) -> PageUnderTest:
    page.tab.click("#map-toggle")
    page.slide("map-brush", 2)
    return page


def test_a_map_is_painted_undone_and_done_again(painting: PageUnderTest) -> None:
    page, tab = painting, painting.tab
    assert (numbers(page) == -1).all()  # nothing is painted in the beginning
    page.choose("map-label", str(WATER))
    page.paint("#map-canvas", (0.1, 0.5), (0.9, 0.5))
    once = numbers(page)
    assert (once[5:7, 2:14] == WATER).all()
    assert (once[[0, 1, 10, 11]] == -1).all()
    tab.check('input[name="map-tool"][value="fill"]', force=True)
    page.choose("map-label", str(SKY))
    page.paint("#map-canvas", (0.5, 0.05), (0.5, 0.05))
    twice = numbers(page)
    assert (twice[:4, :] == SKY).all()
    tab.click("#map-undo")
    assert np.array_equal(numbers(page), once)
    page.press("Control+z")
    assert (numbers(page) == -1).all()
    assert tab.get_attribute("#map-undo", "aria-disabled") == "true"
    page.press("Control+Shift+z", "Control+y")
    assert np.array_equal(numbers(page), twice)
    tab.click("#map-clear")
    assert (numbers(page) == -1).all()
    tab.click("#map-undo")
    assert np.array_equal(numbers(page), twice)


def test_the_ring_has_the_width_of_the_brush_and_the_canvas_zooms(painting: PageUnderTest) -> None:
    page, tab = painting, painting.tab
    page.slide("map-brush", 6)
    tab.hover("#map-canvas")
    scale = tab.locator("#map-canvas").bounding_box()["width"] / SIZE[1]
    assert tab.locator("#map-panel .ring").bounding_box()["width"] == pytest.approx(6 * scale, abs=1)
    tab.click("#map-in")
    assert tab.locator("#map-canvas").bounding_box()["width"] / SIZE[1] == pytest.approx(2 * scale)
    assert (
        tab.locator("#map-panel .viewport").bounding_box()["width"] <= tab.locator("#map-panel").bounding_box()["width"]
    )
    tab.click("#map-out")
    assert tab.locator("#map-canvas").bounding_box()["width"] / SIZE[1] == pytest.approx(scale)


def test_the_job_gets_the_painted_map(painting: PageUnderTest) -> None:
    page = painting
    page.choose("map-label", str(GROUND))
    page.paint("#map-canvas", (0.1, 0.8), (0.9, 0.8))
    expected = numbers(page)
    page.slide("count", 1)
    page.generate()
    _, data = page.download("#download")
    settings = read_settings(io.BytesIO(data))
    assert settings is not None
    assert settings["guidance"] == 3
    kept = decoded(base64.b64decode(settings["maps"]["segmentation"]))
    assert kept.shape == (*SIZE, 3)
    painted = expected == GROUND
    assert len(np.unique(kept[painted], axis=0)) == 1


def test_maps_of_numbers_and_colors_are_loaded(painting: PageUnderTest) -> None:
    page, tab = painting, painting.tab
    labels = np.repeat(np.repeat(np.array([[0, 1], [2, 0]]), 6, 0), 8, 1)
    page.load("#map-file", file_bytes(labels.astype(np.uint8)), "numbers.png")
    tab.wait_for_function("() => document.querySelector('#status').textContent === 'numbers.png is on the canvas.'")
    assert np.array_equal(numbers(page), labels)
    _, saved = page.download("#map-save")
    tab.click("#map-clear")
    page.load("#map-file", saved, "saved.png")  # the page's own colors
    tab.wait_for_function("() => document.querySelector('#status').textContent === 'saved.png is on the canvas.'")
    assert np.array_equal(numbers(page), labels)
    near = np.clip(decoded(saved).astype(int) + 7, 0, 255).astype(np.uint8)
    page.load("#map-file", file_bytes(near), "near.png")
    tab.wait_for_function("() => document.querySelector('#status').textContent === 'near.png is on the canvas.'")
    assert np.array_equal(numbers(page), labels)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (file_bytes(np.full(SIZE, 3, np.uint8)), "holds the number 3, and labels are 0 to 2"),
        (file_bytes(np.arange(192, dtype=np.uint16).reshape(SIZE) * 300), "a photo is no map"),
        (file_bytes(pixels(*SIZE)), "is not that of a label"),
    ],
    ids=["value", "gray photo", "photo"],
)
def test_what_is_no_map_is_refused_and_the_painted_one_stays(
    painting: PageUnderTest, data: bytes, sentence: str
) -> None:
    page = painting
    page.paint("#map-canvas", (0.1, 0.5), (0.9, 0.5))
    before = numbers(page)
    page.load("#map-file", data, "given.png")
    page.tab.wait_for_selector("#status.error")
    assert "given.png is no label map" in page.status
    assert sentence in page.status
    assert np.array_equal(numbers(page), before)


def test_a_map_is_scaled_with_the_size_and_kept_over_a_reload(painting: PageUnderTest) -> None:
    page, tab = painting, painting.tab
    page.paint("#map-canvas", (0.1, 0.5), (0.9, 0.5))
    small = numbers(page)
    page.choose("size", "12x32")
    assert np.array_equal(numbers(page), np.repeat(small, 2, 1))
    tab.click("#map-undo")
    assert (numbers(page) == -1).all()
    tab.click("#map-redo")
    assert np.array_equal(numbers(page), np.repeat(small, 2, 1))
    tab.wait_for_timeout(600)  # it is kept a moment later
    page.open()
    tab.wait_for_selector("#map-canvas:visible")
    assert tab.is_checked('input[name="size"][value="12x32"]')
    assert np.array_equal(numbers(page), np.repeat(small, 2, 1))
