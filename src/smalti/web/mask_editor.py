"""The canvas of the page: labels painted in their colors, or over an image what is to be erased. Its script is
mask_editor.js."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, final

import gradio as gr


@final
class Canvas:
    """A canvas for labels, pairs of a name and a color. The value of its `component` is what `drawing.from_text`
    reads."""

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
        """What makes the canvas one of another size (H,W), over another image, "" for none: a value for its
        component."""
        return gr.HTML(**self._props(size, image))

    def _props(self, size: tuple[int, int], image: str) -> dict[str, Any]:
        """All of them each time: what comes before the canvas is seen takes the place of what it was made with."""
        return {**self._same, "height": size[0], "width": size[1], "image": image}
