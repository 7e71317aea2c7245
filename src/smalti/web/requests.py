"""Requests of the web page: condition inputs, jobs and their sampling settings, checked against the limits.

This module does not depend on the page or the network. Letters: H W pixels, h w code grid, f = H/h.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias, final

from pydantic import Field

from smalti.conditions.base import Condition
from smalti.conditions.previews import palette
from smalti.core.errors import SmaltiError, suggestion
from smalti.core.settings import Fraction, Natural, Positive, as_mapping, parse, settings
from smalti.generation.code_sampler import MAX_GUIDANCE, Sampler
from smalti.pipeline import Pipeline
from smalti.scenes.scene_classes import COLORS, LABELS
from smalti.web.limits import Limits

InputKind: TypeAlias = Literal["choice", "paint", "image", "json", "text"]
"""The input of a condition: a choice of names, a painted map, an image file, a JSON file, or a line of text."""
Task: TypeAlias = Literal["sample", "edit", "vary", "reconstruct"]
Color: TypeAlias = tuple[int, int, int]

SCENE_COLORS: dict[str, Color] = dict(zip(LABELS, COLORS, strict=True))
"""Natural colors of the labels of the embedded scenes."""


@settings
class SamplingRequest:
    """The settings of a request: size in pixels, number of images, first seed, and sampling settings.

    A link restores these, the classes and the text; a painted map is too long for one.
    """

    height: Positive
    width: Positive
    count: Positive = 1
    seed: Annotated[int, Field(ge=0, le=2**53)] = 0  # integers that a browser represents exactly
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_k: Natural = 0
    top_p: Fraction = 1.0
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] = 1.0

    @property
    def sampler(self) -> Sampler:
        """The sampling settings of codes."""
        return Sampler(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, guidance=self.guidance)

    @property
    def size(self) -> tuple[int, int]:
        """(H,W) in pixels."""
        return self.height, self.width


@settings
class Extension:
    """Pixels that are added to an image on each side, multiples of f."""

    top: Natural = 0
    right: Natural = 0
    bottom: Natural = 0
    left: Natural = 0

    def around(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size (H,W) of an image -> that of the extended image."""
        return size[0] + self.top + self.bottom, size[1] + self.left + self.right


@settings
class JobRequest:
    """A job as the page requests it. Its files (`image`, `mask`, and maps by the keys of their conditions) come apart.

    `settings` are the fields of `SamplingRequest`, `conditions` texts by their keys: names of classes and captions.
    `extend` belongs to the task "edit". `strength`, of "vary", is the fraction of the codes that is generated anew.
    """

    task: Task = "sample"
    settings: Mapping[str, Any] = field(default_factory=dict)
    conditions: Mapping[str, str] = field(default_factory=dict)
    extend: Extension = Extension()
    strength: Fraction = 0.6


@final
@dataclass(frozen=True)
class ConditionInput:
    """The page's input of a condition: its key and kind, and for `choice` and `paint` its names and their colors."""

    key: str
    kind: InputKind
    names: tuple[str, ...] = ()
    colors: tuple[Color, ...] = ()
    unlabeled: int | None = None
    """For `paint`: the number of unpainted pixels; None where every pixel needs a label."""


def condition_inputs(condition: Condition, *, names: Sequence[str] = ()) -> tuple[ConditionInput, ...]:
    """A condition -> its parts. `names` are those of the labels of its segmentation, in order; without them they are
    those that the model knows, or numbers.

    Raises `SmaltiError` for another number of names than there are labels.
    """
    return tuple(_part(one, names) for one in condition.members if one.key)


def _part(one: Condition, names: Sequence[str]) -> ConditionInput:
    if one.value_type == "label":
        return ConditionInput(one.key, "choice", one.names)
    if one.value_type == "segmentation":
        return _painted(one, names)
    return ConditionInput(one.key, one.value_type)


def _painted(one: Condition, names: Sequence[str]) -> ConditionInput:
    labels = len(one.names)
    known = tuple(names) or one.names
    if len(known) != labels:
        raise SmaltiError(f"the model has {labels} segmentation labels, not {len(known)}; give {labels} names or none")
    return ConditionInput(one.key, "paint", known, label_colors(known), one.unlabeled)


def label_colors(names: Sequence[str]) -> tuple[Color, ...]:
    """Names of labels -> their colors: natural ones if all are labels of the embedded scenes, else a palette of
    different hues."""
    if set(names) <= set(SCENE_COLORS):
        return tuple(SCENE_COLORS[name] for name in names)
    return tuple((red, green, blue) for red, green, blue in palette(len(names)).tolist())


def smallest(pipeline: Pipeline) -> tuple[int, int]:
    """The smallest image (H,W) in pixels: the prior's window with a spatial condition, else one code."""
    f, (rows, columns) = pipeline.tokenizer.factor, pipeline.condition.smallest_grid
    return rows * f, columns * f


def parse_job(value: Any) -> JobRequest:
    """The JSON of a job -> the job. Raises `SmaltiError` for what is not an object, unknown keys and invalid values."""
    if not isinstance(value, Mapping):
        raise SmaltiError(f'a job is a JSON object such as {{"settings": {{"seed": 3}}}}, not {value!r:.60}')
    return parse(JobRequest, value, where="the job")


def parse_request(pipeline: Pipeline, values: Mapping[str, Any], limits: Limits) -> SamplingRequest:
    """Values by the names of `SamplingRequest`, the trained size by default -> the request.

    Raises `SmaltiError` for unknown names and invalid values, for sizes that are no multiples of f, and beyond the
    limits.
    """
    height, width = pipeline.default_size
    found = parse(SamplingRequest, {"height": height, "width": width, **values}, where="the request")
    if found.count > limits.count:
        raise SmaltiError(f"{found.count} images requested, and the limit is {limits.count} per request")
    check_size(pipeline, found.size, limits, count=found.count)
    return found


def check_size(pipeline: Pipeline, size: tuple[int, int], limits: Limits, *, count: int) -> None:
    """Raise `SmaltiError` where a size (H,W) is no multiple of f, or `count` such images are beyond the limits."""
    if max(size) > limits.side:
        raise SmaltiError(
            f"{size[0]} x {size[1]} (height x width) requested, and the limit of a side is {limits.side} pixels"
        )
    rows, columns = pipeline.grid(size)
    if rows * columns * count > limits.codes:
        raise SmaltiError(
            f"{count} of {size[0]} x {size[1]} pixels are {rows * columns * count:,} codes, and the limit is "
            f"{limits.codes:,} per request; use fewer or smaller images"
        )


def from_link(
    pipeline: Pipeline, query: Mapping[str, str], parts: Sequence[ConditionInput], limits: Limits
) -> tuple[SamplingRequest, dict[str, str]]:
    """The query of a link -> the request, and the classes and texts by their keys; other names are ignored.

    Raises `SmaltiError` as `parse_request`, and for unknown classes.
    """
    fields = as_mapping(SamplingRequest(height=1, width=1)).keys()
    texts = [part for part in parts if part.kind in ("choice", "text")]
    chosen = {part.key: query[part.key] for part in texts if query.get(part.key)}
    for part in texts:
        if part.kind == "choice" and part.key in chosen and chosen[part.key] not in part.names:
            raise SmaltiError(
                f"there is no {part.key} {chosen[part.key]!r}; {suggestion(chosen[part.key], part.names)}"
            )
    return parse_request(pipeline, {key: query[key] for key in fields if key in query}, limits), chosen
