"""The reference training mode: the original's turns against a slow copy of them, and the settings that make it up."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning_fabric import Fabric
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from smalti.core.errors import SmaltiError
from smalti.core.settings import as_mapping, parse
from smalti.data.sources import open_source
from smalti.data.splits import split_crops
from smalti.losses.objective import AdversarialSettings
from smalti.prior import nll
from smalti.tokenizer.quantizers import VQ, VQSettings
from smalti.training.config import OptimizerSettings, PriorTraining, TokenizerTraining, resolve
from smalti.training.gan_step import AdversarialSchedule
from smalti.training.optimizer import Average, Latest, exported, rate_at
from smalti.training.optimizer_step import apply_gradients, clip_gradients
from smalti.training.prior_networks import CodesRead, GPTNetwork, TransformerNetwork, build_network
from smalti.training.runs import codes_of, train_prior, train_tokenizer
from smalti.training.stage1 import TokenizerStage, adversarial_schedule
from smalti.training.stage2 import corrupt_codes
from tests.small import RECIPE, write_images

QUIET = Console(quiet=True)
CONSTANT: dict[str, Any] = {"weight_decay": 0.0, "warmup": 0.0, "final_lr": 1.0, "grad_clip": 0.0}
REFERENCE_VQ = {
    "codebook_size": 16,
    "codebook_dim": 8,
    "l2_normalize": False,
    "beta_on": "codebook",
    "kmeans_iterations": 0,
    "dead_code_threshold": 0.0,
}


# --- when -----------------------------------------------------------------------------------------------------------


def test_a_start_in_images_is_the_start_in_batches_times_the_batch() -> None:
    """250001 batches of 12 in the original: batch number 250001, counted from 0, is the first that counts."""
    settings = AdversarialSettings(start=250001 * 12, ramp=0.0, discriminator_from_start=False)
    for batch, expected in ((0, 0.0), (250000, 0.0), (250001, 1.0), (400000, 1.0)):
        assert adversarial_schedule(batch * 12, length=12_000_000, settings=settings) == AdversarialSchedule(
            expected, expected
        )


def test_shares_and_images_say_the_same() -> None:
    shares, images = AdversarialSettings(start=0.25, ramp=0.5), AdversarialSettings(start=100, ramp=200)
    found = [adversarial_schedule(seen, length=400, settings=shares) for seen in range(0, 401, 20)]
    assert found == [adversarial_schedule(seen, length=400, settings=images) for seen in range(0, 401, 20)]
    assert [each.generator for each in found[::5]] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert {each.discriminator for each in found} == {1.0}  # early is the default


def test_a_constant_rate() -> None:
    options = OptimizerSettings(lr=5.4e-5, **CONSTANT)
    assert {rate_at(seen, length=100, settings=options) for seen in range(0, 201, 10)} == {5.4e-5}


def fabric_of(module: nn.Module) -> tuple[Fabric, Any, Any]:
    fabric = Fabric(accelerator="cpu")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    return (fabric, *fabric.setup(module, optimizer))


@pytest.mark.parametrize(("grad_clip", "moved"), [(0.0, 3.0), (5.0, 3.0), (1.0, 1.0)])
def test_clipping_and_none(grad_clip: float, moved: float) -> None:
    """The norm before clipping is returned; one weight with the gradient 3 moves by the rate times what is left of
    it."""
    module = nn.Linear(1, 1, bias=False)
    fabric, wrapped, optimizer = fabric_of(module)
    before = module.weight.item()
    fabric.backward(3 * wrapped(torch.ones(1, 1)).sum())
    assert float(clip_gradients(fabric, wrapped, optimizer, grad_clip)) == pytest.approx(3.0)
    apply_gradients(optimizer, lr=0.5)
    assert before - module.weight.item() == pytest.approx(0.5 * moved, rel=1e-5)


@pytest.mark.parametrize("grad_clip", [0.0, 1.0])
def test_the_norm_of_gradients_that_are_not_finite_is_not_finite(grad_clip: float) -> None:
    module = nn.Linear(1, 1, bias=False)
    fabric, wrapped, optimizer = fabric_of(module)
    fabric.backward(wrapped(torch.full((1, 1), torch.inf)).sum())
    assert not clip_gradients(fabric, wrapped, optimizer, grad_clip).isfinite()


# --- what is exported -----------------------------------------------------------------------------------------------


def test_without_an_average_the_weights_themselves_are_exported() -> None:
    module = nn.Dropout(0.5)
    kept = exported(module, half_life=0.0)
    assert isinstance(kept, Latest)
    kept.update(module, seen=0, step=1)
    with kept.shown() as shown:
        assert shown is module
        assert not module.training
    assert next(module.modules()).training


def test_an_average_is_another_module() -> None:
    module = nn.Dropout(0.5)
    kept = exported(module, half_life=0.1)
    assert isinstance(kept, Average)
    with kept.shown() as shown:
        assert shown is not module
        assert not shown.training
        assert module.training


REFERENCE_TRAINING: dict[str, Any] = {
    "run": {
        "ema_half_life": 0.0,
        "images": 24,
        "log_every": 4,
        "validate_every": 8,
        "sample_every": 8,
        "checkpoint_every": 12,
    },
    "model": {"quantizer": REFERENCE_VQ},
    "objective": {
        "adversarial": {
            "start": 8,
            "ramp": 0.0,
            "discriminator_from_start": False,
            "updates": "alternating",
            "lecam": 0.0,
            "discriminator": {"norm": "batch"},
        }
    },
    "optimizer": CONSTANT,
    "discriminator_optimizer": {**CONSTANT, "betas": [0.5, 0.9]},
    "quantize_from": 0.0,
}


def write_reference(path: Path) -> Path:
    """The small recipe in the reference mode."""
    recipe = copy.deepcopy(RECIPE)

    def generate_codes(values: dict[str, Any], changes: dict[str, Any]) -> None:
        for key, change in changes.items():
            if isinstance(change, dict) and isinstance(values.get(key), dict):
                generate_codes(values[key], change)
            else:
                values[key] = change

    generate_codes(recipe["tokenizer"], copy.deepcopy(REFERENCE_TRAINING))
    recipe["prior"]["network"] = {"name": "gpt", "layers": 1, "embed_dim": 16, "heads": 2, "residual_dropout": 0.1}
    generate_codes(
        recipe["prior"],
        {"run": {"ema_half_life": 0.0}, "condition_dropout": 0.0, "keep_probability": 0.8, "optimizer": CONSTANT},
    )
    path.write_text(yaml.safe_dump(recipe))
    return path


def settings_of(folder: Path, *overrides: str) -> TokenizerTraining:
    return resolve(TokenizerTraining, stage="tokenizer", recipe=str(folder / "reference.yaml"), overrides=overrides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a recipe, and an uninterrupted run of both stages."""
    path = tmp_path_factory.mktemp("reference")
    write_images(path / "images")
    write_reference(path / "reference.yaml")
    train_tokenizer(path / "images", path / "tokenizer", settings=settings_of(path), console=QUIET)
    train(path, "prior")
    return path


