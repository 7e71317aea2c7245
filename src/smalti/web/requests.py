"""Requests of the web page: condition inputs, sampling requests, and their limits.

This module does not depend on the page or the network. Letters: H W pixels, h w code grid, f = H/h.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, final
from urllib.parse import urlencode

from pydantic import Field

from smalti.conditions.base import Condition
from smalti.conditions.previews import palette
from smalti.core.errors import SmaltiError, suggestion
from smalti.core.settings import Fraction, Natural, Positive, as_mapping, parse, settings
from smalti.generation.code_sampler import MAX_GUIDANCE, Sampler
from smalti.pipeline import Pipeline

InputKind: TypeAlias = Literal["choice", "paint", "image", "json", "text"]
"""The input of a condition: a choice of names, a painted map, an image file, a JSON file, or a line of text."""


@settings
class Limits:
    """Limits of a request, a session and the server.

    `side`: pixels of an image's longer side. `codes`: codes of all images of a request. `count`: images of a request.
    `upload`: MiB of a file. `pixels`: millions of pixels of an image file. `waiting`: requests that wait. `gallery`:
    images of a session. `sessions`: open sessions; the least recently used one is closed first.
    """

    side: Positive = 1024
    codes: Positive = 16384
    count: Positive = 8
    upload: Positive = 20
    pixels: Positive = 40
    waiting: Positive = 32
    gallery: Positive = 40
    sessions: Positive = 100


@settings
class SamplingRequest:
    """The settings of a request: size in pixels, number of images, first seed, and sampling settings.

    A link restores these and the class; a painted map is too long for one.
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


@final
@dataclass(frozen=True)
class ConditionInput:
    """The page's input of a condition: its key and kind, and for `choice` and `paint` its names and their colors."""

    key: str
    kind: InputKind
    names: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()


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
    labels, open_too = len(one.names), one.unlabeled is not None
    known = tuple(names) or one.names
    if len(known) != labels:
        raise SmaltiError(f"the model has {labels} segmentation labels, not {len(known)}; give {labels} names or none")
    colors = tuple("#{:02x}{:02x}{:02x}".format(*color) for color in palette(labels + open_too).tolist())
    return ConditionInput(one.key, "paint", (*known, *(["no label"] if open_too else [])), colors)


def smallest(pipeline: Pipeline) -> tuple[int, int]:
    """The smallest image (H,W) in pixels: the prior's window with a spatial condition, else one code."""
    f, (rows, columns) = pipeline.tokenizer.factor, pipeline.condition.smallest_grid
    return rows * f, columns * f


def parse_request(pipeline: Pipeline, values: Mapping[str, Any], limits: Limits) -> SamplingRequest:
    """Values by the names of `SamplingRequest`, the trained size by default -> the request.

    Raises `SmaltiError` for unknown names and invalid values, for sizes that are no multiples of f, and beyond the
    limits.
    """
    height, width = pipeline.default_size
    found = parse(SamplingRequest, {"height": height, "width": width, **values}, where="the request")
    check_size(pipeline, found.size, limits, count=found.count)
    if found.count > limits.count:
        raise SmaltiError(f"{found.count} images requested, and the limit is {limits.count} per request")
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


def link(request: SamplingRequest, chosen: Mapping[str, str]) -> str:
    """A request and the chosen classes by their keys -> the query string that restores them, beginning with "?"."""
    return "?" + urlencode({**chosen, **as_mapping(request)})


def from_link(
    pipeline: Pipeline, query: Mapping[str, str], parts: Sequence[ConditionInput], limits: Limits
) -> tuple[SamplingRequest, dict[str, str]]:
    """A query -> the request and the classes it restores, the inverse of `link`; other names are ignored.

    Raises `SmaltiError` as `parse_request`, and for unknown classes.
    """
    fields = as_mapping(SamplingRequest(height=1, width=1)).keys()
    chosen = {part.key: query[part.key] for part in parts if part.kind == "choice" and query.get(part.key)}
    for part in parts:
        if part.key in chosen and chosen[part.key] not in part.names:
            raise SmaltiError(
                f"there is no {part.key} {chosen[part.key]!r}; {suggestion(chosen[part.key], part.names)}"
            )
    return parse_request(pipeline, {key: query[key] for key in fields if key in query}, limits), chosen
