"""The page in a browser: parts of an image are generated anew, and images are extended, more than once."""

from __future__ import annotations

import numpy as np
import pytest

from tests.web.browser import PageUnderTest
from tests.web.pipelines import file_bytes, pixels

pytestmark = pytest.mark.web

F = 4


@pytest.fixture
def editing(page: PageUnderTest) -> PageUnderTest:
    """An image of 24 x 20 pixels on the canvas, larger than the trained size."""
    page.choose("mode", "edit")
    assert "Open or drop an image" in page.tab.inner_text("#stage")
    page.load("#open-image", file_bytes(GIVEN), "photo.png")
    page.tab.wait_for_selector("#mask-canvas")
    page.slide("count", 1)
    return page


GIVEN = pixels(24, 20)


def test_an_image_keeps_its_size_and_unmarked_pixels(editing: PageUnderTest) -> None:
    page = editing
    assert page.canvas("mask-canvas").shape == (24, 20, 4)
    assert np.array_equal(page.canvas("mask-canvas")[:, :, :3], GIVEN)
    page.slide("mask-brush", 2)
    page.paint("#mask-canvas", (0.4, 0.5), (0.6, 0.5))
    marked = (page.canvas("mask-canvas")[:, :, :3] != GIVEN).any(2)
    assert 8 <= marked.sum() <= 24
    page.generate()
    made = page.images()[0]
    assert made.shape == (24, 20, 3)
    tiles = marked.reshape(6, F, 5, F).any((1, 3)).repeat(F, 0).repeat(F, 1)
    assert np.array_equal(made[~tiles], GIVEN[~tiles])  # to the bit
    assert not np.array_equal(made[marked], GIVEN[marked])


def test_an_image_is_extended_twice(editing: PageUnderTest) -> None:
    page, tab = editing, editing.tab
    page.choose("extend", "right")
    page.slide("amount", 8)
    assert page.canvas("mask-canvas").shape == (24, 28, 4)
    page.generate()
    first = page.images()[0]
    assert first.shape == (24, 28, 3)
    assert np.array_equal(first[:, :20], GIVEN)
    tab.click("#extend-this")
    assert page.canvas("mask-canvas").shape[1] > 28
    page.choose("extend", "top")
    page.slide("amount", 4)
    page.generate()
    second = page.images()[0]
    assert second.shape == (28, 28, 3)
    assert np.array_equal(second[4:], first)
    page.choose("extend", "all")
    assert int(tab.get_attribute("#amount", "max")) * 2 + 28 <= 64  # the slider stops at the limit
    tab.click("#back")
    assert page.kind == "editor"


def test_the_mask_survives_another_size(editing: PageUnderTest) -> None:
    page, tab = editing, editing.tab
    page.slide("mask-brush", 3)
    page.paint("#mask-canvas", (0.2, 0.2), (0.5, 0.5))
    marked = page.canvas("mask-canvas")
    for side, place in (("left", (0, 8)), ("bottom", (0, 0)), ("all", (8, 8))):
        page.choose("extend", side)
        page.slide("amount", 8)
        top, left = place
        assert np.array_equal(page.canvas("mask-canvas")[top : top + 24, left : left + 20], marked)
        tab.click("#mask-undo")  # undo and redo go on over a change of the size
        assert np.array_equal(page.canvas("mask-canvas")[top : top + 24, left : left + 20, :3], GIVEN)
        tab.click("#mask-redo")
        assert np.array_equal(page.canvas("mask-canvas")[top : top + 24, left : left + 20], marked)
    page.choose("extend", "none")
    assert np.array_equal(page.canvas("mask-canvas"), marked)
    page.choose("mode", "create")
    page.choose("size", "12x32")
    page.choose("mode", "edit")
    assert np.array_equal(page.canvas("mask-canvas"), marked)
    tab.click("#mask-undo")
    assert np.array_equal(page.canvas("mask-canvas")[:, :, :3], GIVEN)
    tab.click("#mask-redo")
    assert np.array_equal(page.canvas("mask-canvas"), marked)


def test_nothing_marked_is_a_sentence(editing: PageUnderTest) -> None:
    page = editing
    page.tab.click("#generate")
    page.tab.wait_for_selector("#status.error")
    assert page.status.startswith("nothing is marked")
    page.paint("#mask-canvas", (0.2, 0.2), (0.5, 0.5))
    assert page.status.startswith("about")


def test_any_image_of_the_gallery_can_be_edited(page: PageUnderTest) -> None:
    tab = page.tab
    page.choose("size", "12x32")
    page.slide("count", 2)
    page.choose("axis-0", "winter")
    page.generate()
    page.choose("axis-0", "summer")
    tab.locator("#thumbs button").nth(1).click()
    shown = page.images()[0]
    tab.click("#edit-this")
    assert tab.is_checked('input[name="axis-0"][value="winter"]')  # new parts are like the image
    assert page.focus == "mask-canvas"
    assert np.array_equal(page.canvas("mask-canvas")[:, :, :3], shown)
    page.slide("mask-brush", 4)
    page.paint("#mask-canvas", (0.1, 0.2), (0.1, 0.3))
    page.slide("count", 1)
    page.generate()
    assert np.array_equal(page.images()[0][:, 16:], shown[:, 16:])
    assert page.thumbs == 3


def test_a_dropped_photo_is_edited(page: PageUnderTest) -> None:
    page.drop(file_bytes(GIVEN[:14, :18]), "holiday.png")
    page.tab.wait_for_selector("#mask-canvas")
    assert page.tab.is_checked('input[name="mode"][value="edit"]')
    assert page.canvas("mask-canvas").shape == (12, 16, 4)  # whole tiles of its middle
    page.drop(file_bytes(np.zeros((8, 8, 3), np.uint8)), "small.png")
    page.tab.wait_for_selector("#status.error")
    assert "small.png is 8 x 8 pixels" in page.status
    assert page.canvas("mask-canvas").shape == (12, 16, 4)
