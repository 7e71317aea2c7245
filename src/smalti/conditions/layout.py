"""A list of objects with their boxes as a condition: the scene layouts of the original's last models.

Letters: B batch, P prefix codes, h w grid of codes.
Source: the scene models of CompVis/taming-transformers (Jahn, Rombach, Ommer, arXiv 2105.06458). The codes themselves are
written in `layout_codes`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from smalti.conditions.base import Condition, Grid, Laid
from smalti.conditions.layout_codes import (
    Annotation,
    Described,
    LayoutSettings,
    layout_codes,
    read_codes,
    shortened,
)
from smalti.conditions.location_codes import WHOLE, Box, outline, under
from smalti.conditions.previews import palette
from smalti.core.errors import SmaltiError, suggestion
from smalti.core.files import normalized, read_json
from smalti.core.settings import as_mapping
from smalti.images.boxes import SHARES, box_within
from smalti.images.io import Array
from smalti.prior.window import Window, before_middle

_SIDE = 256  # pixels of a preview
_PROPERTIES = ("group", "occluded", "depiction", "inside")


@final
class Layout(Condition):
    """Lists of objects -> (B,P): what each is and where, and which part of the image is seen.

    An object is an `Annotation`, or a mapping as it stands in a JSON file:
    `{"class": "tree", "box": [left, top, width, height], "group": false}`, with the class's name, the box in shares of the
    image, and what is true of `group`, `occluded`, `depiction` and `inside`. The objects keep their order, which says
    nothing; a training shuffles them (`layout_codes.shuffled`).
    """

    key = "layout"
    middle = staticmethod(before_middle)

    def __init__(self, settings: LayoutSettings) -> None:
        self.settings = settings
        self.size, self.length = settings.codebook_size, settings.length
        self.maps = (settings.listed,) if math.prod(settings.drawn) else ()
        self._categories = {normalized(name): number for number, name in enumerate(settings.classes)}

    def read(self, text: str) -> tuple[Annotation, ...]:
        """The path of a JSON file, a list of objects."""
        found = read_json(Path(text))
        if not isinstance(found, list):
            raise SmaltiError(f'{text} holds no list of objects; write [{{"class": ..., "box": [...]}}, ...]')
        return self.annotations(found)

    def annotations(self, value: Any) -> tuple[Annotation, ...]:
        """A list of objects of either kind -> annotations. Raises `SmaltiError` for one that is neither."""
        if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
            raise SmaltiError(f"a layout is a list of objects, not {value!r}")
        return tuple(self._annotation(one, place) for place, one in enumerate(value, start=1))

    def _annotation(self, one: Any, place: int) -> Annotation:
        if isinstance(one, Annotation):
            return one
        if not isinstance(one, Mapping) or "class" not in one or "box" not in one:
            raise SmaltiError(f'object {place} of the layout is {one!r}; write {{"class": ..., "box": [...]}}')
        for key in one:
            if key not in ("class", "box", *_PROPERTIES):
                known = suggestion(str(key), ("class", "box", *_PROPERTIES))
                raise SmaltiError(f"object {place} of the layout: unknown key {key!r}; {known}")
        name, box = one["class"], one["box"]
        if not isinstance(name, str) or normalized(name) not in self._categories:
            raise SmaltiError(
                f"object {place} of the layout: there is no class {name!r}; {suggestion(str(name), self._categories)}"
            )
        within = box_within(
            box, SHARES, lambda said: SmaltiError(f"object {place} of the layout: {said}")
        )  # as in training
        properties = {key: one.get(key, False) for key in _PROPERTIES}
        for key, value in properties.items():
            if not isinstance(value, bool):
                raise SmaltiError(f"object {place} of the layout: {key} is true or false, not {value!r}")
        return Annotation(self._categories[normalized(name)], Box(*within), **properties)

    def encode(self, values: Sequence[Any]) -> Tensor:
        return self._codes([self.annotations(value) for value in values], WHOLE)

    def laid(self, values: Sequence[Any], *, grid: Grid) -> Laid:
        """As the base says: under a window the layout is that of the image, with the window as the part that is seen."""
        layouts = [shortened(self.annotations(value), self.settings) for value in values]

        def prefix_at(window: Window) -> Tensor:
            return self._codes(layouts, under(window, grid=grid))

        return prefix_at

    def _codes(self, layouts: Sequence[Sequence[Annotation]], crop: Box) -> Tensor:
        rows = [layout_codes(layout, self.settings, crop=crop) for layout in layouts]
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self.length)

    def preview(self, codes: Tensor) -> Array:
        """Codes (P,) -> a drawing of the boxes (or the centers) with their classes, and of the crop in gray."""
        read = read_codes(codes.tolist(), self.settings)
        image = Image.new("RGB", (_SIDE, _SIDE), "white")
        draw = ImageDraw.Draw(image)
        if self.settings.encode_crop:
            draw.rectangle(outline(read.crop, side=_SIDE), outline=(160, 160, 160), width=3)
        colors = palette(len(self.settings.classes)).tolist()
        for one in read.objects:
            self._draw(draw, one, tuple(colors[one.category]))
        return np.asarray(image)

    def _draw(self, draw: ImageDraw.ImageDraw, one: Described, color: tuple[int, ...]) -> None:
        if len(one.place) == 4:
            corners = outline(Box(*one.place), side=_SIDE)
            draw.rectangle(corners, outline=color, width=2)
        else:
            x, y = (number * (_SIDE - 1) for number in one.place)
            corners = (x - 3, y - 3, x + 3, y + 3)
            draw.ellipse(corners, fill=color)
        draw.text((corners[0] + 4, corners[1] + 3), self.settings.classes[one.category], fill=color)

    def save(self, folder: Path) -> dict[str, Any]:
        return as_mapping(self.settings)
