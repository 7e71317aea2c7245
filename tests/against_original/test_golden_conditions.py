"""Conditions against numbers of the original: layouts, coordinates, given codes, label maps, a layout under a
window."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smalti.checkpoints.taming_parts import MASKS, Part, gpt_names, gpt_settings, read_first_stage
from smalti.conditions.coordinates import Coordinates, CoordinatesSettings
from smalti.conditions.layout import Layout
from smalti.conditions.layout_codes import (
    Annotation,
    LayoutSettings,
    decode_layout,
    encode_layout,
    shuffle_objects,
    truncate_objects,
)
from smalti.conditions.location_codes import FULL_IMAGE, Box
from smalti.conditions.precomputed import PrecomputedCodes, PrecomputedCodesSettings
from smalti.conditions.spatial import SpatialCondition, SpatialConditionSettings, colorize_labels, one_hot_labels
from smalti.core.errors import SmaltiError
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.prior.gpt import GPT
from smalti.prior.window import Window, window_at
from tests.golden import FOLDER, Golden, fixtures

pytestmark = pytest.mark.golden

GEOMETRY = {
    "objects_bbox": "boxes",
    "objects_center_points": "centers",
    "ObjectsBoundingBoxConditionalBuilder": "boxes",
    "ObjectsCenterPointsConditionalBuilder": "centers",
}
PROPERTIES = {"is_group_of": "group", "is_occluded": "occluded", "is_depiction": "depiction", "is_inside": "inside"}


def layout_settings(config: dict[str, Any], builder: str) -> LayoutSettings:
    return LayoutSettings(
        classes=tuple(f"class {number}" for number in range(config["no_object_classes"])),
        max_objects=config["no_max_objects"],
        codebook_size=config["no_tokens"],
        geometry=GEOMETRY[builder],  # type: ignore[arg-type]
        encode_crop=config["encode_crop"],
        group=config["use_group_parameter"],
        flags=config["use_additional_parameters"],
    )


def annotation(stored: dict[str, Any]) -> Annotation:
    """Only what is literally true counts as true, in the original too."""
    properties = {ours: stored.get(theirs) is True for theirs, ours in PROPERTIES.items()}
    return Annotation(stored["category_no"], Box(*stored["bbox"]), **properties)


def layouts(name: str) -> list[Any]:
    path = next(iter(sorted(FOLDER.glob("13_*/cases.json"))), None)
    if path is None:
        return [pytest.param({}, {}, id=name, marks=pytest.mark.skip("no golden numbers 13_* on this machine"))]
    stored = json.loads(path.read_text("utf-8"))
    return [
        pytest.param(
            stored, case, id="-".join(str(case[key]) for key in ("annotations", "config", "crop", "flip", "order"))
        )
        for case in stored["cases"]
        if case["builder"] == name
    ]


def objects_of(stored: dict[str, Any], case: dict[str, Any], settings: LayoutSettings) -> list[Annotation]:
    objects = [annotation(one) for one in stored["annotation_lists"][case["annotations"]]]
    if case["order"] == "kept":
        return objects
    if len(objects) > settings.max_objects:
        with pytest.warns(
            UserWarning, match=f"a layout of {len(objects)} objects; there is room for {settings.max_objects}"
        ):
            objects = truncate_objects(objects, settings)
    return shuffle_objects(objects, random.Random(case["order"]))


@pytest.mark.filterwarnings("ignore:a layout of")
@pytest.mark.parametrize(
    ("stored", "case"), [case for name in ("objects_bbox", "objects_center_points") for case in layouts(name)]
)
def test_layouts(stored: dict[str, Any], case: dict[str, Any]) -> None:
    settings = layout_settings(stored["configs"][case["config"]], case["builder"])
    crop = Box(*case["crop"]) if case["crop"] else FULL_IMAGE
    if "error" in case:
        with pytest.raises(SmaltiError):
            encode_layout(objects_of(stored, case, settings), settings, crop=crop, flip=case["flip"])
        return
    objects = objects_of(stored, case, settings)
    codes = encode_layout(objects, settings, crop=crop, flip=case["flip"])
    assert list(codes) == case["tokens"]
    assert settings.length == len(codes) == case["embedding_dim"]
    read = decode_layout(codes, settings)
    assert [[one.code, list(one.geometry)] for one in read.objects] == case["inverse"]
    assert list(read.crop) == (case["inverse_crop"] if settings.encode_crop else list(FULL_IMAGE))
    inputs = [
        {"category_no": one.category, **{theirs: getattr(one, ours) for theirs, ours in PROPERTIES.items()}}
        for one in read.objects
    ]
    assert inputs == case["inverse_annotations"]


@pytest.mark.parametrize("path", fixtures("09d"))
def test_coordinates(path: Path) -> None:
    golden = Golden.read(path)
    options = golden.facts["params"]["cond_stage_config"]["params"]
    given = golden["in.c"].float()  # (B,1,H,W)
    levels, factor = options["n_embed"], options["down_factor"]
    grid = (given.shape[2] // factor, given.shape[3] // factor)
    condition = Coordinates(CoordinatesSettings(levels=levels, codebook_size=levels + 1, factor=factor, grid=grid))
    codes = condition.codes(given)
    golden.check("out.c_indices", codes.flatten(1))
    golden.check("out.coord_quant", codes[:, None].float())
    golden.check("out.coord_decoded", condition.decode(codes))


@pytest.mark.parametrize("path", fixtures("11_sliding"))
def test_coordinates_of_larger_images(path: Path) -> None:
    golden = Golden.read(path)
    stage = golden.facts["params"]["cond_stage_config"]
    if not stage["target"].endswith("CoordStage"):
        pytest.skip("its condition is another one")
    given, (h, w) = golden["in.c"].float(), golden.facts["latent_grid"]
    levels, factor = stage["params"]["n_embed"], stage["params"]["down_factor"]
    condition = Coordinates(CoordinatesSettings(levels=levels, codebook_size=levels + 1, factor=factor, grid=(h, w)))
    golden.check("in.c_indices", condition.codes(given).flatten(1))


@pytest.mark.parametrize("path", fixtures("09e"))
def test_given_codes(path: Path) -> None:
    golden = Golden.read(path)
    size = golden.facts["params"]["transformer_config"]["params"]["vocab_size"]
    given = golden["in.c"]
    condition = PrecomputedCodes(PrecomputedCodesSettings(codebook_size=size, length=given.shape[1]))
    golden.check("out.c_indices", condition.encode(given.tolist()))
    golden.check("out.c_indices", condition.encode(list(given)))


@pytest.mark.parametrize("path", fixtures("09c"))
def test_maps(path: Path) -> None:
    golden = Golden.read(path)
    stage = golden.facts["params"]["cond_stage_config"]
    weights = golden.weights()
    tokenizer = read_first_stage(
        Part(stage["target"], stage["params"]), weights, prefix="cond_stage_model.", where=path.name
    )
    h, w = golden.facts["latent_grid"]
    condition = SpatialCondition(
        SpatialConditionSettings(kind="segmentation", key="segmentation", grid=(h, w)), tokenizer
    )
    labels = golden["in.c"].argmax(dim=1)  # (B,H,W)
    golden.check("out.c_indices", condition.encode(list(labels)))
    golden.check("out.cond_decoded", tokenizer.decode_codes(condition.codes(list(labels), grid=(h, w))))


@pytest.mark.parametrize("path", fixtures("04"))
def test_label_maps_and_their_colors(path: Path) -> None:
    golden = Golden.read(path)
    stored = golden["in.segmentation"].movedim(-1, 1)  # (B,n,H,W)
    count, colorize = stored.shape[1], golden["colorize"].float()
    maps = torch.stack([one_hot_labels(one.argmax(dim=0), count=count, key="segmentation") for one in stored])
    assert torch.equal(maps, stored)
    golden.check("out.rgb_in", colorize_labels(maps, colorize))
    best = golden["out.dec"].argmax(dim=1)
    maps = torch.stack([one_hot_labels(one, count=count, key="segmentation") for one in best])
    golden.check("out.rgb_rec", colorize_labels(maps, colorize))


def scene_layout(golden: Golden) -> tuple[Layout, list[Annotation]]:
    settings = layout_settings(golden.facts["builder_config"], golden.facts["builder"])
    return Layout(settings), [annotation(one) for one in golden.facts["annotations"]]


def scene_windows(golden: Golden) -> dict[tuple[int, int], Window]:
    """The window over each place (row, column), from the crop that the original had there."""
    side, (height, width) = golden.facts["window"], golden.facts["latent_grid"]
    windows = {}
    for place, (left, top, *_) in golden.facts["crop_per_position"].items():
        column, row = (int(number) for number in place.split(","))
        windows[row, column] = Window(round(top * height), round(left * width), side, side)
    assert len(windows) == height * width
    return windows


@pytest.mark.parametrize("path", fixtures("11_scene"))
def test_layouts_under_a_window(path: Path) -> None:
    golden = Golden.read(path)
    layout, objects = scene_layout(golden)
    height, width = golden.facts["latent_grid"]
    at = layout.encode_windows([objects], grid=(height, width))
    windows = scene_windows(golden)
    for (row, column), window in windows.items():
        crop = Box(window.left / width, window.top / height, window.columns / width, window.rows / height)
        assert list(crop) == golden.facts["crop_per_position"][f"{column},{row}"]
        assert at(window).tolist() == [list(encode_layout(objects, layout.settings, crop=crop))]
    assert len({tuple(at(window)[0].tolist()) for window in windows.values()}) > 1


@pytest.mark.parametrize("path", fixtures("11_scene"))
def test_the_window_over_a_layout_stands_one_code_later(path: Path) -> None:
    """Other than with the original's other conditions, the place laid has a code fewer above and left of it in the
    window."""
    golden = Golden.read(path)
    layout, _ = scene_layout(golden)
    side, (height, width) = golden.facts["window"], golden.facts["latent_grid"]
    for (row, column), window in scene_windows(golden).items():
        for place, length, start in ((row, height, window.top), (column, width, window.left)):
            assert start == min(max(place - (side // 2 - 1), 0), length - side)
        assert window == window_at(row, column, grid=(height, width), window=(side, side), middle=layout.middle)


@torch.no_grad()
def generated_greedily(prior: GPT, golden: Golden, layout: Layout, objects: list[Annotation]) -> Tensor:
    """The slow truth: for each code one pass over all that stands before it in its window, and the likeliest is
    taken."""
    height, width = golden.facts["latent_grid"]
    at, codes = layout.encode_windows([objects], grid=(height, width)), torch.full((1, height, width), -1)
    for (row, column), window in sorted(scene_windows(golden).items()):
        top, left, rows, columns = window
        inside = codes[:, top : top + rows, left : left + columns].flatten(1)
        before = inside[:, : (row - top) * columns + column - left]
        assert (before >= 0).all()
        sequence = prior.join(at(window), before)
        logits = prior(sequence, cache=prior.empty_cache(window=(rows, columns)))[0, -1, : prior.size]
        codes[:, row, column] = logits.argmax()
    return codes


@pytest.mark.parametrize("path", fixtures("11_scene"))
def test_sampling_of_a_layout(path: Path) -> None:
    golden = Golden.read(path)
    params, side = golden.facts["params"], golden.facts["window"]
    layout, objects = scene_layout(golden)
    transformer = params["transformer_config"]
    settings = gpt_settings(
        Part(transformer["target"], transformer["params"]),
        codes=params["first_stage_config"]["params"]["n_embed"],
        prefix=layout.length,
        grid=(side, side),
        start=None,
        order="raster",
        where=path.name,
    )
    prior = GPT(settings)
    gpt_names(prior).read_into(prior, golden.weights("transformer."), where=path.name, ignored=MASKS)
    golden.check("out.grid", generated_greedily(prior.eval(), golden, layout, objects))
    height, width = golden.facts["latent_grid"]
    steps = generate(
        prior,
        GenerationRequest(
            layout.encode_windows([objects], grid=(height, width)),
            sampler=Sampler(temperature=0),
            seeds=torch.zeros(1, dtype=torch.int64),
            known=unknown_codes(1, (height, width)),
            middle=layout.middle,
        ),
    )
    golden.check("out.grid", final_codes(steps))
