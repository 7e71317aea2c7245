"""Conditions with places: images and what is beside them, from files over code shards to a prior that is told it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from smalti.cli.main import app
from smalti.conditions.spatial import SpatialCondition
from smalti.core.errors import SmaltiError
from smalti.data.code_shards import open_codes
from smalti.data.crops import RandomCrop
from smalti.data.file_types import COLOR, FILE_TYPES
from smalti.data.loader import Crops
from smalti.data.paired import AlignedCrops, PairedExamples, paired_entries
from smalti.data.sources import open_source, split
from smalti.images.edge_maps import edges
from smalti.images.io import read_image, to_tensor
from smalti.model_loading import load_tokenizer
from smalti.pipeline import Pipeline
from smalti.prior import nll
from smalti.scenes.painter import LABELS
from smalti.scenes.scene_files import scene_labels, write_scenes
from smalti.training.config import PriorTraining, TokenizerTraining, resolve
from smalti.training.runs import condition_of, train_prior, train_tokenizer
from tests.small import write_recipe

SIDE = 16
QUIET = Console(quiet=True)


def write_pairs(folder: Path, *, count: int = 10) -> Path:
    """Images of two halves, and maps that say which half is which: `images/a/00.png` and `maps/a/00.png`."""
    chance = np.random.RandomState(0)
    for number in range(count):
        place = f"{'ab'[number % 2]}/{number:02d}.png"
        labels = np.zeros((SIDE + 8, SIDE + 12), dtype=np.uint8)
        labels[chance.randint(6, 18) :] = 1
        labels[:, chance.randint(6, 20) :] += 1
        for name, array in (("images", np.stack([labels * 120] * 3, axis=-1)), ("maps", labels)):
            (folder / name / place).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / name / place)
    return folder


def paired_examples(folder: Path, *, crop: RandomCrop | None = None) -> PairedExamples:
    images, maps = open_source(folder / "images"), open_source(folder / "maps", file_type=FILE_TYPES["labels"](None))
    cut = crop or RandomCrop(zoom=(1.0, 1.5))
    crops = Crops(images, images.images, size=(SIDE, SIDE), channels=3, crop=cut, seed=3)
    found = paired_entries(images.images, maps)
    files = Crops(maps, found, size=(SIDE, SIDE), channels=3, crop=cut, seed=3)
    return PairedExamples(crops, [AlignedCrops(crops, files)])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images` and `maps`, a tokenizer for each, `codes` of both, `options`, a prior on those, and the recipe
    `small.yaml`."""
    folder = write_pairs(tmp_path_factory.mktemp("telling"))
    recipe = str(write_recipe(folder / "small.yaml"))
    overrides = ("run.images=8",)
    plain = resolve(TokenizerTraining, stage="tokenizer", recipe=recipe, overrides=overrides)
    train_tokenizer(folder / "images", folder / "tokenizer", settings=plain, console=QUIET)
    of_labels = (
        *overrides, "images.file_type=labels", "objective.pixel=cross_entropy", "objective.adversarial.weight=0",
        "model.quantizer.codebook_size=9",
    )  # fmt: skip
    labels = resolve(TokenizerTraining, stage="tokenizer", recipe=recipe, overrides=of_labels)
    train_tokenizer(folder / "maps", folder / "maps-tokenizer", settings=labels, console=QUIET)
    ran = encode(folder, "codes")
    assert ran.exit_code == 0, ran.output
    training = resolve(PriorTraining, stage="prior", recipe=recipe, overrides=("run.codes=640",))
    train_prior(open_codes(folder / "codes"), folder / "tokenizer", folder / "told", settings=training, console=QUIET)
    return folder


def encode(folder: Path, out: str, *more: str, data: str = "maps"):  # type: ignore[no-untyped-def]
    words = ["encode", folder / "tokenizer", folder / "images", "--out", folder / out, "--copies", 2, "--size", SIDE]
    options = ["--condition", "segmentation", "--condition-tokenizer", folder / "maps-tokenizer"]
    data_options = ["--condition-data", folder / data] if data else []
    return CliRunner().invoke(
        app, [str(word) for word in (*words, "--validation", 0.2, *options, *data_options, *more)]
    )


def test_both_show_the_same_part(tmp_path: Path) -> None:
    pairs = paired_examples(write_pairs(tmp_path), crop=RandomCrop(zoom=(1.0, 1.0), flip=True))
    seen = set()
    for index in range(len(pairs)):
        for draw in range(4):
            image, _, labels = pairs.example(index, draw)
            shown = ((image[0] + 1) * 127.5 / 120).round()  # scaled by Lanczos, so that borders are blurred
            assert (shown == labels).float().mean() > 0.85
            seen.add((draw, int(labels.sum())))
    assert len(seen) > 20  # and not always the same part


