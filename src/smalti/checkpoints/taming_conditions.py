"""The condition stages of the original's transformers <-> smalti's conditions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from smalti.checkpoints.taming_parts import (
    SEGMENTATION,
    TOKENIZERS,
    Part,
    read_first_stage,
    section_weights,
    take,
    tokenizer_section,
)
from smalti.conditions.base import Condition, Grid, grid_text
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
"""The original's data sets of scene layouts -> their numbers of object classes, whose names only the annotations
have."""

GEOMETRY_BY_KEY = {"objects_bbox": "boxes", "objects_center_points": "centers"}
"""`conditional_key` of the original -> `LayoutSettings.geometry`."""

_MAX_CLASSES = 10**6


class ConditionStage(NamedTuple):
    """The condition stage of a transformer of the original, with what it is read from."""

    params: Mapping[str, Any]
    """The `params` of the whole model in the YAML."""
    data: Mapping[str, Any]
    """The `data` section of the YAML."""
    weights: Mapping[str, Tensor]
    """The weights of the whole model, by the original's names."""
    tokenizer: VQGAN
    """The first stage."""
    block: int
    """`block_size`: the number of positions of the transformer."""
    vocabulary: int
    """`vocab_size`: the number of codes of the transformer."""
    grid: Grid | None
    """The window (h,w), if the checkpoint or the caller gives it."""
    side: int
    """Codes along a side of the images that the first stage was trained on; the window may differ."""
    where: str
    """What errors call the checkpoint."""


class ImportedCondition(NamedTuple):
    """A condition, with the window and the unconditional code that follow from it."""

    condition: Condition
    grid: Grid
    """The window (h,w)."""
    start: int | None
    """The unconditional prefix code, None without one."""


def read_condition_stage(stage: ConditionStage) -> ImportedCondition:
    """A transformer of the original -> its condition. Raises `SmaltiError` for unknown stages and settings."""
    config = stage.params.get("cond_stage_config", UNCONDITIONAL)
    if stage.params.get("unconditional") or config == UNCONDITIONAL:
        return _unconditional(stage, int(stage.params.get("sos_token", 0)))
    if config == FIRST_STAGE:
        return _maps(stage, stage.tokenizer, kind="image", key=_key(stage))
    part = Part.of(config, where=stage.where, known={**_STAGES, **TOKENIZERS})
    read = _STAGES.get(part.target, _own_tokenizer)
    return read(stage, part)


def _key(stage: ConditionStage) -> str:
    """The key of the condition, made from `cond_stage_key`: lower case letters, digits and underscores."""
    key = "".join(
        letter if letter.isalnum() else "_" for letter in str(stage.params.get("cond_stage_key", "depth")).lower()
    )
    return key if key[:1].isalpha() else f"condition_{key}"


def _window(stage: ConditionStage, *, prefix: int) -> Grid:
    """The window after `prefix` codes: the given one, else the square of the remaining positions."""
    # The last code is never read, so it needs no position; some checkpoints have one for it nevertheless.
    return stage.grid or _square(stage, stage.block + 1 - prefix)


