"""The page in a browser: the first images, their settings, and reconstructions."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from smalti.images.io import read_settings
from tests.web.browser import PageUnderTest
from tests.web.pipelines import SEASONAL, file_bytes, pixels

pytestmark = pytest.mark.web


def test_one_press_gives_four_images(page: PageUnderTest) -> None:
    """A visitor who changes nothing gets four images of a class, with guidance 2 and seeds of their own."""
    tab = page.tab
    assert tab.locator("#stage .pick img").count() == 4  # the stage is never empty
    assert "tiny" in tab.title()
    assert tab.is_visible("#prompt")  # the model knows texts: they come first
    tab.wait_for_function("() => /^about \\d+ s$/.test(document.querySelector('#status').textContent)")
    page.generate()
    assert page.kind == "results"
    assert page.status == "4 images done."
    assert page.thumbs == 4
    assert [image.shape for image in page.images()] == [(12, 16, 3)] * 4
    boxes = [image.bounding_box() for image in tab.locator("#stage img").all()]
    assert {round(box["width"]) % 16 for box in boxes} == {0}  # whole multiples
    first, seed = tab.inner_text("#thumbs li:last-child span"), int(tab.inner_text("#thumbs li:last-child small"))
    assert first.replace(" ", "-") in SEASONAL
    seeds = [int(text) for text in tab.locator("#thumbs li small").all_inner_texts()]
    assert seeds == [seed + 3 - place for place in range(4)]  # the newest first
    tab.locator("#stage .pick").nth(0).click()
    name, data = page.download("#download")
    settings = read_settings(io.BytesIO(data))
    assert settings is not None
    assert name == f"{first.replace(' ', '-')}-{seed}.png"
    assert (settings["seed"], settings["guidance"]) == (seed, 2.0)
    page.generate()
    assert page.thumbs == 8
    assert int(tab.inner_text("#thumbs li:last-child small")) == seed  # the next ones have another seed
    assert int(tab.inner_text("#thumbs li:first-child small")) not in seeds


def test_the_seed_can_be_locked_and_typed(page: PageUnderTest) -> None:
    tab = page.tab
    before = page.value("seed")
    tab.click("#dice")
    assert page.value("seed") != before
    tab.fill("#seed", "12")
    tab.press("#seed", "Tab")
    assert tab.is_checked("#lock")
    page.slide("count", 1)
    page.generate()
    page.generate()
    assert tab.locator("#thumbs li small").all_inner_texts() == ["12", "12"]
    one, other = (tab.locator("#thumbs img").nth(place).get_attribute("alt") for place in range(2))
    assert one == other
    assert "spring night" in one, "any class: it follows from the seed"
    assert "seed 12" in one


def test_an_example_gives_its_settings(page: PageUnderTest) -> None:
    page.tab.locator("#stage .pick").nth(3).click()
    page.tab.wait_for_function(
        "() => document.querySelector('#status').textContent.includes('settings of the example')"
    )
    assert page.tab.is_checked('input[name="axis-0"][value="winter"]')
    assert page.value("seed") == "3"


def test_sliders_stop_at_the_real_limit(page: PageUnderTest) -> None:
    tab = page.tab
    page.slide("count", 8)
    page.choose("size", "custom")
    tab.fill("#width", "63")
    tab.press("#width", "Tab")
    assert page.value("width") == "64"
    tab.fill("#height", "1000")
    tab.press("#height", "Tab")
    assert page.value("height") == "64"
    assert page.value("count") == tab.get_attribute("#count", "max") == "1"  # 256 of 300 codes
    page.generate()
    assert page.images()[0].shape == (64, 64, 3)


def test_a_plain_image_is_explained(page: PageUnderTest) -> None:
    tab = page.tab
    tab.click("#advanced summary")
    assert tab.is_hidden("#greedy-hint")
    page.slide("top_k", 1)
    assert tab.is_visible("#greedy-hint")
    page.slide("top_k", 0)
    page.slide("temperature", 0)
    assert tab.is_visible("#greedy-hint")
    page.generate()
    assert "images tend to become uniform" in page.status


def test_text_and_class_and_link(page: PageUnderTest) -> None:
    tab = page.tab
    tab.fill("#prompt", "a red house by a lake")
    page.choose("axis-0", "winter")
    page.choose("axis-1", "*")  # a time that follows from the seed
    page.slide("count", 1)
    tab.press("#prompt", "Enter")
    page.done()
    _, data = page.download("#download")
    settings = read_settings(io.BytesIO(data))
    assert settings is not None
    assert settings["text"] == "a red house by a lake"
    assert settings["label"].startswith("winter-")
    query = tab.evaluate("() => location.search")
    page.open(query)
    tab.wait_for_function("() => document.querySelector('#status').textContent.includes('settings of the link')")
    assert page.value("prompt") == "a red house by a lake"
    assert page.value("seed") == str(settings["seed"])
    page.open("?seed=-3")
    tab.wait_for_selector("#status.error")
    assert "Invalid link: the request: seed = '-3'" in page.status
    tab.click("#advanced summary")
    tab.click("#copy-link")
    assert "seed=" in tab.evaluate("() => navigator.clipboard.readText()")


def test_a_text_alone_decides_the_class(page: PageUnderTest) -> None:
    page.tab.fill("#prompt", "a house")
    page.slide("count", 1)
    page.generate()
    _, data = page.download("#download")
    settings = read_settings(io.BytesIO(data)) or {}
    assert settings["text"] == "a house"
    assert "label" not in settings
    page.choose("axis-0", "winter")
    page.generate()
    _, data = page.download("#download")
    assert (read_settings(io.BytesIO(data)) or {})["label"].startswith("winter-")


def test_a_reconstruction_is_compared_with_its_original(page: PageUnderTest) -> None:
    tab = page.tab
    page.choose("mode", "reconstruct")
    assert "Open or drop an image" in tab.inner_text("#stage")
    given = pixels(14, 18)
    page.load("#open-photo", file_bytes(given), "photo.png")
    page.done()
    original, after = page.images()
    assert np.array_equal(original, given[1:13, 1:17])
    assert "PSNR" in tab.inner_text("#facts")
    page.choose("tiles", "codes")
    tiles = page.images()[1]
    assert not np.array_equal(tiles, after)
    assert len(np.unique(tiles.reshape(-1, 3), axis=0)) <= 12 + 1  # a color for each of 3 x 4 codes, and the lines
    page.slide("divider", 25)
    assert "25%" in tab.locator(".compare .after").get_attribute("style")
    box = tab.locator(".compare").bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + 5)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 5)
    tab.mouse.up()
    assert page.value("divider") == "75"


def test_what_cannot_be_read_is_a_sentence_and_the_page_goes_on(page: PageUnderTest) -> None:
    for data, sentence in ((b"no image", "broken.png"), (file_bytes(np.zeros((2, 900, 3), np.uint8)), "less narrow")):
        page.drop(data, "broken.png")
        page.tab.wait_for_selector("#status.error")
        assert sentence in page.status
        assert "/" not in page.status
        page.slide("count", 1)
        page.generate()


def shown_value(page: PageUnderTest, name: str) -> Any:
    return page.tab.inner_text(f"output[for={name}]")


def test_guidance_is_two_and_three_with_a_map(page: PageUnderTest) -> None:
    assert shown_value(page, "guidance") == "2"
    page.tab.click("#map-toggle")
    assert shown_value(page, "guidance") == "2"  # nothing is painted yet
    page.paint("#map-canvas", (0.2, 0.5), (0.8, 0.5))
    assert shown_value(page, "guidance") == "3"
    page.slide("guidance", 5)  # chosen by the visitor: it stays
    page.tab.click("#map-clear")
    assert shown_value(page, "guidance") == "5"