def test_maps_go_with_images_by_name(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path)
    images, maps = open_source(folder / "images"), open_source(folder / "maps", file_type=FILE_TYPES["labels"](None))
    found = paired_entries(images.images[::-1], maps)
    assert [image.key for image in found] == [image.key for image in images.images[::-1]]
    (folder / "maps" / "a" / "02.png").unlink()
    (folder / "maps" / "a" / "04.png").unlink()
    with pytest.raises(SmaltiError, match=r"no a/02\.\* in .*maps for the image a/02.png, and 1 more"):
        paired_entries(images.images, open_source(folder / "maps", file_type=FILE_TYPES["labels"](None)))


def test_two_maps_of_one_image_are_refused(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path)
    Image.new("L", (SIDE, SIDE)).save(folder / "maps" / "a" / "00.tif")
    with pytest.raises(SmaltiError, match=r"a/00\.png and a/00\.tif .* belong to one image"):
        paired_entries(
            open_source(folder / "images").images, open_source(folder / "maps", file_type=FILE_TYPES["labels"](None))
        )


def test_a_map_of_another_size_is_named(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path)
    Image.new("L", (30, 20)).save(folder / "maps" / "b" / "01.png")
    pairs = paired_examples(folder)
    place = [image.key for image in pairs.images.images].index("b/01.png")
    with pytest.raises(SmaltiError, match=r"b/01\.png is 20x30 pixels .* its image b/01\.png is 24x28"):
        pairs.example(place, 0)


def test_codes_of_the_condition_stand_nearby_those_of_the_images(home: Path) -> None:
    shards = open_codes(home / "codes")
    assert shards.meta.prefix is not None
    grid = shards.meta.grid
    assert (shards.meta.prefix.size, shards.meta.prefix.length) == (9, grid[0] * grid[1])
    condition = condition_of(shards, "auto")
    assert isinstance(condition, SpatialCondition)
    assert condition.key == "segmentation"
    expected = paired_examples(home)
    names = {image.key: index for index, image in enumerate(expected.images.images)}
    # The held-out images are cut in the middle, and so can be made again here.
    from smalti.data.crops import CenterCrop
    from smalti.data.sources import split

    held_out = split(open_source(home / "images").images, validation=0.2)[1]
    middle = paired_examples(home, crop=CenterCrop())  # type: ignore[arg-type]
    assert len(held_out) == len(shards.validation) > 0
    for place, image in enumerate(held_out):
        labels = middle.example(names[image.key], 0)[2]
        assert torch.equal(shards.validation[place, 0].prefix, condition.encode([labels])[0])


