"""What the browser tests do with the page: they press, paint and read as a person does."""

from __future__ import annotations

import base64
import io
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

ERRORS = ("503", "429", "400", "404")
"""Statuses of answers that the page shows as a sentence. The browser writes them to its console too."""


class PageUnderTest:
    """A page in a browser context of its own. `complaints` are errors in its console and requests elsewhere."""

    def __init__(self, chromium: Any, address: str, **options: Any) -> None:
        """`options`: those of a Playwright context, such as `viewport` and `color_scheme`."""
        self.address, self.complaints = address, list[str]()
        self.context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.context.set_default_timeout(20_000)
        self.tab = self.context.new_page()
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("console", self._on_console)
        self.tab.on("request", self._on_request)

    def __enter__(self) -> PageUnderTest:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.context.close()

    def _on_console(self, message: Any) -> None:
        expected = "Failed to load resource" in message.text and any(
            f"status of {one}" in message.text for one in ERRORS
        )
        if message.type in ("error", "warning") and not expected:
            self.complaints.append(message.text)

    def _on_request(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.complaints.append(f"requests {request.url}")

    # --- what a person does ---------------------------------------------------------------------------------------

    def open(self, query: str = "") -> None:
        """Open the page and wait for its examples."""
        self.tab.goto(f"{self.address}{query}")
        self.tab.wait_for_selector("body.ready #stage[data-kind=examples]")

    def press(self, *keys: str) -> None:
        """Press keys one after the other."""
        for key in keys:
            self.tab.keyboard.press(key)

    def choose(self, group: str, value: str) -> None:
        """Choose a radio button by its group and value."""
        self.tab.check(f'input[name="{group}"][value="{value}"]', force=True)

    def slide(self, name: str, value: float) -> None:
        """Move a slider."""
        self.tab.eval_on_selector(
            f"#{name}",
            "(input, value) => { input.value = value; input.dispatchEvent(new Event('input', { bubbles: true })); }",
            value,
        )

    def generate(self) -> None:
        """Press Generate and wait for the images."""
        self.tab.click("#generate")
        self.done()

    def done(self) -> None:
        """Wait until the running job is over."""
        self.tab.wait_for_function("() => /done|Reconstructed/.test(document.querySelector('#status').textContent)")

    def paint(self, canvas: str, begin: tuple[float, float], end: tuple[float, float]) -> None:
        """Draw a line on a canvas by the mouse, from and to shares (right, down) of its size."""
        self.tab.locator(canvas).scroll_into_view_if_needed()
        box = self.tab.locator(canvas).bounding_box()
        points = [(box["x"] + right * box["width"], box["y"] + down * box["height"]) for right, down in (begin, end)]
        self.tab.mouse.move(*points[0])
        self.tab.mouse.down()
        self.tab.mouse.move(*points[1], steps=4)
        self.tab.mouse.up()

    def load(self, selector: str, data: bytes, name: str = "given.png") -> None:
        """Choose a file."""
        self.tab.set_input_files(selector, {"name": name, "mimeType": "image/png", "buffer": data})

    def drop(self, data: bytes, name: str = "dropped.png") -> None:
        """Drop a file on the page."""
        self.tab.evaluate(
            """([text, name]) => {
              const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
              const dataTransfer = new DataTransfer();
              dataTransfer.items.add(new File([bytes], name, { type: "image/png" }));
              document.body.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer }));
            }""",
            [base64.b64encode(data).decode("ascii"), name],
        )

    def download(self, selector: str) -> tuple[str, bytes]:
        """Press a button that downloads -> the name and the content of the file."""
        with self.tab.expect_download() as found:
            self.tab.click(selector)
        path = found.value.path()
        return found.value.suggested_filename, path.read_bytes()

    # --- what a person sees ---------------------------------------------------------------------------------------

    @property
    def status(self) -> str:
        """The line under the stage."""
        text: str = self.tab.inner_text("#status")
        return text

    @property
    def kind(self) -> str:
        """What is on the stage."""
        kind: str = self.tab.get_attribute("#stage", "data-kind")
        return kind

    @property
    def thumbs(self) -> int:
        """The number of images in the gallery."""
        count: int = self.tab.locator("#thumbs li").count()
        return count

    @property
    def focus(self) -> str:
        """The id of the element with the focus; for a radio button name=value."""
        found: str = self.tab.evaluate(
            "() => { const { id, name, value, type } = document.activeElement;"
            " return type === 'radio' ? `${name}=${value}` : id; }"
        )
        return found

    def value(self, name: str) -> str:
        """The value of an input."""
        value: str = self.tab.input_value(f"#{name}")
        return value

    def images(self) -> list[Pixels]:
        """The pixels of the images on the stage, at their own size."""
        urls = self.tab.eval_on_selector_all(
            "#stage img",
            """(images) => Promise.all(images.map(async (image) => {
              await image.decode();
              const canvas = document.createElement("canvas");
              [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
              canvas.getContext("2d").drawImage(image, 0, 0);
              return canvas.toDataURL("image/png");
            }))""",
        )
        return [decoded(base64.b64decode(url.partition(",")[2])) for url in urls]

    def canvas(self, name: str) -> Pixels:
        """The pixels of a canvas (H,W,4)."""
        width, height, values = self.tab.eval_on_selector(
            f"#{name}",
            "(it) => [it.width, it.height, [...it.getContext('2d').getImageData(0, 0, it.width, it.height).data]]",
        )
        return np.array(values, dtype=np.uint8).reshape(height, width, 4)


def decoded(data: bytes) -> Pixels:
    """An image file -> its colors (H,W,3)."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
