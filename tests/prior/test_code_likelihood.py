"""How likely a prior finds images with what they are told: codes before which those of a condition stand."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from smalti.conditions.base import Condition
from smalti.conditions.labels import Labels
from smalti.conditions.precomputed import PrecomputedCodes, PrecomputedCodesSettings
from smalti.conditions.spatial import SpatialCondition, SpatialConditionSettings
from smalti.core.errors import SmaltiError
from smalti.core.files import read_json
from smalti.core.settings import parse
from smalti.data.code_shards import CodeShards, open_codes
from smalti.data.sources import open_source
from smalti.encoding.code_writer import ImageSets, Prefix, WritingSettings, write_codes
from smalti.encoding.condition_encoding import tokenizer_encoder
from smalti.evaluation.measures import measure_prior
from smalti.evaluation.results import as_plain, write_result
from smalti.pipeline import Pipeline
from smalti.prior import Transformer, TransformerSettings, nll
from smalti.tokenizer.vqgan import VQGAN
from tests.evaluation.test_measures import CPU, pipeline, priors, tokenizer
from tests.evaluation.test_measures import data_folder as data_folder

SIDE = 16


class Example(NamedTuple):
    """An image, its label, and what is beside it."""

    image: Tensor
    label: Tensor
    conditions: Tensor


class Noise:
    """Images of noise, and codes or images of noise beside them."""

    size = (SIDE, SIDE)

    def __init__(self, count: int, *, conditions: tuple[int, ...], seed: int) -> None:
        chance = torch.Generator().manual_seed(seed)
        self.images = torch.rand(count, 3, SIDE, SIDE, generator=chance) * 2 - 1
        self.conditions = torch.rand(count, *conditions, generator=chance) * 2 - 1

    def __len__(self) -> int:
        return len(self.images)

    def example(self, index: int, draw: int) -> Example:
        return Example(self.images[index], torch.tensor(index % 2), self.conditions[index])

    def described(self) -> dict[str, Any]:
        return {"keys": "noise"}


def given(*, size: int = 5) -> PrecomputedCodes:
    return PrecomputedCodes(PrecomputedCodesSettings(codebook_size=size, length=3))


def maps(seed: int) -> SpatialCondition:
    """Another image, of 16 x 16 pixels, through a tokenizer of its own."""
    model: VQGAN = tokenizer()
    torch.manual_seed(seed)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 0.0, 0.2)
    return SpatialCondition(SpatialConditionSettings(kind="image", key="before", grid=(4, 4)), model)


def prefix_codes(condition: Condition, conditions: Tensor) -> Tensor:
    """What is beside images -> the codes before theirs: those of images (B,3,H,W), or of noise (B,3) from 0 to 4."""
    return condition.encode([*conditions]) if conditions.ndim == 4 else ((conditions + 1) * 2.5).long().clamp(max=4)


def reading(condition: Condition) -> Pipeline:
    """A pipeline whose prior reads all the codes of the condition."""
    pipe = pipeline(Labels(("a", "b")))
    plain = {
        "codebook_size": 16,
        "condition_size": condition.size,
        "prefix_length": condition.length,
        "grid": (4, 4),
        "layers": 1,
    }
    prior = Transformer(parse(TransformerSettings, {**plain, "embed_dim": 16, "heads": 2}, where="test"))
    for weight in prior.parameters():
        torch.nn.init.normal_(weight, 0.0, 0.3)
    return Pipeline(pipe.tokenizer, prior, condition)


def shards(folder: Path, condition: Condition | None) -> tuple[CodeShards, Noise]:
    """Codes of three images for training and five held out, and the latter."""
    conditions = (3, SIDE, SIDE) if isinstance(condition, SpatialCondition) else (3,)
    parts, model = [Noise(count, conditions=conditions, seed=count) for count in (3, 5)], tokenizer()
    prefix = None if condition is None else Prefix(condition, "somebody", partial(prefix_codes, condition))
    write_codes(
        folder,
        ImageSets(training=parts[0], validation=parts[1], labels=("a", "b"), prefix=prefix),
        encoder=tokenizer_encoder(model, lambda images: images),
        settings=WritingSettings(batch=4),
        progress=lambda done, total: None,
    )
    return open_codes(folder), parts[1]


@pytest.mark.parametrize("condition", [given(), maps(1)], ids=["given", "maps"])
def test_codes_are_measured_with_what_stands_before_them(
    condition: PrecomputedCodes | SpatialCondition, tmp_path: Path
) -> None:
    kept, held_out = shards(tmp_path / "codes", condition)
    pipe = reading(condition)
    found = measure_prior(pipe, kept, protocol=priors("images.count=4"), device=CPU, batch=3)
    some = [0, 1, 2, 3]  # 5 images, 4 of them evenly spread
    with torch.no_grad():
        prefix, codes = (
            prefix_codes(condition, held_out.conditions[some]),
            pipe.tokenizer.encode(held_out.images[some]).codes,
        )
        expected = nll(pipe.prior, prefix, codes).mean((1, 2))
        others = nll(pipe.prior, prefix.roll(1, 0), codes).mean((1, 2))
    torch.testing.assert_close(found.values["nats_per_code"], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(others, expected, atol=1e-4), "what is told counts"
    bits = expected / math.log(2) / 16  # 16 codes, 256 pixels
    torch.testing.assert_close(found.values["bits_per_pixel"], bits, rtol=1e-4, atol=1e-6)
    assert found.scores["bits_per_pixel"] == pytest.approx(float(bits.mean()), rel=1e-4)
    write_result(tmp_path / "out", as_plain(found, command="", model={}), found)
    lines = (tmp_path / "out" / "images.csv").read_text("utf-8").splitlines()
    assert lines[0] == "image,nats_per_code,bits_per_pixel"
    name, first, second = lines[1].split(",")
    assert name == "held-out image 0"
    assert float(first) == pytest.approx(float(expected[0]), rel=1e-4)
    assert float(second) == pytest.approx(float(bits[0]), rel=1e-4)
    assert read_json(tmp_path / "out" / "result.json")["scores"]["nats_per_code"] == pytest.approx(
        float(expected.mean())
    )


def test_labels_nearby_codes_count_where_a_condition_stands_before_them(tmp_path: Path) -> None:
    """A prior of labels is measured on codes that were made for another: it does not read what stands before them."""
    kept, held_out = shards(tmp_path / "codes", given())
    pipe = pipeline(Labels(("a", "b")))
    found = measure_prior(pipe, kept, protocol=priors(), device=CPU)
    with torch.no_grad():
        codes = pipe.tokenizer.encode(held_out.images).codes
        expected = nll(pipe.prior, torch.tensor([[0], [1], [0], [1], [0]]), codes)
    torch.testing.assert_close(found.values["nats_per_code"], expected.mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_codes_of_another_condition_are_refused(tmp_path: Path, data_folder: Path) -> None:
    for place, (made, read, sentence) in enumerate(
        (
            (
                None,
                given(),
                r"have no condition codes, and this prior is conditioned on a codes;"
                r" encode .* smalti encode --condition",
            ),
            (
                given(),
                given(size=6),
                "have those of another condition; encode the images with a",
            ),
            (maps(1), maps(2), "have those of another condition"),
            (given(), maps(1), "have those of another condition"),
        )
    ):
        kept, _ = shards(tmp_path / f"{place}", made)
        with pytest.raises(SmaltiError, match=sentence):
            measure_prior(pipeline(read), kept, protocol=priors(), device=CPU)
    with pytest.raises(SmaltiError, match=r"conditioned on a before, .* smalti encode --condition, and give the codes"):
        measure_prior(pipeline(maps(1)), open_source(data_folder), protocol=priors(), device=CPU)