def _window_of_half(stage: ConditionStage) -> Grid:
    """As `_window`, for a condition with as many codes as the image."""
    return stage.grid or _square(stage, (stage.block + 1) // 2)


def _square(stage: ConditionStage, count: int) -> Grid:
    """A number of codes -> the square (h,w) that they fill. Raises `SmaltiError` asking for the grid if there is
    none."""
    nominal = stage.side**2
    side = math.isqrt(max(count, 0))
    if count == nominal + 1:
        return stage.side, stage.side
    if side and side * side == count:
        return side, side
    shapes = [(rows, count // rows) for rows in range(2, side + 1) if count % rows == 0]
    nominal_shape = [(stage.side, stage.side)] if 0 < nominal <= count else []
    tried = ", ".join(grid_text(shape) for shape in (*shapes[::-1][:3], *nominal_shape))
    raise SmaltiError(
        f"{stage.where}: its transformer generates {count} codes, which is not a square, and the checkpoint does not "
        "contain their shape; give the grid, height x width: --grid HxW, in Python grid=(h, w)"
        f"{f' (such as {tried})' if tried else ''}"
    )


def _unconditional(stage: ConditionStage, start: int) -> ImportedCondition:
    return ImportedCondition(Unconditional(), _window(stage, prefix=1), start)


def _sos(stage: ConditionStage, part: Part) -> ImportedCondition:
    return _unconditional(stage, int(part.params.get("sos_token", 0)))


def _labels(stage: ConditionStage, part: Part) -> ImportedCondition:
    # The original stores no names of labels; their classes are numbered in the order of the ImageNet synsets.
    count = int(part.params.get("n_classes", 1000))
    if not 0 < count <= _MAX_CLASSES:
        raise SmaltiError(f"{stage.where}: n_classes = {count}, which no classifier has")
    return ImportedCondition(Labels([str(number) for number in range(count)]), _window(stage, prefix=1), None)


def _coordinates(stage: ConditionStage, part: Part) -> ImportedCondition:
    grid = _window_of_half(stage)
    levels = int(take(part.params, "n_embed", where=stage.where))
    settings = {
        "levels": levels,
        # A coordinate of 1 has the code `levels`; a transformer with a smaller vocabulary was trained without it.
        "codebook_size": min(levels + 1, max(stage.vocabulary, levels)),
        "factor": take(part.params, "down_factor", where=stage.where),
        "grid": grid,
    }
    return ImportedCondition(Coordinates(parse(CoordinatesSettings, settings, where=stage.where)), grid, None)


def _own_tokenizer(stage: ConditionStage, part: Part) -> ImportedCondition:
    tokenizer = read_first_stage(part, stage.weights, prefix=PREFIX, where=stage.where)
    names = {1: "depth", 3: "image"}
    kind = "segmentation" if part.target == SEGMENTATION else names.get(tokenizer.settings.autoencoder.channels)
    if kind is None:
        raise SmaltiError(
            f"{stage.where}: a condition of {tokenizer.settings.autoencoder.channels} channels is not known"
        )
    return _maps(stage, tokenizer, kind=kind, key=_key(stage))


def _maps(stage: ConditionStage, tokenizer: VQGAN, *, kind: str, key: str) -> ImportedCondition:
    grid = _window_of_half(stage)
    settings = parse(SpatialConditionSettings, {"kind": kind, "key": key, "grid": grid}, where=stage.where)
    return ImportedCondition(SpatialCondition(settings, tokenizer), grid, None)


def _codes(stage: ConditionStage, part: Part) -> ImportedCondition:
    """A layout if the YAML names a known data set of layouts, else precomputed codes."""
    key = str(part.params.get("conditional_key", stage.params.get("cond_stage_key", "codes")))
    source = (stage.data.get("params") or {}).get("train") or {}
    if key in GEOMETRY_BY_KEY and source.get("target") in CLASSES:
        options = source.get("params") or {}
        layout = {
            "classes": tuple(f"class {number}" for number in range(CLASSES[source["target"]])),
            "max_objects": int(options.get("max_objects_per_image", 30)),
            "codebook_size": int(options.get("no_tokens", stage.vocabulary)),
            "geometry": GEOMETRY_BY_KEY[key],
            "encode_crop": bool(options.get("encode_crop", True)),
            "group": bool(options.get("use_group_parameter", False)),
            "flags": bool(options.get("use_additional_parameters", False)),
        }
        condition = Layout(parse(LayoutSettings, layout, where=stage.where))
        return ImportedCondition(condition, _window(stage, prefix=condition.length), None)
    # The checkpoint does not contain the number of condition codes: the window leaves room for this many.
    grid = stage.grid or (stage.side, stage.side)
    length = stage.block - grid[0] * grid[1]
    if length < 1:
        raise SmaltiError(
            f"{stage.where}: {stage.block} positions leave no room for a condition besides {grid_text(grid)} "
            "codes; give its grid, height x width: --grid HxW, in Python grid=(h, w)"
        )
    given = {"key": _key(stage), "codebook_size": stage.vocabulary, "length": length}
    return ImportedCondition(PrecomputedCodes(parse(PrecomputedCodesSettings, given, where=stage.where)), grid, None)


_STAGES: dict[str, Callable[[ConditionStage, Part], ImportedCondition]] = {
    SOS: _sos,
    LABELS: _labels,
    COORDINATES: _coordinates,
    DUMMY: _codes,
}


def section_of(condition: Condition, *, start: int | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A condition -> its keys in the params of the original's transformer, and the weights of its stage.

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
        centers = isinstance(condition, Layout) and condition.settings.geometry == "centers"
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
