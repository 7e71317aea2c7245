"""Several conditions at once, and what is said about images without a tokenizer, from files to samples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from smalti.cli.main import app
from smalti.conditions.base import condition_keys
from smalti.conditions.composite import CompositeCondition
from smalti.conditions.condition_registry import build_condition
from smalti.conditions.coordinates import Coordinates, CoordinatesSettings, ImageCrop
from smalti.conditions.keypoints import decode_keypoints
from smalti.conditions.labels import Labels
from smalti.conditions.layout import Layout
from smalti.conditions.layout_codes import LayoutSettings, decode_layout
from smalti.core.errors import SmaltiError
from smalti.data.code_shards import CodeShards, open_codes
from smalti.data.crops import RandomCrop, View
from smalti.data.loader import Crops
from smalti.data.sources import open_source
from smalti.encoding.annotators import ANNOTATORS, view_box
from smalti.pipeline import Pipeline
from smalti.prior.window import Window
from smalti.training.config import PriorTraining, TokenizerTraining, resolve
from smalti.training.runs import check_part_dropout, condition_of, train_prior, train_tokenizer
from tests.encoding.test_condition_encoding import write_pairs
from tests.small import write_recipe

SIDE = 16
QUIET = Console(quiet=True)
NAMES = ("day", "dusk", "night")
PLACES = CoordinatesSettings(levels=16, codebook_size=16, factor=8, grid=(2, 2))


def several() -> CompositeCondition:
    """Labels 0-2, nothing 3; coordinates 4-19, nothing 20."""
    return CompositeCondition([Labels(NAMES), Coordinates(PLACES)])


def test_each_part_has_its_own_codes() -> None:
    both = several()
    assert (both.size, both.length, both.maps, condition_keys(both)) == (21, 5, (1,), ("label", "coordinates"))
    codes = both.encode([{"label": "dusk"}, {"coordinates": ImageCrop(0, 0, (16, 16)), "label": "night"}, {}, None])
    alone = Coordinates(PLACES).encode([None])[0] + 4
    assert codes[:, 0].tolist() == [1, 2, 3, 3]
    assert (codes[:, 1:] == alone).all()  # what takes None is not left open
    assert torch.equal(both.join([torch.tensor([[1]]), alone[None] - 4]), codes[:1])
    assert [part.tolist() for part in both.split(codes[1])] == [[2], (alone - 4).tolist()]


def test_a_prior_that_sees_the_whole_image_sees_all_of_it() -> None:
    """A map of the image's size, larger than the trained grid; also beside one of which nothing is said at all."""
    both, whole = several(), Window(0, 0, 4, 3)
    alone = Coordinates(PLACES).encode_windows([None, None], grid=(4, 3))(whole) + 4
    result = both.encode_windows([{"label": "dusk"}, {}], grid=(4, 3))(whole)
    assert torch.equal(result, torch.cat((torch.tensor([[1], [3]]), alone), dim=1))


def test_a_window_sees_its_part() -> None:
    both = several()
    generated = both.encode_windows([{"label": "day"}, {}], grid=(4, 3))
    whole = Coordinates(PLACES).encode_windows([None], grid=(4, 3))
    for window in (Window(0, 0, 2, 2), Window(2, 1, 2, 2)):
        prefix = generated(window)
        assert prefix[:, 0].tolist() == [0, 3]
        assert torch.equal(prefix[0, 1:], whole(window)[0] + 4)


def test_parts_are_hidden_one_by_one() -> None:
    both = several()
    prefix = both.encode([{"label": "dusk"}] * 4)
    hidden = both.drop_parts(prefix, torch.tensor([[False, False], [True, False], [False, True], [True, True]]))
    assert torch.equal(hidden[0], prefix[0])
    assert hidden[1].tolist() == [3, *prefix[1, 1:].tolist()]
    assert hidden[2].tolist() == [1, 20, 20, 20, 20]
    assert hidden[3].tolist() == [3, 20, 20, 20, 20]


