"""The original's layout: written and read again for every kind of model, and every way in which a file can be wrong."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from smalti.checkpoints import taming_writing
from smalti.checkpoints.formats import FORMATS, read_foreign
from smalti.checkpoints.pickles import read_tensors
from smalti.checkpoints.taming_parts import ORDERS, TOKENIZERS, tokenizer_names
from smalti.conditions.base import Condition
from smalti.conditions.coordinates import Coordinates, CoordinatesSettings
from smalti.conditions.labels import Labels, Unconditional
from smalti.conditions.precomputed import PrecomputedCodes, PrecomputedCodesSettings
from smalti.conditions.spatial import SpatialCondition, SpatialConditionSettings
from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import unknown_codes
from smalti.model_loading import load_tokenizer, read_models, save_models
from smalti.pipeline import Pipeline
from smalti.prior.gpt import GPT, GPTSettings
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings

REFERENCE = {"l2_normalize": False, "beta_on": "codebook", "kmeans_iterations": 0, "dead_code_threshold": 0.0}


def tokenizer(*, channels: int = 3, quantizer: dict[str, Any] | None = None, **autoencoder: Any) -> VQGAN:
    """A small random tokenizer of the original's kind, f = 2, 24 codes."""
    shape = {
        "base_channels": 32,
        "channel_multipliers": [1, 1],
        "res_blocks": 1,
        "latent_channels": 6,
        "zero_residuals": False,
    }
    plain = {
        "autoencoder": {**shape, "channels": channels, **autoencoder},
        "quantizer": {"codebook_size": 24, "codebook_dim": 6, **REFERENCE} if quantizer is None else quantizer,
    }
    torch.manual_seed(channels)
    return VQGAN(parse(VQGANSettings, plain, where="test")).eval().requires_grad_(False)


def gpt(condition: Condition, **changed: Any) -> GPT:
    """A small random GPT with a window of 4 x 4, and large weights, so that all that it reads shows in its codes."""
    count = condition.length + 16
    options = {
        "vocab_size": 32,
        "codebook_size": 24,
        "prefix_length": condition.length,
        "grid": (4, 4),
        "block_size": count,
        **changed,
    }
    torch.manual_seed(1)
    made = GPT(parse(GPTSettings, {**options, "layers": 1, "embed_dim": 16, "heads": 2}, where="test"))
    with torch.no_grad():
        for weight in made.parameters():
            weight.normal_(0, 0.4)
    return made.eval().requires_grad_(False)


def written(
    folder: Path, made: VQGAN, prior: GPT | None = None, condition: Condition | None = None, **about: Any
) -> Path:
    taming_writing.write(made, prior, condition, folder, about={"size": [8, 8], **about})
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((folder / "configs" / "smalti-project.yaml").read_text("utf-8"))
    return values


def changed(folder: Path, config: dict[str, Any] | None = None, **weights: Tensor | None) -> Path:
    """The run folder with other settings, and weights added, exchanged or (None) taken away; `__` stands for a dot."""
    if config is not None:
        (folder / "configs" / "smalti-project.yaml").write_text(yaml.safe_dump(config), "utf-8")
    path = folder / "checkpoints" / "last.ckpt"
    state = read_tensors(path)
    for name, tensor in weights.items():
        key = name.replace("__", ".")
        state.pop(key, None)
        if tensor is not None:
            state[key] = tensor
    torch.save({"state_dict": state}, path)
    return folder


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[key], theirs[key]) for key in mine if key != "quantizer.use"
    )


# --- there and back ------------------------------------------------------------------------------------------------

