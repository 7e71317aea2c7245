"""The ground floor: errors, settings and devices."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import Field, ValidationError

from smalti.conditions.layout_codes import LayoutSettings
from smalti.core.devices import pick_device
from smalti.core.errors import SmaltiError, suggestion
from smalti.core.settings import as_mapping, assignment, parse, settings

# --- errors --------------------------------------------------------------------------------------------------------


def test_a_suggestion_names_the_nearest_and_all() -> None:
    assert suggestion("smal", ["small", "demo"]) == "did you mean 'small'? There are: demo, small"
    assert suggestion("zzz", ["small", "demo"]) == "there are: demo, small"
    assert suggestion("zzz", []) == "there are none"


def test_of_very_many_the_nearest_few_are_named() -> None:
    """An unknown label of ImageNet printed all of its names."""
    names = [f"class {number}" for number in range(1500)] + ["Golden Retriever"]
    assert suggestion("class 7b", names).startswith("did you mean 'class 7', ")
    assert suggestion("golden retriever", names) == "did you mean 'Golden Retriever'? There are 1,501"
    assert suggestion("trieve", names) == "did you mean 'Golden Retriever'? There are 1,501"
    assert re.fullmatch(r"there are 1,501, such as 'Golden Retriever'(, 'class \d+'){4}", suggestion("zzz", names))
    assert all(len(suggestion(word, names)) < 120 for word in ("", "c", "class", "zzz", "class 12"))
    assert suggestion("x", map(str, range(40))).count(",") == 39


@pytest.mark.parametrize("typed", ["[01, 1]", "[no, yes]", "[a, 2020-01-01]", "[1.5]"])
def test_names_that_yaml_takes_for_something_else_are_to_be_quoted(typed: str) -> None:
    key, value = assignment(f"classes={typed}")
    with pytest.raises(SmaltiError, match=r"text is wanted, .*; put them in quotes, in a shell 'classes=\[") as error:
        parse(LayoutSettings, {key: value, "codebook_size": 100}, where="layout")
    assert "at least 1 item" not in str(error.value)
    assert str(error.value).count("text is wanted") == 1


# --- settings ------------------------------------------------------------------------------------------------------


@settings
class Round:
    name: Literal["round"] = "round"
    radius: Annotated[float, Field(ge=0)] = 1.0


@settings
class Square:
    name: Literal["square"] = "square"
    side: Annotated[int, Field(ge=1)] = 2


@settings
class Tile:
    label: str
    shape: Annotated[Round | Square, Field(discriminator="name")] = Square()
    glaze: Round | None = None
    place: tuple[int, int] = (0, 0)
    fired: bool = True


def test_settings_are_frozen_and_keyword_only() -> None:
    tile: Any = Tile(label="a")
    with pytest.raises(AttributeError):
        tile.label = "b"
    made: Any = Tile
    with pytest.raises((TypeError, ValidationError)):
        made("a")


def test_plain_values_become_settings_and_come_back() -> None:
    plain = {
        "label": "sky",
        "shape": {"name": "round", "radius": 0.5},
        "glaze": {"name": "round", "radius": 2.0},
        "place": [3, 4],
        "fired": False,
    }
    tile = parse(Tile, plain, where="test")
    assert tile == Tile(label="sky", shape=Round(radius=0.5), glaze=Round(radius=2.0), place=(3, 4), fired=False)
    assert as_mapping(tile) == plain
    assert json.loads(json.dumps(as_mapping(tile))) == plain


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"lable": 1},
            r"here: unknown key 'lable'; did you mean 'label'\? There are: fired, glaze, label, place, shape",
        ),
        (
            {"shape": {"name": "square", "sid": 1}},
            r"unknown key 'shape\.sid'; did you mean 'side'\? There are: n",
        ),
        ({"shape": {"name": "round", "side": 1}}, r"'shape\.side'; there are: name, radius$"),
        ({"glaze": {"radus": 1}}, r"unknown key 'glaze\.radus'; did you mean 'radius'\? There are: name, radius$"),
        ({"shape": {"name": "oval"}}, r"here: shape = .*'oval'.*'round', 'square'"),
        (
            {"shape": {"name": "square", "side": 0}},
            r"here: shape\.side = 0: input should be greater than or equal",
        ),
        ({"shape": [3]}, r"here: shape = \[3\]: "),
        ({"fired": "perhaps"}, r"here: fired = 'perhaps': input should be a valid boolean"),
        ({"place": [1]}, r"here: the key 'place\.1' is missing"),
        ({"place": 1}, r"here: place = 1: a list is wanted, such as place=\[1\]"),
        ({"place": [1, "x"]}, r"here: place\.1 = 'x': input should be a valid integer"),
        ({"label": None}, r"here: label = None: input should be a valid string"),
    ],
)
def test_wrong_settings_are_reported_with_their_key(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        parse(Tile, {"label": "a", **change}, where="here")


def test_all_that_is_wrong_is_reported_at_once() -> None:
    with pytest.raises(SmaltiError, match=r"here: the key 'label' is missing; here: fired = 3: .*; .*'coluor'"):
        parse(Tile, {"fired": 3, "coluor": "blue"}, where="here")


def settings_classes() -> list[type]:
    """All settings classes of smalti, found by their decorator, so that a new one is tested as soon as it is there."""
    source = Path(__file__).resolve().parents[2] / "src"
    found = []
    for path in sorted((source / "smalti").rglob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and "settings" in [ast.unparse(item) for item in node.decorator_list]:
                module = ".".join(path.relative_to(source).with_suffix("").parts)
                found.append(getattr(importlib.import_module(module), node.name))
    return [cls for cls in found if not inspect.isabstract(cls)]


EVERY = {"log_every": 1, "validate_every": 2, "sample_every": 3, "checkpoint_every": 4}
NEEDED: dict[str, dict[str, Any]] = {
    "TransformerSettings": {"codebook_size": 16},
    "GPTSettings": {"vocab_size": 20, "codebook_size": 16},
    "NeighborhoodSettings": {"codebook_size": 16},
    "SamplingRequest": {"height": 64, "width": 128},
    "PixelSNAILSettings": {"codebook_size": 16},
    "ConditionsSettings": {"recipe": "demo", "scenes": 40},
    "KeypointsSettings": {"points": ("left hand", "right hand")},
    "CompositeConditionSettings": {"parts": ({"name": "unconditional"},)},
    "TokenizerProtocol": {"about": "a"},
    "PriorProtocol": {"about": "a"},
    "SetProtocol": {"about": "a"},
    "Variation": {"name": "f4"},
    "ReconstructionSettings": {
        "recipe": "demo",
        "tokenizers": ({"name": "f4"},),
        "size": (64, 64),
        "held_out": 0.1,
        "images": 10,
        "shown": 4,
    },
    "ContenderSettings": {"recipe": "demo"},
    "ImageSetSettings": {"name": "light", "size": (64, 64)},
    "ModernSettings": {
        "reference": {"recipe": "small-reference"},
        "modern": {"recipe": "small"},
        "sets": ({"name": "light", "size": (64, 64)},),
        "minutes": 1.5,
        "held_out": 0.1,
        "images": 10,
        "shown": 4,
    },
    "QuantizersSettings": {
        "recipe": "demo",
        "quantizers": ({"name": "fsq"},),
        "size": (64, 64),
        "held_out": 0.1,
        "images": 10,
        "shown": 4,
    },
    "FSweepSettings": {
        "recipe": "demo",
        "tokenizers": ({"name": "f4"},),
        "codebook": 16,
        "window": (8, 8),
        "size": (64, 64),
        "crop": (64, 64),
        "copies": 2,
        "samples": 4,
        "held_out": 0.1,
        "images": 10,
        "shown": 4,
    },
    "PixelSNAILExperimentSettings": {
        "recipe": "demo",
        "transformer": ("network={name: transformer}",),
        "pixelsnail": ("network={name: pixelsnail}",),
        "size": (64, 64),
        "copies": 2,
        "held_out": 0.1,
    },
    "OrdersSettings": {"recipe": "demo", "size": (64, 64), "copies": 2, "held_out": 0.1},
    "InpaintingSettings": {"recipe": "demo", "size": (64, 64), "copies": 2, "held_out": 0.1},
    "WindowSettings": {
        "recipe": "demo",
        "neighborhood": ("network={name: neighborhood}",),
        "window": (8, 8),
        "sizes": ((16, 16),),
        "size": (64, 64),
        "crop": (64, 64),
        **dict.fromkeys(("copies", "images", "samples", "shown", "scene_network_steps", "scenes"), 2),
        "held_out": 0.1,
    },
    "Notes": {"heads": 2, "grid": (2, 3), "labels": ("a", "b"), "dropout": 0.1},
    "CoordinatesSettings": {"levels": 7, "codebook_size": 8, "factor": 4, "grid": (2, 3)},
    "PrecomputedCodesSettings": {"codebook_size": 16, "length": 3},
    "LabelsSettings": {"labels": ("day", "night")},
    "TextSettings": {"length": 8, "vocabulary": 300, "fingerprint": "0123"},
    "Scale": {"about": "small", "data": "scenes", "renders_scenes": False, "settings": {"steps": 2}},
    "LayoutSettings": {"classes": ("tree", "house"), "codebook_size": 64},
    "SpatialConditionSettings": {"kind": "depth", "key": "depth", "grid": (2, 3)},
    "TokenizerRun": {"images": 100, **EVERY},
    "PriorRun": {"codes": 100, **EVERY},
    "PrefixSettings": {"size": 16, "length": 6, "fingerprint": "0123", "condition": {"name": "spatial"}},
    "PartSettings": {"shards": (2, 1), "copies": 8, "damaged": 0, "data": {"path": "a"}},
    "CodesSettings": {
        "format": 1,
        "fingerprint": "0123",
        "size": 16,
        "grid": (2, 3),
        "factor": 4,
        "labels": ("day", "night"),
        "seed": 0,
    },
    "FitRequest": {"images": "images"},
    "FoundCondition": {"name": "depth", "about": "7 depth maps"},
    "Inspection": {
        "images": 7,
        "decoded": 7,
        "classes": {"day": 5, "night": 2},
        "without_class": 0,
        "smallest": (8, 9),
        "median": (8, 9),
        "largest": (16, 9),
        "unusable": 0,
        "enlarged": 1,
        "outside": 0.25,
        "damaged": 0,
        "damaged_files": (),
        "duplicates": 1,
        "duplicate_files": (("a.png", "b.png"),),
    },
}
"""What stands in place of the values that have no default."""
NEEDED["TokenizerTraining"] = {"run": NEEDED["TokenizerRun"]}
NEEDED["PriorTraining"] = {"run": NEEDED["PriorRun"]}
NEEDED["FitState"] = {
    "smalti": "0.1",
    "request": NEEDED["FitRequest"],
    "contents": {"images": 7},
    "inspection": NEEDED["Inspection"],
    "found": (NEEDED["FoundCondition"],),
}
NEEDED["CodesSettings"]["training"] = NEEDED["CodesSettings"]["validation"] = NEEDED["PartSettings"]


@pytest.mark.parametrize("cls", settings_classes(), ids=lambda cls: cls.__name__)
def test_all_settings_survive_the_way_through_json(cls: type[Any]) -> None:
    value = parse(cls, NEEDED.get(cls.__name__, {}), where="test")
    plain = json.loads(json.dumps(as_mapping(value)))
    assert parse(cls, plain, where="test") == value
    with pytest.raises(SmaltiError, match=r"unknown key 'zzzz'; there are: "):
        parse(cls, {**plain, "zzzz": 1}, where="test")


# --- devices -------------------------------------------------------------------------------------------------------


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu") == torch.device("cpu")
    for cuda, mps, expected in [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda answer=cuda: answer)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda answer=mps: answer)
        assert pick_device("auto").type == expected


@pytest.mark.parametrize("name", ["gpu", "", "cuda:999", "hpu", "xla", "meta", "cpu:x"])
def test_a_device_that_is_not_here_is_reported_in_one_sentence(name: str) -> None:
    """PyTorch's own answers are a list of all its backends, or for "hpu" a missing module; "meta" holds no numbers."""
    with pytest.raises(SmaltiError, match=rf"device '{name}' cannot be used here \(.*\); try --device cpu") as raised:
        pick_device(name)
    assert len(str(raised.value)) < 300
