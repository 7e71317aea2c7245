"""Maps as conditions: segmentations, depths and images through a tokenizer of their own, and the files they come in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from smalti.conditions.condition_registry import build_condition
from smalti.conditions.map_files import read_normalized_depth, read_segmentation
from smalti.conditions.previews import palette
from smalti.conditions.spatial import SpatialCondition, SpatialConditionSettings, colorize_labels, one_hot_labels
from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.data import file_types as data_kinds
from smalti.data.crops import CenterCrop
from smalti.data.loader import Crops
from smalti.data.sources import open_source
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import unknown_codes
from smalti.images.edge_maps import edges
from smalti.images.io import DamagedImage, save_png, to_array, to_tensor
from smalti.images.label_maps import normalize_depth
from smalti.pipeline import Pipeline
from smalti.prior import Neighborhood, NeighborhoodSettings
from smalti.prior.window import Window
from smalti.tokenizer.encoder import AutoencoderSettings
from smalti.tokenizer.quantizers import VQSettings
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings

LABELS = 5
KINDS = {"segmentation": LABELS, "depth": 1, "edges": 1, "image": 3}


def tokenizer(channels: int) -> VQGAN:
    torch.manual_seed(channels)
    autoencoder = AutoencoderSettings(
        channels=channels, patch_size=2, base_channels=8, channel_multipliers=(1, 1), res_blocks=1, latent_channels=8
    )
    return VQGAN(VQGANSettings(autoencoder=autoencoder, quantizer=VQSettings(codebook_size=16, codebook_dim=4)))


def maps(kind: str, *, grid: tuple[int, int] = (2, 3), key: str | None = None) -> SpatialCondition:
    settings = SpatialConditionSettings(kind=kind, key=key or kind, grid=grid)  # type: ignore[arg-type]
    return SpatialCondition(settings, tokenizer(KINDS[kind]))


def value(kind: str, height: int, width: int, *, seed: int = 0) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    if kind == "segmentation":
        return torch.randint(LABELS, (height, width), generator=chance)
    return torch.rand(KINDS[kind], height, width, generator=chance) * 2 - 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_becomes_the_codes_of_its_tokenizer(kind: str) -> None:
    condition = maps(kind, key="drawn2")
    given = [value(kind, 8, 12, seed=seed) for seed in range(3)]
    assert (condition.key, condition.size, condition.length) == ("drawn2", 16, 6)
    channels = [torch.eye(LABELS)[one].movedim(-1, 0) if kind == "segmentation" else one for one in given]
    expected = condition.tokenizer.encode(torch.stack(channels)).codes.flatten(1)
    assert torch.equal(condition.encode(given), expected)
    assert torch.equal(condition.encode([one.numpy() for one in given]), expected)
    assert len(set(expected.flatten().tolist())) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_map_of_a_larger_image_is_encoded_whole_and_its_codes_are_cut(kind: str) -> None:
    condition = maps(kind)
    given = [value(kind, 16, 20), value(kind, 16, 20, seed=1)]
    whole = condition.codes(given, grid=(4, 5))
    at = condition.encode_windows(given, grid=(4, 5))
    for top in range(3):
        for left in range(3):
            assert torch.equal(at(Window(top, left, 2, 3)), whole[:, top : top + 2, left : left + 3].flatten(1))


def test_the_tokenizer_of_a_condition_is_not_trained() -> None:
    condition = maps("depth")
    assert condition.networks == (condition.tokenizer,)
    assert not condition.tokenizer.training
    assert not any(parameter.requires_grad for parameter in condition.tokenizer.parameters())


def test_a_condition_has_its_tokenizer_in_its_folder(tmp_path: Path) -> None:
    condition = maps("segmentation", key="labels")
    plain = condition.save(tmp_path)
    assert sorted(path.name for path in (tmp_path / "condition").iterdir()) == ["config.json", "model.safetensors"]
    again = build_condition(plain, tmp_path)
    assert isinstance(again, SpatialCondition)
    assert again.key == "labels"
    assert again.tokenizer.fingerprint() == condition.tokenizer.fingerprint()
    (tmp_path / "condition" / "model.safetensors").unlink()
    with pytest.raises(SmaltiError, match=r"has no model\.safetensors"):
        build_condition(plain, tmp_path)


@pytest.mark.parametrize(
    ("kind", "given", "sentence"),
    [
        (
            "segmentation",
            value("segmentation", 8, 13),
            "the segmentation is 8 x 13 pixels .* takes one of the shape of 8 x 12",
        ),
        ("segmentation", value("segmentation", 12, 8), "an image of 2 x 3 codes takes one of the shape of 8 x 12"),
        ("depth", value("depth", 8, 8), "the depth is 8 x 8 pixels .* takes one of the shape of 8 x 12"),
        (
            "segmentation",
            torch.full((8, 12), LABELS),
            "the segmentation holds the label 5, and there are the labels 0 to 4",
        ),
        ("segmentation", torch.full((8, 12), -1), "holds the label -1"),
        ("segmentation", np.full((8, 12), 255, dtype=np.uint8), "holds the label 255"),
        ("segmentation", np.full((8, 12), 65535, dtype=np.uint16), "holds the label 65535"),
        (
            "segmentation",
            torch.zeros(1, 8, 12),
            r"has the shape \(height, width\), not \(1, 8, 12\); give one label a pixel",
        ),
        ("segmentation", torch.zeros(8, 12), r"holds whole numbers, not torch\.float32; round it first"),
        ("depth", value("image", 8, 12), r"depth has the shape \(1, height, width\), not \(3, 8, 12\)"),
        ("depth", torch.zeros(8, 12), r"depth has the shape \(1, height, width\), not \(8, 12\)"),
        ("image", value("depth", 8, 12), r"image has the shape \(3, height, width\), not \(1, 8, 12\)"),
        ("image", torch.zeros(3, 8, 12, dtype=torch.uint8), r"holds floats from -1 to 1, not torch\.uint8; scale it"),
        (
            "image",
            torch.full((3, 8, 12), 255.0),
            "holds floats from -1 to 1, and this one is from 255 to 255; scale it",
        ),
        ("depth", torch.full((1, 8, 12), -1.5), "this one is from -1.5 to -1.5"),
        ("depth", torch.full((1, 8, 12), torch.nan), "this one is from nan to nan"),
        ("edges", value("image", 8, 12)[:2], r"map of edges has the shape \(1, height, width\), not \(2, 8, 12\)"),
        ("edges", value("image", 8, 12) * 255, r"photograph holds floats from -1 to 1, and this one is from"),
        ("depth", "depth.png", r"depth is a tensor or an array, not 'depth\.png'"),
    ],
)
def test_maps_that_are_invalid_raise_errors(kind: str, given: Any, sentence: str) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        maps(kind).encode([value(kind, 8, 12), given])


def test_a_map_must_belong_to_the_grid_that_is_generated() -> None:
    with pytest.raises(
        SmaltiError, match=r"the depth is 8 x 12 pixels .* an image of 4 x 5 codes takes one of the shape of 16 x 20"
    ):
        maps("depth").encode_windows([value("depth", 8, 12)], grid=(4, 5))


@pytest.mark.parametrize(("kind", "channels"), [("depth", 3), ("image", 1), ("image", 5)])
def test_a_tokenizer_for_other_channels_raises_an_error(kind: str, channels: int) -> None:
    settings = SpatialConditionSettings(kind=kind, key="map", grid=(2, 3))  # type: ignore[arg-type]
    with pytest.raises(
        SmaltiError, match=rf"'map' is for {channels} channels, and a {kind} has {KINDS[kind]}; take another"
    ):
        SpatialCondition(settings, tokenizer(channels))


@pytest.mark.parametrize("key", ["", "2d", "Depth", "a-map", "a map"])
def test_a_key_is_the_name_of_an_option(key: str, tmp_path: Path) -> None:
    plain = {**maps("depth").save(tmp_path), "key": key}
    with pytest.raises(SmaltiError, match=f"key = '{key}': "):
        build_condition(plain, tmp_path)


# --- maps of other sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_that_is_not_made_of_whole_tiles_is_cut_around_its_middle(kind: str) -> None:
    condition, given = maps(kind), value(kind, 15, 21)
    resized, grid = condition.resize_to_grid(given, grid=None)
    assert grid == (3, 5)
    assert torch.equal(resized, given[..., 1:13, 0:20])
    assert condition.codes([resized], grid=grid).shape == (1, 3, 5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(4, 6), (8, 30), (40, 12), (9, 13), (16, 24)])
def test_a_map_is_scaled_to_cover_the_image_that_was_requested(kind: str, size: tuple[int, int]) -> None:
    condition, given = maps(kind), value(kind, *size)
    resized, grid = condition.resize_to_grid(given, grid=(3, 4))
    assert grid == (3, 4)
    assert resized.dtype == given.dtype
    assert condition.codes([resized], grid=grid).shape == (1, 3, 4)
    if kind == "segmentation":
        assert set(resized.flatten().tolist()) <= set(given.flatten().tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_of_the_size_that_was_requested_stays_as_it_is(kind: str) -> None:
    given = value(kind, 12, 16)
    assert torch.equal(maps(kind).resize_to_grid(given, grid=(3, 4))[0], given)


def test_the_middle_of_a_scaled_map_stays_in_the_middle() -> None:
    labels = torch.zeros(4, 12, dtype=torch.int64)
    labels[:, 4:8] = 1
    labels[:, 8:] = 2
    resized, _ = maps("segmentation", grid=(2, 2)).resize_to_grid(
        labels, grid=(2, 2)
    )  # 8 x 24, of which the middle 8 columns
    assert torch.equal(resized, torch.ones(8, 8, dtype=torch.int64))


@pytest.mark.parametrize("edge", [-1.0, 1.0])
def test_scaling_does_not_lead_out_of_the_range(edge: float) -> None:
    resized, grid = maps("depth").resize_to_grid(torch.full((1, 37, 53), edge), grid=(3, 4))
    assert resized.abs().max() <= 1
    torch.testing.assert_close(resized, torch.full((1, 12, 16), edge))
    maps("depth").codes([resized], grid=grid)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("size", "grid"), [((8, 11), (2, 3)), ((4, 6), (2, 3)), ((2, 12), (2, 12)), ((40, 6), (20, 3)), ((1, 1), (3, 3))]
)
def test_a_map_smaller_than_the_window_is_scaled_to_cover_it(
    kind: str, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    resized, found = maps(kind).resize_to_grid(value(kind, *size), grid=None)
    assert found == grid
    assert maps(kind).codes([resized], grid=grid).shape == (1, *grid)


def test_an_image_smaller_than_the_window_raises_an_error() -> None:
    with pytest.raises(SmaltiError, match=r"'depth' generates 2 x 3 codes .* or more, 2 x 2 were requested"):
        maps("depth").resize_to_grid(value("depth", 8, 11), grid=(2, 2))


@pytest.mark.parametrize(
    ("name", "kind"), [("segmentation", "labels"), ("depth", "depth"), ("edges", "edges"), ("image", "color")]
)
@pytest.mark.parametrize("size", [(8, 12), (53, 40), (24, 37)])
def test_a_file_conditions_as_in_training(name: str, kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    """Edges were refused of photographs, depths and small copies scaled by another filter."""
    chance = np.random.RandomState(0)
    if name in ("segmentation", "depth"):
        image = chance.randint(LABELS if name == "segmentation" else 256, size=size).astype(np.uint8)
    else:
        image = chance.randint(256, size=(*size, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "file.png")
    source = open_source(tmp_path, file_type=data_kinds.FILE_TYPES[kind](None))
    in_training = Crops(source, source.images, size=(8, 12), channels=KINDS[name], crop=CenterCrop(), seed=0)
    expected = in_training.to_images(in_training[0, 0].image)
    condition = maps(name)
    resized, _ = condition.resize_to_grid(condition.read(str(tmp_path / "file.png")), grid=(2, 3))
    found = one_hot_labels(resized, count=LABELS, key=name) if name == "segmentation" else resized
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 2 * 2 / 255  # colors are scaled with 8 bits there
    assert len(set(resized.flatten().tolist())) > 3


def test_a_photograph_stands_for_its_edges(tmp_path: Path) -> None:
    condition, photograph = maps("edges"), value("image", 8, 12)
    drawn = to_tensor(edges(to_array(photograph)))
    assert torch.equal(condition.encode([photograph]), condition.encode([drawn]))
    save_png(tmp_path / "photograph.png", photograph)
    assert torch.equal(condition.encode([condition.read(str(tmp_path / "photograph.png"))]), condition.encode([drawn]))
    lines = torch.full((1, 8, 12), -1.0)
    lines[0, :, 4] = 0.6
    for channels in (1, 3):  # a drawing that was saved with three channels is one all the same
        save_png(tmp_path / "lines.png", lines.repeat(channels, 1, 1))
        torch.testing.assert_close(condition.read(str(tmp_path / "lines.png")), lines, atol=1 / 255, rtol=0)
    save_png(tmp_path / "dark-on-light.png", -lines)
    with pytest.raises(DamagedImage, match=r"dark-on-light\.png has no colors and is not dark enough for edges"):
        condition.read(str(tmp_path / "dark-on-light.png"))


# --- how maps look -------------------------------------------------------------------------------------------------


def test_previews_show_what_the_tokenizer_keeps() -> None:
    for kind in KINDS:
        condition = maps(kind)
        codes = condition.encode([value(kind, 8, 12)])
        decoded = condition.tokenizer.decode_codes(codes.view(1, 2, 3))
        image = condition.preview(codes[0])
        assert image.shape == (8, 12, 3)
        assert image.dtype == np.uint8
        if kind == "segmentation":
            best = decoded[0].argmax(dim=0)
            for i, j in ((0, 0), (3, 7), (7, 11)):
                assert image[i, j].tolist() == palette(LABELS)[int(best[i, j])].tolist()
        else:
            assert np.array_equal(image, np.broadcast_to(to_array(decoded)[0], (8, 12, 3)))
        both = condition.to_image(codes.view(1, 2, 3).repeat(2, 1, 1))
        assert np.array_equal(both[1], image)


def test_labels_become_channels_by_eye() -> None:
    labels = torch.tensor([[0, 2], [1, 1]], dtype=torch.uint8)
    channels = one_hot_labels(labels, count=3, key="segmentation")
    assert channels.dtype == torch.float32
    assert channels.tolist() == [[[1, 0], [0, 0]], [[0, 0], [1, 1]], [[0, 1], [0, 0]]]


def test_colors_are_spread_over_the_whole_batch() -> None:
    maps = torch.eye(4).T.reshape(1, 4, 2, 2).repeat(2, 1, 1, 1)
    maps[1] *= 3
    colorize = torch.randn(3, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    colors = colorize_labels(maps, colorize)
    assert colors.shape == (2, 3, 2, 2)
    assert (float(colors.min()), float(colors.max())) == (-1.0, 1.0)
    plain = torch.einsum("bnhw,cn->bchw", maps, colorize[:, :, 0, 0])
    torch.testing.assert_close(colors, (plain - plain.min()) / (plain.max() - plain.min()) * 2 - 1)
    assert (colors[0].min() > -1) or (colors[0].max() < 1)  # the second image alone reaches the ends
    assert torch.equal(colorize_labels(torch.zeros(1, 4, 2, 2), colorize), torch.full((1, 3, 2, 2), -1.0))


# --- files ---------------------------------------------------------------------------------------------------------


def test_the_numbers_of_a_palette_are_labels(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 4], [3, 3, 2]], dtype=np.uint8)
    colored = Image.fromarray(labels)
    colored.putpalette([7] * 768)  # all of one color: only the numbers count
    colored.save(tmp_path / "palette.png")
    Image.fromarray(labels).save(tmp_path / "gray.png")
    Image.fromarray(labels.astype(np.uint16) * 1000).save(tmp_path / "wide.png")
    Image.merge("LA", [Image.fromarray(labels), Image.new("L", (3, 2), 100)]).save(tmp_path / "transparent.png")
    for name in ("palette", "gray", "transparent"):
        read = read_segmentation(tmp_path / f"{name}.png")
        assert read.dtype == torch.int64
        assert read.tolist() == labels.tolist()
    assert read_segmentation(tmp_path / "wide.png").tolist() == (labels.astype(int) * 1000).tolist()
    condition = SpatialCondition(
        SpatialConditionSettings(kind="segmentation", key="labels", grid=(2, 3)), tokenizer(LABELS)
    )
    assert condition.read(str(tmp_path / "palette.png")).tolist() == labels.tolist()


def test_maps_are_turned_upright_as_images_are(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(np.array([[1, 2], [3, 4]], dtype=np.uint8)).save(tmp_path / "turned.png", exif=exif)
    assert read_segmentation(tmp_path / "turned.png").tolist() == [[4, 3], [2, 1]]


def test_files_that_are_no_segmentation_raise_errors(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), "red").save(tmp_path / "red.png")
    with pytest.raises(
        DamagedImage, match=r"red\.png holds colors, and a segmentation one label a pixel; save it with a pal"
    ):
        read_segmentation(tmp_path / "red.png")
    (tmp_path / "text.png").write_text("no image")
    for kind in KINDS:
        with pytest.raises(DamagedImage, match="is not an image of any kind that is read"):
            maps(kind).read(str(tmp_path / "text.png"))
        with pytest.raises(DamagedImage, match="is missing"):
            maps(kind).read(str(tmp_path / "nowhere.png"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_depths_are_spread_from_image_to_image(dtype: Any, tmp_path: Path) -> None:
    depth = np.array([[10, 20], [30, 110]], dtype=dtype)
    Image.fromarray(depth).save(tmp_path / "depth.png")
    read = maps("depth").read(str(tmp_path / "depth.png"))
    assert read.shape == (1, 2, 2)
    torch.testing.assert_close(read, torch.tensor([[[-1.0, -0.8], [-0.6, 1.0]]]))


def test_depths_of_the_original_are_floats_in_four_channels(tmp_path: Path) -> None:
    depth = np.array([[0.5, 123.25, 900.0], [1500.5, 3.0, 0.0]], dtype="<f4")
    Image.fromarray(depth.view(np.uint8).reshape(2, 3, 4), mode="RGBA").save(tmp_path / "depth.png")
    expected = torch.from_numpy(depth / 1500.5 * 2 - 1).float()[None]
    torch.testing.assert_close(read_normalized_depth(tmp_path / "depth.png"), expected)


def test_an_opaque_or_half_transparent_image_is_no_such_depth(tmp_path: Path) -> None:
    gray = np.array([[10, 20], [30, 110]], dtype=np.uint8)
    pixels = np.repeat(gray[:, :, None], 4, axis=2)
    pixels[:, :, 3] = 255
    Image.fromarray(pixels, mode="RGBA").save(tmp_path / "opaque.png")
    torch.testing.assert_close(
        read_normalized_depth(tmp_path / "opaque.png"), torch.tensor([[[-1.0, -0.8], [-0.6, 1.0]]])
    )
    pixels[0, 0, 3] = 0
    Image.fromarray(pixels, mode="RGBA").save(tmp_path / "cut.png")
    with pytest.raises(
        DamagedImage, match=r"cut\.png is transparent, and its bytes are not depths; save it as grayscale"
    ):
        read_normalized_depth(tmp_path / "cut.png")


def test_a_flat_depth_is_far_away() -> None:
    assert normalize_depth(torch.full((2, 2), 7.0)).tolist() == [[-1.0, -1.0], [-1.0, -1.0]]


def test_an_image_is_read_as_images_are(tmp_path: Path) -> None:
    drawn = value("image", 4, 6)
    save_png(tmp_path / "drawn.png", drawn)
    assert np.array_equal(to_array(maps("image").read(str(tmp_path / "drawn.png"))), to_array(drawn))


def test_of_images_beyond_the_trained_grid_some_may_have_a_map_and_some_none() -> None:
    condition = maps("depth")
    plain = {
        "codebook_size": 16,
        "condition_size": 16,
        "grid": (2, 3),
        "prefix_length": 6,
        "maps": (0,),
        "radius": 1,
        "layers": 1,
    }
    torch.manual_seed(0)
    prior = Neighborhood(parse(NeighborhoodSettings, {**plain, "embed_dim": 16, "heads": 2}, where="test"))
    pipe = Pipeline(tokenizer(3), prior, condition)
    result, window = value("depth", 16, 24), Window(0, 0, 4, 6)
    mixed = pipe.window_prefix([None, result], grid=(4, 6))(window)
    assert (mixed[0] == 16).all()  # nothing, at every place
    assert torch.equal(mixed[1:], pipe.window_prefix([result], grid=(4, 6))(window))
    known, seeds = unknown_codes(2, (4, 6)), pipe.seeds(0, 2)
    assert (
        final_codes(generate(pipe.prior, pipe.request_for([None, result], known, sampler=Sampler(), seeds=seeds))).min()
        >= 0
    )
