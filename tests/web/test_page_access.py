"""The page in a browser by keyboard alone, for screen readers, at three sizes, light and dark."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.web.browser import PageUnderTest
from tests.web.pipelines import file_bytes, pixels

pytestmark = pytest.mark.web

SIZES = {"wide": (1280, 900), "narrow": (1024, 768), "phone": (390, 844)}


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=sorted(SIZES))
def sized(request: pytest.FixtureRequest, scheme: str, chromium: Any, address: str) -> Iterator[PageUnderTest]:
    """The page at each size, light and dark."""
    width, height = SIZES[request.param]
    with PageUnderTest(chromium, address, viewport={"width": width, "height": height}, color_scheme=scheme) as opened:
        opened.open()
        yield opened
        assert opened.complaints == []


def axe() -> str:
    """The source of axe-core: the file that SMALTI_AXE names, or that of the package axe-core-python."""
    named, package = os.environ.get("SMALTI_AXE"), find_spec("axe_core_python")
    if named is None and (package is None or package.origin is None):
        pytest.skip("the extra `check-web` is not installed")
    path = Path(named) if named else Path(str(package and package.origin)).with_name("axe.min.js")
    return path.read_text("utf-8")


def violations(page: PageUnderTest) -> list[str]:
    """What axe-core objects to: of all impacts."""
    if not page.tab.evaluate("() => Boolean(window.axe)"):
        page.tab.evaluate(axe())
    found = page.tab.evaluate(
        """async () => (await axe.run(document, { resultTypes: ["violations"] })).violations
             .map(({ id, impact, nodes }) => `${impact} ${id}: ${nodes.map((node) => node.html.slice(0, 160))}`)"""
    )
    return [str(one) for one in found]


def test_axe_finds_nothing_in_any_state(sized: PageUnderTest) -> None:
    page, tab = sized, sized.tab
    assert violations(page) == []
    tab.click("#advanced summary")
    page.slide("count", 2)
    page.slide("temperature", 0)
    tab.click("#map-toggle")
    page.paint("#map-canvas", (0.2, 0.5), (0.8, 0.5))
    page.generate()
    assert violations(page) == []
    tab.locator("#thumbs button").nth(0).click()
    assert violations(page) == []
    tab.click("#extend-this")
    assert violations(page) == []
    page.choose("mode", "reconstruct")
    assert violations(page) == []
    page.load("#open-photo", file_bytes(pixels(12, 16)))
    page.done()
    assert violations(page) == []
    page.drop(b"no image")
    tab.wait_for_selector("#status.error")
    assert violations(page) == []


def test_axe_would_find_what_is_wrong(page: PageUnderTest) -> None:
    page.tab.evaluate("() => document.querySelector('#generate').style.setProperty('color', '#3a8a84')")
    page.tab.evaluate("() => document.querySelector('label[for=seed]').remove()")
    found = " ".join(violations(page))
    assert "color-contrast" in found
    assert "label" in found


def test_everything_is_within_reach(sized: PageUnderTest) -> None:
    """Nothing is wider than the window; the stage is first, and with it Generate and Cancel, which stay in sight."""
    page, tab = sized, sized.tab
    width, height = tab.viewport_size["width"], tab.viewport_size["height"]
    assert tab.evaluate("() => document.documentElement.scrollWidth") <= width
    boxes = {name: tab.locator(f"#{name}").bounding_box() for name in ("stage", "generate", "cancel", "panel", "seed")}
    assert boxes["stage"]["y"] < 150
    for name in ("generate", "cancel"):
        assert boxes[name]["y"] + boxes[name]["height"] <= height
    if width == 1280:
        assert boxes["panel"]["y"] + boxes["panel"]["height"] <= 900  # no scrolling for any control
    if width == 390:
        assert boxes["stage"]["y"] + boxes["stage"]["height"] <= boxes["panel"]["y"]
    tab.mouse.move(width / 2, height - 20)
    tab.mouse.wheel(0, 5000)
    tab.wait_for_timeout(200)
    box = tab.locator("#generate").bounding_box()
    assert box["y"] >= 0  # sticky
    assert box["y"] + box["height"] <= height
    page.slide("count", 2)
    page.generate()
    page.tab.click("#map-toggle")
    page.paint("#map-canvas", (0.2, 0.5), (0.8, 0.5))
    assert tab.evaluate("() => document.documentElement.scrollWidth") <= width


def test_targets_are_24_pixels(sized: PageUnderTest) -> None:
    sized.tab.click("#map-toggle")
    sized.slide("count", 2)
    sized.generate()
    small = sized.tab.eval_on_selector_all(
        "button, input, select, summary, canvas",
        """(all) => all
             .filter((one) => one.offsetParent && !one.classList.contains("hidden-text"))
             .map((one) => {
               const { width, height } = (one.type === "checkbox" ? one.parentElement : one).getBoundingClientRect();
               return [one.id || one.name || one.textContent, width, height];
             })
             .filter(([, width, height]) => width < 24 || height < 24)""",
    )
    assert small == []


def announced(page: PageUnderTest, text: str) -> None:
    page.tab.wait_for_function("(text) => document.querySelector('#live').textContent.includes(text)", arg=text)


def test_by_keyboard_alone(page: PageUnderTest) -> None:
    """From opening the page to an edited image without a mouse."""
    page.press("Tab")
    assert page.tab.evaluate("() => document.activeElement.textContent") == "Skip to the settings"
    page.press("Enter", "Tab")
    assert page.focus == "axis-0=*"
    page.press("ArrowRight", "ArrowRight")  # around the end
    assert page.focus == "axis-0=summer"
    page.press("ArrowRight")
    assert page.focus == "axis-0=autumn"
    page.press("ArrowLeft", "ArrowLeft", "ArrowLeft")
    assert page.focus == "axis-0=*"
    page.press("Tab", "ArrowRight")
    assert page.focus == "axis-1=day"
    while page.focus != "count":
        page.press("Tab")
    page.press("Home", "ArrowRight")
    assert page.value("count") == "2"
    page.press("Control+Enter")
    page.done()
    announced(page, "2 images done.")
    assert page.focus == "count"  # the focus stays where it was
    while page.tab.evaluate("() => document.activeElement.closest('#thumbs') === null"):
        page.press("Tab")
    page.press("Enter")
    announced(page, "is on the stage")
    while page.focus != "edit-this":
        page.press("Shift+Tab")
    page.press("Enter")
    page.tab.wait_for_selector("#mask-canvas")
    assert page.focus == "mask-canvas"
    before = page.canvas("mask-canvas")
    page.press("[", "[", "[", "ArrowLeft", " ", "Enter", "ArrowRight", "Shift+ArrowRight", "Enter")
    marked = (page.canvas("mask-canvas") != before).any(2)
    assert marked.sum() > 3
    page.press("Control+z")
    announced(page, "Undone")
    page.press("Control+z")
    assert np.array_equal(page.canvas("mask-canvas"), before)
    page.press("Control+y")
    announced(page, "Done again")
    assert (page.canvas("mask-canvas") != before).any()
    page.press("Control+Enter")
    page.done()
    assert page.thumbs == 4


def test_the_map_is_painted_by_keyboard(page: PageUnderTest) -> None:
    tab = page.tab
    tab.focus("#map-toggle")
    page.press("Enter")
    assert tab.get_attribute("#map-toggle", "aria-expanded") == "true"
    tab.focus("#map-canvas")
    page.press("3", "f")
    announced(page, "water")
    page.press("1", "]", " ")
    canvas = page.canvas("map-canvas")
    assert len(np.unique(canvas.reshape(-1, 4), axis=0)) == 2
    page.press("Delete")
    assert len(np.unique(page.canvas("map-canvas").reshape(-1, 4), axis=0)) > 2
    page.press("Control+z", "Control+z", "Control+z")
    page.press("+")
    announced(page, "Zoom 2")
    tab.focus("#map-close")
    page.press("Enter")
    assert page.focus == "map-toggle"


def test_keys_in_a_text_stay_there(page: PageUnderTest) -> None:
    """Ctrl+Z in the prompt undoes typing, and nothing on the canvas."""
    tab = page.tab
    tab.click("#map-toggle")
    page.paint("#map-canvas", (0.2, 0.5), (0.8, 0.5))
    painted = page.canvas("map-canvas")
    tab.focus("#prompt")
    tab.keyboard.type("a lake")
    page.press("Control+z")
    assert page.value("prompt") != "a lake"
    assert np.array_equal(page.canvas("map-canvas"), painted)


def test_groups_have_names_and_images_texts(page: PageUnderTest) -> None:
    tab = page.tab
    page.slide("count", 2)
    page.generate()
    for name in ("Mode", "Season", "Time", "Size"):
        assert tab.get_by_role("group", name=name, exact=True).count() == 1
    assert tab.get_by_role("button", name="Undo").count() == 0  # the map is closed
    texts = [image.get_attribute("alt") for image in tab.locator("img").all()]
    assert all(re.match(r"Image for: \w+ (day|dusk|night); seed \d+", text or "") for text in texts)
    assert tab.get_attribute("html", "lang") == "en"
    assert tab.get_attribute('meta[property="og:title"]', "content") == "smalti: tiny"
