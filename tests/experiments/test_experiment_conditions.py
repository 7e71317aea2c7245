"""The experiment `conditions`: every condition on small scenes; its figures are those of its images."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from smalti.conditions.base import condition_keys
from smalti.core.errors import SmaltiError
from smalti.data.code_shards import open_codes
from smalti.data.config import ImageSettings
from smalti.data.crops import CenterCrop
from smalti.data.sources import open_source
from smalti.data.splits import split_crops
from smalti.experiments.base import ExperimentRequest
from smalti.experiments.conditions.experiment import MAPS, TRIALS, known_of
from smalti.experiments.conditions.findings import WORDS, goals_reached
from smalti.experiments.experiment_registry import EXPERIMENTS
from smalti.experiments.page_parts import pixels
from smalti.hub.pretrained import find_model
from smalti.prior_folder import load_prior
from smalti.scenes.painter import LABELS
from tests.experiment_helpers import page, run_and_read
from tests.small import SIDE, write_recipe

pytestmark = pytest.mark.slow

NAME = "conditions"
STUDY = EXPERIMENTS[NAME]


def request_for(home: Path, *more: str) -> ExperimentRequest:
    chosen = {
        "recipe": str(home / "small.yaml"),
        "tokenizer": ["run.images=8"],
        "maps": ["model.quantizer.codebook_size=9"],
        "prior": ["run.codes=64"],
        "scenes": 24,
        "size": [SIDE, SIDE],
        "held_out": 0.2,
        "copies": 1,
        "scene_network_steps": 2,
        "samples": 3,
        "conditions": list(TRIALS),
        "shown": 2,
    }
    return ExperimentRequest(overrides=(*(f"{key}={json.dumps(value)}" for key, value in chosen.items()), *more))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, and the experiment done once in `out`, with all conditions."""
    path = tmp_path_factory.mktemp("conditions")
    write_recipe(path / "small.yaml")
    run_and_read(NAME, path / "out", request_for(path))
    return path


def folder_of(home: Path, step: str) -> Path:
    values = json.loads((home / "out" / "result.json").read_text())["steps"]
    return home / "out" / str(values[step]["folder"])


def test_every_trial_has_words() -> None:
    assert list(WORDS) == list(TRIALS)
    assert {each for trial in TRIALS.values() for each in trial.conditions} >= set(MAPS)


@pytest.mark.parametrize("name", TRIALS)
def test_each_condition_is_measured(home: Path, name: str) -> None:
    outcome = json.loads((home / "out" / "result.json").read_text())["steps"][f"fidelity-{name}"]["outcome"]
    assert set(outcome) == {"conditioned", "real", "unconditional", "score", "goal", "also", "images"}
    assert list(outcome["also"]) == (["label"] if name == "label-segmentation" else [])
    assert outcome["images"] == 3
    shards = open_codes(folder_of(home, f"codes-{name}") / "codes")
    _, condition = load_prior(find_model(folder_of(home, f"prior-{name}"), kind="prior"))
    wanted = {"label": ("label",), "label-segmentation": ("label", "segmentation")}.get(name, (name,))
    assert condition_keys(condition) == wanted
    assert shards.meta.prefix is not None
    assert shards.meta.prefix.length == condition.length
    shown = sorted(path.name for path in (folder_of(home, f"fidelity-{name}") / "shown").iterdir())
    variants: tuple[str, ...] = ("conditioned", "real", "unconditional")
    variants = variants if name == "coordinates" else ("condition", *variants)
    assert shown == [f"{number:03d}-{kind}.png" for number in range(2) for kind in variants]
    side = 2 * SIDE if name == "coordinates" else SIDE
    conditioned, unconditional = (
        pixels(folder_of(home, f"fidelity-{name}") / "shown" / f"000-{kind}.png")
        for kind in ("conditioned", "unconditional")
    )
    assert conditioned.shape == unconditional.shape == (side, side, 3)


