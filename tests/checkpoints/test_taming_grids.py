"""Runs of the original over grids that are not square: where their shape comes from, and that all that follows takes
it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from smalti.checkpoints.formats import FORMATS, read_foreign
from smalti.conditions.base import Condition
from smalti.conditions.coordinates import Coordinates, CoordinatesSettings
from smalti.conditions.labels import Labels, Unconditional
from smalti.conditions.layout import Layout
from smalti.conditions.spatial import SpatialCondition, SpatialConditionSettings
from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import unknown_codes
from smalti.model_loading import load_tokenizer, read_models, save_models
from smalti.pipeline import Pipeline
from smalti.prior import ORDERS
from smalti.prior.gpt import GPT
from tests.checkpoints.test_taming import changed, config_of, gpt, same, tokenizer, written
from tests.cli.test_cli import Runner, pixels
from tests.cli.test_cli import smalti as smalti

GRID = (3, 7)


def conditions() -> dict[str, Condition]:
    segmentation = parse(
        SpatialConditionSettings, {"kind": "segmentation", "key": "segmentation", "grid": GRID}, where="test"
    )
    return {
        "nothing": Unconditional(),
        "labels": Labels(["0", "1", "2"]),
        "coordinates": Coordinates(CoordinatesSettings(levels=30, codebook_size=31, factor=2, grid=GRID)),
        "segmentation": SpatialCondition(segmentation, tokenizer(channels=5)),
    }


def theirs(folder: Path, kind: str = "nothing", **changes: Any) -> Path:
    """A run folder as the original writes it: of as many positions as are read, and with nothing that says the grid."""
    condition = conditions()[kind]
    count = GRID[0] * GRID[1]
    options = {"grid": GRID, "block_size": condition.length + count - 1, "start_code": 5 if kind == "nothing" else None}
    run = written(folder, tokenizer(), gpt(condition, **{**options, **changes}), condition)
    config = config_of(run)
    del config["smalti"]
    return changed(run, config)


@pytest.mark.parametrize("kind", conditions())
@pytest.mark.parametrize("spare", [0, 1])
def test_a_grid_is_requested_and_taken(tmp_path: Path, kind: str, spare: int) -> None:
    condition = conditions()[kind]
    run = theirs(tmp_path / "run", kind, block_size=condition.length + 20 + spare)
    with pytest.raises(
        SmaltiError, match=r"generates 2[12] codes, which is not a square, .* --grid HxW, in Python grid=\(h, w\)"
    ):
        read_foreign(run)
    models = read_foreign(run, grid=GRID)
    assert models.prior is not None
    assert models.condition is not None
    assert models.prior.grid == GRID
    assert models.condition.length == condition.length
    assert models.condition.save(tmp_path / "a") == condition.save(tmp_path / "b")


def test_the_images_need_not_have_the_size_of_the_first_stage(tmp_path: Path) -> None:
    """Its resolution is a nominal one: a transformer over 6 x 6 codes may stand on a first stage of 4 x 4."""
    run = theirs(tmp_path / "run", grid=(6, 6), block_size=36)
    models = read_foreign(run)
    assert models.prior is not None
    assert models.prior.grid == (6, 6)


@pytest.mark.parametrize("order", sorted(set(ORDERS) - {"raster", "z_curve", "subsample"}))
def test_the_permuter_says_the_grid(tmp_path: Path, order: str) -> None:
    run = theirs(tmp_path / "run", order=order)
    for grid in (None, GRID):
        prior = read_foreign(run, grid=grid).prior
        assert isinstance(prior, GPT)
        assert prior.grid == GRID
        assert prior.order == order
    with pytest.raises(SmaltiError, match="the permuter is for 3 x 7 codes, the grid given is 7 x 3"):
        read_foreign(run, grid=(7, 3))


@pytest.mark.parametrize("kind", conditions())
def test_what_was_imported_goes_out_again(tmp_path: Path, kind: str) -> None:
    """Our format, the original's and transformers' keep the grid, so that it is asked for once."""
    first = read_models(theirs(tmp_path / "run", kind), grid=GRID)
    save_models(first, tmp_path / "ours")
    FORMATS["taming"].write(first.tokenizer, first.prior, first.condition, tmp_path / "taming", about=first.about)
    FORMATS["transformers"].write(first.tokenizer, first.prior, first.condition, tmp_path / "hf", about=first.about)
    for name in ("ours", "taming", "hf"):
        again = read_models(tmp_path / name)
        assert isinstance(first.prior, GPT)
        assert isinstance(again.prior, GPT)
        assert again.prior.settings == first.prior.settings
        assert same(again.prior, first.prior)
        with pytest.raises(SmaltiError, match=r"grid"):
            read_models(tmp_path / name, grid=(7, 3))
        read_models(tmp_path / name, grid=GRID)


@pytest.mark.parametrize("kind", conditions())
def test_images_of_such_a_grid(tmp_path: Path, kind: str) -> None:
    """Sampled as trained, under a window that moves, completed, and weighed."""
    pipeline = Pipeline.from_pretrained(theirs(tmp_path / "run", kind), grid=GRID)
    assert pipeline.default_size == (6, 14)
    spatial = kind in ("coordinates", "segmentation")  # their prefix needs the whole window
    for size in ((6, 14), (10, 18), *([] if spatial else [(6, 6)])):
        message: dict[str, dict[str, Any]] = {
            "labels": {"label": "1"},
            "segmentation": {"segmentation": torch.arange(size[0] * size[1]).view(size) % 5},
        }
        given = message.get(kind, {})
        images = pipeline.sample(2, size=size, seed=1, **given)
        assert images.shape == (2, 3, *size)
        value = pipeline.condition_value(given)
        nats = pipeline.nll(pipeline.encode(images), values=[value, value])
        assert nats.shape == (2, size[0] // 2, size[1] // 2)
        assert bool(nats.isfinite().all())
        known = torch.ones(size, dtype=torch.bool)
        known[2:] = False
        codes, seeds = pipeline.known_codes(images, known), pipeline.seeds(2, 2)
        request = pipeline.request_for([value, value], codes, seeds=seeds, sampler=Sampler())
        completed = final_codes(generate(pipeline.prior, request))
        assert torch.equal(completed[:, 0], pipeline.encode(images)[:, 0])


@torch.no_grad()
def test_codes_are_chosen_by_what_the_transformer_says_of_them(tmp_path: Path) -> None:
    """Code after code by the whole network over all codes so far, which knows of no grid: the same."""
    pipeline = Pipeline.from_pretrained(theirs(tmp_path / "run", "labels"), grid=GRID)
    greedy = Sampler(temperature=0.0)
    generated = final_codes(
        generate(
            pipeline.prior, pipeline.request_for(["2"], unknown_codes(1, GRID), sampler=greedy, seeds=torch.tensor([0]))
        )
    )
    sequence = torch.tensor([[2]])
    for _ in range(21):
        code = pipeline.prior(sequence)[:, -1, : pipeline.tokenizer.size].argmax(1)
        sequence = torch.cat((sequence, code[:, None]), dim=1)
    assert generated.flatten().tolist() == sequence[0, 1:].tolist()


def test_a_tokenizer_is_read_without_the_transformer(tmp_path: Path) -> None:
    """Nobody who reconstructs images is asked how a transformer lays them."""
    run = theirs(tmp_path / "run", "labels")
    first = read_foreign(run, grid=GRID).tokenizer
    assert first is not None
    assert load_tokenizer(run).fingerprint() == first.fingerprint()


def test_layouts_leave_the_positions_that_their_objects_do_not_take(tmp_path: Path) -> None:
    run = theirs(tmp_path / "run", "labels", block_size=11 + 21)
    config = config_of(run)
    params = config["model"]["params"]
    params["cond_stage_config"] = {
        "target": "taming.models.dummy_cond_stage.DummyCondStage",
        "params": {"conditional_key": "objects_bbox"},
    }
    options = {"no_tokens": 32, "max_objects_per_image": 3, "encode_crop": True}
    source = {"target": "taming.data.annotated_objects_coco.AnnotatedObjectsCoco", "params": options}
    config["data"] = {"params": {"train": source}}
    changed(run, config)
    with pytest.raises(SmaltiError, match="generates 22 codes, which is not a square"):
        read_foreign(run)
    models = read_foreign(run, grid=GRID)
    assert isinstance(models.condition, Layout)
    assert models.prior is not None
    assert (models.condition.length, models.prior.grid) == (11, GRID)


def test_grids_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    run = theirs(tmp_path / "run", "labels")
    with pytest.raises(SmaltiError, match="block = 21 positions are too few"):
        read_foreign(run, grid=(4, 7))
    with pytest.raises(SmaltiError, match=r"holds no prior, so a grid .3x7. has no effect"):
        read_models(written(tmp_path / "alone", tokenizer()), grid=GRID)
    with pytest.raises(SmaltiError, match=r"has a window of .* codes, the grid given is 3x7"):
        Pipeline.from_pretrained("scenes", grid=GRID)


def test_the_command_line_takes_a_grid(tmp_path: Path, smalti: Runner) -> None:
    run, grid = theirs(tmp_path / "run"), ("--grid", "3x7")
    smalti.fails("convert", run, tmp_path / "ours", sentence="--grid HxW")
    smalti.fails("convert", run, tmp_path / "ours", "--grid", "3:7", status=2, sentence="'3:7' is not a grid")
    assert smalti("convert", run, tmp_path / "ours", *grid).status == 0
    assert "a window of 3x7 codes" in smalti("info", run, *grid).out
    smalti.fails("info", tmp_path / "ours", *grid, sentence="--grid is for those; omit it")
    assert smalti("sample", run, "--out", tmp_path / "samples", "-n", "2", *grid).status == 0
    images = sorted((tmp_path / "samples").glob("*.png"))
    assert [pixels(image).shape for image in images] == [(6, 14, 3)] * 2
    assert smalti("complete", run, images[0], "--keep", "top-half", "--out", tmp_path / "completed", *grid).status == 0
    assert smalti("evaluate", "prior", run, tmp_path / "samples", "--held-out", "0", *grid).status == 0
    assert smalti("reconstruct", run, images[0], "--out", tmp_path / "back").status == 0
