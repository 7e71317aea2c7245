"""The experiment `f-sweep`: one window for all priors, crops that fill it, whole images generated; and the palette of f
= 1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.conditions.base import constant_prefix
from smalti.core.errors import SmaltiError
from smalti.data.code_shards import open_codes
from smalti.experiments import sampling
from smalti.experiments.base import ExperimentRequest, StepContext
from smalti.experiments.experiment_registry import EXPERIMENTS
from smalti.experiments.palette import Palette, fitted_palette, load_palette
from smalti.generation import generation_loop
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_checkpoint import read_generation
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.hub.pretrained import find_model
from smalti.images.io import read_image, to_tensor
from smalti.model_loading import load_tokenizer
from smalti.pipeline import Pipeline
from smalti.prior import Prior
from smalti.prior_folder import load_prior
from smalti.tokenizer.quantizers import VQSettings
from smalti.training.config import PriorTraining, TokenizerTraining, resolve
from tests import reference
from tests.experiment_helpers import QUIET, no_weights, page, request, run_and_read
from tests.small import SIDE, write_images, write_recipe

NAME = "f-sweep"
STUDY = EXPERIMENTS[NAME]
FACTORS = {"f1": 1, "f2": 2, "f4": 4}


def chosen(home: Path) -> dict[str, Any]:
    return {
        "recipe": str(home / "small.yaml"),
        "tokenizer": ["run.images=8"],
        "prior": ["run.codes=128", "run.validate_every=64", "run.sample_every=128"],
        "tokenizers": [
            {"name": "f2", "changes": ["model.autoencoder.channel_multipliers=[1]"]},
            {"name": "f4", "changes": ["model.autoencoder.channel_multipliers=[1, 1]"]},
        ],
        "codebook": 12,
        "palette_rounds": 3,
        "window": [4, 4],
        "size": [SIDE, SIDE],
        "crop": [8, 8],
        "copies": 2,
        "held_out_copies": 3,
        "samples": 2,
        "held_out": 0.3,
        "images": 6,
        "shown": 2,
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a recipe, and the experiment done once in `out`."""
    path = tmp_path_factory.mktemp("f-sweep")
    write_images(path / "a")
    write_recipe(path / "small.yaml")
    with no_weights(path / "cache"):
        run_and_read(NAME, path / "out", request(path / "a", chosen(path)))
    return path


def steps(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "out" / "result.json").read_text())["steps"]
    return found


def tokenizer(home: Path, name: str) -> Any:
    folder = home / "out" / steps(home)[f"tokenizer-{name}"]["folder"]
    return load_palette(folder) if name == "f1" else load_tokenizer(folder)


@pytest.mark.parametrize(("name", "f"), FACTORS.items())
def test_all_priors_see_one_window_at_each_f(home: Path, name: str, f: int) -> None:
    found = steps(home)
    shards = open_codes(home / "out" / found[f"codes-{name}"]["folder"] / "codes")
    assert (shards.meta.grid, shards.meta.factor, shards.meta.size) == ((4, 4), f, 12)
    outcome = found[f"codes-{name}"]["outcome"]
    assert outcome["training"] == 2 * len(shards.training)
    assert outcome["held_out"] == len(shards.validation)
    prior = found[f"prior-{name}"]["outcome"]
    assert prior["nats_per_pixel"] == pytest.approx(prior["nats_per_code"] / f**2)
    assert [point["codes"] for point in prior["curve"]] == [64, 128]
    assert found[f"measure-{name}"]["outcome"]["factor"] == f


def test_codes_are_of_parts_of_whole_images_not_of_small_ones(home: Path) -> None:
    """A crop of 4 x 4 pixels of an image of 16 has the range of a part of it; scaled down, it would have that of the
    whole."""
    shards = open_codes(home / "out" / steps(home)["codes-f1"]["folder"] / "codes")
    palette = tokenizer(home, "f1")
    crops = torch.stack([palette.decode_codes(shards.validation[index, 0].codes[None])[0] for index in range(6)])
    heights = (crops.mean((1, 3)).amax(1) - crops.mean((1, 3)).amin(1)).mean()
    images = [to_tensor(np.asarray(Image.open(path))) for path in sorted((home / "a").rglob("*.png"))]
    whole = torch.stack([each.mean((0, 2)).amax() - each.mean((0, 2)).amin() for each in images]).mean()
    assert heights < 0.6 * whole


