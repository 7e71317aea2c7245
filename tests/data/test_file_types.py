"""Images, label maps and depths as training data: what becomes of a file on its way to the tokenizer, and
of runs on them."""

from __future__ import annotations

import json
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from smalti.cli.main import app
from smalti.conditions.map_files import label_accuracy, label_colors, read_normalized_depth
from smalti.conditions.previews import palette
from smalti.conditions.spatial import one_hot_labels
from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.data.code_shards import open_codes
from smalti.data.crops import CenterCrop, RandomCrop
from smalti.data.file_types import COLOR, FILE_TYPES, Color, Depth, FileType, Labels, file_type_of
from smalti.data.loader import Crops, batches, in_order
from smalti.data.sources import open_source, split
from smalti.hub.pretrained import find_model
from smalti.images.io import DamagedImage, read_image, to_array
from smalti.tokenizer.vqgan import VQGAN
from smalti.training.config import TokenizerTraining
from smalti.training.run_folder import read_metrics
from smalti.training.runs import train_tokenizer
from tests import reference

CHANNELS = {"color": 3, "labels": 5, "depth": 1, "edges": 1}


def kind(name: str) -> FileType:
    return FILE_TYPES[name](None)


def numbers(name: str, place: int, height: int = 24, width: int = 40) -> npt.NDArray[Any]:
    """What file number `place` of a kind holds; no two pixels beside one another are alike by chance alone."""
    chance = np.random.default_rng(place)
    if name == "labels":
        return chance.integers(0, CHANNELS["labels"], (height, width), dtype=np.uint8)
    if name == "depth":
        return chance.integers(1000, 60000, (height, width), dtype=np.uint16)
    return chance.integers(0, 256, (height, width, 3), dtype=np.uint8)


def files(folder: Path, name: str, *, count: int = 6, **size: int) -> Path:
    for place in range(count):
        path = folder / "ab"[place % 2] / f"{place:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers(name, place, **size)).save(path)
    return folder


def crops(folder: Path, name: str, **changed: Any) -> Crops:
    source = open_source(folder, file_type=changed.pop("kind", kind(name)))
    given = {"size": (12, 20), "channels": CHANNELS[name], "crop": RandomCrop(zoom=(1, 1.5)), "seed": 0, **changed}
    return Crops(source, source.images, **given)


# ------------------------------------------------------------------------------------------------------ from file to
# tokenizer


