"""The functions of the web page without its user interface: what a model can do, and how conditions are read.

B batch, C channels, H W pixels, h w code grid, f = H/h.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np
from torch import Tensor

from smalti.conditions.base import Condition
from smalti.core.errors import SmaltiError
from smalti.core.settings import as_mapping
from smalti.images.io import png_bytes
from smalti.pipeline import Pipeline
from smalti.scenes.palettes import SEASONS, TIMES
from smalti.web.limits import Limits
from smalti.web.pace import Pace
from smalti.web.requests import ConditionInput, condition_inputs, smallest
from smalti.web.scratch import Scratch
from smalti.web.uploads import UNPAINTED, Upload, check_pixels, read_label_map, with_nearest_labels


@final
class Studio:
    """A pipeline with its condition inputs, limits and measured pace."""

    def __init__(self, pipeline: Pipeline, limits: Limits, *, name: str, names: tuple[str, ...] = ()) -> None:
        self.pipeline, self.limits, self.name = pipeline, limits, name
        self.parts = condition_inputs(pipeline.condition, names=names)
        self.pace = Pace(pipeline.prior.grid)
        self.scratch = Scratch()
        self._conditions: dict[str, Condition] = {
            one.key: one for one in pipeline.condition.parts or (pipeline.condition,) if one.key
        }

    @property
    def channels(self) -> int:
        """C of the images."""
        return self.pipeline.tokenizer.settings.autoencoder.channels

    @property
    def takes_guidance(self) -> bool:
        """Whether there is a condition, and the prior also knows images without it."""
        return bool(self.parts) and self.pipeline.prior.null_code is not None

    def part(self, key: str) -> ConditionInput:
        """The input of a key. Raises `SmaltiError` for an unknown key."""
        self.pipeline.condition_value({key: key})
        return next(part for part in self.parts if part.key == key)

    def describe(self) -> dict[str, Any]:
        """What the model can do, as plain values: sizes, conditions, limits and pace."""
        pipeline, least = self.pipeline, smallest(self.pipeline)
        return {
            "model": self.name,
            "size": list(pipeline.default_size),
            "smallest": list(least),
            "factor": pipeline.tokenizer.factor,
            "codes": pipeline.tokenizer.size,
            "window": list(pipeline.prior.grid),
            "any_order": pipeline.prior.knows_any_order,
            "guidance": self.takes_guidance,
            "conditions": [_described(part) for part in self.parts],
            "limits": as_mapping(self.limits),
            "pace": self.pace.per_code(),
        }

    def condition_value(self, texts: Mapping[str, str], files: Mapping[str, Upload], size: tuple[int, int]) -> Any:
        """Texts and files by the keys of the parts -> the condition's value for an image of `size` (H,W).

        A text is a class or a caption, and never a path; a file is a map, an image or JSON. Blank texts are none.
        Raises `SmaltiError`.
        """
        inputs: dict[str, str | Upload] = {**{key: text for key, text in texts.items() if text.strip()}, **files}
        self.pipeline.condition_value(inputs)  # raises for unknown keys
        values = {part.key: self._value(part, inputs[part.key], size) for part in self.parts if part.key in inputs}
        return self.pipeline.condition_value(values)

    def _value(self, part: ConditionInput, value: str | Upload, size: tuple[int, int]) -> Any:
        condition, takes_file = self._conditions[part.key], part.kind in ("paint", "image", "json")
        if isinstance(value, Upload) != takes_file:
            raise SmaltiError(f"the {part.key} takes {'a file' if takes_file else 'text'}; send one")
        if isinstance(value, str):
            read = condition.read(value)
            condition.encode([read])  # raises for unknown names now, and not when it is the job's turn
            return read
        if part.kind == "paint":
            found: Any = self._labels(part, value, size)
        else:
            if part.kind == "image":
                check_pixels(value, self.limits)
            found = self.scratch.read(condition, value)
        return condition.resize_to_grid(found, grid=self.pipeline.grid(size))[0]

    def _labels(self, part: ConditionInput, file: Upload, size: tuple[int, int]) -> Tensor:
        labels = self.label_map(part, file, size)
        if part.unlabeled is not None:
            return labels.masked_fill(labels == UNPAINTED, part.unlabeled)
        return with_nearest_labels(labels)

    def label_map(self, part: ConditionInput, file: Upload, size: tuple[int, int]) -> Tensor:
        """As `uploads.read_label_map`, for the labels of this model."""
        return read_label_map(
            file, names=part.names, colors=part.colors, unlabeled=part.unlabeled, size=size, limits=self.limits
        )

    def painted(self, part: ConditionInput, labels: Tensor) -> bytes:
        """A map (H,W), labels and `UNPAINTED` -> a PNG file in the colors of the page, transparent where unpainted."""
        colors = np.array([*part.colors, (0, 0, 0)], dtype=np.uint8)  # the last one is that of -1
        opacity = np.where(labels.numpy() == UNPAINTED, 0, 255).astype(np.uint8)
        return png_bytes(np.dstack([colors[labels.numpy()], opacity]))

    def close(self) -> None:
        """Remove what is on disk."""
        self.scratch.close()


def _described(part: ConditionInput) -> dict[str, Any]:
    plain: dict[str, Any] = {"key": part.key, "kind": part.kind, "names": list(part.names)}
    if part.colors:
        plain["colors"] = ["#{:02x}{:02x}{:02x}".format(*color) for color in part.colors]
    if part.kind == "choice" and (axes := two_axes(part.names)):
        plain["axes"] = axes
    return plain


def two_axes(names: tuple[str, ...]) -> list[list[str]]:
    """Names `A-B` that are all combinations of two lists -> the lists; empty for other names.

    Seasons and times of day are in their natural order, all others in the order of the names.
    """
    pairs = [tuple(name.split("-")) for name in names]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        return []
    first, second = (list(dict.fromkeys(pair[place] for pair in pairs)) for place in (0, 1))
    if len(names) < 4 or min(len(first), len(second)) < 2 or {(a, b) for a in first for b in second} != set(pairs):
        return []
    natural = (*SEASONS, *TIMES)
    return [sorted(axis, key=natural.index) if set(axis) <= set(natural) else axis for axis in (first, second)]