def train(folder: Path, out: str, *overrides: str) -> None:
    settings = resolve(PriorTraining, stage="prior", recipe=str(folder / "reference.yaml"), overrides=overrides)
    images, model = folder / "images", folder / "tokenizer"
    shards = codes_of(images, model, folder / "codes", settings=settings, progress=lambda done, total: None)
    train_prior(shards, model, folder / out, settings=settings, console=QUIET)


def same_weights(a: Path, b: Path) -> bool:
    one, other = load_file(a / "model" / "model.safetensors"), load_file(b / "model" / "model.safetensors")
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_reference_run_in_two_parts_is_the_run_in_one(folder: Path) -> None:
    images, out = folder / "images", folder / "parts"
    train_tokenizer(images, out, settings=settings_of(folder, "run.images=12"), console=QUIET)
    assert not same_weights(out, folder / "tokenizer")
    train_tokenizer(images, out, settings=settings_of(folder), console=QUIET)
    assert same_weights(out, folder / "tokenizer")


def test_a_reference_prior_in_two_parts_is_the_prior_in_one(folder: Path) -> None:
    train(folder, "prior-parts", "run.codes=512")
    assert not same_weights(folder / "prior-parts", folder / "prior")
    train(folder, "prior-parts")
    assert same_weights(folder / "prior-parts", folder / "prior")


def test_images_given_to_train_prior_are_encoded_into_the_run(folder: Path) -> None:
    """The codes are there before the run is; the run's folder was once refused for that."""
    out = folder / "prior-of-images"
    settings = resolve(PriorTraining, stage="prior", recipe=str(folder / "reference.yaml"), overrides=["run.codes=512"])
    (out / ".codes.cut-short.tmp").mkdir(parents=True)
    for _ in range(2):
        shards = codes_of(
            folder / "images",
            folder / "tokenizer",
            out / "codes",
            settings=settings,
            progress=lambda done, total: None,
        )
        train_prior(shards, folder / "tokenizer", out, settings=settings, console=QUIET)
    assert (out / "model" / "config.json").is_file()
    assert not list(out.glob(".*.tmp"))


