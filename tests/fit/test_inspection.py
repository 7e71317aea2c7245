"""What the check finds in a data set, and what it says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from smalti.core.errors import SmaltiError
from smalti.data.sources import open_source
from smalti.fit.check_text import advice, check_rows
from smalti.fit.fit_plan import MIN_STEPS, Paces, make_plan, schedule, with_lengths
from smalti.fit.fit_request import FitRequest, seconds_of
from smalti.fit.found_conditions import FoundCondition, chosen_conditions, find_conditions, images_folder
from smalti.fit.inspection import Inspection, inspect_images
from smalti.training.prior_networks import TransformerNetwork
from tests.fit.described_images import save, write_described
from tests.small import write_images, write_recipe

SIZE = (16, 16)


def inspect(folder: Path) -> Inspection:
    return inspect_images(open_source(folder), size=SIZE, channels=3, progress=lambda done, total: None)


def find(folder: Path) -> dict[str, FoundCondition]:
    found = find_conditions(open_source(images_folder(folder)), progress=lambda done, total: None)
    return {each.name: each for each in found}


def noise(height: int, width: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


def test_sizes_crops_damage_and_duplicates_are_counted(tmp_path: Path) -> None:
    for number in range(30):
        save(tmp_path / "a" / f"{number:02d}.png", noise(16, 32, number))
    save(tmp_path / "b" / "copy.png", noise(16, 32, 3))
    save(tmp_path / "b" / "tiny.png", noise(7, 40))
    save(tmp_path / "b" / "small.png", noise(12, 12))
    (tmp_path / "b" / "broken.png").write_bytes((tmp_path / "a" / "00.png").read_bytes()[:200])
    found = inspect(tmp_path)
    assert found.images == 34
    assert found.classes == {"a": 30, "b": 4}
    assert (found.smallest, found.median, found.largest) == ((7, 40), (16, 32), (16, 32))
    assert (found.unusable, found.enlarged, found.damaged, found.duplicates) == (1, 1, 1, 1)
    assert found.duplicate_files == (("a/03.png", "b/copy.png"),)
    assert found.damaged_files[0].startswith("b/broken.png ")
    outside = (31 * 0.5 + (1 - 7 / 40) + 0) / 33
    assert found.outside == pytest.approx(outside, abs=1e-3)
    advised = " ".join(advice(found, (), size=SIZE))
    for words in (
        "34 images are too few",
        "1 image is too small and left out",
        "50% of an image is cut off",
        "1 file is damaged",
    ):
        assert words in advised or (words == "50% of an image is cut off" and "is cut off on average" in advised), words
    assert "1 file is a copy of another one" in advised
    assert "1 class has fewer than 10 images, such as b" in advised
    assert "89%" not in advised, "less than nine tenths"


def test_a_class_with_nearly_all_images_is_named(tmp_path: Path) -> None:
    found = inspect(write_images(tmp_path / "images"))
    assert "images are in the class" not in " ".join(advice(found, (), size=SIZE))
    most = replace(found, images=2000, classes={"dark": 1900, "light": 100})
    sentences = advice(most, (), size=SIZE)
    assert sentences == [
        "95% of the images are in the class dark; add images of the others, or leave classes out: --without labels"
    ]


def test_too_much_damage_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    for number in range(4):
        (tmp_path / "images" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(SmaltiError, match=r"4 of 24 images in .* are damaged, first 0\.png"):
        inspect(tmp_path / "images")


def test_large_sets_are_decoded_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smalti.fit.inspection.MAX_DECODED", 7)
    found = inspect(write_images(tmp_path / "images"))
    assert (found.images, found.decoded) == (20, 7)
    rows = dict(check_rows(found, (), chosen=(), size=SIZE))
    assert rows["images"] == "20, of which 7, evenly spread, were decoded for this check"
    assert rows["conditions"].startswith("none found")


def test_conditions_are_found_from_either_folder(tmp_path: Path) -> None:
    images = write_described(tmp_path / "set")
    assert images_folder(tmp_path / "set") == images == images_folder(images)
    for folder in (tmp_path / "set", images):
        found = find(folder)
        assert list(found) == ["labels", "text", "layout", "segmentation", "depth"]
        assert not any(each.problem for each in found.values())
        assert found["segmentation"].channels == 2


def test_a_folder_called_images_may_be_a_class(tmp_path: Path) -> None:
    write_images(tmp_path / "photos")
    (tmp_path / "photos" / "light").rename(tmp_path / "photos" / "images")
    assert images_folder(tmp_path / "photos") == tmp_path / "photos"


def test_what_stands_for_no_label_has_a_channel(tmp_path: Path) -> None:
    images = write_described(tmp_path / "set")
    first = next(images.rglob("*.png")).relative_to(images)
    save(tmp_path / "set" / "masks" / first, np.full((20, 20), 255, np.uint8))
    found = find(images)["segmentation"]
    assert (found.channels, found.unlabeled) == (3, 255)


def test_conditions_that_are_not_of_all_images_are_shown_with_the_reason(tmp_path: Path) -> None:
    images = write_described(tmp_path / "set")
    (tmp_path / "set" / "masks" / "dark" / "03.png").unlink()
    save(tmp_path / "set" / "depths" / "dark" / "03.png", np.zeros((10, 20), np.uint8))
    (tmp_path / "set" / "objects.json").write_text('{"images": []}')
    save(images / "loose.png", noise(20, 20))
    for folder in ("masks", "depths"):
        save(tmp_path / "set" / folder / "loose.png", np.zeros((20, 20), np.uint8))
    found = find(images)
    assert "there is no dark/03.* in" in found["segmentation"].problem
    assert "is 10x20 pixels (height x width), and its image 20x20" in found["depth"].problem
    assert "says nothing about the image" in found["layout"].problem
    assert found["labels"].problem == "1 of 21 images are in no subfolder"
    chosen = chosen_conditions(list(found.values()), without=["depth"])
    assert [each.name for each in chosen] == ["text"]
    advised = advice(inspect(images), list(found.values()), size=SIZE)
    assert sum("is not used" in sentence for sentence in advised) == 4


def test_parts_of_a_data_set_are_no_classes(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    (images / "light").rename(images / "train")
    (images / "dark").rename(images / "val")
    assert "not of classes" in find(images)["labels"].problem


def test_unknown_names_are_refused_with_those_there_are(tmp_path: Path) -> None:
    found = list(find(write_images(tmp_path / "images")).values())
    with pytest.raises(SmaltiError, match="--without depth: this condition was not found here; there are: labels"):
        chosen_conditions(found, without=["depth"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45s", 45), ("90m", 5400), ("1h30m", 5400), ("1.5h", 5400), ("2 d", 172800), ("1H 5min", 3900)],
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "60", "soon", "1h30", "h", "-1h", "1:30", "0m"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(SmaltiError, match="--time"):
        seconds_of(text)


@pytest.mark.parametrize("recipe", ["small", "demo", "small-64", "scenes"])
def test_maps_have_tokenizers_of_their_own_with_the_recipes_that_there_are(recipe: str) -> None:
    found = (
        FoundCondition(name="segmentation", about="maps", path="masks", channels=12, unlabeled=255),
        FoundCondition(name="depth", about="maps", path="depths"),
    )
    plan = make_plan(FitRequest(images="images", recipe=recipe, overrides=("tokenizer.images.size=[64, 96]",)), found)
    assert {name: each.objective.pixel for name, each in plan.maps.items()} == {
        "segmentation": "cross_entropy",
        "depth": "l1",
    }
    assert plan.tokenizer.images.size == plan.prior.encode.images.size == (64, 96)
    assert {each.images.size for each in plan.maps.values()} == {(64, 96)}
    assert plan.maps["segmentation"].images.unlabeled == 255
    assert plan.prior.condition == "segmentation,depth"
    assert isinstance(plan.prior.network, TransformerNetwork)
    assert plan.prior.network.order == "any"


def test_a_schedule_fills_the_time(tmp_path: Path) -> None:
    request = FitRequest(images="images", recipe=str(write_recipe(tmp_path / "small.yaml")))
    maps = (FoundCondition(name="segmentation", about="maps", path="masks", channels=4),)
    plan = make_plan(request, maps)
    assert plan.maps["segmentation"].model.autoencoder.channels == 4
    paces = Paces({"tokenizer": 0.1, "tokenizer-segmentation": 0.05}, prior=0.001)
    found = schedule(plan, paces, images=1000, seconds=3600.0)
    assert sum(found.estimates.values()) == pytest.approx(3600, abs=1)
    assert found.lengths["tokenizer"] == 18_000
    assert found.lengths["tokenizer-segmentation"] == 7_200
    assert found.lengths["prior"] == pytest.approx(1000 * found.estimates["prior"], rel=0.01)
    assert found.copies == 2, "those of the recipe"
    timed = with_lengths(plan, found.lengths, copies=found.copies, images=1000)
    assert timed.tokenizer.run.images == 18_000
    assert timed.tokenizer.run.validate_every == 18_000 // 8, "at most eight validations"
    short = with_lengths(plan, {**found.lengths, "tokenizer": 1000}, copies=1, images=1000)
    assert short.tokenizer.run.validate_every == 500, (
        "200 held-out images are looked at twice while 1000 are learned from"
    )
    crowded = schedule(plan, paces, images=30_000, seconds=3600.0)
    assert crowded.copies == 1, "fewer crops of each image where encoding would take too long"
    with pytest.raises(
        SmaltiError, match=r"to encode 100,000 images takes about 38 minutes of 60 .*; give 94 minutes or more"
    ):
        schedule(plan, paces, images=100_000, seconds=3600.0)
    usual = schedule(plan, paces, images=1000, seconds=None)
    assert usual.lengths == {"tokenizer": 48, "tokenizer-segmentation": 24, "prior": 960}
    assert with_lengths(plan, usual.lengths, copies=usual.copies, images=1000) == plan
    with pytest.raises(SmaltiError, match=r"steps? of the tokenizer, which teach nothing; give \d+ minutes or more"):
        schedule(plan, paces, images=10, seconds=10.0)
    needed = math.ceil(2 * MIN_STEPS * 4 * 0.1)
    assert schedule(plan, paces, images=10, seconds=2.0 * needed).lengths["tokenizer"] >= MIN_STEPS * 4