TOKENIZERS_HERE: dict[str, dict[str, Any]] = {
    "paper": {},
    "attention": {"channel_multipliers": [1, 2], "attention_levels": [0, 1], "res_blocks": 2},
    "plain resampling": {"convolutional_resampling": False},
    "no attention": {"middle_attention": False},
    "depth": {"channels": 1},
    "labels": {"channels": 7},
    "gumbel": {
        "quantizer": {
            "name": "gumbel",
            "codebook_size": 24,
            "codebook_dim": 6,
            "kl_weight": 1e-8,
            "noisy": True,
            "kmeans_iterations": 0,
        }
    },
    "used codes": {
        "quantizer": {"codebook_size": 24, "codebook_dim": 6, "remap": {"used": 9, "unknown": "extra"}, **REFERENCE}
    },
}


@pytest.mark.parametrize("kind", TOKENIZERS_HERE)
def test_tokenizers_go_round(tmp_path: Path, kind: str) -> None:
    made = tokenizer(**TOKENIZERS_HERE[kind])
    again = read_foreign(written(tmp_path / "run", made))
    assert again.format == "taming"
    assert again.prior is None
    assert again.tokenizer is not None
    assert again.tokenizer.settings == made.settings
    assert same(again.tokenizer, made)
    assert again.about["size"] == [8, 8]
    assert not again.tokenizer.training


def test_label_maps_keep_their_class(tmp_path: Path) -> None:
    target = "taming.models.vqgan.VQSegmentationModel"
    run = written(tmp_path / "run", tokenizer(channels=7), imported_from=target)
    assert config_of(run)["model"]["target"] == target
    assert read_tensors(run / "checkpoints" / "last.ckpt")["colorize"].shape == (3, 7, 1, 1)
    assert read_foreign(run).about["imported_from"] == target


def conditions() -> dict[str, Condition]:
    grid = (4, 4)
    maps = parse(SpatialConditionSettings, {"kind": "segmentation", "key": "segmentation", "grid": grid}, where="test")
    depth = parse(SpatialConditionSettings, {"kind": "depth", "key": "depth", "grid": grid}, where="test")
    coordinates = CoordinatesSettings(levels=30, codebook_size=31, factor=2, grid=grid)
    return {
        "nothing": Unconditional(),
        "labels": Labels(["0", "1", "2"]),
        "coordinates": Coordinates(coordinates),
        "segmentation": SpatialCondition(maps, tokenizer(channels=5)),
        "depth": SpatialCondition(depth, tokenizer(channels=1)),
        "given": PrecomputedCodes(PrecomputedCodesSettings(key="objects_bbox", codebook_size=32, length=11)),
    }


@pytest.mark.parametrize("kind", conditions())
def test_pipelines_go_round(tmp_path: Path, kind: str) -> None:
    condition = conditions()[kind]
    made, prior = tokenizer(), gpt(condition, start_code=5 if kind == "nothing" else None)
    again = read_foreign(written(tmp_path / "run", made, prior, condition))
    assert isinstance(again.prior, GPT)
    assert again.tokenizer is not None
    assert again.prior.settings == prior.settings
    assert same(again.prior, prior)
    assert same(again.tokenizer, made)
    assert again.condition is not None
    assert again.condition.save(tmp_path / "a") == condition.save(tmp_path / "b")
    if isinstance(condition, SpatialCondition) and isinstance(again.condition, SpatialCondition):
        assert same(condition.tokenizer, again.condition.tokenizer)


@pytest.mark.parametrize("order", sorted(set(ORDERS.values())))
def test_code_orders_go_round(tmp_path: Path, order: str) -> None:
    prior = gpt(Unconditional(), start_code=0, order=order)
    run = written(tmp_path / "run", tokenizer(), prior, Unconditional())
    again = read_foreign(run).prior
    assert isinstance(again, GPT)
    assert again.settings == prior.settings
    if order != "raster":
        wrong = read_tensors(run / "checkpoints" / "last.ckpt")["permuter.forward_shuffle_idx"].flip(0)
        changed(run, permuter__forward_shuffle_idx=wrong)
        with pytest.raises(SmaltiError, match="the indices of its permuter are not those of"):
            read_foreign(run)


