"""The mask editor of the page: a canvas for labels, or for a mask over an image. Its script is mask_editor.js."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, final

import gradio as gr


@final
class MaskEditor:
    """An editor for labels, pairs of a name and a color. `code_images.from_text` reads the value of its `component`."""

    def __init__(
        self, labels: Sequence[tuple[str, str]], *, first: int, size: tuple[int, int], hint: str, name: str
    ) -> None:
        named = [{"name": label, "color": color} for label, color in labels]
        self._same = {"labels": named, "first": first, "hint": hint}
        self.component = gr.HTML(
            "",
            html_template="",
            js_on_load=files("smalti.web").joinpath("mask_editor.js").read_text("utf-8"),
            elem_id=name,
            **self._props(size, ""),
        )

    def fitted(self, size: tuple[int, int], image: str) -> Any:
        """An update of the component to another size (H,W) and another image, "" for none."""
        return gr.HTML(**self._props(size, image))

    def _props(self, size: tuple[int, int], image: str) -> dict[str, Any]:
        """All props, since an update before the first render replaces the initial ones."""
        return {**self._same, "height": size[0], "width": size[1], "image": image}
