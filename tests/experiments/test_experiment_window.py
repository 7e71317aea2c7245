"""The experiment `window`: every way lays the same sizes and is asked for the same real images; figures are those of
models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from smalti.conditions.base import grid_text
from smalti.conditions.coordinates import Coordinates, ImageCrop
from smalti.core.errors import SmaltiError
from smalti.data.code_shards import open_codes
from smalti.data.crops import RandomCrop
from smalti.data.sources import open_source, split
from smalti.experiments import condition_fidelity
from smalti.experiments.base import ExperimentRequest
from smalti.experiments.condition_fidelity import Fidelity
from smalti.experiments.experiment_registry import EXPERIMENTS
from smalti.experiments.page_parts import pixels
from smalti.experiments.window import experiment
from smalti.experiments.window.findings import CALLED, COORDINATES, NEIGHBORHOOD, TILES, WHOLE, WINDOW, growing
from smalti.experiments.window.metrics import join_tiles, roughness, seams, sequential, split_into_tiles
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import unknown_codes
from smalti.hub.pretrained import find_model
from smalti.images.io import to_array, to_tensor
from smalti.model_loading import load_tokenizer
from smalti.pipeline import Pipeline
from smalti.prior import Neighborhood, NeighborhoodSettings, after_middle, nll
from smalti.prior.window import Window, window_at
from smalti.prior_folder import load_prior
from smalti.reports.number_format import signed
from tests.experiment_helpers import page, run_and_read, step_folder
from tests.generation.test_code_sampler import small
from tests.reference import earliest
from tests.small import write_recipe

pytestmark = pytest.mark.slow

STUDY = EXPERIMENTS["window"]
F, LEVELS, HELD_OUT, IMAGES, SAMPLES = 4, 16, 0.3, 5, 3
SMALLEST, MIDDLE, LARGEST = (2, 2), (4, 4), (4, 8)
PLACES = {SMALLEST: (8, 8), MIDDLE: (16, 16), LARGEST: (16, 32)}
"""Grids, and their pixels."""
GROWING = (WINDOW, COORDINATES, NEIGHBORHOOD)
GENERATED = [(way, grid) for grid in PLACES for way in GROWING]
GENERATED += [(TILES, MIDDLE), (TILES, LARGEST), (WHOLE, LARGEST)]


def request_for(home: Path, *more: str, **changed: Any) -> ExperimentRequest:
    chosen = {
        "recipe": str(home / "small.yaml"),
        "tokenizer": ["run.images=8"],
        "prior": ["run.codes=64", "run.batch=8", "run.log_every=32", "run.validate_every=32"],
        "transformer": ["network={layers: 1, embed_dim: 16, heads: 2}"],
        "neighborhood": ["network={name: neighborhood, radius: 2, layers: 1, embed_dim: 16, heads: 2}"],
        "parameters_within": 0.2,
        "levels": LEVELS,
        "window": SMALLEST,
        "sizes": [MIDDLE, LARGEST],
        "whole": [LARGEST],
        "size": [16, 32],
        "crop": [16, 16],
        "copies": 2,
        "held_out": HELD_OUT,
        "images": IMAGES,
        "samples": SAMPLES,
        "shown": 2,
        "scene_network_steps": 1,
        "scenes": 14,
        **changed,
    }
    return ExperimentRequest(overrides=(*(f"{key}={json.dumps(value)}" for key, value in chosen.items()), *more))


def brightness(images: condition_fidelity.ComparedImages) -> Fidelity:
    """In place of what the scene network predicts: which images it is shown."""
    return Fidelity(float(images.conditioned.mean()), 0.0, 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, and the experiment done once in `out`."""
    path = tmp_path_factory.mktemp("window")
    write_recipe(path / "small.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(condition_fidelity, "heights", brightness)
        run_and_read("window", path / "out", request_for(path))
    return path


def pipeline_of(home: Path, found: dict[str, Any], way: str) -> Pipeline:
    name = {TILES: WINDOW, WHOLE: f"{WHOLE}-{grid_text(LARGEST)}"}.get(way, way)
    tokenizer = load_tokenizer(step_folder(home, found, "tokenizer"))
    return Pipeline(tokenizer, *load_prior(find_model(step_folder(home, found, f"prior-{name}"), kind="prior")))


def held_out(home: Path, found: dict[str, Any], grid: tuple[int, int]) -> tuple[Tensor, list[ImageCrop]]:
    """Scenes that no training saw, cut by hand as large as they are -> their codes (B,h,w), and where each part
    lies."""
    source = open_source(step_folder(home, found, "scenes") / "images")
    tokenizer, (H, W) = load_tokenizer(step_folder(home, found, "tokenizer")), PLACES[grid]
    _, others = split(source.images, validation=HELD_OUT)
    assert len(others) > IMAGES
    cuts, places = [], []
    for index in range(IMAGES):
        image = others[index * len(others) // IMAGES]
        view = RandomCrop(zoom=(2.0, 2.0), flip=False).view((16, 32), (H, W), seed=1, draw=index)
        whole = pixels(source.path / image.key)
        cuts.append(to_tensor(whole[view.top : view.top + H, view.left : view.left + W]))
        places.append(ImageCrop(view.top, view.left, (16, 32)))
    with torch.no_grad():
        return tokenizer.encode(torch.stack(cuts)).codes, places


@pytest.mark.parametrize("grid", PLACES)
def test_held_out_codes_are_those_of_crops_as_large_as_they_are(
    home: Path, found: dict[str, Any], grid: tuple[int, int]
) -> None:
    codes, places = held_out(home, found, grid)
    shards = open_codes(step_folder(home, found, f"codes-{grid_text(grid)}") / "codes")
    examples = [shards.validation[index, 0] for index in range(len(shards.validation))]
    assert torch.equal(torch.stack([example.codes for example in examples]), codes)
    condition = pipeline_of(home, found, COORDINATES).condition
    assert isinstance(condition, Coordinates)
    prefixes = condition.encode_windows(places, grid=grid)
    assert torch.equal(torch.stack([example.prefix for example in examples]), prefixes(Window(0, 0, *grid))), (
        "where each part is in its scene"
    )


def by_hand(pipeline: Pipeline, way: str, codes: Tensor, places: list[ImageCrop]) -> Tensor:
    """Codes (B,h,w) -> nats per code (B,), each code under a window of its own."""
    prior, (B, h, w) = pipeline.prior, codes.shape
    if way in (NEIGHBORHOOD, WHOLE):
        return nll(prior, prior.null_prefix(B), codes).mean((1, 2))
    prefixes = pipeline.window_prefix(places if way == COORDINATES else [None] * B, grid=(h, w))
    each = torch.zeros(B, h, w)
    for row in range(h):
        for column in range(w):
            over = window_at(row, column, grid=(h, w), window=SMALLEST, middle=after_middle)
            if way == TILES:
                over = Window(row // 2 * 2, column // 2 * 2, 2, 2)
            top, left, rows, columns = over
            part = nll(prior, prefixes(over), codes[:, top : top + rows, left : left + columns])
            each[:, row, column] = part[:, row - top, column - left]
    return each.mean((1, 2))


@pytest.mark.parametrize(("way", "grid"), GENERATED)
def test_likelihoods_are_those_of_the_models_as_they_generate(
    home: Path, found: dict[str, Any], way: str, grid: tuple[int, int]
) -> None:
    codes, places = held_out(home, found, grid)
    compared = found[f"compare-{grid_text(grid)}"]["outcome"]
    assert compared["images"] == IMAGES
    with torch.no_grad():
        values = {each: by_hand(pipeline_of(home, found, each), each, codes, places).double() for each in {way, WINDOW}}
    row, gains = compared["rows"][way], values[way] - values[WINDOW]
    assert row["nats"] == pytest.approx(values[way].mean().item(), abs=1e-5)
    assert row["over_window"] == pytest.approx(gains.mean().item(), abs=1e-5)
    assert row["error"] == pytest.approx(gains.std().item() / len(gains) ** 0.5, abs=1e-5)


@pytest.mark.parametrize(("way", "grid"), GENERATED)
def test_images_are_what_the_program_generates(
    home: Path, found: dict[str, Any], way: str, grid: tuple[int, int]
) -> None:
    pipeline = pipeline_of(home, found, way)
    if way == TILES:
        columns, number = grid[1] // 2, grid[0] * grid[1] // 4
        known, seeds = unknown_codes(number * SAMPLES, SMALLEST), torch.arange(number * SAMPLES)
        tiles = final_codes(
            generate(pipeline.prior, pipeline.request_for([None] * len(known), known, sampler=Sampler(), seeds=seeds))
        )
        codes = torch.zeros(SAMPLES, *grid, dtype=torch.int64)
        for count, tile in enumerate(tiles):
            index, (row, column) = count // number, divmod(count % number, columns)
            codes[index, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = tile
    else:
        known = unknown_codes(SAMPLES, grid)
        codes = final_codes(
            generate(
                pipeline.prior,
                pipeline.request_for([None] * SAMPLES, known, sampler=Sampler(), seeds=torch.arange(SAMPLES)),
            )
        )
    files = sorted((step_folder(home, found, f"samples-{way}-{grid_text(grid)}") / "samples").glob("*.png"))
    assert len(files) == SAMPLES
    for file, image in zip(files, to_array(pipeline.decode(codes)), strict=True):
        assert np.array_equal(pixels(file), image)


@pytest.mark.parametrize(("way", "grid"), [*GENERATED, ("real", MIDDLE), ("real", LARGEST)])
def test_seams_and_structure_are_those_of_the_images(
    home: Path, found: dict[str, Any], way: str, grid: tuple[int, int]
) -> None:
    compared = found[f"compare-{grid_text(grid)}"]["outcome"]
    if way == "real":
        path, row = step_folder(home, found, f"compare-{grid_text(grid)}") / "real", compared["real"]
        again = pipeline_of(home, found, WINDOW).decode(held_out(home, found, grid)[0])
        assert np.array_equal(np.stack([pixels(file) for file in sorted(path.glob("*.png"))]), to_array(again))
    else:
        path, row = step_folder(home, found, f"samples-{way}-{grid_text(grid)}") / "samples", compared["rows"][way]
    images = torch.stack([to_tensor(pixels(file)) for file in sorted(path.glob("*.png"))])
    assert row["seams"] == seams(images, F, window=2)
    assert (row["seams"] is None) == (grid == SMALLEST), "a single tile has no borders"
    assert row["roughness"] == roughness(images, F)
    seen = found["structure"]["outcome"]
    assert set(seen) == {grid_text(MIDDLE), grid_text(LARGEST)}, "those as high as the scenes"
    if grid != SMALLEST:
        assert seen[grid_text(grid)][way] == pytest.approx(images.mean().item(), abs=1e-6)


def test_priors_that_grow_see_the_same_batches(home: Path, found: dict[str, Any]) -> None:
    notes = {
        name: json.loads(step_folder(home, found, f"prior-{name}").with_suffix(".json").read_text())
        for name in (*GROWING, f"{WHOLE}-{grid_text(LARGEST)}")
    }
    trainings = {name: note["settings"]["training"] for name, note in notes.items()}
    assert trainings[WINDOW]["run"]["batch"] == 8
    fewer = {**trainings[WINDOW], "run": {**trainings[WINDOW]["run"], "batch": 1}}
    assert trainings[f"{WHOLE}-{grid_text(LARGEST)}"] == fewer, "as many codes per step"
    assert trainings[COORDINATES] == {**trainings[WINDOW], "condition": "coordinates"}
    assert trainings[NEIGHBORHOOD] == {**trainings[WINDOW], "network": trainings[NEIGHBORHOOD]["network"]}
    assert [note["after"][1] for note in notes.values()] == ["codes-2x2"] * 3 + ["codes-4x8"]
    copies = [found[f"codes-{grid_text(grid)}"]["outcome"]["training"] for grid in PLACES]
    assert copies[0] == 2 * copies[1] == 2 * copies[2], "two crops of a window, and one of what is larger"
    for name in notes:
        assert found[f"prior-{name}"]["outcome"]["curve"][-1]["codes"] == 64


def test_parameters_are_those_of_the_models(home: Path, found: dict[str, Any]) -> None:
    for way, row in found[f"compare-{grid_text(LARGEST)}"]["outcome"]["rows"].items():
        prior = pipeline_of(home, found, way).prior
        assert row["parameters"] == sum(weight.numel() for weight in prior.parameters())


@pytest.mark.parametrize(("way", "grid"), GENERATED)
def test_steps_are_those_of_the_size(found: dict[str, Any], way: str, grid: tuple[int, int]) -> None:
    (h, w), reach = grid, 2
    under_window = max(map(max, earliest(torch.ones(h, w, dtype=torch.bool), SMALLEST, middle=after_middle)))
    others = {TILES: 2 * 2, NEIGHBORHOOD: w + (h - 1) * min(reach + 1, w), WHOLE: h * w}
    wanted = others.get(way, under_window)
    assert found[f"compare-{grid_text(grid)}"]["outcome"]["rows"][way]["steps"] == wanted


def test_steps_are_the_waves_of_the_documentation() -> None:
    window = small(grid=(4, 4), prefix_length=1, condition_size=0)
    assert [sequential(window, grid) for grid in ((4, 4), (5, 12))] == [16, 12 + 4 * 4]
    settings = NeighborhoodSettings(codebook_size=5, grid=(4, 4), radius=2, layers=1, embed_dim=16, heads=2)
    assert sequential(Neighborhood(settings), (5, 12)) == 12 + 4 * 3


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_tiles_are_parts_of_the_grid_and_join_again(B: int, rows: int, columns: int, h: int, w: int) -> None:
    codes = torch.arange(B * rows * h * columns * w).view(B, rows * h, columns * w)
    tiles = split_into_tiles(codes, (h, w))
    assert tiles.shape == (B, rows * columns, h, w)
    for index in range(rows * columns):
        row, column = divmod(index, columns)
        assert torch.equal(tiles[:, index], codes[:, row * h : row * h + h, column * w : column * w + w])
    assert torch.equal(join_tiles(tiles, (rows * h, columns * w)), codes)


@given(st.integers(0, 99), st.integers(1, 6), st.integers(2, 9), st.integers(1, 5))
def test_seams_and_roughness_are_means_over_borders(seed: int, f: int, w: int, window: int) -> None:
    images = torch.rand(2, 3, 4, w * f, generator=torch.Generator().manual_seed(seed))
    tiles: list[float] = []
    others: list[float] = []
    for code in range(1, w):
        jump = (images[..., code * f] - images[..., code * f - 1]).abs().mean().item()
        (others if code % window else tiles).append(jump)
    assert roughness(images, f) == pytest.approx(np.mean(tiles + others), rel=1e-5)
    wanted = pytest.approx(np.mean(tiles) / np.mean(others), rel=1e-4) if tiles and others else None
    assert seams(images, f, window=window) == wanted


def test_a_ramp_has_no_seams() -> None:
    ramp = torch.arange(32.0).expand(1, 3, 4, 32)
    assert (seams(ramp, 4, window=2), roughness(ramp, 4)) == (1, 1)


def test_the_page_reports_what_was_found(home: Path, found: dict[str, Any]) -> None:
    text, images = page(home / "out")
    rows = found[f"compare-{grid_text(LARGEST)}"]["outcome"]["rows"]
    assert f"have {rows[WINDOW]['nats']:.3f} nats per code" in text
    best = growing(rows)[0]
    assert rows[best]["nats"] == min(rows[way]["nats"] for way in GROWING)
    assert f"Likeliest at 4x8: {CALLED[best]}" in text
    for way, row in rows.items():
        if way != WINDOW:
            assert f"{CALLED[way]} {signed(row['over_window'], row['error'])}" in text
    assert f"pixels jump {rows[TILES]['seams']:.2f} times" in text
    rows_of = {grid: 1 + sum(each == grid for _, each in GENERATED) for grid in PLACES}
    assert images == 2 * rows_of[SMALLEST] + 2 * rows_of[MIDDLE] + rows_of[LARGEST], "the widest one a row"
    assert "nan" not in text.lower().split()


def test_one_size_less_trains_nothing_anew(home: Path, found: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(condition_fidelity, "heights", brightness)
        patch.setattr(experiment, "train_prior", None)
        patch.setattr(experiment, "generate_images", None)
        again = run_and_read("window", home / "out", request_for(home, sizes=[LARGEST]))["steps"]
        again.pop("structure")
        assert again == {name: found[name] for name in again}
        run_and_read("window", home / "out", request_for(home))


@pytest.mark.parametrize("scale", STUDY.scales)
def test_every_scale_can_be_planned(scale: str) -> None:
    what = ExperimentRequest(scale=scale)
    settings = STUDY.resolved(what)
    steps = [step.name for step in STUDY.plan(settings, what)]
    wholes = [f"prior-{WHOLE}-{grid_text(grid)}" for grid in settings.whole]
    assert [name for name in steps if name.startswith("prior-")] == [*(f"prior-{way}" for way in GROWING), *wholes]


@pytest.mark.parametrize(
    ("changed", "override", "sentence"),
    [
        ({"sizes": [[4, 5]]}, "", "sizes has 4x5, and the window is 2x2"),
        ({"sizes": [[2, 2], [4, 4]]}, "", "sizes has 2x2, and the window is 2x2"),
        ({"sizes": [[4, 4], [4, 4]]}, "", "larger grids of whole windows, each once"),
        ({"sizes": [[8, 8]]}, "", "8x8 codes are 32 x 32 pixels, more than the scenes of 16 x 32"),
        ({"sizes": [[2, 4]], "whole": []}, "", "that are as high as the scenes, 16 pixels"),
        ({"window": [2, 1], "sizes": [[4, 3]], "whole": []}, "", "sides of multiples of 8"),
        ({"whole": [[2, 4]]}, "", "whole has 2x4, which is not in sizes"),
        ({"neighborhood": ["network={name: neighborhood, embed_dim: 64}"]}, "",
            "neighborhood=\\[...\\], or set parameters_wi"),
        ({}, "prior.network.layers=2", "decides network.layers itself"),
        ({}, "prior.condition=unconditional", "decides condition itself"),
        ({}, "tokenizer.images.size=[8, 8]", "decides images.size itself"),
    ],
)  # fmt: skip
def test_mistakes_are_sentences(
    home: Path, tmp_path: Path, changed: dict[str, Any], override: str, sentence: str
) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        run_and_read("window", tmp_path / "out", request_for(home, *filter(None, [override]), **changed))
    assert not (tmp_path / "out").exists(), "nothing is begun"


def test_images_without_known_sky_are_refused(home: Path, found: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match="omit --data"):
        run_and_read("window", tmp_path / "out", ExperimentRequest(data=step_folder(home, found, "scenes") / "images"))
