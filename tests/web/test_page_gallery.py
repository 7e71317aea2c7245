"""The page in a browser: what can be done with an image of the gallery, which the browser keeps."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from smalti.images.io import read_settings
from tests.web.browser import PageUnderTest, decoded

pytestmark = pytest.mark.web


@pytest.fixture
def filled(page: PageUnderTest) -> PageUnderTest:
    """Two images in the gallery."""
    page.slide("count", 2)
    page.generate()
    return page


def test_an_image_is_downloaded_with_its_settings(filled: PageUnderTest) -> None:
    page, tab = filled, filled.tab
    tab.locator("#thumbs button").nth(0).click()
    name, data = page.download("#download")
    settings = read_settings(io.BytesIO(data))
    assert settings is not None
    assert name == f"{settings['label']}-{settings['seed']}.png"
    assert np.array_equal(decoded(data), page.images()[0])
    tab.click("#copy-seed")
    assert tab.evaluate("() => navigator.clipboard.readText()") == str(settings["seed"])
    assert page.status == "The seed is copied."


def test_all_are_downloaded(filled: PageUnderTest) -> None:
    page, tab = filled, filled.tab
    name, data = page.download("#download-all")
    assert name == "smalti.zip"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        seeds = [read_settings(io.BytesIO(archive.read(one)))["seed"] for one in archive.namelist()]  # type: ignore[index]
    assert sorted(map(str, seeds)) == sorted(tab.locator("#thumbs li small").all_inner_texts())


def test_variations_keep_a_part(filled: PageUnderTest) -> None:
    page, tab = filled, filled.tab
    tab.locator("#thumbs button").nth(0).click()
    given = page.images()[0]
    tab.click("#vary-this")
    page.done()
    assert page.thumbs == 4
    made = page.images()
    assert len(made) == 2
    for image in made:
        assert image.shape == given.shape
        assert not np.array_equal(image, given)
    tab.locator("#stage .pick").nth(0).click()
    _, data = page.download("#download")
    settings = read_settings(io.BytesIO(data))
    assert settings is not None
    assert settings["command"] == "vary"


def test_settings_are_reused_from_the_gallery_and_from_a_dropped_file(filled: PageUnderTest) -> None:
    page, tab = filled, filled.tab
    tab.click("#map-toggle")
    page.choose("map-label", "2")
    page.slide("map-brush", 4)
    page.paint("#map-canvas", (0.2, 0.5), (0.8, 0.5))
    page.choose("axis-0", "winter")
    page.choose("size", "12x32")
    tab.click("#advanced summary")
    page.slide("temperature", 0.8)
    page.slide("count", 1)
    page.generate()
    first = page.images()[0]
    name, data = page.download("#download")
    painted = page.download("#map-save")[1]

    def restored() -> None:
        tab.wait_for_function("() => /set\\.$/.test(document.querySelector('#status').textContent)")
        assert tab.is_checked('input[name="axis-0"][value="winter"]')
        assert tab.is_checked('input[name="size"][value="12x32"]')
        assert page.value("temperature") == "0.8"
        assert tab.is_checked("#lock")
        assert np.array_equal(decoded(page.download("#map-save")[1]), decoded(painted))
        page.generate()
        assert np.array_equal(page.images()[0], first)  # the same image again

    def change() -> None:
        page.choose("axis-0", "summer")
        page.choose("size", "12x16")
        page.slide("temperature", 1)
        tab.uncheck("#lock")
        tab.click("#map-clear")
        tab.click("#map-close")

    change()
    tab.locator("#thumbs button").nth(0).click()
    tab.click("#reuse")
    restored()
    change()
    page.drop(data, name)
    restored()
    assert page.thumbs == 2 + 1 + 1 + 2  # the dropped one too


def test_images_are_deleted(filled: PageUnderTest) -> None:
    page, tab = filled, filled.tab
    tab.locator("#thumbs button").nth(0).click()
    left = tab.locator("#thumbs img").nth(1).get_attribute("alt")
    tab.click("#delete")
    tab.wait_for_function("() => document.querySelectorAll('#thumbs li').length === 1")
    assert tab.locator("#thumbs img").get_attribute("alt") == left
    page.generate()
    tab.click("#delete-all")
    assert tab.inner_text("#delete-all") == "Delete 3 images?"  # a second press is needed
    assert page.thumbs == 3
    tab.click("#delete-all")
    tab.wait_for_function("() => document.querySelectorAll('#thumbs li').length === 0")
    assert tab.get_attribute("#download-all", "aria-disabled") == "true"
    assert page.kind != "results"  # what is deleted is on the stage no more
    page.open()
    assert page.thumbs == 0


def test_a_reload_keeps_the_gallery(filled: PageUnderTest) -> None:
    page, tab = filled, filled.tab
    before = tab.locator("#thumbs li").all_inner_texts()
    tab.locator("#thumbs button").nth(1).click()
    image = page.images()[0]
    page.open()
    assert tab.locator("#thumbs li").all_inner_texts() == before
    tab.locator("#thumbs button").nth(1).click()
    assert np.array_equal(page.images()[0], image)
    assert tab.is_visible("#actions")


def test_captions_have_the_whole_name(page: PageUnderTest) -> None:
    page.choose("axis-0", "autumn")
    page.choose("axis-1", "night")
    page.slide("count", 1)
    page.generate()
    caption = page.tab.locator("#thumbs li p")
    assert caption.locator("span").inner_text() == "autumn night"
    assert caption.locator("small").inner_text() == page.value("seed")
    width, scroll = page.tab.eval_on_selector("#thumbs li p", "(it) => [it.clientWidth, it.scrollWidth]")
    assert scroll <= width  # nothing is cut off
