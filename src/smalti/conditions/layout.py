"""A list of objects with boxes as a condition: the scene layouts of the original's last models.

Notation: B batch, P prefix codes, h w grid of codes. Source: the scene models of CompVis/taming-transformers (Jahn,
Rombach, Ommer, arXiv 2105.06458). `layout_codes` defines the codes.
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

from smalti.conditions.base import Grid, UnsizedCondition, WindowPrefix
from smalti.conditions.layout_codes import (
    Annotation,
    DecodedObject,
    LayoutSettings,
    decode_layout,
    encode_layout,
    truncate_objects,
)
from smalti.conditions.location_codes import FULL_IMAGE, Box, outline, window_crop
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
class Layout(UnsizedCondition):
    """Lists of objects -> (B,P): their classes and boxes, and the visible crop.

    An object is an `Annotation`, or a mapping as in a JSON file: `{"class": "tree", "box": [left, top, width,
    height], "group": false}`, with the class's name, the box as fractions of the image, and the properties `group`,
    `occluded`, `depiction` and `inside`. The objects keep their order, which has no meaning; training shuffles them
    (`layout_codes.shuffle_objects`).
    """

    key = "layout"
    value_type = "json"
    middle = staticmethod(before_middle)

    def __init__(self, settings: LayoutSettings) -> None:
        self.settings = settings
        self.size, self.length = settings.codebook_size, settings.length
        self.maps = (settings.list_length,) if math.prod(settings.drawn) else ()
        self._categories = {normalized(name): number for number, name in enumerate(settings.classes)}

    def read(self, text: str) -> tuple[Annotation, ...]:
        """The path of a JSON file, a list of objects."""
        parsed = read_json(Path(text))
        if not isinstance(parsed, list):
            raise SmaltiError(f'{text} holds no list of objects; write [{{"class": ..., "box": [...]}}, ...]')
        return self.annotations(parsed)

    def annotations(self, value: Any) -> tuple[Annotation, ...]:
        """A list of objects of either kind -> annotations. Raises `SmaltiError` for one that is neither."""
        if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
            raise SmaltiError(f"a layout is a list of objects, not {value!r}")
        return tuple(self._annotation(item, number) for number, item in enumerate(value, start=1))

    def _annotation(self, item: Any, number: int) -> Annotation:
        if isinstance(item, Annotation):
            return item
        if not isinstance(item, Mapping) or "class" not in item or "box" not in item:
            raise SmaltiError(f'object {number} of the layout is {item!r}; write {{"class": ..., "box": [...]}}')
        for key in item:
            if key not in ("class", "box", *_PROPERTIES):
                known = suggestion(str(key), ("class", "box", *_PROPERTIES))
                raise SmaltiError(f"object {number} of the layout: unknown key {key!r}; {known}")
        name, box = item["class"], item["box"]
        if not isinstance(name, str) or normalized(name) not in self._categories:
            raise SmaltiError(
                f"object {number} of the layout: there is no class {name!r}; {suggestion(str(name), self._categories)}"
            )
        within = box_within(
            box, SHARES, lambda problem: SmaltiError(f"object {number} of the layout: {problem}")
        )  # as in training
        properties = {key: item.get(key, False) for key in _PROPERTIES}
        for key, value in properties.items():
            if not isinstance(value, bool):
                raise SmaltiError(f"object {number} of the layout: {key} is true or false, not {value!r}")
        return Annotation(self._categories[normalized(name)], Box(*within), **properties)

    def encode(self, values: Sequence[Any]) -> Tensor:
        return self._codes([self.annotations(value) for value in values], FULL_IMAGE)

    def encode_windows(self, values: Sequence[Any], *, grid: Grid) -> WindowPrefix:
        """As in the base class; the crop is the window."""
        layouts = [truncate_objects(self.annotations(value), self.settings) for value in values]

        def prefix_at(window: Window) -> Tensor:
            return self._codes(layouts, window_crop(window, grid=grid))

        return prefix_at

    def _codes(self, layouts: Sequence[Sequence[Annotation]], crop: Box) -> Tensor:
        rows = [encode_layout(layout, self.settings, crop=crop) for layout in layouts]
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self.length)

    def preview(self, codes: Tensor) -> Array:
        """Codes (P,) -> a drawing of the boxes (or centers) with their classes, and of the crop in gray."""
        decoded = decode_layout(codes.tolist(), self.settings)
        image = Image.new("RGB", (_SIDE, _SIDE), "white")
        draw = ImageDraw.Draw(image)
        if self.settings.encode_crop:
            draw.rectangle(outline(decoded.crop, side=_SIDE), outline=(160, 160, 160), width=3)
        colors = palette(len(self.settings.classes)).tolist()
        for item in decoded.objects:
            self._draw(draw, item, tuple(colors[item.category]))
        return np.asarray(image)

    def _draw(self, draw: ImageDraw.ImageDraw, item: DecodedObject, color: tuple[int, ...]) -> None:
        if len(item.geometry) == 4:
            corners = outline(Box(*item.geometry), side=_SIDE)
            draw.rectangle(corners, outline=color, width=2)
        else:
            x, y = (number * (_SIDE - 1) for number in item.geometry)
            corners = (x - 3, y - 3, x + 3, y + 3)
            draw.ellipse(corners, fill=color)
        draw.text((corners[0] + 4, corners[1] + 3), self.settings.classes[item.category], fill=color)

    def save(self, folder: Path) -> dict[str, Any]:
        return as_mapping(self.settings)