def test_it_is_saved_and_displayed(tmp_path: Path) -> None:
    both = several()
    again = build_condition(both.save(tmp_path), tmp_path)
    codes = both.encode([{"label": "dusk"}])
    assert torch.equal(again.encode([{"label": "dusk"}]), codes)
    displayed = both.preview(codes[0])
    assert displayed.shape == (128, 256, 3)
    left_open = both.preview(both.drop_parts(codes, torch.tensor([[True, False]]))[0])
    assert (left_open[:, :128] == 0).all()
    assert np.array_equal(left_open[:, 128:], displayed[:, 128:])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"lable": "dusk"}, "takes no 'lable'; did you mean 'label'"),
        ("dusk", "several conditions, by their names label, coordinates; not 'dusk'"),
        ({"label": "noon"}, "there is no label 'noon'"),
    ],
)
def test_other_values_are_refused(value: object, message: str) -> None:
    with pytest.raises(SmaltiError, match=message):
        several().encode([value])


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(SmaltiError, match="no name twice; not 'label', 'label'"):
        CompositeCondition([Labels(NAMES), Labels(NAMES)])
    with pytest.raises(SmaltiError, match="two or more"):
        CompositeCondition([Labels(NAMES)])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images `images/a/00.png`, their maps, `objects.json`, and a `tokenizer` for each of the two."""
    folder = write_pairs(tmp_path_factory.mktemp("several"))
    names = sorted(path.relative_to(folder / "images").with_suffix("") for path in (folder / "images").rglob("*.png"))
    images = [
        {
            "key": name.as_posix(),
            "objects": [
                {"class": "tree", "box": [0.1, 0.2, 0.3, 0.4]},
                {"class": "house", "box": [0.5, 0.5, 0.4, 0.3], "keypoints": [[0.5, 0.5], [0.9, 0.8]]},
            ],
        }
        for name in names
    ]
    file = {"images": images, "keypoints": ["left foot", "right foot"]}
    (folder / "objects.json").write_text(json.dumps(file), "utf-8")
    recipe = str(write_recipe(folder / "small.yaml"))
    settings = resolve(TokenizerTraining, stage="tokenizer", recipe=recipe, overrides=("run.images=8",))
    train_tokenizer(folder / "images", folder / "tokenizer", settings=settings, console=QUIET)
    of_labels = (
        "run.images=8", "images.file_type=labels", "objective.pixel=cross_entropy", "objective.adversarial.weight=0",
        "model.quantizer.codebook_size=9",
    )  # fmt: skip
    settings = resolve(TokenizerTraining, stage="tokenizer", recipe=recipe, overrides=of_labels)
    train_tokenizer(folder / "maps", folder / "maps-tokenizer", settings=settings, console=QUIET)
    return folder


def encode(folder: Path, out: str, *more: object):  # type: ignore[no-untyped-def]
    words = ["encode", folder / "tokenizer", folder / "images", "--out", folder / out, "--copies", 3, "--size", SIDE]
    return CliRunner().invoke(app, [str(word) for word in (*words, "--validation", 0.2, *more)])


def crops_of(folder: Path, *, seed: int = 5) -> Crops:
    source = open_source(folder / "images")
    return Crops(source, source.images, size=(SIDE, SIDE), channels=3, crop=RandomCrop(zoom=(1, 1.5)), seed=seed)


def test_where_a_part_lies_is_printed(home: Path) -> None:
    crops = crops_of(home)
    annotator = ANNOTATORS["coordinates"](None, {"levels": 100}, crops, (2, 2), 8)
    mirrored = 0
    for draw in range(12):
        view = crops.view(3, draw)
        output = annotator.of(crops)(3, view, draw).view(2, 2)
        (height, width), left = view.whole, view.left_when_mirrored
        for row, column in ((0, 0), (1, 1)):
            y, x = view.top + 8 * row + 3.5, left + 8 * column + 3.5
            assert abs(int(output[row, column]) / 100 - (y * width + x) / (height * width)) < 0.006
        mirrored += view.mirrored
    assert 0 < mirrored < 12


def test_objects_are_printed_as_they_are_seen(home: Path) -> None:
    crops = crops_of(home)
    annotator = ANNOTATORS["layout"](home / "objects.json", {"encode_crop": False}, crops, (2, 2), 8)
    assert isinstance(annotator.condition, Layout)
    settings = annotator.condition.settings
    assert isinstance(settings, LayoutSettings)
    assert (settings.max_objects, settings.codebook_size) == (2, 1025)
    orders = set()
    for draw in range(16):
        view = crops.view(0, draw)
        seen = decode_layout(annotator.of(crops)(0, view, draw).tolist(), settings)
        box = view_box(view)
        orders.add(tuple(one.category for one in seen.objects))
        for one in seen.objects:
            if settings.classes[one.category] == "tree" and box.left < 0.1 and box.top < 0.2:
                left = (0.1 - box.left) / box.width
                width = min(0.3 / box.width, 1 - left)
                assert one.geometry[0] == pytest.approx(1 - left - width if view.mirrored else left, abs=0.04)
    assert len(orders) > 1  # the order of the objects says nothing, and changes


def objects_of(home: Path, **options: object) -> tuple[LayoutSettings, list[str]]:
    """The settings of a layout of half the objects, and the classes that the whole image 0 is said to show."""
    annotator = ANNOTATORS["layout"](home / "objects.json", options, crops_of(home), (2, 2), 8)
    settings = annotator.condition.settings  # type: ignore[attr-defined]
    whole = View(0, 0, (SIDE, SIDE), (SIDE, SIDE), mirrored=False)
    seen = decode_layout(annotator.of(crops_of(home))(0, whole, 0).tolist(), settings)
    return settings, sorted(settings.classes[one.category] for one in seen.objects)


def test_some_objects_are_kept(home: Path) -> None:
    """A tree of 0.12 of the image and a house of 0.12, the latter 0.4 x 0.3."""
    settings, seen = objects_of(home)
    assert (settings.classes, settings.max_objects, seen) == (("house", "tree"), 2, ["house", "tree"])
    settings, seen = objects_of(home, classes=["tree"])
    assert (settings.classes, settings.max_objects, seen) == (("tree",), 1, ["tree"])
    settings, seen = objects_of(home, classes=["tree", "house"], smallest=0.1, max_objects=3)
    assert (settings.classes, settings.max_objects, seen) == (("house", "tree"), 3, ["house", "tree"])  # as in the file


def test_small_objects_are_left_out(home: Path, tmp_path: Path) -> None:
    read = json.loads((home / "objects.json").read_text("utf-8"))
    for place, image in enumerate(read["images"]):
        image["objects"][0]["box"] = [0.1, 0.2, 0.01, 0.02]
        if place:  # the first image has a small tree alone
            continue
        del image["objects"][1]
    (tmp_path / "objects.json").write_text(json.dumps(read), "utf-8")
    assert objects_of(tmp_path_of(home, tmp_path), smallest=0.0002)[1] == ["tree"]
    settings, seen = objects_of(tmp_path_of(home, tmp_path), smallest=0.00021)
    assert (settings.max_objects, seen) == (1, [])  # it stays, as an image without any


def tmp_path_of(home: Path, folder: Path) -> Path:
    """A folder with other objects of the same images."""
    if not (folder / "images").exists():
        (folder / "images").symlink_to(home / "images")
    return folder


def test_figures_are_printed_as_they_are_seen(home: Path) -> None:
    crops = crops_of(home)
    annotator = ANNOTATORS["keypoints"](home / "objects.json", {}, crops, (2, 2), 8)
    for draw in range(8):
        view = crops.view(0, draw)
        codes = annotator.of(crops)(0, view, draw).tolist()
        figures, crop = decode_keypoints(codes, annotator.condition.settings)  # type: ignore[attr-defined]
        box = view_box(view)
        assert crop.width == pytest.approx(box.width, abs=0.05)
        for figure in figures:
            left_foot, right_foot = figure
            # Mirrored, the right foot stands where the left one stood.
            if left_foot and right_foot:
                assert left_foot[0] < right_foot[0]


@pytest.mark.parametrize(
    ("name", "data", "options", "message"),
    [
        ("layout", None, {}, "is in a file of annotations; give it: --condition-data layout=FILE"),
        ("labels", "objects.json", {}, "labels needs no data of its own"),
        ("labels", None, {"levels": 3}, "labels has no settings"),
        ("coordinates", None, {"levles": 3}, "levles"),
        ("layout", "objects.json", {"classes": ["tee"]}, r"objects\.json has no class 'tee'; did you mean 'tree'"),
        (
            "layout",
            "objects.json",
            {"classes": "tree"},
            "classes = 'tree': a list is wanted, such as classes=\\[tree\\]",
        ),
        (
            "layout",
            "objects.json",
            {"smallest": 0.13},
            r"no object in .* is left: none of the 2 classes .* 0\.13 of its",
        ),
        ("layout", "objects.json", {"smallest": 5}, "smallest = 5"),
        ("layout", "objects.json", {"smalest": 0.1}, "layout: unknown key 'smalest'; did you mean 'smallest'"),
    ],
)
def test_what_cannot_be_printed(home: Path, name: str, data: str | None, options: dict[str, int], message: str) -> None:
    with pytest.raises(SmaltiError, match=message):
        ANNOTATORS[name](None if data is None else home / data, options, crops_of(home), (2, 2), 8)


def test_from_files_to_samples(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = encode(
        home, "codes", "--condition", "labels", "--condition", "segmentation", "--condition", "layout",
        "--condition-tokenizer", f"segmentation={home / 'maps-tokenizer'}", "--condition-data",
        f"segmentation={home / 'maps'}", "--condition-data", f"layout={home / 'objects.json'}", "--condition-set",
        "layout.max_objects=1", "--condition-set", "layout.classes=[tree]",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    shards = open_codes(home / "codes")
    condition = condition_of(shards, "auto")
    assert isinstance(condition, CompositeCondition)
    result = CliRunner().invoke(app, ["info", str(home / "codes")])
    assert "condition: label, segmentation, layout, 38 codes with 1039 values" in " ".join(result.output.split())
    with pytest.raises(SmaltiError, match="were made with label and segmentation and layout; set condition=auto"):
        condition_of(shards, "segmentation")
    assert condition_keys(condition) == ("label", "segmentation", "layout")
    label, _, layout = condition.split(shards.training[0, 0].prefix)
    assert label.tolist() == [int(shards.training.labels[0])]
    assert layout.shape == (5 + 16,)
    assert condition.parts[2].settings.classes == ("tree",)  # type: ignore[attr-defined]
    overrides = ("run.codes=640", "condition_dropout=0.5")
    settings = resolve(PriorTraining, stage="prior", recipe=str(home / "small.yaml"), overrides=overrides)
    train_prior(shards, home / "tokenizer", home / "told", settings=settings, console=QUIET)
    (home / "whole").mkdir()
    for part, run in (("tokenizer", "tokenizer"), ("prior", "told")):
        (home / "whole" / part).symlink_to(home / run)
    _only_the_segmentation_is_dropped(shards, home, monkeypatch)
    pipeline = Pipeline.from_pretrained(home / "whole")
    assert pipeline.prior.settings.maps == (1, 22)
    labels = torch.zeros(SIDE, SIDE, dtype=torch.int64)
    assert pipeline.sample(1, segmentation=labels, label="a").shape == (1, 3, SIDE, SIDE)
    assert pipeline.sample(1, label="b", size=(24, 32)).shape == (1, 3, 24, 32)
    with pytest.raises(SmaltiError, match="takes 'label' and 'segmentation' and 'layout', depth = 1 was given"):
        pipeline.sample(1, depth=1)
    out = home / "samples"
    words = ["sample", home / "whole", "--out", out, "-n", 1, "--label", "a", "--condition"]
    map_file = next((home / "maps").rglob("*.png"))
    ran = CliRunner().invoke(app, [str(word) for word in (*words, f"segmentation={map_file}")])
    assert ran.exit_code == 0, ran.output
    ran = CliRunner().invoke(app, [str(word) for word in (*words, map_file)])
    assert "give a name: --condition label=... or --condition segmentation=..." in str(ran.exception)


def _only_the_segmentation_is_dropped(shards: CodeShards, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `part_dropout` 1 for it and 0 for all others."""
    dropped: list[torch.Tensor] = []
    drop = CompositeCondition.drop_parts

    def noted(self: CompositeCondition, prefix: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
        dropped.append(parts)
        return drop(self, prefix, parts)

    overrides = ("run.codes=256", "condition_dropout=0", "part_dropout.segmentation=1")
    settings = resolve(PriorTraining, stage="prior", recipe=str(home / "small.yaml"), overrides=overrides)
    with monkeypatch.context() as patched:
        patched.setattr(CompositeCondition, "drop_parts", noted)
        train_prior(shards, home / "tokenizer", home / "without", settings=settings, console=QUIET)
    assert dropped
    assert torch.cat(dropped).float().mean(0).tolist() == [0, 1, 0]
    wrong = replace(settings, part_dropout={"depth": 0.5})
    with pytest.raises(SmaltiError, match=r"part_dropout\.depth .* conditions here are label, segmentation, layout"):
        train_prior(shards, home / "tokenizer", home / "wrong", settings=wrong, console=QUIET)
    with pytest.raises(SmaltiError, match=r"part_dropout\.label is for priors with several conditions"):
        check_part_dropout({"label": 0.5}, Labels(("a", "b")))


def test_coordinates_are_encoded_with_the_images(home: Path) -> None:
    words = ["train", "prior", home / "images", "--tokenizer", home / "tokenizer", "--out", home / "placed"]
    more = ["--recipe", home / "small.yaml", "--set", "run.codes=64", "--set", "condition=coordinates"]
    ran = CliRunner().invoke(app, [str(word) for word in (*words, *more)])
    assert ran.exit_code == 0, ran.output
    shards = open_codes(home / "placed" / "codes")
    assert isinstance(condition_of(shards, "coordinates"), Coordinates)
    prefixes = {tuple(shards.training[row, draw].prefix.tolist()) for row in range(3) for draw in range(12)}
    assert len(prefixes) > 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--condition", "depth"), "takes a tokenizer of its own: --condition-tokenizer depth=RUN"),
        (("--condition", "labels", "--condition-tokenizer", "x"), "labels takes no tokenizer"),
        (("--condition", "labels", "--condition-set", "layout.max_objects=1"), "no --condition layout is given"),
        (("--condition-data", "x"), "--condition-data 'x': give a name"),
        (("--condition", "layout", "--condition-data", "no.json"), r"no\.json"),
    ],
)
def test_what_cannot_be_encoded(home: Path, words: tuple[str, ...], message: str) -> None:
    ran = encode(home, "none", *words)
    assert ran.exit_code == 1
    with pytest.raises(SmaltiError, match=message):
        raise ran.exception
    assert not (home / "none").exists()
