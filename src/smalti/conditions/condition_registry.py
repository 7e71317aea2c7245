"""The registry of conditions: saved settings and their folder -> the condition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from smalti.conditions.base import Condition
from smalti.conditions.composite import CompositeCondition, CompositeConditionSettings, part_folder
from smalti.conditions.coordinates import Coordinates, CoordinatesSettings
from smalti.conditions.keypoints import Keypoints, KeypointsSettings
from smalti.conditions.labels import Labels, LabelsSettings, Unconditional, UnconditionalSettings
from smalti.conditions.layout import Layout
from smalti.conditions.layout_codes import LayoutSettings
from smalti.conditions.precomputed import PrecomputedCodes, PrecomputedCodesSettings
from smalti.conditions.spatial import FOLDER, SpatialCondition, SpatialConditionSettings
from smalti.conditions.text import Text, TextSettings, read_vocabulary
from smalti.core.errors import SmaltiError, suggestion
from smalti.core.settings import parse
from smalti.tokenizer.vqgan import VQGAN


def _labels(plain: Mapping[str, Any], folder: Path) -> Condition:
    return Labels(parse(LabelsSettings, plain, where=_where(folder)).labels)


def _unconditional(plain: Mapping[str, Any], folder: Path) -> Condition:
    parse(UnconditionalSettings, plain, where=_where(folder))
    return Unconditional()


def _coordinates(plain: Mapping[str, Any], folder: Path) -> Condition:
    return Coordinates(parse(CoordinatesSettings, plain, where=_where(folder)))


def _spatial(plain: Mapping[str, Any], folder: Path) -> Condition:
    settings = parse(SpatialConditionSettings, plain, where=_where(folder))
    return SpatialCondition(settings, VQGAN.from_pretrained(folder / FOLDER))


def _layout(plain: Mapping[str, Any], folder: Path) -> Condition:
    return Layout(parse(LayoutSettings, plain, where=_where(folder)))


def _keypoints(plain: Mapping[str, Any], folder: Path) -> Condition:
    return Keypoints(parse(KeypointsSettings, plain, where=_where(folder)))


def _text(plain: Mapping[str, Any], folder: Path) -> Condition:
    return Text(parse(TextSettings, plain, where=_where(folder)), read_vocabulary(folder))


def _precomputed(plain: Mapping[str, Any], folder: Path) -> Condition:
    return PrecomputedCodes(parse(PrecomputedCodesSettings, plain, where=_where(folder)))


def _composite(plain: Mapping[str, Any], folder: Path) -> Condition:
    parts = parse(CompositeConditionSettings, plain, where=_where(folder)).parts
    return CompositeCondition([build_condition(part, part_folder(folder, index)) for index, part in enumerate(parts)])


def _where(folder: Path) -> str:
    return f"the condition in {folder}"


CONDITIONS: dict[str, Callable[[Mapping[str, Any], Path], Condition]] = {
    "labels": _labels,
    "unconditional": _unconditional,
    "coordinates": _coordinates,
    "spatial": _spatial,
    "layout": _layout,
    "keypoints": _keypoints,
    "text": _text,
    "precomputed": _precomputed,
    "composite": _composite,
}


def build_condition(settings: Mapping[str, Any], folder: Path) -> Condition:
    """The settings from `Condition.save`, and the folder it wrote into -> the condition.

    Raises `SmaltiError` for a name that is not in `CONDITIONS`, and for damaged settings or files.
    """
    name = settings.get("name")
    if not isinstance(name, str) or name not in CONDITIONS:
        raise SmaltiError(f"unknown condition {name!r}; {suggestion(str(name), CONDITIONS)}")
    return CONDITIONS[name](settings, folder)