# --- inside the stages ------------------------------------------------------------------------------------------------


def stage_of(folder: Path, *overrides: str) -> TokenizerStage:
    settings = settings_of(folder, *overrides)
    return TokenizerStage(settings, open_source(folder / "images"), fabric=Fabric(accelerator="cpu"), about={})


def step(stage: TokenizerStage, seen: int) -> dict[str, Tensor]:
    return stage.step(next(stage.batches(seen)), seen=seen, count=4, generator=torch.Generator().manual_seed(0))


def refused(*given: Any, **named: Any) -> Any:
    raise AssertionError("this was not to be called")


def test_codes_from_the_first_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `quantize_from` 0 and without k-means nothing is relaxed, and no features are gathered."""
    monkeypatch.setattr(VQ, "bypass", refused)
    monkeypatch.setattr(VQ, "init_codebook", refused)
    stage = stage_of(folder)
    monkeypatch.setattr(stage.tokenizer.quantizer, "init_codebook", refused)
    assert float(step(stage, 0)["codebook"]) > 0


def test_codes_are_placed_once_where_k_means_is_requested(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = []

    def noted(quantizer: VQ, features: Tensor, **given: Any) -> None:
        places.append(len(features))

    monkeypatch.setattr(VQ, "init_codebook", noted)
    stage = stage_of(folder, "model.quantizer.kmeans_iterations=2", "quantize_from=0.5")
    for seen in range(0, 24, 4):
        values = step(stage, seen)
        assert (float(values["codebook"]) > 0) == (seen >= 12) == bool(places)
    assert len(places) == 1


def test_the_quantizer_knows_how_far_the_training_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_inputs = []

    def at(quantizer: VQ, seen: int, *, length: int) -> VQ:
        given_inputs.append((seen, length))
        return quantizer

    monkeypatch.setattr(VQ, "schedule", at)
    step(stage_of(folder), 8)
    assert given_inputs == [(8, 24)]


def test_each_network_has_its_own_optimizer(folder: Path) -> None:
    scored = ["discriminator_optimizer.lr=0.02", "discriminator_optimizer.weight_decay=0.3"]
    stage = stage_of(folder, "optimizer.lr=0.01", *scored)
    step(stage, 0)
    groups = [optimizer.param_groups[0] for optimizer in (stage.optimizer, stage.discriminator_optimizer)]
    assert [(group["lr"], group["betas"], group["weight_decay"]) for group in groups] == [
        (0.01, (0.9, 0.99), 0.0),
        (0.02, (0.5, 0.9), 0.3),  # the discriminator's decay once was the tokenizer's
    ]


def test_validation_is_without_the_noise_of_training(folder: Path) -> None:
    """A perceptual term with dropout is still while validating, and noisy again afterward; so is what is trained."""
    stage = stage_of(folder)
    states: list[tuple[bool, bool]] = []
    stage.score.register_forward_hook(lambda *given: states.append((stage.score.training, stage.tokenizer.training)))
    stage.validate()
    step(stage, 0)
    assert set(states[:-1]) == {(False, False)}
    assert states[-1] == (True, True)
    stage.image()
    assert stage.tokenizer.training


def test_images_are_cut_in_the_middle_where_that_is_requested(folder: Path) -> None:
    source = open_source(folder / "images")
    random, center = (
        split_crops(source, settings_of(folder, f"images.crop={crop}").images, channels=3, seed=0)[0]
        for crop in ("random", "center")
    )
    assert torch.equal(center[0, 0].image, center[0, 5].image)
    assert not torch.equal(random[0, 0].image, random[0, 5].image)


# --- priors -----------------------------------------------------------------------------------------------------------


def test_a_share_of_the_codes_is_kept() -> None:
    torch.manual_seed(0)
    codes = torch.full((8, 64, 64), 5)
    given_inputs = corrupt_codes(codes, keep_probability=0.75, vocabulary=40)
    others = given_inputs[given_inputs != 5]
    assert len(others) / given_inputs.numel() == pytest.approx(0.25 * 39 / 40, abs=0.01)
    assert set(others.tolist()) == set(range(40)) - {5}  # any code of the vocabulary, also one that no image has
    assert (codes == 5).all()


def test_all_codes_are_kept_without_a_draw() -> None:
    before = torch.get_rng_state()
    codes = torch.zeros(2, 3, 3, dtype=torch.int64)
    assert corrupt_codes(codes, keep_probability=1.0, vocabulary=4) is codes
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(corrupt_codes(codes, keep_probability=0.0, vocabulary=4), codes)


def test_the_prior_is_requested_the_true_codes_and_validates_on_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[tuple[bool, bool]] = []

    def noted(
        prior: Any, prefix: Tensor, codes: Tensor, *, inputs: Tensor | None = None, order: Tensor | None = None
    ) -> Tensor:
        requested.append((torch.is_grad_enabled(), inputs is None or torch.equal(inputs, codes)))
        return nll(prior, prefix, codes, inputs=inputs, order=order)

    monkeypatch.setattr("smalti.training.stage2.nll", noted)
    train(folder, "prior-noted", "run.codes=512", "keep_probability=0.5")
    assert set(requested) == {(True, False), (False, True)}  # training is told others, validation the codes themselves


def test_a_gpt_with_a_condition_has_no_empty_one(folder: Path) -> None:
    with pytest.raises(SmaltiError, match=r"condition_dropout = 0.1, but a GPT has no code .* set condition_dropout=0"):
        train(folder, "refused", "condition_dropout=0.1")
    assert not (folder / "refused").exists()
    train(
        folder, "start", "condition_dropout=0.1", "condition=unconditional", "run.codes=256"
    )  # there, it is the start


@pytest.mark.parametrize("name", ["keypoints", "layout"])
def test_conditions_that_codes_do_not_hold(folder: Path, name: str) -> None:
    with pytest.raises(SmaltiError, match=rf"condition = {name}.* --condition {name}"):
        train(folder, "refused", f"condition={name}")
    assert not (folder / "refused").exists()


READ = CodesRead(size=32, grid=(4, 4), condition_size=7, prefix=3)


def test_a_gpt_is_as_large_as_what_it_reads() -> None:
    prior, vocabulary = build_network(GPTNetwork(layers=1, embed_dim=16, heads=2), READ)
    assert prior.settings.name == "gpt"
    assert (prior.settings.vocab_size, prior.settings.block_size, vocabulary) == (
        32,
        18,
        32,
    )  # 3 + 16 codes, the last not read
    assert prior.settings.start_code is None
    prior, vocabulary = build_network(
        GPTNetwork(layers=1, embed_dim=16, heads=2, vocab_size=50, block_size=40, start_code=3, order="spiral_in"),
        READ._replace(condition_size=0, prefix=1),
    )
    assert prior.settings.name == "gpt"
    assert (prior.settings.vocab_size, prior.settings.block_size, vocabulary) == (50, 40, 50)
    assert (prior.settings.start_code, prior.order) == (3, "spiral_in")
    assert build_network(GPTNetwork(layers=1, embed_dim=16, heads=2), READ._replace(condition_size=60)).vocabulary == 60


def test_a_transformer_reads_image_codes_alone() -> None:
    prior, vocabulary = build_network(TransformerNetwork(layers=1, embed_dim=16, heads=2, order="alternate"), READ)
    assert (prior.size, prior.prefix_length, prior.grid, prior.order, vocabulary) == (32, 3, (4, 4), "alternate", 32)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"vocab_size": 31},
            r"network.vocab_size = 31, but the tokenizer has 32 codes and the condition 7; make it 32",
        ),
        ({"block_size": 17}, r"network: block = 17 positions are too few for prefix = 3"),
    ],
)
def test_networks_that_are_too_small_say_so(options: dict[str, int], sentence: str) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        build_network(GPTNetwork(layers=1, embed_dim=16, heads=2, **options), READ)  # type: ignore[arg-type]


def test_settings_without_a_name_are_those_of_the_transformer() -> None:
    """Recipes from before there were two kinds still mean what they meant."""
    run = {"codes": 1, "log_every": 1, "validate_every": 1, "sample_every": 1, "checkpoint_every": 1}
    settings = parse(PriorTraining, {"run": run, "network": {"layers": 3}}, where="here")
    assert settings.network == TransformerNetwork(layers=3)
    assert as_mapping(settings)["network"]["name"] == "transformer"
    with pytest.raises(SmaltiError, match=r"network.*rope.*unexpected|unknown key .*rope"):
        parse(PriorTraining, {"run": run, "network": {"name": "gpt", "rope": 3}}, where="here")
    assert VQSettings().kmeans_iterations  # the default tokenizer stays the modern one
    assert AdversarialSettings().updates == "simultaneous"
