"""A class label as one prefix code (section 3.2 of arXiv 2012.09841), and the condition of a prior that has none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from smalti.conditions.base import Condition, as_prefix
from smalti.errors import SmaltiError, suggestion
from smalti.images import Array


@final
class Labels(Condition):
    """Label names -> (B,1): each name's place in the list of names."""

    key = "label"
    length = 1

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.size = len(self.names)
        self._codes = {name: code for code, name in enumerate(self.names)}

    def encode(self, values: Sequence[Any]) -> Tensor:
        for value in values:
            if value not in self._codes:
                raise SmaltiError(f"there is no label {value!r}; {suggestion(str(value), self.names)}")
        return as_prefix([self._codes[value] for value in values])

    def preview(self, codes: Tensor) -> Array:
        return _written(self.names[int(codes[0])])

    def settings(self) -> dict[str, Any]:
        return {"name": "labels", "labels": list(self.names)}


@final
class Nothing(Condition):
    """No condition: every value becomes the code "nothing", with which the prior starts."""

    key = ""
    size = 0
    length = 1

    def encode(self, values: Sequence[Any]) -> Tensor:
        for value in values:
            if value is not None:
                raise SmaltiError(f"this model takes no condition, {value!r} was given; leave it out")
        return as_prefix([0] * len(values))

    def preview(self, codes: Tensor) -> Array:
        return _written("no condition")

    def settings(self) -> dict[str, Any]:
        return {"name": "nothing"}


CONDITIONS: dict[str, Callable[[Mapping[str, Any]], Condition]] = {
    "labels": lambda settings: Labels(settings["labels"]),
    "nothing": lambda settings: Nothing(),
}


def build_condition(settings: Mapping[str, Any]) -> Condition:
    """The plain values of `Condition.settings` -> the condition."""
    name = settings.get("name")
    if name not in CONDITIONS:
        raise SmaltiError(f"unknown condition {name!r}; {suggestion(str(name), CONDITIONS)}")
    return CONDITIONS[name](settings)


def _written(text: str) -> Array:
    """A line of text in black on white."""
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), text)
    picture = Image.new("RGB", (int(right - left) + 8, int(bottom - top) + 8), "white")
    ImageDraw.Draw(picture).text((4 - left, 4 - top), text, fill="black")
    return np.asarray(picture)