def test_from_theirs_to_ours_and_back(tmp_path: Path) -> None:
    """Through our own format nothing is lost: codes, samples, and the file of the original."""
    condition = conditions()["segmentation"]
    run = written(tmp_path / "run", tokenizer(), gpt(condition), condition)
    save_models(read_models(run), tmp_path / "ours")
    ours = read_models(tmp_path / "ours")
    assert ours.format == "smalti"
    FORMATS["taming"].write(ours.tokenizer, ours.prior, ours.condition, tmp_path / "back", about=ours.about)
    before, after = (read_tensors(folder / "checkpoints" / "last.ckpt") for folder in (run, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert config_of(run) == config_of(tmp_path / "back")
    maps = torch.arange(64).view(8, 8) % 5
    images = [
        Pipeline.from_pretrained(folder).sample(2, segmentation=maps, seed=3) for folder in (run, tmp_path / "ours")
    ]
    assert torch.equal(*images)


def test_the_first_stage_as_condition(tmp_path: Path) -> None:
    """`__is_first_stage__`: the tokenizer of the images is that of the condition too, and its weights are there
    twice."""
    settings = parse(SpatialConditionSettings, {"kind": "image", "key": "image", "grid": (4, 4)}, where="test")
    condition = SpatialCondition(settings, tokenizer())
    run = written(tmp_path / "run", tokenizer(), gpt(condition), condition)
    config = config_of(run)
    config["model"]["params"]["cond_stage_config"] = "__is_first_stage__"
    again = read_foreign(changed(run, config))
    assert isinstance(again.condition, SpatialCondition)
    assert again.tokenizer is not None
    assert same(again.condition.tokenizer, again.tokenizer)


@pytest.mark.parametrize(
    ("target", "classes"), [("coco.AnnotatedObjectsCoco", 171), ("open_images.AnnotatedObjectsOpenImages", 340)]
)
def test_layouts_are_read_from_the_data_section(tmp_path: Path, target: str, classes: int) -> None:
    condition = PrecomputedCodes(PrecomputedCodesSettings(key="objects_bbox", codebook_size=4096, length=3 * 3 + 2))
    run = written(tmp_path / "run", tokenizer(), gpt(condition, vocab_size=4096), condition)
    config = config_of(run)
    options = {"no_tokens": 4096, "max_objects_per_image": 3, "encode_crop": True, "use_group_parameter": True}
    config["data"] = {"params": {"train": {"target": f"taming.data.annotated_objects_{target}", "params": options}}}
    layout = read_foreign(changed(run, config)).condition
    assert layout is not None
    assert (layout.key, layout.length, layout.size) == ("layout", 11, 4096)
    assert len(layout.save(tmp_path)["classes"]) == classes


# --- what is in real files -------------------------------------------------------------------------------------


def test_what_is_no_part_of_a_model_is_passed_over(tmp_path: Path) -> None:
    run = written(tmp_path / "run", tokenizer())
    extra = {
        "loss__perceptual_loss__lin0__model__1__weight": torch.ones(1),
        "loss__discriminator__main__0__weight": torch.ones(1),
        "colorize": torch.ones(3, 3, 1, 1),
        "model_ema__encoderconv_inweight": torch.ones(1),
        "quantize__embedding__cluster_size": torch.ones(24),
        "quantize__embedding__embed_avg": torch.ones(24, 6),
    }
    assert read_foreign(changed(run, None, **extra)).tokenizer is not None


@pytest.mark.parametrize("target", [name for name in TOKENIZERS if "Gumbel" not in name])
def test_each_class_of_first_stages_is_known(tmp_path: Path, target: str) -> None:
    run = written(tmp_path / "run", tokenizer())
    config = config_of(run)
    config["model"]["target"] = target
    again = read_foreign(changed(run, config))
    assert again.tokenizer is not None
    assert again.about["imported_from"] == target


def test_settings_are_merged_over_one_another(tmp_path: Path) -> None:
    run = written(tmp_path / "run", tokenizer())
    configs = run / "configs"
    config = config_of(run)
    config["model"]["params"]["n_embed"] = 12
    (configs / "2020-project.yaml").write_text(yaml.safe_dump(config), "utf-8")
    (configs / "smalti-lightning.yaml").write_text("lightning: {trainer: {gpus: 0}}", "utf-8")
    tokenizer_again = read_foreign(run).tokenizer  # "2020" comes before "smalti", which says 24
    assert tokenizer_again is not None
    assert tokenizer_again.size == 24


@pytest.mark.parametrize("place", ["beside", "above", "flat"])
def test_published_checkpoints_lie_in_many_ways(tmp_path: Path, place: str) -> None:
    run = written(tmp_path / "run", tokenizer())
    if place == "above":  # logs/run/checkpoints/last.ckpt, given by the file
        path = run / "checkpoints" / "last.ckpt"
    else:
        (tmp_path / "flat").mkdir()
        shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "flat" / "model.ckpt")
        shutil.copy(run / "configs" / "smalti-project.yaml", tmp_path / "flat" / "model.yaml")
        path = tmp_path / "flat" / "model.ckpt" if place == "beside" else tmp_path / "flat"
    assert read_foreign(path).tokenizer is not None


def test_sampling_a_run_folder_of_theirs(tmp_path: Path) -> None:
    """A code above the codebook, which the shared vocabulary has, is never laid."""
    run = written(tmp_path / "run", tokenizer(), gpt(Labels(["0", "1"])), Labels(["0", "1"]))
    pipe = Pipeline.from_pretrained(run)
    codes = final_codes(
        generate(
            pipe.prior, pipe.request_for(["1"] * 4, unknown_codes(4, (4, 4)), sampler=Sampler(), seeds=torch.arange(4))
        )
    )
    assert codes.max() < 24
    assert len(set(codes.flatten().tolist())) > 8
    assert pipe.sample(2, label="0").shape == (2, 3, 8, 8)
    with pytest.raises(SmaltiError, match="was not trained unconditionally"):
        pipe.sample(1)
    with pytest.raises(SmaltiError, match=r"this model takes 'label', segmentation = tensor.* was given; leave it out"):
        pipe.sample(1, segmentation=torch.zeros(8, 8))


def test_their_tokenizers_serve_our_commands(tmp_path: Path) -> None:
    """What takes a tokenizer takes a checkpoint of theirs as it is."""
    made = tokenizer()
    run = written(tmp_path / "run", made)
    made.save_pretrained(tmp_path / "ours", about={})
    for path in (run, run / "checkpoints" / "last.ckpt", tmp_path / "ours"):
        assert load_tokenizer(path).fingerprint() == made.fingerprint()
    with pytest.raises(SmaltiError, match="there is no model folder"):
        load_tokenizer(tmp_path / "nowhere")


def test_the_papers_tokenizer_has_the_originals_names() -> None:
    """29,298,176 and 42,449,795 weights in the two halves, and 343 names."""
    paper = {
        "base_channels": 128,
        "channel_multipliers": [1, 1, 2, 2, 4],
        "res_blocks": 2,
        "attention_levels": [4],
        "latent_channels": 256,
    }
    plain = {
        "autoencoder": {**paper, "zero_residuals": False},
        "quantizer": {"codebook_size": 1024, "codebook_dim": 256, **REFERENCE},
    }
    with torch.device("meta"):
        made = VQGAN(parse(VQGANSettings, plain, where="test"))
    halves = [sum(weight.numel() for weight in half.parameters()) for half in (made.encoder, made.decoder)]
    assert halves == [29_298_176, 42_449_795]
    names = [theirs for theirs, _ in tokenizer_names(made).pairs.values()]
    assert len(names) == 343
    assert {"encoder.down.2.block.0.nin_shortcut.weight", "decoder.up.4.attn.2.proj_out.bias"} < set(names)
