"""A class label as one prefix code (section 3.2 of arXiv 2012.09841), and the condition of an unconditional prior."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, final

from torch import Tensor

from smalti.conditions.base import Grid, UnsizedCondition, WindowPrefix, as_prefix, constant_prefix
from smalti.conditions.previews import render_text
from smalti.core.errors import SmaltiError, suggestion
from smalti.core.files import normalized
from smalti.core.settings import as_mapping, settings
from smalti.images.io import Array


@settings
class LabelsSettings:
    """The names of the labels; a label's code is its index."""

    name: Literal["labels"] = "labels"
    labels: tuple[str, ...]


@final
class Labels(UnsizedCondition):
    """Label names -> (B,1): the index of each name."""

    key = "label"
    value_type = "label"
    from_labels = True
    length = 1

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.size = len(self.names)
        self._codes = {normalized(name): code for code, name in enumerate(self.names)}

    def read(self, text: str) -> str:
        return text

    def encode(self, values: Sequence[Any]) -> Tensor:
        for value in values:
            if not isinstance(value, str) or normalized(value) not in self._codes:
                raise SmaltiError(f"there is no label {value!r}; {suggestion(str(value), self.names)}")
        return as_prefix([self._codes[normalized(value)] for value in values])

    def encode_windows(self, values: Sequence[Any], *, grid: Grid) -> WindowPrefix:
        return constant_prefix(self.encode(values))

    def preview(self, codes: Tensor) -> Array:
        return render_text(self.names[int(codes[0])])

    def save(self, folder: Path) -> dict[str, Any]:
        return as_mapping(LabelsSettings(labels=self.names))


@settings
class UnconditionalSettings:
    """No settings."""

    name: Literal["unconditional"] = "unconditional"


@final
class Unconditional(UnsizedCondition):
    """No condition: every value becomes the start code 0.

    A prior with another start code returns it from `null_prefix`, which sampling uses.
    """

    key = ""
    size = 0
    length = 1

    def read(self, text: str) -> Any:
        raise SmaltiError(f"this model takes no condition, {text!r} was given; leave it out")

    def encode(self, values: Sequence[Any]) -> Tensor:
        for value in values:
            if value is not None:
                raise SmaltiError(f"this model takes no condition, {value!r} was given; leave it out")
        return as_prefix([0] * len(values))

    def encode_windows(self, values: Sequence[Any], *, grid: Grid) -> WindowPrefix:
        return constant_prefix(self.encode(values))

    def preview(self, codes: Tensor) -> Array:
        return render_text("no condition")

    def save(self, folder: Path) -> dict[str, Any]:
        return as_mapping(UnconditionalSettings())