@pytest.mark.parametrize(("name", "f"), FACTORS.items())
def test_whole_images_are_generated_and_depend_on_their_seed_alone(home: Path, name: str, f: int) -> None:
    found = steps(home)
    outcome, folder = found[f"samples-{name}"]["outcome"], home / "out" / found[f"samples-{name}"]["folder"]
    assert outcome["codes"] == (SIDE // f) ** 2
    assert outcome["seconds_per_image"] > 0
    assert "frechet" not in outcome, "two images are too few"
    files = sorted((folder / "samples").glob("*.png"))
    assert [file.stem for file in files] == ["0000", "0001"]
    prior, _ = load_prior(find_model(home / "out" / found[f"prior-{name}"]["folder"], kind="prior"))
    grid = (SIDE // f, SIDE // f)
    known = unknown_codes(1, grid)
    with torch.no_grad():
        generated = final_codes(
            generate(
                prior,
                GenerationRequest(
                    constant_prefix(prior.null_prefix(1)), sampler=Sampler(), seeds=torch.tensor([1]), known=known
                ),
            )
        )
        image = tokenizer(home, name).decode_codes(generated)[0].clamp(-1, 1)
    there = to_tensor(read_image(files[1], channels=3, name="there"))
    assert (there - image).abs().max() <= 1 / 127


def test_what_was_generated_before_a_stop_is_not_generated_again(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = steps(home)
    prior, condition = load_prior(find_model(home / "out" / found["prior-f2"]["folder"], kind="prior"))
    pipeline = Pipeline(tokenizer(home, "f2"), prior, condition)
    seeds, context = torch.arange(2), StepContext(tmp_path, {}, QUIET)
    with ExitStack() as unfinished:
        whole, _ = sampling._generate(pipeline, seeds, (8, 8), StepContext(tmp_path / "whole", {}, QUIET), unfinished)
    file, counts = tmp_path / "codes-0000.generation", []

    def stopped(prior: Prior, request: GenerationRequest) -> Iterator[torch.Tensor]:
        for codes in generate(prior, request):
            counts.append(int((codes >= 0).sum()))
            if len(counts) == 4:
                raise KeyboardInterrupt
            yield codes

    monkeypatch.setattr(generation_loop, "generate", stopped)
    with pytest.raises(KeyboardInterrupt), ExitStack() as unfinished:
        sampling._generate(pipeline, seeds, (8, 8), context, unfinished)
    assert counts == [16, 32, 48, 64], "as many codes as a row has, of two images"
    assert int((read_generation(file).codes >= 0).sum()) == 48
    with ExitStack() as unfinished:
        codes, _ = sampling._generate(pipeline, seeds, (8, 8), context, unfinished)
        assert torch.equal(codes, whole)
        assert min(counts[4:]) >= 48, "it went on from there"
    assert not file.exists()


def test_the_page_reports_what_was_found(home: Path) -> None:
    text, images = page(home / "out")
    assert "a window of 4 x 4 pixels" in text
    assert "No Frechet distance of the samples is given: 2 images for each f are too few." in text
    assert "LPIPS was not measured" in text
    assert images == 4 + 3 * 2 + 2 * 2 * (1 + 3), "the band, a row of samples for each f, originals and what returns"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("size=[18, 16]", r"size = 18 x 16 \(height x width\) is not made of the tiles of 4 pixels that f4 has"),
        ("window=[5, 4]", "a window of 5 x 4 codes of f4 is 20 x 16 pixels, more than the images of 16 x 16"),
        ("tokenizers=[{name: f1}]", "two tokenizers are called 'f1'"),
        ("tokenizer.model.quantizer.codebook_size=9", "decides model.quantizer.codebook_size itself"),
        ("prior.encode.copies=9", "decides encode.copies itself"),
        ("prior.condition=labels", "decides condition itself"),
    ],
)
def test_mistakes_are_sentences(home: Path, tmp_path: Path, override: str, sentence: str) -> None:
    with no_weights(tmp_path), pytest.raises(SmaltiError, match=sentence):
        run_and_read(NAME, tmp_path / "out", request(home / "a", chosen(home), override))


@pytest.mark.parametrize("scale", STUDY.scales)
def test_the_scales_are_what_they_say(scale: str) -> None:
    settings = STUDY.resolved(ExperimentRequest(scale=scale, data=Path("given")))
    found = {}
    for each in settings.tokenizers:
        generated = [*settings.tokenizer, *each.changes]
        training = resolve(TokenizerTraining, stage="tokenizer", recipe=settings.recipe, overrides=generated)
        found[each.name] = training.model.autoencoder.factor
    assert found == {f"f{f}": f for f in (2, 4, 8, 16)}
    h, w = settings.window
    assert settings.size == (16 * h, 16 * w), "at the largest f the window is the whole image, as in the paper"
    resolve(PriorTraining, stage="prior", recipe=settings.recipe, overrides=settings.prior)


# --- the palette ------------------------------------------------------------------------------------------------------


def test_each_pixel_takes_its_nearest_color() -> None:
    palette = Palette(VQSettings(codebook_size=5, codebook_dim=3, l2_normalize=False)).eval()
    torch.nn.init.uniform_(palette.quantizer.get_parameter("codebook"), -1, 1)
    images = torch.rand(2, 3, 4, 6) * 2 - 1
    back, quantized = palette(images)
    slow = reference.nearest_colors(images, palette.quantizer.get_parameter("codebook"))
    assert torch.equal(quantized.codes, slow)
    assert torch.allclose(back, palette.decode_codes(slow), atol=1e-6)
    assert (palette.size, palette.factor) == (5, 1)


def test_a_palette_of_few_colors_is_found_and_comes_back_from_its_folder(tmp_path: Path) -> None:
    colors = torch.tensor([[-1.0, -1, -1], [1, 1, 1], [1, -1, 0.5]])
    codes = torch.randint(3, (4, 8, 8), generator=torch.Generator().manual_seed(0))
    images = colors[codes].permute(0, 3, 1, 2)
    palette = fitted_palette(iter([images[:3], images[3:]]), size=3, rounds=10, count=4, seed=1)
    assert (palette(images)[0] - images).abs().max() < 1e-5
    palette.save(tmp_path, about={})
    again = load_palette(tmp_path)
    assert again.fingerprint() == palette.fingerprint()
    assert torch.equal(again.encode(images).codes, palette.encode(images).codes)
    other = fitted_palette(iter([-images]), size=3, rounds=10, count=4, seed=1)
    assert other.fingerprint() != palette.fingerprint()