def test_a_prior_is_reported(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    folder.mkdir()
    for part, run in (("tokenizer", "tokenizer"), ("prior", "told")):
        (folder / part).symlink_to(home / run)
    pipeline = Pipeline.from_pretrained(folder)
    assert isinstance(pipeline.condition, SpatialCondition)
    labels = torch.zeros(SIDE, SIDE, dtype=torch.int64)
    images = pipeline.sample(2, segmentation=labels)
    assert images.shape == (2, 3, SIDE, SIDE)
    assert load_tokenizer(home / "maps-tokenizer").fingerprint() == pipeline.condition.tokenizer.fingerprint()


def test_the_condition_reaches_the_prior(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def watched(prior, prefix, codes, **more):  # type: ignore[no-untyped-def]
        seen.append(prefix)
        return nll(prior, prefix, codes, **more)

    monkeypatch.setattr("smalti.training.stage2.nll", watched)
    overrides = ("run.codes=64", "condition_dropout=0", "network.dropout=0")
    training = resolve(PriorTraining, stage="prior", recipe=str(home / "small.yaml"), overrides=overrides)
    shards = open_codes(home / "codes")
    train_prior(shards, home / "tokenizer", tmp_path / "run", settings=training, console=QUIET)
    kept = {
        tuple(shards.training[row, draw].prefix.tolist()) for row in range(len(shards.training)) for draw in range(40)
    }
    assert len(kept) > 3
    assert {tuple(row) for row in seen[0].tolist()} <= kept


def test_what_has_no_label_is_known_again_when_images_are_generated(home: Path, tmp_path: Path) -> None:
    """A tokenizer of maps with 255 for none made codes of them, and the prior on those codes refused the same maps."""
    for path in (home / "maps").rglob("*.png"):
        drawn = np.array(Image.open(path))
        copy = tmp_path / "maps" / path.relative_to(home / "maps")
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.where(drawn == 2, 255, drawn).astype(np.uint8)).save(copy)
    overrides = (
        "run.images=8", "images.file_type=labels", "images.unlabeled=255", "objective.pixel=cross_entropy",
        "objective.adversarial.weight=0",
    )  # fmt: skip
    settings = resolve(TokenizerTraining, stage="tokenizer", recipe=str(home / "small.yaml"), overrides=overrides)
    train_tokenizer(tmp_path / "maps", tmp_path / "tokenizer", settings=settings, console=QUIET)
    words = ["encode", home / "tokenizer", home / "images", "--out", tmp_path / "codes", "--copies", 1, "--size", SIDE]
    options = ["--condition", "segmentation", "--condition-tokenizer", tmp_path / "tokenizer"]
    ran = CliRunner().invoke(app, [str(word) for word in (*words, *options, "--condition-data", tmp_path / "maps")])
    assert ran.exit_code == 0, ran.output
    condition = condition_of(open_codes(tmp_path / "codes"), "segmentation")
    labels = torch.randint(3, (SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    without = labels.masked_fill(labels == 2, 255)
    for given in (without, without.numpy().astype(np.uint8), without.numpy().astype(np.uint16)):
        assert torch.equal(condition.encode([given]), condition.encode([labels]))
    with pytest.raises(SmaltiError, match="holds the label 254"):
        condition.encode([without - (without == 255).long()])


def test_labels_have_the_names_that_they_are_given(home: Path) -> None:
    ran = encode(home, "named", "--condition-set", "segmentation.names=[sky, lake, hill]")
    assert ran.exit_code == 0, ran.output
    condition = condition_of(open_codes(home / "named"), "segmentation")
    assert isinstance(condition, SpatialCondition)
    assert condition.settings.names == ("sky", "lake", "hill")
    for printed, answer in (
        ("names=[sky, lake]", "2 names were given .* 3 labels"),
        ("name=sky", "no settings but names"),
    ):
        refused = encode(home, "other", "--condition-set", f"segmentation.{printed}")
        assert refused.exit_code == 1
        assert re.search(answer, str(refused.exception))


def test_the_labels_of_scenes_have_names(tmp_path: Path) -> None:
    write_scenes(tmp_path, count=1, size=(32, 32), seed=0)
    assert scene_labels(tmp_path / "segmentations")[:2] == LABELS[:2]
    assert len(scene_labels(tmp_path / "segmentations")) == len(LABELS)
    assert scene_labels(tmp_path / "images") == scene_labels(tmp_path) == ()


def test_parts_at_one_scale(home: Path) -> None:
    ran = encode(home, "parts", "--zoom", "2", "--min-zoom", "2")
    assert ran.exit_code == 0, ran.output
    meta = open_codes(home / "parts").meta
    assert (meta.training.data["zoom"], meta.validation.data["zoom"]) == ([2.0, 2.0], 2.0)
    refused = encode(home, "others", "--zoom", "1.5", "--min-zoom", "2")
    assert "to a larger one, not 2.0 to 1.5" in str(refused.exception)


def test_the_same_command_again_makes_nothing_anew(home: Path) -> None:
    again = encode(home, "codes")
    assert again.exit_code == 0
    assert "already encoded" in again.output
    words = ["encode", home / "tokenizer", home / "images", "--out", home / "codes", "--copies", 2, "--size", SIDE]
    other = CliRunner().invoke(app, [str(word) for word in (*words, "--validation", 0.2)])
    assert other.exit_code == 1
    assert "prefix.fingerprint" in str(other.exception)


def test_edges_are_made_of_the_images_themselves(home: Path) -> None:
    overrides = (
        "run.images=8",
        "images.file_type=edges",
        "model.autoencoder.channels=1",
        "objective.adversarial.weight=0",
    )
    settings = resolve(TokenizerTraining, stage="tokenizer", recipe=str(home / "small.yaml"), overrides=overrides)
    train_tokenizer(home / "images", home / "edges-tokenizer", settings=settings, console=QUIET)
    words = ["encode", home / "tokenizer", home / "images", "--out", home / "with-edges", "--copies", 1, "--size", SIDE]
    options = ["--validation", 0.2, "--condition", "edges", "--condition-tokenizer", home / "edges-tokenizer"]
    ran = CliRunner().invoke(app, [str(word) for word in (*words, *options)])
    assert ran.exit_code == 0, ran.output
    shards = open_codes(home / "with-edges")
    condition = condition_of(shards, "edges")
    assert isinstance(condition, SpatialCondition)
    assert (condition.key, condition.settings.kind) == ("edges", "edges")
    # A photograph tells when images are laid what it told in training.
    _, held_out = split(open_source(home / "images").images, validation=0.2)
    files = (home / "images" / image.key for image in held_out)
    photographs = [to_tensor(read_image(file, channels=3, name=file.name)) for file in files]
    encoded = condition.encode(
        [condition.resize_to_grid(each, grid=condition.settings.grid)[0] for each in photographs]
    )
    kept = torch.stack([shards.validation[place, 0].prefix for place in range(len(held_out))])
    assert torch.equal(encoded, kept)
    assert len(set(kept.flatten().tolist())) > 1
    labels = encode(home, "of-images", data="")
    assert labels.exit_code == 1
    assert "cannot be computed from images" in str(labels.exception)


def test_smaller_copies_are_made_of_the_images_themselves(home: Path) -> None:
    overrides = (
        "run.images=8",
        "images.size=[8,8]",
        "model.autoencoder.channel_multipliers=[1]",
        "objective.adversarial.weight=0",
    )
    settings = resolve(TokenizerTraining, stage="tokenizer", recipe=str(home / "small.yaml"), overrides=overrides)
    train_tokenizer(home / "images", home / "small-tokenizer", settings=settings, console=QUIET)
    words = ["encode", home / "tokenizer", home / "images", "--out", home / "with-small", "--copies", 1, "--size", SIDE]
    options = ["--condition", "lowres", "--condition-tokenizer", home / "small-tokenizer"]
    ran = CliRunner().invoke(app, [str(word) for word in (*words, *options)])
    assert ran.exit_code == 0, ran.output
    condition = condition_of(open_codes(home / "with-small"), "auto")
    assert isinstance(condition, SpatialCondition)
    assert (condition.key, condition.settings.kind, condition.tokenizer.factor) == ("lowres", "image", 2)
    assert condition.encode([torch.zeros(3, 8, 8)]).shape == (1, condition.length)


def test_what_edges_are() -> None:
    step = np.zeros((6, 8, 3), dtype=np.uint8)
    step[:, 4:] = 100
    found = FILE_TYPES["edges"](None)
    assert edges(step)[:, :, 0].tolist() == [[0, 0, 0, 200, 200, 0, 0, 0]] * 6
    assert (edges(step.astype(np.uint16) * 257) == edges(step)).all()
    assert (edges(np.full((4, 4, 3), 255, dtype=np.uint8)) == 0).all()
    assert found.described() == {"kind": "edges"}
    assert found != COLOR


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("depth", "were made with segmentation; set condition=segmentation"),
        ("labels", None),
        ("unconditional", None),
        ("segmentation", None),
    ],
)
def test_other_conditions_than_the_kept_one(home: Path, name: str, message: str | None) -> None:
    shards = open_codes(home / "codes")
    if message is None:
        assert condition_of(shards, name).key == {"labels": "label", "unconditional": ""}.get(name, name)
        return
    with pytest.raises(SmaltiError, match=message):
        condition_of(shards, name)


def test_a_condition_that_was_not_encoded(home: Path) -> None:
    ran = CliRunner().invoke(
        app,
        [
            "train", "prior", str(home / "images"), "--tokenizer", str(home / "tokenizer"), "--out", str(home / "none"),
            "--recipe", str(home / "small.yaml"), "--set", "condition=segmentation",
        ],
    )  # fmt: skip
    assert ran.exit_code == 1
    assert "--condition segmentation --condition-tokenizer" in str(ran.exception)


def test_a_damaged_condition_code_is_reported(home: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "codes"
    shutil.copytree(home / "codes", folder)
    file = folder / "training-00000.prefix.npy"
    codes = np.load(file)
    np.save(file, np.full_like(codes, 9))
    with pytest.raises(SmaltiError, match=r"condition codes in .* are damaged: there is a code 9"):
        open_codes(folder).training[0, 0]
    file.unlink()
    with pytest.raises(SmaltiError, match="no file"):
        open_codes(folder)


def test_a_name_without_a_tokenizer_is_refused(home: Path) -> None:
    words = ["encode", home / "tokenizer", home / "images", "--out", home / "x", "--condition", "depth"]
    ran = CliRunner().invoke(app, [str(word) for word in words])
    assert ran.exit_code == 1
    assert "--condition-tokenizer" in str(ran.exception)
