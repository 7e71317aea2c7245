"""The studio as a person sees it, in a browser without a window: every way through the page, and nothing from
elsewhere.

Run by `make check-web`. SMALTI_CHROMIUM names the browser where it is in none of the usual places; SMALTI_SCREENSHOTS a
folder for what it looked like.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image

from smalti.images.io import read_image, read_settings, to_array
from smalti.pipeline import Pipeline
from smalti.web.requests import Limits
from smalti.web.server import serve
from tests.web.test_studio import PLACES, both, pipeline, written

pytestmark = pytest.mark.web

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT = 60_000  # milliseconds; a busy machine may take as long


def chromium() -> str:
    """The browser of this machine. Fails, and does not skip: without it nothing was checked."""
    named = os.environ.get("SMALTI_CHROMIUM")
    found = named or next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        pytest.fail("there is no Chromium on this machine; install it, or name it in SMALTI_CHROMIUM")
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web") / "tiny"
    pipeline(both()).save_pretrained(folder, about={})
    return folder


@pytest.fixture(scope="module")
def address(model: Path) -> Iterator[str]:
    served = serve(model, limits=Limits(side=512), names=PLACES, device="cpu")
    yield served.address
    served.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def outside() -> Iterator[list[str]]:
    """Requests that would leave this machine; there are none at the end of any test."""
    found: list[str] = []
    yield found
    assert not found


@pytest.fixture
def page(browser: Any, address: str, outside: list[str], request: pytest.FixtureRequest) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    opened = context.new_page()
    opened.set_default_timeout(WAIT)
    own = (address.rstrip("/"), "data:", "blob:")
    wrong: list[str] = []
    context.on("request", lambda call: None if call.url.startswith(own) else outside.append(call.url))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    visit(opened, address)
    yield opened
    folder = os.environ.get("SMALTI_SCREENSHOTS")
    if folder:
        opened.screenshot(path=Path(folder) / f"{request.node.name}.png", full_page=True)
    context.close()
    assert not wrong


def visit(page: Any, address: str) -> None:
    page.goto(address)
    page.wait_for_selector("#segmentation canvas")
    page.wait_for_function("document.querySelector('#segmentation canvas').width > 1")


def set_number(page: Any, name: str, value: int) -> None:
    field = page.locator(f"#{name} input[type=number]")
    field.fill(str(value))
    field.press("Tab")


def stroke(page: Any, canvas: str, *places: tuple[float, float]) -> None:
    """Draw over a canvas, from place to place as fractions of its width and height."""
    page.locator(canvas).scroll_into_view_if_needed()
    box = page.locator(canvas).bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points:
        page.mouse.move(*point, steps=5)
    page.mouse.up()


def painted(page: Any, canvas: str) -> Any:
    """The colors of a canvas of 12 x 16 pixels, (12,16,4)."""
    script = "(canvas) => Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data)"
    return np.array(page.locator(canvas).evaluate(script)).reshape(12, 16, 4)


def generate(page: Any, *, kept: int) -> list[str]:
    """Press Generate, and wait until so many images are in the gallery -> all that the stage has shown meanwhile."""
    page.evaluate("""() => {
      window.shown = [];
      const look = () => {
        const image = document.querySelector('#stage img');
        if (image && window.shown.at(-1) !== image.src) window.shown.push(image.src);
      };
      window.watching = new MutationObserver(look);
      window.watching.observe(document.querySelector('#stage'), {childList: true, subtree: true, attributes: true});
    }""")
    page.click("#generate")
    page.wait_for_function(f"document.querySelectorAll('#gallery .thumbnail-lg').length === {kept}")
    page.wait_for_selector("#generate:not([disabled])")
    page.wait_for_function("document.querySelectorAll('#stage .track').length === 0")
    shown: list[str] = page.evaluate("window.shown")
    return shown


def newest(page: Any, folder: Path) -> Path:
    """The newest image of the gallery, downloaded as a person does it."""
    page.locator("#gallery .thumbnail-lg").first.click()
    with page.expect_download() as download:
        page.locator("#gallery [aria-label=Download]").first.click()
    path = folder / "downloaded.png"
    download.value.save_as(path)
    return path


def shows(page: Any, pixels: Any) -> bool:
    """Whether the stage shows exactly these pixels (H,W,3)."""
    source = page.locator("#stage img").first.get_attribute("src")
    array = read_image(io.BytesIO(base64.b64decode(source.partition(",")[2])), channels=3, name="stage")
    return bool(np.array_equal(array, pixels))


def test_a_class_is_chosen_and_an_image_watched_and_taken_along(page: Any, model: Path, tmp_path: Path) -> None:
    page.get_by_label("dusk", exact=True).check()
    set_number(page, "width", 256)
    set_number(page, "height", 128)
    set_number(page, "seed", 11)
    shown = generate(page, kept=1)
    assert len(shown) > 3  # it changed while it was laid
    expected = to_array(Pipeline.from_pretrained(model).sample(1, size=(128, 256), seed=11, label="dusk")[0])
    assert shows(page, expected)
    path = newest(page, tmp_path)
    assert np.array_equal(read_image(path, channels=3, name=""), expected)
    settings = read_settings(path)
    assert settings is not None
    assert (settings["label"], settings["seed"], settings["width"]) == ("dusk", 11, 256)


def test_a_map_is_painted_and_followed(page: Any, model: Path) -> None:
    import torch

    for name in PLACES:
        assert page.get_by_role("radio", name=name, exact=True).count() == 1
    page.get_by_role("radio", name="water", exact=True).click()
    stroke(page, "#segmentation canvas", (0.1, 0.9), (0.9, 0.9))
    page.get_by_role("radio", name="ground", exact=True).click()
    stroke(page, "#segmentation canvas", (0.5, 0.5))
    data = painted(page, "#segmentation canvas")
    colors = {tuple(color) for color in data[:, :, :3].reshape(-1, 3).tolist()}
    chips = page.locator("#segmentation .labels i").evaluate_all(
        "(all) => all.map((one) => getComputedStyle(one).backgroundColor.match(/\\d+/g).map(Number))"
    )
    assert colors == {tuple(chip) for chip in chips}  # hard edges: no mixtures
    labels = torch.tensor([[chips.index(pixel[:3]) for pixel in row] for row in data.tolist()])
    assert labels[10, 8] == 2
    assert labels[6, 8] == 1
    assert labels[0, 0] == 0
    generate(page, kept=1)
    pipe = Pipeline.from_pretrained(model)
    assert shows(page, to_array(pipe.sample(1, segmentation=labels)[0]))
    page.get_by_role("button", name="Clear", exact=True).first.click()
    generate(page, kept=2)
    assert shows(page, to_array(pipe.sample(1)[0]))


def test_a_region_is_erased_and_an_image_extended(page: Any, model: Path, tmp_path: Path) -> None:
    page.get_by_label("Edit: inpaint / outpaint").check()
    page.set_input_files("#image input[type=file]", written(tmp_path / "given.png", height=12, width=16))
    page.wait_for_function("document.querySelector('#mask img').src.length > 100")
    stroke(page, "#mask canvas", (0.35, 0.35), (0.4, 0.4))
    generate(page, kept=1)
    first = page.locator("#stage img").first.get_attribute("src")
    page.locator("#side input").click()
    page.get_by_role("option", name="to the right").click()
    set_number(page, "amount", 8)
    generate(page, kept=2)
    second = page.locator("#stage img").first
    assert second.get_attribute("src") != first
    assert second.evaluate("(image) => [image.naturalWidth, image.naturalHeight]") == [24, 12]


def test_a_long_job_is_cancelled(page: Any) -> None:
    set_number(page, "width", 512)
    set_number(page, "height", 512)
    page.click("#generate")
    page.wait_for_selector("#stage .track")
    assert "left" in page.inner_text("#stage .message")
    page.click("#cancel")
    page.wait_for_function("document.querySelector('#stage').innerText.includes('Cancelled')")
    page.wait_for_selector("#generate:not([disabled])")
    assert page.locator("#gallery .thumbnail-lg").count() == 0
    set_number(page, "width", 16)
    set_number(page, "height", 12)
    generate(page, kept=1)  # and the next one is laid


def test_a_link_brings_the_settings_back(page: Any, browser: Any, address: str) -> None:
    page.get_by_label("night", exact=True).check()
    set_number(page, "width", 24)
    set_number(page, "seed", 5)
    generate(page, kept=1)
    before = page.locator("#stage img").first.get_attribute("src")
    link = page.locator("#link textarea, #link input").first.input_value()
    assert link == page.url
    assert parse_qs(urlsplit(link).query)["label"] == ["night"]
    visit(page, link)
    page.wait_for_function("document.querySelector('#width input[type=number]').value === '24'")
    assert page.get_by_label("night", exact=True).is_checked()
    assert page.locator("#seed input").input_value() == "5"
    assert page.locator("#gallery .thumbnail-lg").count() == 0  # the images were another visit's
    generate(page, kept=1)
    assert page.locator("#stage img").first.get_attribute("src") == before
    visit(page, f"{address}?label=noon")
    page.wait_for_function("document.querySelector('#stage').innerText.includes(\"no label 'noon'\")")


def test_a_photo_is_seen_in_codes(page: Any, tmp_path: Path) -> None:
    page.get_by_label("Reconstruct").check()
    page.set_input_files("#photo input[type=file]", written(tmp_path / "given.png", height=40, width=60))
    page.wait_for_function("document.querySelectorAll('#stage img').length === 3")
    assert "15 x 10" not in page.inner_text("#stage")
    assert "10 x 15 codes" in page.inner_text("#stage")
    assert " dB" in page.inner_text("#stage")


def test_a_mistake_is_a_sentence(page: Any, tmp_path: Path) -> None:
    (tmp_path / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    page.get_by_label("Reconstruct").check()
    page.set_input_files("#photo input[type=file]", tmp_path / "drawing.svg")
    page.get_by_text("drawing.svg is not an image of any kind that is read").wait_for()


def test_nothing_to_generate_is_a_sentence_and_the_page_goes_on(page: Any) -> None:
    generate(page, kept=1)
    set_number(page, "width", 24)  # before the canvas over the image is seen for the first time
    page.get_by_label("Edit: inpaint / outpaint").check()
    page.click("#newest")
    page.wait_for_function("document.querySelector('#mask img').src.length > 100")
    page.click("#generate")
    page.get_by_text("nothing is masked and nothing added").wait_for()
    page.wait_for_selector("#generate:not([disabled])")
    page.wait_for_function("document.querySelector('#mask canvas').width === 24")
    stroke(page, "#mask canvas", (0.5, 0.5))
    generate(page, kept=2)


def test_a_loaded_map_can_be_painted_on(page: Any, tmp_path: Path) -> None:
    labels = np.repeat(np.arange(3, dtype=np.uint8), 4)[:, None].repeat(16, axis=1)  # (12,16)
    Image.fromarray(labels).save(tmp_path / "map.png")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Load a segmentation").click()
    chooser.value.set_files(tmp_path / "map.png")
    page.wait_for_function("document.querySelector('#segmentation .hint').innerText === ''")
    data = painted(page, "#segmentation canvas")
    assert len(np.unique(data[:, :, :3].reshape(-1, 3), axis=0)) == 3
    assert len(np.unique(data[:4].reshape(-1, 4), axis=0)) == 1


def test_it_is_dark_where_people_like_it_dark(browser: Any, address: str) -> None:
    grounds: list[str] = []
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("#generate")
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        context.close()
    light, dark = (sum(int(part) for part in ground.strip("rgba()").split(",")[:3]) for ground in grounds)
    assert light > 600
    assert dark < 150