@pytest.mark.parametrize("name", FILE_TYPES)
@pytest.mark.parametrize("size", [(12, 20), (20, 12), (16, 16)])
def test_examples_become_what_the_tokenizer_is_given(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    data = crops(files(tmp_path, name), name, size=size)
    batch = next(batches(data, batch=4, seed=0, start=0))
    images = data.to_images(batch.images)
    assert images.shape == (4, CHANNELS[name], *size)
    assert images.dtype == torch.float32
    assert images.min() >= (0 if name == "labels" else -1)
    assert images.max() <= 1
    assert torch.equal(data.to_images(data[2, 7].image), data.to_images(torch.stack([data[2, 7].image]))[0])


@pytest.mark.parametrize("name", FILE_TYPES)
def test_a_whole_file_is_given_as_it_is(name: str, tmp_path: Path) -> None:
    """Nothing is scaled where the size is that of the file: by eye, what it must be."""
    data = crops(files(tmp_path, name), name, size=(24, 40), crop=CenterCrop())
    image = data.to_images(data[3, 0].image)
    assert data.images[3].key == "b/01.png"
    stored = numbers(name, 1).astype(np.float64)
    if name == "labels":
        expected = (np.arange(5)[:, None, None] == stored).astype(np.float64)
    elif name == "depth":
        expected = ((stored - stored.min()) / (stored.max() - stored.min()) * 2 - 1)[None]
    elif name == "edges":
        expected = sobel(stored.mean(-1) / 255)[None] * 2 - 1
    else:
        expected = stored.transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(image.numpy(), expected, atol=2e-5 if name != "edges" else 1 / 255)


def sobel(gray: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Brightness (H,W) in [0,1] -> its steepness, 1 from half of the steepest on."""
    padded, (height, width) = np.pad(gray, 1, mode="edge"), gray.shape
    down, right = np.zeros_like(gray), np.zeros_like(gray)
    for i in range(3):
        for j in range(3):
            shifted = padded[i : i + height, j : j + width]
            down += (1 - i) * (2 - abs(1 - j)) / 4 * shifted
            right += (1 - j) * (2 - abs(1 - i)) / 4 * shifted
    found: npt.NDArray[np.float64] = np.minimum(2 * np.hypot(down, right), 1)
    return found


@pytest.mark.parametrize("name", ["color", "depth"])
def test_sixteen_bits_reach_the_tokenizer(name: str, tmp_path: Path) -> None:
    ramp = np.arange(1000, 1000 + 16 * 64, dtype=np.uint16).reshape(16, 64)  # within four levels of 8 bits
    for place in range(2):
        Image.fromarray(ramp).save(tmp_path / f"{place}.png")
    for channels in (1, 3, 4) if name == "color" else (1,):
        data = crops(tmp_path, name, size=(16, 64), channels=channels, crop=CenterCrop())
        assert len(set(data[0, 0].image[0].flatten().tolist())) == 16 * 64


@pytest.mark.parametrize("name", FILE_TYPES)
def test_a_cache_keeps_little_and_changes_nothing(name: str, tmp_path: Path) -> None:
    files(tmp_path, name)
    kept, read = crops(tmp_path, name), crops(tmp_path, name, cache_mib=0)
    for index in range(6):
        for draw in (index, index + 6):
            assert torch.equal(kept[index, draw].image, read[index, draw].image)
    arrays = list(kept._cached.values())
    assert len(arrays) == 6
    assert {array.nbytes // array[:, :, 0].size for array in arrays} == {kind(name).width(CHANNELS[name])}
    assert not read._cached


def test_labels_are_never_mixed(tmp_path: Path) -> None:
    Image.fromarray(np.repeat([[0, 4]], 20, axis=1).repeat(30, axis=0).astype(np.uint8)).save(tmp_path / "a.png")
    data = crops(tmp_path, "labels", crop=RandomCrop(zoom=(1, 1.9)))
    for draw in range(30):
        image = data.to_images(data[0, draw].image)
        assert torch.equal(image.sum(0), torch.ones(12, 20))
        assert image[1:4].sum() == 0
        assert image[[0, 4]].sum((1, 2)).min() > 0


def test_a_map_is_cut_as_its_image_is(tmp_path: Path) -> None:
    """The same draw cuts the same window out of an image and out of a map of its size: both say here where a pixel
    was."""
    for height, width in ((37, 53), (60, 41)):
        folder = tmp_path / str(width)
        for file, ramp in {
            "down.png": np.mgrid[0:height, 0:width][0],
            "right.png": np.mgrid[0:height, 0:width][1],
        }.items():
            for name, factor in (("color", 4), ("labels", 1)):
                (folder / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray((ramp * factor).astype(np.uint8)).save(folder / name / file)
        color, labels = crops(folder / "color", "color", channels=1), crops(folder / "labels", "labels", channels=60)
        for place in range(2):
            for draw in range(20):
                seen = (color[place, draw].image[0] + 1) * 127.5 / 4
                difference = seen - labels[place, draw].image
                assert difference.abs().max() < 2.5  # where the edge of the image is far, twice half a pixel of it
                assert difference.mean().abs() < 0.4


def test_channels_of_labels_are_those_of_conditions() -> None:
    for channels, dtype in ((5, np.uint8), (300, np.uint16)):
        labels = np.random.default_rng(0).integers(0, channels, (2, 7, 9)).astype(dtype)
        compact = torch.stack([Labels().compact(one[:, :, None], channels) for one in labels])
        expected = [one_hot_labels(torch.from_numpy(one.astype(np.int64)), count=channels, key="x") for one in labels]
        assert torch.equal(Labels().to_images(compact, channels), torch.stack(expected))
        assert torch.equal(Labels().to_images(compact, channels), reference.one_hot(compact, channels))
    assert compact.dtype == torch.int32
    given = Labels().to_images(compact, 300)
    assert given.is_contiguous(memory_format=torch.channels_last)  # so that nothing is copied for the convolutions


def test_depths_are_those_of_conditions(tmp_path: Path) -> None:
    depth = np.random.default_rng(0).random((16, 24)).astype("<f4") * 900
    Image.fromarray(depth.view(np.uint8).reshape(16, 24, 4), mode="RGBA").save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", depth)
    Image.fromarray(depth.astype(np.float32)).save(tmp_path / "c.tif")
    data = crops(tmp_path, "depth", size=(16, 24), crop=CenterCrop())
    assert [each.key for each in data.images] == ["a.png", "b.npy", "c.tif"]
    for place, image in enumerate(data.images):
        loaded = read_normalized_depth(tmp_path / image.key)
        torch.testing.assert_close(data.to_images(data[place, 0].image), loaded, atol=2e-5, rtol=0)


# ---------------------------------------------------------------------------------------------------------- what has no
# label


def test_what_has_no_label_has_the_last_channel(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 255], [255, 3, 2]], dtype=np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    Image.fromarray(labels).save(tmp_path / "a.png")
    data = crops(tmp_path, "labels", kind=Labels(unlabeled=255), size=(8, 12), crop=CenterCrop())
    found = data.to_images(data[0, 0].image).argmax(0)
    assert found.tolist() == np.where(labels == 255, 4, labels).tolist()


@pytest.mark.parametrize(
    ("unlabeled", "message"),
    [
        (None, r"holds the label 255, and there are the labels 0 to 4; set model\.autoencoder\.channels=256, "
               r"or, if 255 stands for no label, images\.unlabeled=255, which takes the last channel"),
        (200, r"holds the label 255, and there are the labels 0 to 3; set model\.autoencoder\.channels=257, "
               r"of which the last is for "
              r"what has no label \(here 200\)"),
    ],
)  # fmt: skip
def test_a_label_without_a_channel_is_reported(unlabeled: int | None, message: str, tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255], [4, 3]], dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DamagedImage, match=rf"^x\.png {message}"):
        Labels(unlabeled).read(tmp_path / "a.png", channels=5, name="x.png")


def test_the_last_channel_is_not_for_a_label_too(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255], [4, 3]], dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DamagedImage, match="holds the label 4, and there are the labels 0 to 3"):
        Labels(255).read(tmp_path / "a.png", channels=5, name="x.png")
    assert Labels(255).read(tmp_path / "a.png", channels=6, name="x.png")[:, :, 0].tolist() == [[0, 5], [4, 3]]


# ------------------------------------------------------------------------------------------------------- what does not
# belong


@pytest.mark.parametrize(
    ("kind", "channels", "message"),
    [
        (
            COLOR,
            2,
            r"a tokenizer of 2 channels is given no images.*; set model\.autoencoder\.channels "
            r".* images\.file_type=labels",
        ),
        (Depth(), 3, r"a depth map has 1 channel, and the tokenizer takes 3; set model\.autoencoder\.channels=1"),
        (Labels(), 1, r"label maps have a channel for each label, and a tokenizer of 1 channel can be given none"),
        (
            Labels(11),
            12,
            r"images\.unlabeled = 11 is one of the 12 labels from 0 to 11, and has a channel of its own; leave",
        ),
    ],
)
def test_kinds_that_a_tokenizer_cannot_be_given_are_reported(
    kind: FileType, channels: int, message: str, tmp_path: Path
) -> None:
    source = open_source(files(tmp_path, "labels"), file_type=kind)
    with pytest.raises(SmaltiError, match=message):
        Crops(source, source.images, size=(8, 8), channels=channels, crop=CenterCrop(), seed=0)


@pytest.mark.parametrize("name", ["labels", "depth"])
def test_images_are_neither_labels_nor_depths(name: str, tmp_path: Path) -> None:
    data = crops(files(tmp_path, "color"), name)
    with pytest.raises(SmaltiError, match=r"6 of the 6 images .* are damaged: a/00\.png holds colors, and a "):
        data[0, 0]


def test_photographs_are_no_label_maps(tmp_path: Path) -> None:
    Image.fromarray(numbers("color", 0)).save(tmp_path / "a.jpg")
    with pytest.raises(
        SmaltiError, match=r"no label maps in .*; it holds 1 file of the kind \.jpg; label maps are \.bmp"
    ):
        open_source(tmp_path, file_type=Labels())


# ------------------------------------------------------------------------------------------------------- what models
# say of it


@pytest.mark.parametrize("given", [Color(), Labels(), Labels(255), Depth()])
def test_a_kind_is_read_back_from_what_it_says(given: FileType) -> None:
    message = json.loads(json.dumps(given.described()))
    assert file_type_of({"smalti": "0.1.0", **message}, channels=1) == given
    assert given.name in FILE_TYPES


def test_tokenizers_that_do_not_say_what_they_read_are_scored_by_their_channels() -> None:
    assert [file_type_of({}, channels=channels).name for channels in (1, 3, 4)] == ["color"] * 3
    assert file_type_of({}, channels=183) == Labels()
    with pytest.raises(SmaltiError, match=r"an unknown kind of files, 'lables'; did you mean 'labels'"):
        file_type_of({"kind": "lables"}, channels=3)


@pytest.mark.parametrize("name", FILE_TYPES)
def test_data_are_described_by_what_they_are(name: str, tmp_path: Path) -> None:
    described = crops(files(tmp_path, name), name).described()
    assert ("kind" in described) == (name != "color")  # codes that were made before there were kinds are as they were
    if name == "labels":
        other = crops(tmp_path, name, kind=Labels(255)).described()
        assert {key for key in other if other[key] != described[key]} == {"unlabeled"}


def test_likeness_and_looks_of_label_maps() -> None:
    maps = torch.eye(3).T.reshape(1, 3, 1, 3).repeat(2, 1, 2, 1)  # (2,3,2,3): the labels 0 1 2 in each row
    scores = maps.roll(1, dims=3)
    scores[1] = maps[1] * 7 - 3
    assert label_accuracy(maps, scores).tolist() == [0, 1]
    assert label_colors(scores).shape == (2, 3, 2, 3)
    assert np.array_equal(to_array(label_colors(scores))[1, 0], palette(3))


# ----------------------------------------------------------------------------------------------------------------- runs

OBJECTIVE = {"perceptual": "none", "adversarial": {"weight": 0.0}}
RUN: dict[str, Any] = {
    "run": {"images": 24, "batch": 4, "log_every": 8, "validate_every": 24, "sample_every": 24, "checkpoint_every": 24,
            "accelerator": "cpu", "tensorboard": False},
    "model": {
        "autoencoder": {
            "patch_size": 2, "base_channels": 8, "channel_multipliers": [1, 1], "res_blocks": 1, "latent_channels": 8
        },
              "quantizer": {"codebook_size": 16, "codebook_dim": 4}},
    "objective": OBJECTIVE,
    "quantize_from": 0.3,
    "images": {"size": [16, 24], "validation": 0.3},
}  # fmt: skip


def training(name: str, *, channels: int | None = None, pixel: str | None = None, **images: Any) -> TokenizerTraining:
    pixel = pixel or ("cross_entropy" if name == "labels" else "l1")
    values = {
        **RUN,
        "objective": {**OBJECTIVE, "pixel": pixel},
        "images": {**RUN["images"], "file_type": name, **images},
    }
    autoencoder = {**RUN["model"]["autoencoder"], "channels": channels or CHANNELS[name]}
    return parse(TokenizerTraining, {**values, "model": {**RUN["model"], "autoencoder": autoencoder}}, where="test")


def shown(run: Path) -> npt.NDArray[Any]:
    (image,) = (run / "images").iterdir()
    return read_image(image, channels=3, name=str(image))


@pytest.mark.parametrize("name", FILE_TYPES)
def test_a_tokenizer_learns_every_kind_and_encodes_it(name: str, tmp_path: Path) -> None:
    data, run, codes = files(tmp_path / "data", name, count=12), tmp_path / "run", tmp_path / "codes"
    train_tokenizer(data, run, settings=training(name), console=Console(quiet=True))
    assert file_type_of(find_model(run, kind="tokenizer").about, channels=CHANNELS[name]) == kind(name)
    lines = [line for line in read_metrics(run) if line["part"] == "validation"]
    assert ("accuracy" in lines[-1]) == (name == "labels")
    assert ("psnr" in lines[-1]) == (name != "labels")
    colors = {tuple(color) for color in shown(run).reshape(-1, 3).tolist()}
    if name == "labels":
        assert colors <= {*map(tuple, palette(5).tolist()), (255, 255, 255)}
    if name == "depth":
        assert all(red == green == blue for red, green, blue in colors)
    done = CliRunner().invoke(app, ["encode", str(run), str(data), "--out", str(codes), "--copies", "2"])
    assert done.exit_code == 0, done.output
    written = open_codes(codes)
    assert written.meta.grid == (4, 6)
    assert written.meta.training.data.get("kind", "color") == name
    model = VQGAN.from_pretrained(run)
    source = open_source(data, file_type=kind(name))
    kept = split(source.images, validation=0.05)[1]  # the share that `smalti encode` holds out
    held_out = Crops(source, kept, size=(16, 24), channels=CHANNELS[name], crop=CenterCrop(), seed=0)
    (batch,) = in_order(held_out, batch=len(held_out))
    stored = torch.stack([written.validation[place, 0].codes for place in range(len(written.validation))])
    assert torch.equal(model.encode(held_out.to_images(batch.images)).codes, stored)


@pytest.mark.parametrize("name", ["labels", "depth"])
def test_shards_of_maps_are_learned_too(name: str, tmp_path: Path) -> None:
    files(tmp_path / "data", name)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "data", arcname=".")
    train_tokenizer(tmp_path / "a.tar", tmp_path / "run", settings=training(name), console=Console(quiet=True))
    assert find_model(tmp_path / "run", kind="tokenizer").about["images"] == 6


def test_images_of_four_channels_are_learned(tmp_path: Path) -> None:
    for place in range(6):
        clear = np.dstack([numbers("color", place), np.full((24, 40), 40 * place, np.uint8)])
        Image.fromarray(clear).save(tmp_path / f"{place}.png")
    train_tokenizer(tmp_path, tmp_path / "run", settings=training("color", channels=4), console=Console(quiet=True))
    with Image.open(next((tmp_path / "run" / "images").iterdir())) as image:
        assert image.mode == "RGBA"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            training("labels", pixel="l1"),
            r"objective\.pixel = l1 is not for label maps, and images\.file_type = labels; for label",
        ),
        (training("color", pixel="bce"), r"objective\.pixel = bce is for label maps, and images\.file_type = color"),
        (training("depth", channels=3), "a depth map has 1 channel, and the tokenizer takes 3"),
        (training("labels", unlabeled=2), r"images\.unlabeled = 2 is one of the 5 labels"),
        (training("color", channels=7), "a tokenizer of 7 channels is given no images"),
    ],
)
def test_settings_that_contradict_one_another_end_before_anything_begins(
    settings: TokenizerTraining, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SmaltiError, match=message):
        train_tokenizer(tmp_path, tmp_path / "run", settings=settings, console=Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_the_stream_of_maps_is_resumed_exactly(tmp_path: Path) -> None:
    files(tmp_path, "labels")
    whole = list(islice(batches(crops(tmp_path, "labels"), batch=3, seed=0, start=0), 5))
    again = list(islice(batches(crops(tmp_path, "labels"), batch=3, seed=0, start=6), 3))
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[2:], again, strict=True))
