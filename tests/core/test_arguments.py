"""What Python callers give: it works in the forms that people have, or is refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from smalti.core.arguments import tiles, whole_number
from smalti.core.errors import SmaltiError
from smalti.core.settings import assignment, read_yaml
from smalti.generation.code_sampler import MAX_GUIDANCE, Sampler, filter_logits, make_sampler
from smalti.generation.request import unknown_codes
from smalti.images.io import read_image, to_tensor
from smalti.pipeline import Pipeline
from tests.small_pipeline import pipeline

BYTES = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
FLOATS = to_tensor(BYTES)
"""(2,3,8,12)"""
SAMPLER = Sampler()


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return pipeline()


# --------------------------------------------------------------------------------------------------------- what works


def test_images_in_every_form_become_the_same_codes(pipe: Pipeline) -> None:
    codes = pipe.encode(FLOATS)
    pillow = [Image.fromarray(each) for each in BYTES]
    forms: list[Any] = [FLOATS.double(), torch.from_numpy(BYTES).movedim(-1, 1), pillow, tuple(pillow)]
    for form in forms:
        assert torch.equal(pipe.encode(form), codes)
        assert torch.equal(pipe.tokenizer.encode(form).codes, codes)
        assert torch.equal(pipe.reconstruct(form), pipe.decode(codes))
    assert torch.equal(pipe.encode(pillow[1]), codes[1:])


def test_images_of_pillow_are_read_as_files_are(pipe: Pipeline, tmp_path: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(BYTES[0].transpose(1, 0, 2)).convert("L").save(tmp_path / "turned.png", exif=exif)
    expected = pipe.encode(to_tensor(read_image(tmp_path / "turned.png", channels=3, name="a"))[None])
    with Image.open(tmp_path / "turned.png") as image:
        assert torch.equal(pipe.encode(image), expected)


def test_completion_takes_the_same_forms(pipe: Pipeline) -> None:
    known = torch.zeros(8, 12, dtype=torch.bool)
    known[:4] = True
    expected = pipe.complete(FLOATS, known)
    assert torch.equal(pipe.complete([Image.fromarray(each) for each in BYTES], known), expected)


def test_codes_of_every_type_of_whole_numbers_are_decoded(pipe: Pipeline) -> None:
    codes = pipe.encode(FLOATS)
    expected = pipe.decode(codes)
    for kind in (np.uint8, np.uint16, np.int32):
        assert torch.equal(pipe.decode(codes.numpy().astype(kind)), expected)
    assert torch.equal(pipe.decode(codes.int()), expected)


@pytest.mark.parametrize("size", [8, np.int64(8), (8, 8), [8, 8], torch.tensor(8)])
def test_one_number_is_the_size_of_both_sides(pipe: Pipeline, size: Any) -> None:
    assert pipe.grid(size) == (2, 2)


# ------------------------------------------------------------------------------------------------------ what is refused

NAN, KEPT = torch.full((1, 3, 8, 12), torch.nan), torch.ones(8, 12, dtype=torch.bool)

WRONG_IMAGES: dict[str, tuple[Any, str]] = {
    "none": (FLOATS[:0], "there is no image in a batch of shape"),
    "no list": ([], "not list"),
    "one without a batch": (FLOATS[0], r"of shape \(B, 3, H, W\), got \(3, 8, 12\)"),
    "other channels": (FLOATS[:, :1], r"of shape \(B, 3, H, W\), got \(2, 1, 8, 12\)"),
    "int64": (FLOATS.long(), "these are torch.int64"),
    "bool": (FLOATS > 0, "these are torch.bool"),
    "complex": (FLOATS.to(torch.complex64), "these are torch.complex64"),
    "array": (BYTES, "not ndarray; of an array"),
    "path": ("photo.png", "not str"),
    "levels as floats": ((FLOATS + 1) * 127.5, "these are from 0 to 255; give images / 127.5 - 1"),
    "NaN": (NAN, "NaN or infinite"),
    "infinite": (NAN.nan_to_num(torch.inf) * torch.inf, "NaN or infinite"),
    "unlike sizes": ([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 12))], "have one size, and these have 8x8, 12x8"),
    "floats of Pillow": (Image.new("F", (8, 8)), "32-bit floats, which have no agreed range"),
    "no tiles": (FLOATS[:, :, :7], "cannot be cut into tiles of 4 pixels"),
}


@pytest.mark.parametrize("name", WRONG_IMAGES)
def test_images_that_are_none_are_reported(pipe: Pipeline, name: str) -> None:
    wrong, message = WRONG_IMAGES[name]
    calls: list[Callable[[Any], Any]] = [pipe.tokenizer.encode, pipe.encode, pipe.reconstruct]
    for call in calls:
        with pytest.raises(SmaltiError, match=message):
            call(wrong)
    with pytest.raises(SmaltiError):
        pipe.complete(wrong, KEPT)


WRONG_CODES: dict[str, tuple[Any, str]] = {
    "flat": (torch.zeros(2, 3, dtype=torch.int64), r"codes\[None\] makes a batch of one"),
    "floats": (torch.zeros(1, 2, 3), "not torch.float32; convert them by .long()"),
    "bool": (torch.zeros(1, 2, 3, dtype=torch.bool), "not torch.bool"),
    "none": (torch.zeros(0, 2, 3, dtype=torch.int64), "with one or more of each"),
    "list": ([[[0, 1]]], "not list"),
    "beyond": (torch.full((1, 2, 3), 10**6), "code 1000000 is outside the codebook"),
    "negative": (torch.full((1, 2, 3), -1), "code -1 is outside the codebook"),
}


@pytest.mark.parametrize("name", WRONG_CODES)
def test_codes_that_are_none_are_reported(pipe: Pipeline, name: str) -> None:
    wrong, message = WRONG_CODES[name]
    calls: list[Callable[[Any], Any]] = [
        pipe.tokenizer.decode_codes,
        pipe.decode,
        lambda codes: pipe.nll(codes, values=[None]),
    ]
    for call in calls:
        with pytest.raises(SmaltiError, match=message):
            call(wrong)


@pytest.mark.parametrize(
    "mask", [KEPT.long(), KEPT.byte() * 255, KEPT[:4], [[True]], "mask.png", Image.new("1", (12, 8))]
)
def test_masks_that_are_none_are_reported(pipe: Pipeline, mask: Any) -> None:
    with pytest.raises(SmaltiError, match=r"a mask is True where a pixel is kept|the mask has the shape"):
        pipe.complete(FLOATS, mask)


@pytest.mark.parametrize(
    "size", [0, -8, (8,), (8, 8, 3), "8x8", 8.0, (8.0, 8), True, (8, -8), (0, 8), {}, object(), 10**9, (4, 4 * 10**12)]
)
def test_sizes_that_are_none_are_reported(pipe: Pipeline, size: Any) -> None:
    for call in (lambda: pipe.sample(size=size), lambda: next(pipe.stream(size=size)), lambda: pipe.grid(size)):
        with pytest.raises(SmaltiError, match=r"size|tiles|memory"):
            call()


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", None, True, 10**14])
def test_counts_that_are_none_are_reported(pipe: Pipeline, count: Any) -> None:
    with pytest.raises(SmaltiError, match=r"number|memory"):
        pipe.sample(count)


@pytest.mark.parametrize("seed", [-1, 1.5, "2", None, 2**63, 2**70])
def test_seeds_that_are_none_are_reported(pipe: Pipeline, seed: Any) -> None:
    with pytest.raises(SmaltiError, match="seed"):
        pipe.sample(seed=seed)


@pytest.mark.parametrize("speculate", [-1, 1.5, "2"])
def test_proposals_that_are_none_are_reported(pipe: Pipeline, speculate: Any) -> None:
    with pytest.raises(SmaltiError, match="speculate"):
        pipe.sample(speculate=speculate)


def test_values_of_another_number_than_images_are_reported(pipe: Pipeline) -> None:
    with pytest.raises(SmaltiError, match=r"3 values of the condition and codes of shape \(2, 2, 3\)"):
        pipe.request_for([None] * 3, unknown_codes(2, (2, 3)), sampler=SAMPLER, seeds=torch.arange(2))


def test_whole_numbers() -> None:
    assert [whole_number(value, "n", least=1) for value in (1, np.int16(5), torch.tensor(7))] == [1, 5, 7]
    assert tiles((8, 12), factor=4) == (2, 3)


# ----------------------------------------------------------------------------------------- numbers that are not finite


def spoiled(part: Callable[[Pipeline], nn.Module], value: float) -> Pipeline:
    """A pipeline with one part whose weights are not numbers."""
    pipe = pipeline()
    with torch.no_grad():
        for weight in part(pipe).parameters():
            weight.fill_(value)
    return pipe


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_prior_whose_weights_are_no_numbers_is_reported(value: float) -> None:
    """All its images were laid of code 0."""
    pipe = spoiled(lambda pipe: pipe.prior, value)
    calls: list[Callable[[], Any]] = [
        pipe.sample,
        lambda: pipe.sample(temperature=0.0),
        lambda: pipe.sample(size=(16, 24)),
        lambda: list(pipe.stream()),
        lambda: pipe.sample(speculate=2),
        lambda: pipe.nll(torch.zeros(1, 2, 3, dtype=torch.int64), values=[None]),
    ]
    for call in calls:
        with pytest.raises(SmaltiError, match="the prior gives are not finite"):
            call()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", ["encoder", "quantizer", "decoder"])
def test_a_tokenizer_whose_weights_are_no_numbers_is_reported(part: str, value: float) -> None:
    pipe = spoiled(lambda pipe: getattr(pipe.tokenizer, part), value)
    calls: list[Callable[[], Any]] = [lambda: pipe.reconstruct(FLOATS)]
    if part != "decoder":
        calls += [lambda: pipe.encode(FLOATS), lambda: pipe.tokenizer.encode(FLOATS)]
    if part == "decoder":
        calls += [pipe.sample, lambda: pipe.tokenizer.decode_codes(torch.zeros(1, 2, 3, dtype=torch.int64))]
    for call in calls:
        with pytest.raises(SmaltiError, match="are not finite"):
            call()


# --------------------------------------------------------------------------------------------------------- temperatures


@pytest.mark.parametrize("temperature", [1e-30 / 2, 1e-37, 1e-40, 1e-300])
def test_temperatures_that_carry_logits_beyond_floats_take_the_likeliest_code(
    pipe: Pipeline, temperature: float
) -> None:
    logits = torch.tensor([[-40.0, 30.0, 39.0, 38.0], [0.0, 0.0, 0.0, -1.0]])
    found = filter_logits(logits, temperature=temperature, top_k=3, top_p=0.9, min_p=0.1)
    assert torch.equal(found, filter_logits(logits, temperature=0, top_k=0, top_p=1))
    assert torch.equal(pipe.sample(temperature=temperature), pipe.sample(temperature=0.0))


@pytest.mark.parametrize("guidance", [MAX_GUIDANCE * 2, 1e38, torch.inf, torch.nan])
def test_guidance_beyond_floats_is_refused(guidance: float) -> None:
    with pytest.raises(SmaltiError, match="guidance"):
        make_sampler(guidance=guidance)


@pytest.mark.parametrize("value", ["[" * 3000, "2026-99-99", "{", "'"])
def test_values_that_are_no_yaml_are_reported(value: str, tmp_path: Path) -> None:
    """Deep brackets and dates that there are not ended in a traceback."""
    with pytest.raises(SmaltiError, match="the value is not YAML"):
        assignment(f"a.b={value}")
    (tmp_path / "config.yaml").write_text(value)
    with pytest.raises(SmaltiError, match=r"cannot read .*config\.yaml: "):
        read_yaml(tmp_path / "config.yaml")


def test_unfinished_images_of_one_grid_are_reported() -> None:
    with pytest.raises(SmaltiError, match=r"codes have the shape \(B, h, w\).* codes\[None\] makes a batch of one"):
        pipeline().decode_partial(torch.zeros(16, 16, dtype=torch.int64))
