"""The table of all conditions: the plain values that one was saved as -> the condition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from smalti.conditions.base import Condition
from smalti.conditions.composite import Several, SeveralSettings, part_folder
from smalti.conditions.coordinates import Coordinates, CoordinatesSettings
from smalti.conditions.keypoints import Keypoints, KeypointsSettings
from smalti.conditions.labels import Labels, LabelsSettings, Nothing, NothingSettings
from smalti.conditions.layout import Layout
from smalti.conditions.layout_codes import LayoutSettings
from smalti.conditions.precomputed import Given, GivenSettings
from smalti.conditions.spatial import FOLDER, Maps, MapsSettings
from smalti.core.errors import SmaltiError, suggestion
from smalti.core.settings import parse
from smalti.tokenizer.vqgan import VQGAN


def _labels(plain: Mapping[str, Any], folder: Path) -> Condition:
    return Labels(parse(LabelsSettings, plain, where=_where(folder)).labels)


def _nothing(plain: Mapping[str, Any], folder: Path) -> Condition:
    parse(NothingSettings, plain, where=_where(folder))
    return Nothing()


def _coordinates(plain: Mapping[str, Any], folder: Path) -> Condition:
    return Coordinates(parse(CoordinatesSettings, plain, where=_where(folder)))


def _maps(plain: Mapping[str, Any], folder: Path) -> Condition:
    settings = parse(MapsSettings, plain, where=_where(folder))
    return Maps(settings, VQGAN.from_pretrained(folder / FOLDER))


def _layout(plain: Mapping[str, Any], folder: Path) -> Condition:
    return Layout(parse(LayoutSettings, plain, where=_where(folder)))


def _keypoints(plain: Mapping[str, Any], folder: Path) -> Condition:
    return Keypoints(parse(KeypointsSettings, plain, where=_where(folder)))


def _given(plain: Mapping[str, Any], folder: Path) -> Condition:
    return Given(parse(GivenSettings, plain, where=_where(folder)))


def _several(plain: Mapping[str, Any], folder: Path) -> Condition:
    parts = parse(SeveralSettings, plain, where=_where(folder)).parts
    return Several([build_condition(part, part_folder(folder, place)) for place, part in enumerate(parts)])


def _where(folder: Path) -> str:
    return f"the condition in {folder}"


CONDITIONS: dict[str, Callable[[Mapping[str, Any], Path], Condition]] = {
    "labels": _labels,
    "nothing": _nothing,
    "coordinates": _coordinates,
    "maps": _maps,
    "layout": _layout,
    "keypoints": _keypoints,
    "given": _given,
    "several": _several,
}


def build_condition(settings: Mapping[str, Any], folder: Path) -> Condition:
    """The plain values of `Condition.save`, and the folder it wrote into -> the condition.

    Raises `SmaltiError` for a name that is not in `CONDITIONS`, and for settings or files that are damaged.
    """
    name = settings.get("name")
    if name not in CONDITIONS:
        raise SmaltiError(f"unknown condition {name!r}; {suggestion(str(name), CONDITIONS)}")
    return CONDITIONS[name](settings, folder)
