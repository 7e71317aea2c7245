"""Both stages joined: one seed one image, any size, streams, completion, and pipelines on disk."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smalti.conditions.base import Condition
from smalti.conditions.labels import Unconditional
from smalti.core.errors import SmaltiError
from smalti.core.files import write_json
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import center_on_canvas, unknown_codes
from smalti.pipeline import Pipeline
from smalti.prior import Window
from tests import reference
from tests.small_pipeline import LABELS, noise, pipeline, tokenizer, written


def generate_final(
    pipe: Pipeline,
    *,
    labels: Sequence[str | None] = (None,),
    seed: int = 0,
    size: tuple[int, int] | None = None,
    sampler: Sampler | None = None,
) -> Tensor:
    """The codes behind `Pipeline.sample`."""
    known, seeds = unknown_codes(len(labels), pipe.grid(size)), pipe.seeds(seed, len(labels))
    return final_codes(generate(pipe.prior, pipe.request_for(labels, known, sampler=sampler or Sampler(), seeds=seeds)))


# --- sampling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"guidance": 3.0}, {"temperature": 0.7, "top_k": 9, "top_p": 0.9}])
def test_one_seed_is_one_image(options: dict[str, Any]) -> None:
    pipe, sampler = pipeline(), Sampler(**options)
    together = generate_final(pipe, labels=["dusk"] * 7, seed=5, sampler=sampler)
    images = pipe.sample(7, label="dusk", seed=5, **options)
    assert len({tuple(codes.flatten().tolist()) for codes in together}) == 7
    for place in range(7):
        alone = generate_final(pipe, labels=["dusk"], seed=5 + place, sampler=sampler)
        assert torch.equal(alone[0], together[place])
        image = pipe.sample(1, label="dusk", seed=5 + place, **options)
        torch.testing.assert_close(image[0], images[place], rtol=1e-4, atol=1e-5)


def test_images_are_what_is_promised() -> None:
    pipe = pipeline()
    assert pipe.default_size == (12, 16)
    images = pipe.sample(2)
    assert images.shape == (2, 3, 12, 16)
    assert images.dtype == torch.float32
    assert not images.requires_grad
    assert images.abs().max() <= 1
    assert torch.equal(images, pipe.decode(generate_final(pipe, labels=[None, None])))


@pytest.mark.parametrize("size", [(12, 16), (4, 4), (8, 16), (12, 40), (20, 8), (24, 24)])
def test_sizes(size: tuple[int, int]) -> None:
    pipe = pipeline()
    assert pipe.sample(2, size=size, seed=1).shape == (2, 3, *size)
    codes = generate_final(pipe, labels=["night"], size=size, seed=1)[0]
    known = torch.full((size[0] // 4, size[1] // 4), -1)
    expected = reference.sampled(pipe.prior, torch.tensor([2]), known, sampler=Sampler(), seed=1)
    assert torch.equal(codes, expected)


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ((12, 18), r"12 x 18 \(height x width\) is not made of tiles of 4 pixels; try 12x16"),
        ((3, 7), "try 4x8"),
        ((0, 8), "try 4x8"),
        ((-4, 8), "try 4x8"),
    ],
)
def test_sizes_that_are_no_tiles_raise_errors(size: tuple[int, int], sentence: str) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        pipeline().sample(size=size)


def test_labels_seeds_and_temperature_count() -> None:
    pipe = pipeline()
    different = [generate_final(pipe, labels=[label], seed=seed) for label in (None, "dawn", "dusk") for seed in (0, 1)]
    assert len({tuple(codes.flatten().tolist()) for codes in different}) == 6
    cold = Sampler(temperature=0)
    assert torch.equal(generate_final(pipe, seed=0, sampler=cold), generate_final(pipe, seed=1, sampler=cold))


def test_guidance_0_forgets_the_label() -> None:
    pipe = pipeline()
    assert torch.equal(
        generate_final(pipe, labels=["dusk"], sampler=Sampler(guidance=0)), generate_final(pipe, labels=[None])
    )


def test_labels_may_be_left_open_one_by_one() -> None:
    pipe = pipeline()
    window = Window(0, 0, 3, 4)
    assert pipe.window_prefix([None, "night", None, "dawn"], grid=(3, 4))(window).tolist() == [[3], [2], [3], [0]]
    assert pipe.window_prefix([None, None], grid=(3, 4))(window).tolist() == [[3], [3]]
    mixed = generate_final(pipe, labels=[None, "night"], seed=4)
    assert torch.equal(mixed[0], generate_final(pipe, seed=4)[0])
    assert torch.equal(mixed[1], generate_final(pipe, labels=["night"], seed=5)[0])


def test_unknown_labels_list_those_there_are() -> None:
    with pytest.raises(SmaltiError, match=r"no label 'dawm'; did you mean 'dawn'\? There are: dawn, dusk, night"):
        pipeline().sample(label="dawm")
    with pytest.raises(SmaltiError, match="this model takes no condition, label = 'dusk' was given; leave it out"):
        pipeline(Unconditional()).sample(label="dusk")
    assert pipeline(Unconditional()).sample().shape == (1, 3, 12, 16)


@pytest.mark.parametrize("seed", [-1, 2**63, 10**30])
def test_seeds_that_are_none_raise_errors(seed: int) -> None:
    with pytest.raises(
        SmaltiError, match=rf"the seed {seed} is not from 0 to {2**63 - 2}; choose a smaller one, not neg"
    ):
        pipeline().sample(seed=seed)


def test_the_largest_seed_is_one() -> None:
    assert not torch.equal(generate_final(pipeline(), seed=2**63 - 2), generate_final(pipeline(), seed=2**63 - 3))


@pytest.mark.parametrize(
    ("option", "value"), [("temperature", -1.0), ("temperature", float("nan")), ("top_k", -1), ("top_p", 2.0)]
)
def test_options_of_the_sampler_raise_errors(option: str, value: float) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(SmaltiError, match=rf"sampling: {option} = {value}: input should be"):
        pipeline().sample(**options)
    with pytest.raises(SmaltiError, match=rf"sampling: {option} = {value}: input should be"):
        next(pipeline().stream(**options))


@pytest.mark.parametrize("size", [None, (20, 24)])
def test_a_stream_ends_in_what_is_sampled(size: tuple[int, int] | None) -> None:
    pipe = pipeline()
    codes = generate_final(pipe, labels=["dusk"], seed=3, size=size)
    steps = list(pipe.stream(label="dusk", seed=3, size=size))
    assert len(steps) == codes.shape[1]
    assert torch.equal(steps[-1], pipe.sample(label="dusk", seed=3, size=size)[0])
    for rows, image in enumerate(steps, start=1):
        assert image.shape == steps[-1].shape
        displayed = int((image != 0).any(0).sum()) / 16  # codes, of 4 x 4 pixels each
        assert rows * codes.shape[2] <= displayed < (rows + 1) * codes.shape[2]
        assert size is not None or (image[:, 4 * rows :] == 0).all()


# --- completion and reconstruction ---------------------------------------------------------------------------------


def test_completion_keeps_known_codes_and_generates_the_others() -> None:
    pipe, images = pipeline(), noise(2, 3, 12, 16)
    known = torch.zeros(12, 16, dtype=torch.bool)
    known[:6] = True  # one and a half rows of tiles
    known[8:, 8:] = True
    known[11, 15] = False  # a tile with one pixel missing is laid again
    whole = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0]], dtype=torch.bool)
    given = pipe.encode(images)
    request = pipe.request_for(
        ["dusk", None], pipe.known_codes(images, known), seeds=pipe.seeds(2, 2), sampler=Sampler()
    )
    codes = final_codes(generate(pipe.prior, request))
    assert torch.equal(codes[:, whole], given[:, whole])
    for place, prefix in enumerate((1, 3)):
        start = torch.where(whole, given[place], -1)
        prefixes = torch.tensor([prefix])
        assert torch.equal(
            codes[place], reference.sampled(pipe.prior, prefixes, start, sampler=Sampler(), seed=2 + place)
        )
    completed = pipe.complete(images, known, label="dusk", seed=2, blend=False)
    torch.testing.assert_close(completed[0], pipe.decode(codes)[0], rtol=1e-4, atol=1e-5)
    both = pipe.request(pipe.known_codes(images, known), conditions={"label": "dusk"}, seed=2)
    assert torch.equal(completed, pipe.decode(final_codes(generate(pipe.prior, both))))
    blended = pipe.complete(images, known, label="dusk", seed=2)
    assert torch.equal(blended[:, :, known], images[:, :, known])


def test_an_image_amid_a_larger_grid() -> None:
    codes = torch.arange(6).view(1, 2, 3)
    assert center_on_canvas(codes, (2, 3)).tolist() == codes.tolist()
    assert center_on_canvas(codes, (3, 6)).tolist() == [[[-1, 0, 1, 2, -1, -1], [-1, 3, 4, 5, -1, -1], [-1] * 6]]
    assert center_on_canvas(codes, (4, 5))[0, 1:3, 1:4].tolist() == codes[0].tolist()
    with pytest.raises(SmaltiError, match=r"2 x 3 codes \(height x width\) does not fit on a canvas of 4 x 2"):
        center_on_canvas(codes, (4, 2))


@pytest.mark.parametrize("order", ["raster", "any"])
def test_completion_of_everything_and_of_nothing(order: str) -> None:
    pipe, images = pipeline(order=order), noise(1, 3, 12, 16)
    everything = torch.ones(12, 16, dtype=torch.bool)
    assert torch.equal(pipe.complete(images, everything, seed=2), images)
    assert torch.equal(pipe.complete(images, everything, seed=2, blend=False), pipe.reconstruct(images))
    for blend in (True, False):
        regenerated = pipe.complete(images, ~everything, label="dawn", seed=2, blend=blend)
        assert torch.equal(regenerated, pipe.sample(label="dawn", seed=2))


def test_kept_pixels_are_the_given_ones() -> None:
    pipe, images = pipeline(order="any"), noise(2, 3, 12, 16)
    known = torch.ones(12, 16, dtype=torch.bool)
    known[4:9, 5:12] = False
    completed = pipe.complete(images, known, label="dusk", seed=2)
    assert torch.equal(completed[:, :, known], images[:, :, known])
    assert completed.abs().max() <= 1


def test_with_fill_kept_codes_do_not_depend_on_what_is_erased() -> None:
    pipe, images = pipeline(), noise(2, 3, 12, 16)
    known = torch.ones(12, 16, dtype=torch.bool)
    known[4:8, 4:12] = False
    other = torch.where(known, images, 1.0)
    assert not torch.equal(pipe.encode(images), pipe.encode(other)), "the encoder sees the whole image"
    filled = pipe.known_codes(images, known, fill=True)
    assert torch.equal(filled, pipe.known_codes(other, known, fill=True))
    assert torch.equal(filled < 0, pipe.known_codes(images, known) < 0)
    assert torch.equal(pipe.known_codes(images, known | True, fill=True), pipe.encode(images))
    completed = [pipe.complete(given, known, label="dusk", seed=2, fill=True) for given in (images, other)]
    assert torch.equal(*completed)


def test_masks_and_images_that_do_not_fit_raise_errors() -> None:
    pipe = pipeline()
    for shape in ((12, 12), (12,), (1, 12, 16)):
        sentence = re.escape(f"the mask has the shape {shape}, the image (height, width) (12, 16); give a mask")
        with pytest.raises(SmaltiError, match=sentence):
            pipe.complete(noise(1, 3, 12, 16), torch.ones(shape) > 0)
    with pytest.raises(
        SmaltiError, match=r"12 x 14 \(height x width\) cannot be cut into tiles of 4 pixels; crop it to 12 x 12"
    ):
        pipe.complete(noise(1, 3, 12, 14), torch.ones(12, 14) > 0)
    with pytest.raises(SmaltiError, match=r"takes images of shape \(B, 3, H, W\)"):
        pipe.reconstruct(noise(1, 1, 12, 16))


def test_reconstruction_is_encoding_and_decoding() -> None:
    pipe, images = pipeline(), noise(2, 3, 8, 20)
    assert torch.equal(pipe.reconstruct(images), pipe.tokenizer.decode_codes(pipe.encode(images)).clamp(-1, 1))


# --- on disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [LABELS, Unconditional()], ids=lambda condition: type(condition).__name__)
def test_a_pipeline_comes_back(tmp_path: Path, condition: Condition) -> None:
    before, after = written(tmp_path, condition), Pipeline.from_pretrained(str(tmp_path))
    labels = [None] if isinstance(condition, Unconditional) else ["dusk"]
    assert torch.equal(generate_final(after, labels=labels, seed=9), generate_final(before, labels=labels, seed=9))
    assert torch.equal(after.sample(2, size=(12, 32)), before.sample(2, size=(12, 32)))
    assert after.condition.save(tmp_path) == condition.save(tmp_path)
    assert not after.prior.training
    assert not any(parameter.requires_grad for parameter in after.prior.parameters())
    assert after.to("cpu") is after
    assert after.device == torch.device("cpu")


def test_run_folders_are_pipelines_too(tmp_path: Path) -> None:
    before = written(tmp_path / "models")
    for part in ("tokenizer", "prior"):
        shutil.move(tmp_path / "models" / part, tmp_path / "runs" / part / "model")
    assert torch.equal(Pipeline.from_pretrained(tmp_path / "runs").sample(), before.sample())


def test_a_prior_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    before, other = written(tmp_path), tokenizer(seed=1)
    other.save_pretrained(tmp_path / "tokenizer", about={})
    sentence = f"codes of the tokenizer {before.tokenizer.fingerprint()}, but .*tokenizer is {other.fingerprint()}; "
    with pytest.raises(SmaltiError, match=sentence):
        Pipeline.from_pretrained(tmp_path)


def test_folders_that_are_no_pipeline_raise_errors(tmp_path: Path) -> None:
    with pytest.raises(
        SmaltiError, match=r"there is no folder .*nowhere; it should hold the folders tokenizer and prior"
    ):
        Pipeline.from_pretrained(tmp_path / "nowhere")
    written(tmp_path)
    for part in ("prior", "tokenizer"):
        shutil.move(tmp_path / part, tmp_path / "aside")
        with pytest.raises(
            SmaltiError, match=rf"has no folder {part}; train one with: smalti train {part} \.\.\. --out"
        ):
            Pipeline.from_pretrained(tmp_path)
        (tmp_path / part).mkdir()
        with pytest.raises(SmaltiError, match=rf"{part} is not a model: it has no config\.json"):
            Pipeline.from_pretrained(tmp_path)
        (tmp_path / part).rmdir()
        shutil.move(tmp_path / "aside", tmp_path / part)
    Pipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tokenizer_fingerprint": None}, "holds no tokenizer_fingerprint"),
        ({"network": None}, "holds no network"),
        ({"condition": None}, "holds no condition"),
        (
            {"network": {"name": "lstm"}},
            r"unknown prior 'lstm'; there are: gpt, neighborhood, pixelsnail, transformer",
        ),
        (
            {"network": {"name": "transformer", "codebook_siez": 3}},
            r"unknown key 'codebook_siez'; did you mean 'codebook_size'\?",
        ),
        (
            {"condition": {"name": "depth"}},
            r"unknown condition 'depth'; there are: composite, coordinates, keypoints, labels, ",
        ),
    ],
)
def test_priors_that_cannot_be_built_raise_errors(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    written(tmp_path)
    path = tmp_path / "prior" / "config.json"
    config = json.loads(path.read_text())
    settings = {key: value for key, value in {**config["settings"], **change}.items() if value is not None}
    write_json(path, {**config, "settings": settings})
    with pytest.raises(SmaltiError, match=sentence):
        Pipeline.from_pretrained(tmp_path)


def test_the_five_lines_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand there, but for the model, its label and its size."""
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    lines = readme.split("```python\n")[1].split("```")[0]
    height, width = written(tmp_path / "runs" / "demo").default_size
    lines = lines.replace("from_pretrained()", 'from_pretrained("runs/demo")').replace("winter-dusk", "dusk")
    lines = lines.replace("(64, 128)", f"({height}, {2 * width})")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.py").write_text(lines)
    runpy.run_path("lines.py")
    assert (tmp_path / "wide.png").is_file()


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("network", ".", "network = '.' in the config of .* is no mapping"),
        ("condition", None, "condition = None in the config of .* is no mapping"),
        ("network", {"name": ["gpt"]}, "holds an unknown prior"),
        ("condition", {"name": {}}, "unknown condition {}"),
    ],
)
def test_settings_of_a_wrong_kind_are_a_sentence(tmp_path: Path, key: str, value: object, sentence: str) -> None:
    written(tmp_path)
    path = tmp_path / "prior" / "config.json"
    config = json.loads(path.read_text())
    config["settings"][key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(SmaltiError, match=sentence):
        Pipeline.from_pretrained(tmp_path)
