"""What may be asked of a pipeline: its conditions in the order of the page, one request, and how much of everything.

Nothing here knows of the page or the network. Letters: H W pixels, h w code grid, f = H/h.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, final
from urllib.parse import urlencode

from pydantic import Field

from smalti.conditions.base import Condition
from smalti.conditions.keypoints import Keypoints
from smalti.conditions.labels import Labels
from smalti.conditions.layout import Layout
from smalti.conditions.previews import palette
from smalti.conditions.spatial import Maps
from smalti.core.errors import SmaltiError, suggestion
from smalti.core.settings import Positive, as_mapping, parse, settings
from smalti.generation.code_sampler import MOST_GUIDANCE, Sampler
from smalti.pipeline import Pipeline

Way: TypeAlias = Literal["choose", "paint", "image", "list", "write"]
"""How a person gives a condition: chosen from names, painted, as an image file, as a JSON file, as a line of text."""


@settings
class Limits:
    """How much one request, one visitor and all visitors may take.

    `side`: pixels of an image's longer side. `codes`: codes of all images of a request. `count`: images of a request.
    `upload`: MiB of a file. `pixels`: millions of pixels of an image file. `waiting`: requests that wait. `kept`:
    images that a visitor keeps. `visitors`: those whose images are kept; the one who was longest away is forgotten
    first.
    """

    side: Positive = 1024
    codes: Positive = 16384
    count: Positive = 8
    upload: Positive = 20
    pixels: Positive = 40
    waiting: Positive = 32
    kept: Positive = 40
    visitors: Positive = 100


@settings
class Asked:
    """The settings of one request: size in pixels, how many images, the first seed, and how codes are chosen.

    These, and the class, are what a link restores; a painted map is too long for one.
    """

    height: Positive
    width: Positive
    count: Positive = 1
    seed: Annotated[int, Field(ge=0, le=2**53)] = 0  # whole numbers that a browser does not round
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    guidance: Annotated[float, Field(ge=0, le=MOST_GUIDANCE)] = 1.0

    @property
    def sampler(self) -> Sampler:
        """How the next code is chosen."""
        return Sampler(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, guidance=self.guidance)

    @property
    def size(self) -> tuple[int, int]:
        """(H,W) in pixels."""
        return self.height, self.width


@final
@dataclass(frozen=True)
class Part:
    """A condition as a person meets it: its key, how it is given, and for `choose` and `paint` its names and their
    colors."""

    key: str
    way: Way
    names: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()


def parts_of(condition: Condition, *, names: Sequence[str] = ()) -> tuple[Part, ...]:
    """A condition -> its parts. `names` are those of the labels of its segmentation, in order; without them they are
    those that the model knows, or numbers.

    Raises `SmaltiError` for another number of names than there are labels.
    """
    return tuple(_part(one, names) for one in condition.parts or (condition,) if one.key)


def _part(one: Condition, names: Sequence[str]) -> Part:
    if isinstance(one, Labels):
        return Part(one.key, "choose", one.names)
    if isinstance(one, Maps) and one.settings.kind == "segmentation":
        return _painted(one, names)
    if isinstance(one, Maps):
        return Part(one.key, "image")
    return Part(one.key, "list" if isinstance(one, Layout | Keypoints) else "write")


def _painted(one: Maps, names: Sequence[str]) -> Part:
    count, open_too = one.channels, one.settings.unlabeled is not None
    labels = count - open_too
    known = tuple(names) or one.settings.names or tuple(f"label {number}" for number in range(labels))
    if len(known) != labels:
        raise SmaltiError(
            f"the model paints with {labels} labels, and {len(known)} names were given; give {labels} or none"
        )
    colors = tuple("#{:02x}{:02x}{:02x}".format(*color) for color in palette(count).tolist())
    return Part(one.key, "paint", (*known, *(["no label"] if open_too else [])), colors)


def smallest(pipeline: Pipeline) -> tuple[int, int]:
    """(H,W) in pixels of the smallest image that may be asked for: a map fills the prior's window, else one tile
    does."""
    whole = any(isinstance(one, Maps) for one in pipeline.condition.parts or (pipeline.condition,))
    f = pipeline.tokenizer.factor
    return pipeline.default_size if whole else (f, f)


def asked(pipeline: Pipeline, values: Mapping[str, Any], limits: Limits) -> Asked:
    """What was asked, by the names of `Asked`; a size that is left out is the trained one -> the request.

    Raises `SmaltiError` for names and values that there are not, for sizes that are not made of tiles, and beyond the
    limits.
    """
    height, width = pipeline.default_size
    found = parse(Asked, {"height": height, "width": width, **values}, where="the request")
    check_size(pipeline, found.size, limits, count=found.count)
    if found.count > limits.count:
        raise SmaltiError(f"{found.count} images were asked for, and {limits.count} is the most at once")
    return found


def check_size(pipeline: Pipeline, size: tuple[int, int], limits: Limits, *, count: int) -> None:
    """Raise `SmaltiError` where `count` images of a size (H,W) are not made of tiles or beyond the limits."""
    if max(size) > limits.side:
        raise SmaltiError(
            f"an image of {size[0]} x {size[1]} (height x width) was asked for, and {limits.side} pixels are the longest side here"
        )
    rows, columns = pipeline.grid(size)
    if rows * columns * count > limits.codes:
        raise SmaltiError(
            f"{count} of {size[0]} x {size[1]} pixels are {rows * columns * count:,} codes, and {limits.codes:,} is the most at "
            "once; ask for fewer or smaller images"
        )


def link(request: Asked, chosen: Mapping[str, str]) -> str:
    """A request and the classes that were chosen, by their keys -> the query that restores them, beginning with "?"."""
    return "?" + urlencode({**chosen, **as_mapping(request)})


def from_link(
    pipeline: Pipeline, query: Mapping[str, str], parts: Sequence[Part], limits: Limits
) -> tuple[Asked, dict[str, str]]:
    """A query -> the request and the classes it restores, the inverse of `link`; other names in it are nobody's
    business.

    Raises `SmaltiError` as `asked`, and for classes that there are not.
    """
    fields = as_mapping(Asked(height=1, width=1)).keys()
    chosen = {part.key: query[part.key] for part in parts if part.way == "choose" and query.get(part.key)}
    for part in parts:
        if part.key in chosen and chosen[part.key] not in part.names:
            raise SmaltiError(
                f"there is no {part.key} {chosen[part.key]!r}; {suggestion(chosen[part.key], part.names)}"
            )
    return asked(pipeline, {key: query[key] for key in fields if key in query}, limits), chosen
