"""Conditions and masks: what a person names or paints, as codes and as kept pixels. Coordinates, maps and layouts have
files of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.conditions.base import Condition, as_prefix, check_grid, code_crops, constant_prefix
from smalti.conditions.composite import CompositeCondition
from smalti.conditions.condition_registry import CONDITIONS, build_condition
from smalti.conditions.coordinates import Coordinates, CoordinatesSettings, ImageCrop
from smalti.conditions.keypoints import Keypoints, KeypointsSettings
from smalti.conditions.labels import Labels, Unconditional
from smalti.conditions.layout import Layout
from smalti.conditions.layout_codes import Annotation, LayoutSettings
from smalti.conditions.location_codes import Box
from smalti.conditions.precomputed import PrecomputedCodes, PrecomputedCodesSettings
from smalti.conditions.previews import palette
from smalti.conditions.spatial import SpatialCondition, SpatialConditionSettings
from smalti.conditions.text import text_condition, train_vocabulary
from smalti.core.errors import SmaltiError
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.images.io import DamagedImage
from smalti.images.masks import PARTS, kept_by_mask, kept_part
from smalti.prior import Transformer, TransformerSettings
from smalti.prior.window import Window
from smalti.tokenizer.encoder import AutoencoderSettings
from smalti.tokenizer.quantizers import VQSettings
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings

LABELS = Labels(["dawn", "dusk", "night"])
GIVEN = PrecomputedCodes(PrecomputedCodesSettings(key="words", codebook_size=9, length=4))
COORDINATES = Coordinates(CoordinatesSettings(levels=63, codebook_size=64, factor=2, grid=(4, 4)))
LAYOUT = Layout(LayoutSettings(classes=("tree", "house"), max_objects=2, codebook_size=64))
TREES = [Annotation(0, Box(0.1, 0.5, 0.3, 0.4)), Annotation(1, Box(0.6, 0.2, 0.3, 0.6))]


def depths() -> SpatialCondition:
    torch.manual_seed(0)
    autoencoder = AutoencoderSettings(
        channels=1, patch_size=2, base_channels=8, channel_multipliers=(1,), res_blocks=1, latent_channels=8
    )
    tokenizer = VQGAN(VQGANSettings(autoencoder=autoencoder, quantizer=VQSettings(codebook_size=16, codebook_dim=4)))
    return SpatialCondition(SpatialConditionSettings(kind="depth", key="depth", grid=(4, 4)), tokenizer)


EXAMPLES: dict[str, Condition] = {
    "labels": LABELS,
    "unconditional": Unconditional(),
    "coordinates": COORDINATES,
    "spatial": depths(),
    "layout": LAYOUT,
    "precomputed": GIVEN,
    "keypoints": Keypoints(KeypointsSettings(points=("left hand", "right hand"), max_figures=2, codebook_size=65)),
    "text": text_condition(train_vocabulary(["two firs by a lake", "a lake"], max_size=300), length=6),
    "composite": CompositeCondition([LABELS, LAYOUT]),
}


def values_of(name: str, grid: tuple[int, int]) -> list[Any]:
    """Two values of the example of that name, for images of `grid` codes."""
    height, width = 2 * grid[0], 2 * grid[1]
    slope = torch.linspace(-1, 1, height * width).view(1, height, width)
    values: dict[str, list[Any]] = {
        "labels": ["night", "dawn"],
        "unconditional": [None, None],
        "coordinates": [None, ImageCrop(2, 4, full_size=(40, 60))],
        "spatial": [slope, -slope],
        "layout": [TREES, []],
        "precomputed": [[8, 0, 3, 3], (1, 2, 3, 4)],
        "keypoints": [[[(0.2, 0.4), (0.8, 0.5)]], []],
        "text": ["two firs", "a lake by night"],
        "composite": [{"label": "dusk", "layout": TREES}, {"label": "dawn"}],
    }
    return values[name]


# --- what holds for each of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONDITIONS)
def test_values_become_prefixes(name: str) -> None:
    condition = EXAMPLES[name]
    codes = condition.encode(values_of(name, (4, 4)))
    assert codes.shape == (2, condition.length)
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert codes.max() < max(condition.size, 1)
    assert condition.encode([]).shape == (0, condition.length)
    assert condition.encode([]).dtype == torch.int64
    alone = torch.cat([condition.encode([value]) for value in values_of(name, (4, 4))])
    assert torch.equal(alone, codes)
    assert name == "unconditional" or not torch.equal(codes[0], codes[1])


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_window_that_is_the_image_reads_what_is_encoded(name: str) -> None:
    condition, values = EXAMPLES[name], values_of(name, (4, 4))
    at = condition.encode_windows(values, grid=(4, 4))
    assert torch.equal(at(Window(0, 0, 4, 4)), condition.encode(values))


@pytest.mark.parametrize(
    ("name", "changes"),
    [(name, name in ("coordinates", "spatial", "layout", "keypoints", "composite")) for name in CONDITIONS],
)
def test_under_a_window_stands_what_is_true_there(name: str, changes: bool) -> None:
    condition = EXAMPLES[name]
    at = condition.encode_windows(values_of(name, (6, 9)), grid=(6, 9))
    prefixes = [at(Window(top, left, 4, 4)) for top in range(3) for left in range(6)]
    for prefix in prefixes:
        assert prefix.shape == (2, condition.length)
        assert prefix.max() < max(condition.size, 1)
    assert any(not torch.equal(prefix, prefixes[0]) for prefix in prefixes) == changes


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_prior_generates_an_image_that_is_larger_than_its_window(name: str) -> None:
    condition = EXAMPLES[name]
    torch.manual_seed(0)
    sizes = TransformerSettings(
        codebook_size=8,
        condition_size=condition.size,
        prefix_length=condition.length,
        grid=(4, 4),
        layers=1,
        embed_dim=16,
        heads=2,
    )
    at = condition.encode_windows(values_of(name, (5, 6)), grid=(5, 6))
    generation = generate(
        Transformer(sizes).eval(),
        GenerationRequest(at, sampler=Sampler(), seeds=torch.arange(2), known=unknown_codes(2, (5, 6))),
    )
    codes = final_codes(generation)
    assert codes.shape == (2, 5, 6)
    assert codes.min() >= 0


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_come_back_from_what_they_saved(name: str, tmp_path: Path) -> None:
    condition, values = EXAMPLES[name], values_of(name, (4, 4))
    plain = json.loads(json.dumps(condition.save(tmp_path)))
    assert plain["name"] == name
    again = build_condition(plain, tmp_path)
    assert type(again) is type(condition)
    assert (again.key, again.size, again.length) == (condition.key, condition.size, condition.length)
    assert again.optional == condition.optional
    assert torch.equal(again.encode(values), condition.encode(values))
    assert again.save(tmp_path) == condition.save(tmp_path)


@pytest.mark.parametrize("name", CONDITIONS)
def test_damaged_settings_are_reported_by_name(name: str, tmp_path: Path) -> None:
    plain = EXAMPLES[name].save(tmp_path)
    with pytest.raises(SmaltiError, match=r"the condition in .*: unknown key 'color'"):
        build_condition({**plain, "color": 3}, tmp_path)
    for key in ("labels", "levels", "kind", "classes", "length", "points", "parts"):
        if key in plain:
            left = {other: value for other, value in plain.items() if other != key}
            with pytest.raises(SmaltiError, match=rf"the condition in .*: the key '{key}' is missing"):
                build_condition(left, tmp_path)


def test_labels_saved_by_earlier_versions_are_read(tmp_path: Path) -> None:
    again = build_condition({"name": "labels", "labels": ["dawn", "dusk"]}, tmp_path)
    assert again.encode(["dusk"]).tolist() == [[1]]
    assert build_condition({"name": "unconditional"}, tmp_path).size == 0


@pytest.mark.parametrize("name", ["lables", None])
def test_an_unknown_condition_raises_an_error(name: str | None, tmp_path: Path) -> None:
    with pytest.raises(
        SmaltiError,
        match=rf"unknown condition {name!r}; .*here are: composite, coordinates, keypoints, labels, layout, p",
    ):
        build_condition({"name": name}, tmp_path)


@pytest.mark.parametrize("name", CONDITIONS)
def test_previews_are_images_that_differ(name: str) -> None:
    condition = EXAMPLES[name]
    images = [condition.preview(row) for row in condition.encode(values_of(name, (4, 4)))]
    for image in images:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert image.min() < image.max()
    assert name == "unconditional" or images[0].tobytes() != images[1].tobytes()


def test_only_coordinates_need_no_value() -> None:
    assert [name for name, condition in EXAMPLES.items() if condition.optional] == ["coordinates"]


def test_only_maps_have_a_network_to_move() -> None:
    assert [name for name, condition in EXAMPLES.items() if condition.networks] == ["spatial"]


def test_prefixes_have_one_column() -> None:
    assert as_prefix([4, 2]).tolist() == [[4], [2]]
    assert as_prefix([]).shape == (0, 1)


def test_codes_under_a_window_by_eye() -> None:
    codes = torch.arange(30).view(1, 5, 6)
    assert code_crops(codes)(Window(1, 2, 2, 3)).tolist() == [[8, 9, 10, 14, 15, 16]]
    assert constant_prefix(codes[0])(Window(1, 2, 2, 3)) is not None
    assert torch.equal(constant_prefix(codes[0])(Window(0, 0, 1, 1)), codes[0])


@pytest.mark.parametrize("name", ["coordinates", "spatial"])
@pytest.mark.parametrize(("grid", "least"), [((3, 8), "4 x 8"), ((4, 3), "4 x 4")])
def test_images_smaller_than_the_window_raise_errors(name: str, grid: tuple[int, int], least: str) -> None:
    sentence = rf"generates 4 x 4 codes .* or more, {grid[0]} x {grid[1]} were requested; request at least {least}"
    with pytest.raises(SmaltiError, match=sentence):
        EXAMPLES[name].encode_windows(values_of(name, grid), grid=grid)
    check_grid((4, 4), window=(4, 4), key="depth")


# --- labels and nothing --------------------------------------------------------------------------------------------


def test_a_label_becomes_its_place() -> None:
    assert (LABELS.key, LABELS.size, LABELS.length) == ("label", 3, 1)
    assert LABELS.encode(["night", "dawn", "night"]).tolist() == [[2], [0], [2]]
    assert LABELS.encode([LABELS.read("dusk")]).tolist() == [[1]]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("dask", r"there is no label 'dask'; did you mean 'dusk'\? There are: dawn, dusk, night"),
        ("winter", r"there is no label 'winter'; there are: dawn, dusk, night"),
        (1, r"there is no label 1; there are: dawn, dusk, night"),
        (None, r"there is no label None; "),
        (["dawn"], r"there is no label \['dawn'\]; "),
    ],
)
def test_an_unknown_label_lists_those_there_are(value: object, sentence: str) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        LABELS.encode(["dawn", value])


def test_no_condition_takes_no_value() -> None:
    unconditional = Unconditional()
    assert (unconditional.key, unconditional.size, unconditional.length) == ("", 0, 1)
    assert unconditional.encode([None, None]).tolist() == [[0], [0]]
    with pytest.raises(SmaltiError, match="this model takes no condition, 'dusk' was given; leave it out"):
        unconditional.encode([None, "dusk"])
    with pytest.raises(SmaltiError, match="this model takes no condition, 'dusk' was given; leave it out"):
        unconditional.read("dusk")


def test_written_labels_have_ink_and_a_margin() -> None:
    for code in range(LABELS.size):
        image = LABELS.preview(torch.tensor([code]))
        assert image.min() < 100
        assert (image[[0, -1]] == 255).all()


# --- codes as they are given ---------------------------------------------------------------------------------------


def test_given_codes_stay_as_they_are() -> None:
    assert (GIVEN.key, GIVEN.size, GIVEN.length) == ("words", 9, 4)
    rows: list[Any] = [[8, 0, 3, 3], torch.tensor([1, 2, 3, 4], dtype=torch.int32), np.array([0, 0, 0, 8])]
    assert GIVEN.encode(rows).tolist() == [[8, 0, 3, 3], [1, 2, 3, 4], [0, 0, 0, 8]]
    assert GIVEN.read("8, 0 3,3") == (8, 0, 3, 3)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([0, 1, 2, 9], "there is no condition code 9; the codes are 0 to 8"),
        ([0, -1, 2, 3], "there is no condition code -1; the codes are 0 to 8"),
        ([0, 1, 2], r"'words' has 4 codes per image, and a row of the shape \(3,\) was given; give \(4,\)"),
        ([[0, 1, 2, 3]], r"a row of the shape \(1, 4\) was given"),
        ([], r"a row of the shape \(0,\) was given"),
        ([0.0, 1.0, 2.0, 3.0], r"condition codes are whole numbers, \[0.0, 1.0, 2.0, 3.0\] holds torch.float32; round"),
        ([True, False, True, True], "holds torch.bool"),
        ("abcd", "'abcd' is not a row of codes; give 4 whole numbers"),
        (None, "None is not a row of codes; give 4 whole numbers"),
    ],
)
def test_codes_that_are_invalid_raise_errors(value: object, sentence: str) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        GIVEN.encode([[0, 1, 2, 3], value])


def test_typed_codes_that_are_none_raise_errors() -> None:
    with pytest.raises(SmaltiError, match="'1,two' is not a list of codes; give 4 whole numbers: 4,0,7"):
        GIVEN.read("1,two")


# --- colors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 183, 400])
def test_classes_have_colors_of_their_own(count: int) -> None:
    colors = palette(count)
    assert colors.shape == (count, 3)
    assert colors.dtype == np.uint8
    assert len({tuple(color) for color in colors.tolist()}) == count
    assert np.array_equal(palette(count + 5)[:count], colors)
    near = np.abs(np.diff(colors.astype(int), axis=0)).max(axis=1)
    assert (near > 60).all()


# --- masks ---------------------------------------------------------------------------------------------------------


def test_parts_by_eye() -> None:
    displayed = {
        name: ["".join(".#"[kept] for kept in row) for row in kept_part(name, (4, 8)).tolist()] for name in PARTS
    }
    assert displayed == {
        "top-half": ["########"] * 2 + ["........"] * 2,
        "bottom-half": ["........"] * 2 + ["########"] * 2,
        "left-half": ["####...."] * 4,
        "right-half": ["....####"] * 4,
        "center": ["........", "..####..", "..####..", "........"],
    }


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (2, 3)])
def test_halves_share_no_pixel_and_leave_none_out(size: tuple[int, int]) -> None:
    for one, other in (("top-half", "bottom-half"), ("left-half", "right-half")):
        assert (kept_part(one, size) ^ kept_part(other, size)).all()


def test_an_unknown_part_lists_those_there_are() -> None:
    with pytest.raises(
        SmaltiError, match=r"unknown part 'top' to keep; .*There are: bottom-half, center, left-half, r"
    ):
        kept_part("top", (4, 4))


def test_white_is_kept(tmp_path: Path) -> None:
    pixels = np.array([[0, 255, 127, 128], [255, 0, 255, 0]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    kept = kept_by_mask(tmp_path / "mask.png", image=(2, 4), size=(2, 4))
    assert kept.dtype == torch.bool
    assert kept.tolist() == [[False, True, False, True], [True, False, True, False]]


def test_a_mask_is_scaled_and_cropped_with_its_image(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, 20:] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    kept = kept_by_mask(tmp_path / "mask.png", image=(20, 40), size=(8, 8))
    assert kept.tolist() == [[False] * 4 + [True] * 4] * 8  # the middle 8 of 8 x 16


def test_masks_that_do_not_fit_raise_errors(tmp_path: Path) -> None:
    Image.new("L", (8, 4)).save(tmp_path / "mask.png")
    with pytest.raises(SmaltiError, match=r"mask\.png is 4x8 pixels, its image 8x4; a mask has the size of its"):
        kept_by_mask(tmp_path / "mask.png", image=(8, 4), size=(4, 4))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DamagedImage, match="is not an image of any kind that is read"):
        kept_by_mask(tmp_path / "text.png", image=(8, 4), size=(4, 4))
    with pytest.raises(DamagedImage, match="is missing"):
        kept_by_mask(tmp_path / "nowhere.png", image=(8, 4), size=(4, 4))