def test_class_and_segmentation_are_both_measured(home: Path) -> None:
    outcome = json.loads((home / "out" / "result.json").read_text())["steps"]["fidelity-label-segmentation"]["outcome"]
    assert (outcome["goal"], outcome["also"]["label"]["goal"]) == (0.5, 0.5)
    shown = page(home / "out")[0]
    assert f"{outcome['also']['label']['score']:.3g} of images (goal 0.5)" in shown
    good, bad = {"score": 0.6, "goal": 0.5}, {"score": 0.4, "goal": 0.5}
    for own, other, reached in ((good, good, 1), (good, bad, 0), (bad, good, 0)):
        step = SimpleNamespace(outcome={**own, "also": {"label": other}})
        assert goals_reached(["label-segmentation"], {"fidelity-label-segmentation": step}) == reached  # type: ignore[dict-item]


def test_held_out_images_are_as_near_as_those_of_training(home: Path) -> None:
    """Those of coordinates, where training sees windows of larger scenes, were whole scenes made small."""
    for name, zoom in (("coordinates", 2.0), ("label", 1.0)):
        meta = open_codes(folder_of(home, f"codes-{name}") / "codes").meta
        assert meta.training.data["zoom"][0] == meta.validation.data.get("zoom", 1.0) == zoom
    # The middle of the larger scene is the middle of what it shows, pixel by pixel.
    scenes = open_source(folder_of(home, "scenes-large") / "images")
    near, far = (
        split_crops(scenes, ImageSettings(size=(side, side), zoom=zoom, validation=0.2), channels=3, seed=0)[1]
        for side, zoom in ((SIDE, (2.0, 3.0)), (2 * SIDE, (1.0, 1.0)))
    )
    quarter = SIDE // 2
    for index in range(len(near)):
        middle = far[index, 0].image[:, quarter : quarter + SIDE, quarter : quarter + SIDE]
        assert torch.equal(near[index, 0].image, middle)
    with pytest.raises(SmaltiError, match=r"zoom is a factor of at least 1, not 0\.5"):
        CenterCrop(zoom=0.5)


def test_what_is_known_belongs_to_the_images(home: Path) -> None:
    scenes = folder_of(home, "scenes")
    cut = ImageSettings(size=(SIDE, SIDE), zoom=(1.0, 1.0), validation=0.2)
    _, held_out = split_crops(open_source(scenes / "images"), cut, channels=3, seed=0)
    known = known_of(held_out, scenes)
    for index, image in enumerate(held_out.images):
        from PIL import Image

        with Image.open(scenes / "segmentations" / image.key) as file:
            assert np.array_equal(np.asarray(file), known.labels[index].numpy())
        assert held_out.source.labels[int(known.classes[index])] == image.label
    assert int(known.labels.max()) < len(LABELS)
    assert known.depths.shape == (len(held_out), 1, SIDE, SIDE)


def test_the_page_reports_all(home: Path) -> None:
    words, images = page(home / "out")
    outcome = json.loads((home / "out" / "result.json").read_text())["steps"]["fidelity-depth"]["outcome"]
    assert "9 conditions on the embedded scenes" in words
    assert f"{outcome['score']:.3g} correlation (goal 0.6)" in words
    assert images >= 2 * (8 * 4 + 3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("size=[24, 24]",), r"size = 24x24: sides are multiples of 16"),
        (("conditions=[pose]",), "pose"),
        (("conditions=[lowres]", "tokenizer.model.autoencoder.patch_size=1"), "lowres takes a tokenizer of 4"),
    ],
)
def test_impossible_settings_are_refused_before_any_work(home: Path, more: tuple[str, ...], message: str) -> None:
    request = request_for(home, *more)
    with pytest.raises(SmaltiError, match=message):
        STUDY.plan(STUDY.resolved(request), request)


def test_images_of_which_nothing_is_known_are_refused(home: Path) -> None:
    request = ExperimentRequest(data=home, overrides=request_for(home).overrides)
    request = ExperimentRequest(
        data=home, overrides=tuple(each for each in request.overrides if not each.startswith("scenes"))
    )
    requested_images = STUDY.resolved(request)
    with pytest.raises(SmaltiError, match="needs scenes with known labels; omit --data"):
        STUDY.plan(requested_images, request)
