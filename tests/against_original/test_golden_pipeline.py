"""Both stages of the original in one checkpoint, read by our border and run through our pipeline: codes,
conditions, images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from smalti.checkpoints.taming import read_net2net
from smalti.checkpoints.taming_parts import ORDERS, Part
from smalti.conditions.base import code_crops
from smalti.conditions.coordinates import Coordinates
from smalti.conditions.layout import Layout
from smalti.conditions.layout_codes import Annotation, LayoutSettings
from smalti.conditions.location_codes import Box
from smalti.conditions.spatial import SpatialCondition
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.pipeline import Pipeline
from smalti.prior import ORDERS as ORDERS_HERE
from smalti.prior import nll
from smalti.prior.gpt import GPT
from tests.golden import Golden, fixtures, known_codes, prefix_of

pytestmark = pytest.mark.golden


def pipeline_of(golden: Golden, *, grid: tuple[int, int] | None = None, **changed: Any) -> Pipeline:
    """The models of a fixture with some of its settings changed; `grid`: the window, where it is not all of the
    image."""
    part = Part("taming.models.cond_transformer.Net2NetTransformer", {**golden.facts["params"], **changed})
    rows, columns = grid or golden.facts["latent_grid"]
    imported = read_net2net(part, golden.weights(), data={}, where=golden.path.name, grid=(rows, columns))
    assert imported.tokenizer is not None
    assert imported.prior is not None
    assert imported.condition is not None
    return Pipeline(imported.tokenizer, imported.prior, imported.condition)


@pytest.mark.parametrize(
    "path", [*fixtures("09a"), *fixtures("09b"), *fixtures("09c"), *fixtures("09d"), *fixtures("09e")]
)
def test_from_images_to_logits_and_back(path: Path) -> None:
    golden = Golden.read(path)
    pipeline = pipeline_of(golden)
    assert list(pipeline.prior.grid) == golden.facts["latent_grid"]
    images = golden["in.x"].float()
    quantized = pipeline.tokenizer.encode(images)
    golden.check("out.z_indices", quantized.codes.flatten(1))
    golden.check("out.quant_z", quantized.latents)
    golden.check("out.decoded", pipeline.tokenizer.decode_codes(quantized.codes))
    prefix = prefix_of(pipeline, golden.tensors.get("in.c", images), len(images))
    golden.check("out.c_indices", prefix)
    prior = pipeline.prior
    logits = prior(prior.join(prefix, quantized.codes.flatten(1)[:, :-1]))[:, prefix.shape[1] - 1 :]
    golden.check("out.logits", logits)
    golden.check("out.loss", nll(prior, prefix, quantized.codes).mean())
    condition = pipeline.condition
    if isinstance(condition, SpatialCondition):
        decoded = condition.tokenizer.decode_codes(prefix.view(-1, *condition.settings.grid))
        golden.check("out.cond_decoded", decoded)
    if isinstance(condition, Coordinates):
        codes = prefix.view(-1, *condition.settings.grid)
        golden.check(
            "out.coord_quant",
            codes.unsqueeze(1).float() / condition.settings.levels if _scaled(golden) else codes.unsqueeze(1).float(),
        )
        golden.check("out.coord_decoded", condition.decode(codes))


def _scaled(golden: Golden) -> bool:
    return float(golden["out.coord_quant"].max()) <= 1


@pytest.mark.parametrize("path", fixtures("09a"))
def test_permuters(path: Path) -> None:
    golden = Golden.read(path)
    names = sorted({key.split(".")[2] for key in golden.tensors if key.startswith("out.perm.")})
    assert names
    rows, columns = golden.facts["latent_grid"]
    for name in names:
        target = f"taming.modules.transformer.permuter.{name}"
        shape = {} if name == "Identity" else {"H": rows, "W": columns}
        pipeline = pipeline_of(golden, permuter_config={"target": target, "params": shape})
        prior = pipeline.prior
        assert isinstance(prior, GPT)
        assert prior.order == ORDERS[target]
        codes = golden["out.z_indices"].long()
        order = ORDERS_HERE[prior.order](rows, columns)
        golden.check(f"out.perm.{name}.target", codes[:, order])
        sequence = prior.join(prior.null_prefix(len(codes)), codes[:, order][:, :-1])
        golden.check(f"out.perm.{name}.logits", prior(sequence))
        grid = torch.empty_like(codes).scatter_(1, order.expand_as(codes), codes[:, order]).view(-1, rows, columns)
        golden.check(f"out.perm.{name}.decoded", pipeline.tokenizer.decode_codes(grid))


@pytest.mark.parametrize("path", fixtures("09b"))
def test_cached_greedy_samples(path: Path) -> None:
    golden = Golden.read(path)
    pipeline = pipeline_of(golden)
    labels = [str(label) for label in golden.facts["swp_classes"]]
    known, seeds = unknown_codes(len(labels), pipeline.prior.grid), torch.arange(len(labels))
    generated = final_codes(
        generate(pipeline.prior, pipeline.request_for(labels, known, sampler=Sampler(temperature=0.0), seeds=seeds))
    )
    golden.check("out.swp.tokens", generated.flatten(1))
    golden.check("out.swp.decoded", pipeline.tokenizer.decode_codes(generated))


@pytest.mark.parametrize("path", fixtures("11_sliding"))
def test_sliding_windows_with_the_whole_model(path: Path) -> None:
    golden = Golden.read(path)
    if "out.image" not in golden:
        pytest.skip("this case keeps the transformer's weights alone; see test_golden_prior.py")
    pipeline = pipeline_of(golden, grid=(golden.facts["window"],) * 2)
    assert pipeline.prior.grid == (golden.facts["window"],) * 2
    images, given = golden["in.x"].float(), golden["in.c"].float()
    golden.check("in.z_indices", pipeline.encode(images).flatten(1))
    condition = pipeline.condition
    rows, columns = golden.facts["latent_grid"]
    if isinstance(condition, Coordinates):
        codes = condition.codes(given)
    else:
        assert isinstance(condition, SpatialCondition)
        segmentation = condition.settings.kind == "segmentation"
        codes = condition.codes(list(given.argmax(1)) if segmentation else list(given), grid=(rows, columns))
    golden.check("in.c_indices", codes.flatten(1))
    known = known_codes(golden)
    seeds = torch.zeros(1, dtype=torch.int64)
    generated = final_codes(
        generate(
            pipeline.prior,
            GenerationRequest(code_crops(codes), sampler=Sampler(temperature=0.0), seeds=seeds, known=known),
        )
    )
    golden.check("out.grid", generated)
    golden.check("out.image", pipeline.tokenizer.decode_codes(generated))


@pytest.mark.parametrize("path", fixtures("11_scene"))
def test_layouts_larger_than_the_window(path: Path) -> None:
    golden = Golden.read(path)
    facts = golden.facts
    builder = facts["builder_config"]
    settings = LayoutSettings(
        classes=tuple(f"class {number}" for number in range(builder["no_object_classes"])),
        max_objects=builder["no_max_objects"],
        codebook_size=builder["no_tokens"],
        geometry="boxes" if "Bounding" in facts["builder"] else "centers",
        encode_crop=builder["encode_crop"],
        group=builder["use_group_parameter"],
        flags=builder["use_additional_parameters"],
    )
    pipeline = pipeline_of(golden, grid=(golden.facts["window"],) * 2)
    assert pipeline.condition.length == settings.length
    layout = [Annotation(one["category_no"], Box(*one["bbox"])) for one in facts["annotations"]]
    scene = Pipeline(pipeline.tokenizer, pipeline.prior, Layout(settings))
    known = unknown_codes(1, (facts["latent_grid"][0], facts["latent_grid"][1]))
    generated = final_codes(
        generate(
            scene.prior,
            scene.request_for(
                [layout], known, sampler=Sampler(temperature=0.0), seeds=torch.zeros(1, dtype=torch.int64)
            ),
        )
    )
    golden.check("out.grid", generated)
    golden.check("out.image", scene.tokenizer.decode_codes(generated))
