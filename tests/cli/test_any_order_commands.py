"""`smalti sample`, `complete`, `info` and `convert` with an any-order prior."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.images.io import read_settings, save_png, to_array
from smalti.pipeline import Pipeline
from tests.cli.test_cli import Runner, pixels
from tests.cli.test_cli import smalti as smalti
from tests.small_pipeline import noise, pipeline

HEIGHT, WIDTH = 12, 16


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A pipeline with a window of 3 x 4 codes, in any order; and an image with a mask beside it."""
    pipeline(order="any").save_pretrained(tmp_path / "model", about={})
    save_png(tmp_path / "given.png", noise(3, HEIGHT, WIDTH))
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[4:8, 4:12] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path / "model"


def kept() -> torch.Tensor:
    known = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    known[4:8, 4:12] = False
    return known


def test_a_pipeline_of_any_order_comes_back(smalti: Runner, model: Path) -> None:
    assert Pipeline.from_pretrained(model).prior.knows_any_order
    lines = [" ".join(line.split()) for line in smalti("info", model).out.splitlines()]
    assert "prior network.order: any" in lines


def test_samples_in_parallel_steps(smalti: Runner, model: Path, tmp_path: Path) -> None:
    command = ("sample", model, "-n", 2, "--label", "dusk", "--seed", 3)
    assert smalti(*command, "--out", tmp_path / "exact").status == 0
    assert smalti(*command, "--parallel", 3, "--out", tmp_path / "parallel").status == 0
    expected = to_array(Pipeline.from_pretrained(model).sample(2, label="dusk", seed=3, parallel=3))
    for number in range(2):
        file = tmp_path / "parallel" / f"dusk-{3 + number:06d}.png"
        assert np.array_equal(pixels(file), expected[number])
        settings = read_settings(file)
        assert settings is not None
        assert settings["parallel"] == 3
        exact = tmp_path / "exact" / file.name
        assert "parallel" not in (read_settings(exact) or {})
        assert not np.array_equal(pixels(exact), pixels(file))
    pipeline().save_pretrained(tmp_path / "in-raster-order", about={})
    raster = ("sample", tmp_path / "in-raster-order", "-n", 1, "--parallel", 4, "--out", tmp_path / "raster")
    smalti.fails(*raster, sentence=r"parallel = 4 needs an any-order prior.*'raster' alone; leave it at 0")
    larger = (*command, "--parallel", 3, "--size", "20x24", "--out", tmp_path / "larger")
    smalti.fails(*larger, sentence=r"parallel = 3 needs a window that covers the grid")
    smalti.fails(*command, "--parallel", 3, "--speculate", 2, "--out", tmp_path / "both", sentence="do not go together")


@pytest.mark.parametrize("options", [(), ("--parallel", 2), ("--fill",), ("--best-of", 3)])
def test_completions_keep_the_given_pixels(
    smalti: Runner, model: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    command = ("complete", model, tmp_path / "given.png", "--mask", tmp_path / "mask.png", "-n", 2, "--label", "dusk")
    done = smalti(*command, *options, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    assert "each new code is conditioned on all that is kept" in " ".join(done.out.split())
    given, known = pixels(tmp_path / "given.png"), kept().numpy()
    files = sorted((tmp_path / "out").glob("given-*.png"))
    assert len(files) == 2
    for file in files:
        assert np.array_equal(pixels(file)[known], given[known])
        assert not np.array_equal(pixels(file)[~known], given[~known])


def test_no_blend_takes_all_pixels_from_the_decoder(smalti: Runner, model: Path, tmp_path: Path) -> None:
    command = ("complete", model, tmp_path / "given.png", "--mask", tmp_path / "mask.png", "-n", 1, "--label", "dusk")
    for name, option in (("default", ()), ("blend", ("--blend",)), ("decoded", ("--no-blend",)), ("fill", ("--fill",))):
        assert smalti(*command, *option, "--out", tmp_path / name).status == 0
    found = {name: pixels(tmp_path / name / "given-000000.png") for name in ("default", "blend", "decoded", "fill")}
    assert np.array_equal(found["default"], found["blend"])
    pipe = Pipeline.from_pretrained(model)
    image = torch.from_numpy(pixels(tmp_path / "given.png").copy()).permute(2, 0, 1)[None]
    for name, blend, fill in (("blend", True, False), ("decoded", False, False), ("fill", True, True)):
        expected = to_array(pipe.complete(image, kept(), label="dusk", blend=blend, fill=fill))[0]
        assert np.array_equal(found[name], expected), name
    assert not np.array_equal(found["decoded"][kept().numpy()], found["blend"][kept().numpy()])
    settings = {name: read_settings(tmp_path / name / "given-000000.png") or {} for name in found}
    assert settings["decoded"]["blend"] is False
    assert settings["fill"]["fill"] is True
    assert not {"blend", "fill", "parallel"} & settings["default"].keys()


def test_an_outpainted_image_keeps_the_given_one(smalti: Runner, model: Path, tmp_path: Path) -> None:
    command = ("complete", model, tmp_path / "given.png", "--canvas", "20x24", "-n", 1, "--label", "dusk")
    assert smalti(*command, "--out", tmp_path / "out").status == 0
    found = pixels(tmp_path / "out" / "given-000000.png")
    assert found.shape == (20, 24, 3)
    assert np.array_equal(found[4 : 4 + HEIGHT, 4 : 4 + WIDTH], pixels(tmp_path / "given.png"))
    smalti.fails(
        *command, "--parallel", 2, "--out", tmp_path / "no", sentence="parallel = 2 needs a window that covers"
    )


def test_a_raster_prior_says_what_codes_are_conditioned_on(smalti: Runner, tmp_path: Path) -> None:
    pipeline().save_pretrained(tmp_path / "model", about={})
    save_png(tmp_path / "given.png", noise(3, HEIGHT, WIDTH))
    command = ("complete", tmp_path / "model", tmp_path / "given.png", "--keep", "center", "-n", 1)
    done = smalti(*command, "--out", tmp_path / "out")
    assert "conditioned on what is kept above and to its left" in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("to", "sentence"),
    [
        ("taming", "the original's transformer is the prior 'gpt'"),
        ("transformers", "transformers has no network like this prior"),
        ("diffusers", "diffusers' VQModel holds a tokenizer alone"),
        ("export", "tokenizer"),
    ],
)
def test_other_programs_have_no_such_prior(smalti: Runner, model: Path, tmp_path: Path, to: str, sentence: str) -> None:
    smalti.fails("convert", model, tmp_path / "written", "--to", to, sentence=sentence)
    assert not (tmp_path / "written").exists()
