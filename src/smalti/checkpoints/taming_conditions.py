"""The condition stages of the original's transformers <-> our conditions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from smalti.checkpoints.base import in_text
from smalti.checkpoints.taming_parts import (
    SEGMENTATION,
    TOKENIZERS,
    Part,
    read_tokenizer,
    section_weights,
    take,
    tokenizer_section,
)
from smalti.conditions.base import Condition, Grid
from smalti.conditions.coordinates import Coordinates, CoordinatesSettings
from smalti.conditions.labels import Labels, Unconditional
from smalti.conditions.layout import Layout
from smalti.conditions.layout_codes import LayoutSettings
from smalti.conditions.precomputed import PrecomputedCodes, PrecomputedCodesSettings
from smalti.conditions.spatial import SpatialCondition, SpatialConditionSettings
from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.tokenizer.vqgan import VQGAN

UNCONDITIONAL, FIRST_STAGE = "__is_unconditional__", "__is_first_stage__"
SOS, LABELS = "taming.modules.util.SOSProvider", "taming.modules.util.Labelator"
COORDINATES, DUMMY = "taming.modules.misc.coord.CoordStage", "taming.models.dummy_cond_stage.DummyCondStage"
PREFIX = "cond_stage_model."

CLASSES: dict[str, int] = {
    "taming.data.annotated_objects_coco.AnnotatedObjectsCoco": 171,
    "taming.data.annotated_objects_open_images.AnnotatedObjectsOpenImages": 340,
}
"""Their data sets of scene layouts -> their number of object classes. The names are in their annotation
files."""

PLACES = {"objects_bbox": "boxes", "objects_center_points": "centers"}


class Surroundings(NamedTuple):
    """What a condition stage is read from."""

    params: Mapping[str, Any]
    """Of the whole model."""
    data: Mapping[str, Any]
    """The `data` section of the YAML."""
    weights: Mapping[str, Tensor]
    """Of the whole model."""
    tokenizer: VQGAN
    """The first stage."""
    block: int
    """Positions of the transformer."""
    vocabulary: int
    """Codes that the transformer knows."""
    grid: Grid | None
    """The window (h,w), where the checkpoint or its user says it."""
    side: int
    """Codes along a side of the images that the first stage was made for, which the window need not be."""
    where: str


class Built(NamedTuple):
    """A condition, and what follows from it for the transformer."""

    condition: Condition
    grid: Grid
    """The window (h,w)."""
    start: int | None
    """The code of its prefix that stands for "nothing"."""


def condition_of(around: Surroundings) -> Built:
    """A model of theirs -> the condition of its transformer. Raises `SmaltiError` for stages and settings that are not
    known."""
    config = around.params.get("cond_stage_config", UNCONDITIONAL)
    if around.params.get("unconditional") or config == UNCONDITIONAL:
        return _unconditional(around, int(around.params.get("sos_token", 0)))
    if config == FIRST_STAGE:
        return _maps(around, around.tokenizer, kind="image", key=_key(around))
    part = Part.of(config, where=around.where, known={**_STAGES, **TOKENIZERS})
    read = _STAGES.get(part.target, _own_tokenizer)
    return read(around, part)


def _key(around: Surroundings) -> str:
    """The name of the option, made of their key for the batch."""
    key = "".join(
        letter if letter.isalnum() else "_" for letter in str(around.params.get("cond_stage_key", "depth")).lower()
    )
    return key if key[:1].isalpha() else f"condition_{key}"


def _window(around: Surroundings, *, prefix: int) -> Grid:
    """The window after `prefix` codes: as it was said, else the square that the remaining positions make."""
    # The last code is never read, so that it needs no position; some give it one nevertheless.
    return around.grid or _square(around, around.block + 1 - prefix)


def _window_of_half(around: Surroundings) -> Grid:
    """As `_window`, where the condition has as many codes as the image."""
    return around.grid or _square(around, (around.block + 1) // 2)


def _square(around: Surroundings, count: int) -> Grid:
    """So many codes -> their square. Raises `SmaltiError` where they make none, asking for the grid."""
    nominal = around.side**2
    side = math.isqrt(max(count, 0))
    if count == nominal + 1:
        return around.side, around.side
    if side and side * side == count:
        return side, side
    shapes = [(rows, count // rows) for rows in range(2, side + 1) if count % rows == 0]
    fitting = [(around.side, around.side)] if 0 < nominal <= count else []
    tried = ", ".join(in_text(shape) for shape in (*shapes[::-1][:3], *fitting))
    raise SmaltiError(
        f"{around.where}: its transformer is over {count} codes, which make no square, and nothing in it "
        "says their shape; "
        f"give the grid, height x width: --grid HxW, in Python grid=(h, w){f' (such as {tried})' if tried else ''}"
    )


def _unconditional(around: Surroundings, start: int) -> Built:
    return Built(Unconditional(), _window(around, prefix=1), start)


def _sos(around: Surroundings, part: Part) -> Built:
    return _unconditional(around, int(part.params.get("sos_token", 0)))


def _labels(around: Surroundings, part: Part) -> Built:
    # Their labels have no names here; their classes are numbered in the order of the ImageNet synsets.
    count = int(part.params.get("n_classes", 1000))
    return Built(Labels([str(number) for number in range(count)]), _window(around, prefix=1), None)


def _coordinates(around: Surroundings, part: Part) -> Built:
    grid = _window_of_half(around)
    levels = int(take(part.params, "n_embed", where=around.where))
    settings = {
        "levels": levels,
        # A coordinate of 1 would have the code `levels`; a vocabulary that ends before it never met one.
        "codebook_size": min(levels + 1, max(around.vocabulary, levels)),
        "factor": take(part.params, "down_factor", where=around.where),
        "grid": grid,
    }
    return Built(Coordinates(parse(CoordinatesSettings, settings, where=around.where)), grid, None)


def _own_tokenizer(around: Surroundings, part: Part) -> Built:
    tokenizer = read_tokenizer(part, around.weights, prefix=PREFIX, where=around.where)
    names = {1: "depth", 3: "image"}
    kind = "segmentation" if part.target == SEGMENTATION else names.get(tokenizer.settings.autoencoder.channels)
    if kind is None:
        raise SmaltiError(
            f"{around.where}: a condition of {tokenizer.settings.autoencoder.channels} channels is not known"
        )
    return _maps(around, tokenizer, kind=kind, key=_key(around))


def _maps(around: Surroundings, tokenizer: VQGAN, *, kind: str, key: str) -> Built:
    grid = _window_of_half(around)
    settings = parse(SpatialConditionSettings, {"kind": kind, "key": key, "grid": grid}, where=around.where)
    return Built(SpatialCondition(settings, tokenizer), grid, None)


def _codes(around: Surroundings, part: Part) -> Built:
    """Layouts where the data set is known that they were written for, else codes as they are given."""
    key = str(part.params.get("conditional_key", around.params.get("cond_stage_key", "codes")))
    source = (around.data.get("params") or {}).get("train") or {}
    if key in PLACES and source.get("target") in CLASSES:
        options = source.get("params") or {}
        layout = {
            "classes": tuple(f"class {number}" for number in range(CLASSES[source["target"]])),
            "max_objects": int(options.get("max_objects_per_image", 30)),
            "codebook_size": int(options.get("no_tokens", around.vocabulary)),
            "places": PLACES[key],
            "encode_crop": bool(options.get("encode_crop", True)),
            "group": bool(options.get("use_group_parameter", False)),
            "flags": bool(options.get("use_additional_parameters", False)),
        }
        condition = Layout(parse(LayoutSettings, layout, where=around.where))
        return Built(condition, _window(around, prefix=condition.length), None)
    # How many codes are given stands nowhere: as many as the window leaves positions for.
    grid = around.grid or (around.side, around.side)
    length = around.block - grid[0] * grid[1]
    if length < 1:
        raise SmaltiError(
            f"{around.where}: {around.block} positions have no room for a condition beside {in_text(grid)} "
            "codes; give the grid "
            "that it is of, height x width: --grid HxW, in Python grid=(h, w)"
        )
    given = {"key": _key(around), "codebook_size": around.vocabulary, "length": length}
    return Built(PrecomputedCodes(parse(PrecomputedCodesSettings, given, where=around.where)), grid, None)


_STAGES: dict[str, Callable[[Surroundings, Part], Built]] = {
    SOS: _sos,
    LABELS: _labels,
    COORDINATES: _coordinates,
    DUMMY: _codes,
}


def section_of(condition: Condition, *, start: int | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A condition of ours -> its keys in the params of the original's transformer, and the weights of its stage.

    Raises `SmaltiError` for a condition that the original has no stage for.
    """
    if isinstance(condition, Unconditional):
        params: dict[str, Any] = {"cond_stage_config": UNCONDITIONAL, "sos_token": start or 0}
        return {**params, "first_stage_key": "image", "cond_stage_key": "image"}, {}
    weights: dict[str, Tensor] = {}
    stage: dict[str, Any]
    if isinstance(condition, Labels):
        stage, key = {"target": LABELS, "params": {"n_classes": condition.size}}, "class_label"
    elif isinstance(condition, Coordinates):
        options = {"n_embed": condition.settings.levels, "down_factor": condition.settings.factor}
        stage, key = {"target": COORDINATES, "params": options}, "coord"
    elif isinstance(condition, SpatialCondition):
        labels = {"imported_from": SEGMENTATION} if condition.settings.kind == "segmentation" else {}
        stage, key = tokenizer_section(condition.tokenizer, about=labels), condition.key
        stage["params"]["sane_index_shape"] = True  # without it the original's forward pass fails
        weights = section_weights(condition.tokenizer, stage)
    elif isinstance(condition, Layout | PrecomputedCodes):
        centers = isinstance(condition, Layout) and condition.settings.places == "centers"
        key = (
            condition.key
            if isinstance(condition, PrecomputedCodes)
            else "objects_center_points"
            if centers
            else "objects_bbox"
        )
        stage = {"target": DUMMY, "params": {"conditional_key": key}}
    else:
        raise SmaltiError(f"the original has no stage for the condition {condition.key!r}")
    return {"cond_stage_config": stage, "first_stage_key": "image", "cond_stage_key": key}, weights
