"""Training against the original's numbers: both turns of its game on one batch, and five steps of a whole stage."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from smalti.checkpoints.taming_parts import Part, read_first_stage, tokenizer_names
from smalti.core.settings import parse
from smalti.data.loader import Batch
from smalti.data.sources import open_source
from smalti.kernels import group_norm, winograd
from smalti.losses import objective
from smalti.losses.adversarial import ADVERSARIAL, LeCam
from smalti.losses.base import Discriminator
from smalti.losses.discriminator import DISCRIMINATORS
from smalti.losses.objective import ObjectiveSettings, ReconstructionLoss
from smalti.tokenizer.vqgan import VQGAN
from smalti.training import stage1 as stage_one
from smalti.training.config import TokenizerTraining
from smalti.training.gan_step import GAN, AdversarialSchedule, StepInputs, discriminator_step, generator_step
from smalti.training.stage1 import TokenizerStage
from tests.golden import Golden, fixtures, random_lpips
from tests.small import write_images

pytestmark = pytest.mark.golden

DTYPES = [torch.float32, torch.float64]
LENGTH = 2**20
"""Images of a training of which five batches are seen. A power of 2, so that fractions of it are exact."""

GENERATOR = {
    "total_loss": "total",
    "quant_loss": "codebook",
    "nll_loss": "reconstruction",
    "rec_loss": "reconstruction",
    "p_loss": "perceptual",
    "d_weight": "full_weight",
    "g_loss": "generator",
}
DISCRIMINATOR = {"disc_loss": "discriminator", "logits_real": "real_logits", "logits_fake": "fake_logits"}
"""What the original logs -> what we record."""


def loss_params(golden: Golden, changes: Mapping[str, Any]) -> dict[str, Any]:
    return {**golden.facts["params"]["lossconfig"]["params"], **changes}


def objective_settings(params: Mapping[str, Any], *, start: float) -> ObjectiveSettings:
    """The arguments of the original's loss -> ours. `start`: as a fraction of the training."""
    values = {
        "perceptual": "vgg16",
        "perceptual_weight": params.get("perceptual_weight", 1.0),
        "codebook_weight": params.get("codebook_weight", 1.0),
        "adversarial": {
            "weight": params.get("disc_weight", 1.0),
            "loss": params.get("disc_loss", "hinge"),
            "start": start,
            "ramp": 0.0,
            "discriminator_from_start": False,
            "updates": "alternating",
            "lecam": 0.0,
            "discriminator": {
                "channels": params.get("disc_in_channels", 3),
                "base_channels": params.get("disc_ndf", 64),
                "layers": params.get("disc_num_layers", 3),
                "norm": "act" if params.get("use_actnorm") else "batch",
            },
        },
    }
    return parse(ObjectiveSettings, values, where="the golden numbers")


def factor(params: Mapping[str, Any], step: int) -> float:
    """The original's `disc_factor` at a step."""
    return float(params.get("disc_factor", 1.0)) if step >= params["disc_start"] else 0.0


def networks(golden: Golden) -> tuple[VQGAN, dict[str, Tensor]]:
    """The tokenizer of these numbers, in training mode, and the weights of its discriminator."""
    part = Part(golden.facts["target"], golden.facts["params"])
    tokenizer = read_first_stage(part, golden.weights(), prefix="", where="the golden numbers")
    return tokenizer.train().requires_grad_(), golden.weights("loss.discriminator.")


def in_their_names(tokenizer: VQGAN, discriminator: torch.nn.Module) -> dict[str, Tensor]:
    """All weights, by the original's names."""
    theirs = tokenizer_names(tokenizer).written_from(tokenizer)
    return theirs | {f"loss.discriminator.{name}": value for name, value in discriminator.state_dict().items()}


# --- 07a: one turn ---------------------------------------------------------------------------------------------------


class Turn:
    """Both networks with the stored weights, and the gradients of the one that moved last."""

    def __init__(self, golden: Golden, params: Mapping[str, Any], dtype: torch.dtype) -> None:
        settings = objective_settings(params, start=0.0)
        self.tokenizer, weights = networks(golden)
        self.tokenizer.to(dtype)
        chosen = settings.adversarial.discriminator
        self.discriminator: Discriminator = DISCRIMINATORS[chosen.name](chosen).to(dtype)
        self.discriminator.load_state_dict(weights)
        self.gradients: dict[str, Tensor] = {}
        self.images = golden["in.x"].to(dtype)
        self.score = ReconstructionLoss(settings).to(dtype)
        named = dict(self.tokenizer.named_parameters())
        pairs = tokenizer_names(self.tokenizer).pairs
        generated = {theirs: named[ours] for ours, (theirs, _) in pairs.items() if ours in named}
        discriminated = {f"loss.discriminator.{name}": weight for name, weight in self.discriminator.named_parameters()}
        modules = (self.tokenizer, self.discriminator)
        optimizers = [torch.optim.SGD(module.parameters(), lr=0.0) for module in modules]
        for optimizer, noted in zip(optimizers, (generated, discriminated), strict=True):
            optimizer.register_step_pre_hook(partial(self.note_gradients, noted))
        self.gan = GAN(
            fabric=Fabric(accelerator="cpu"),
            autoencoder=self.autoencode,
            discriminator=self.discriminator,
            discriminator_weights=list(self.discriminator.parameters()),
            reconstruction_loss=self.score,
            last_layer=self.tokenizer.decoder.last_layer,
            settings=settings,
            optimizer=optimizers[0],
            discriminator_optimizer=optimizers[1],
        )

    def autoencode(self, images: Tensor, quantize: Callable[[Tensor], Any]) -> Any:
        features = self.tokenizer.features(images)
        quantized = quantize(features)
        self.made = self.tokenizer.decode(quantized.latents)
        return features, quantized, self.made

    def note_gradients(self, weights: Mapping[str, Tensor], *_: object) -> None:
        self.gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}

    def take(self, turn: int, *, strength: float) -> dict[str, Tensor]:
        """The generator's (0) or the discriminator's (1) -> what is recorded."""
        inputs = StepInputs(
            quantize=self.tokenizer.quantizer.schedule(0, length=LENGTH),
            schedule=AdversarialSchedule(generator=strength, discriminator=strength),
            lecam_ema=LeCam.start(),
            lr=0.0,
            discriminator_lr=0.0,
        )
        if turn == 0:
            return generator_step(self.gan, self.images, inputs)[2]
        return discriminator_step(self.gan, self.images, inputs)[0]


class Compared:
    """Compares numbers of one folder, and knows which were never compared."""

    def __init__(self, path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
        self.golden = Golden.read(path)
        self.left = {key for key in self.golden.tensors if key.startswith("out.")}
        monkeypatch.setitem(
            objective.PERCEPTUAL,
            "vgg16",
            lambda dropout: random_lpips(self.golden, "loss.perceptual_loss.", dtype=dtype),
        )

    def __call__(self, key: str, actual: Tensor) -> None:
        expected = self.golden[key]
        self.golden.check(key, actual if expected.ndim else actual.reshape(()))
        if expected.is_floating_point() and expected.numel() > 1:  # gradients are small: by their own measure too
            noise = self.golden.facts["noise_fp32_vs_fp64"].get(key, 0.0)
            error = (actual.detach().double() - expected.double()).abs().max().item()
            assert error <= 1e-4 * expected.abs().max().item() + 20 * noise, f"{key}: off by {error}"
        self.left.discard(key)

    def under(self, prefix: str) -> list[str]:
        """The names that follow a prefix."""
        return sorted(key.removeprefix(prefix) for key in self.left if key.startswith(prefix))


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """The original's convolutions and norms, as `SMALTI_DIRECT` has them: in single precision, steps of Adam show each
    rounding."""
    monkeypatch.setattr(winograd, "is_supported", lambda x, weight, *, min_tiles=0: False)
    monkeypatch.setattr(group_norm, "is_supported", lambda x: False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", fixtures("07a_"))
def test_both_turns_on_one_batch(path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    check = Compared(path, dtype, monkeypatch)
    cases = {match.groups() for key in check.left if (match := re.match(r"out\.(\w+)\.step(\d+)\.opt(\d)\.", key))}
    assert {turn for _, _, turn in cases} == {"0", "1"}
    for variant, step, turn in sorted(cases):
        params = loss_params(check.golden, check.golden.facts["variants"][variant])
        case, strength = Turn(check.golden, params, dtype), factor(params, int(step))
        values = case.take(int(turn), strength=strength)
        name = f"out.{variant}.step{step}.opt{turn}"
        check(f"{name}.loss", values["total" if turn == "0" else "discriminator"])
        values |= {"perceptual": values.get("perceptual", torch.zeros(())), "factor": torch.tensor(strength)}
        for key in check.under(f"{name}.log.train."):
            recorded = values[{**GENERATOR, **DISCRIMINATOR, "disc_factor": "factor"}[key]]
            check(f"{name}.log.train.{key}", recorded.reshape(check.golden[f"{name}.log.train.{key}"].shape))
        for key in check.under(f"{name}.grad."):
            check(f"{name}.grad.{key}", case.gradients[key])
        weights = in_their_names(case.tokenizer, case.discriminator)
        for key in check.under(f"{name}.state_after."):
            check(f"{name}.state_after.{key}", weights[key])
        if "out.xrec" in check.left:
            check("out.xrec", case.made)
    assert {key for key in check.left if not key.startswith("out.validation.")} == set()


@pytest.mark.parametrize("path", fixtures("07a_"))
def test_the_losses_of_validation(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = Compared(path, torch.float32, monkeypatch)
    params = loss_params(check.golden, {})
    case = Turn(check.golden, params, torch.float32)
    for module in (case.tokenizer, case.discriminator, case.score):
        module.eval()
    with torch.no_grad():
        reconstructions, quantized = case.tokenizer(case.images)
        found = case.score(case.images, reconstructions)
        real, fake = case.discriminator(case.images), case.discriminator(reconstructions)
    losses = ADVERSARIAL[case.gan.settings.adversarial.loss]
    strength = check.golden["out.validation.opt0.log.val.disc_factor"]
    values = {
        "total": found.total + case.gan.settings.codebook_weight * quantized.loss,
        "codebook": quantized.loss,
        "reconstruction": found.total,
        "perceptual": found.perceptual,
        "full_weight": torch.zeros(()),  # no gradient is asked for in validation
        "generator": losses.generator(fake),
        "discriminator": strength * losses.discriminator(real, fake),
        "real_logits": real.mean(),
        "fake_logits": fake.mean(),
        "factor": torch.tensor([factor(params, step) for step in (0, LENGTH)]).max() * (strength > 0),
    }
    for turn in (0, 1):
        prefix = f"out.validation.opt{turn}.log.val."
        for key in check.under(prefix):
            recorded = values[{**GENERATOR, **DISCRIMINATOR, "disc_factor": "factor"}[key]]
            check(prefix + key, recorded.reshape(check.golden[prefix + key].shape))
        check(f"out.validation.opt{turn}.loss", values["discriminator" if turn else "total"])
    assert not check.under("out.validation.")


# --- 07b: five steps -------------------------------------------------------------------------------------------------


def prepared(golden: Golden, folder: Path, *, fabric: Fabric) -> TokenizerStage:
    """A stage with the settings and the weights of these numbers."""
    images, params = golden["in.x"], loss_params(golden, {})
    tokenizer, weights = networks(golden)
    optimizer = {
        "lr": golden.facts["lr"],
        "betas": (0.5, 0.9),
        "weight_decay": 0.0,
        "warmup": 0.0,
        "final_lr": 1.0,
        "grad_clip": 0.0,
    }
    every = {f"{name}_every": LENGTH for name in ("log", "validate", "sample", "checkpoint")}
    settings = parse(
        TokenizerTraining,
        {
            "run": {"images": LENGTH, "batch": len(images), "ema_half_life": 0.0, "accelerator": "cpu", **every},
            "model": tokenizer.settings,
            "objective": objective_settings(params, start=params["disc_start"] * len(images) / LENGTH),
            "optimizer": optimizer,
            "discriminator_optimizer": optimizer,
            "images": {"size": tuple(images.shape[2:])},
            "quantize_from": 0.0,
        },
        where="the golden numbers",
    )
    stage = TokenizerStage(settings, open_source(write_images(folder)), fabric=fabric, about={})
    stage.tokenizer.load_state_dict(tokenizer.state_dict())
    stage.discriminator.load_state_dict(weights)
    return stage


def recorded(values: Mapping[str, Tensor]) -> dict[str, float]:
    """What a step records -> the original's logs."""
    logs = {
        f"train/{theirs}": float(values[ours])
        for theirs, ours in {**GENERATOR, **DISCRIMINATOR}.items()
        if ours in values
    }
    total, scored = float(values["total"]), float(values["discriminator"])
    return {"train/p_loss": 0.0, **logs, "train/aeloss": total, "train/discloss": scored}


def one_step(stage: TokenizerStage, golden: Golden, step: int) -> dict[str, float]:
    """A step of these numbers on their one batch -> its logs."""
    images = golden["in.x"].to(stage.tokenizer.decoder.last_layer.dtype)
    batch, count = Batch(images, torch.zeros(len(images), dtype=torch.int64)), len(images)
    values = stage.step(batch, seen=step * count, count=count, generator=torch.Generator())
    adversarial = stage.settings.objective.adversarial
    return {
        **recorded(values),
        "train/disc_factor": stage_one.adversarial_schedule(
            step * count, length=LENGTH, settings=adversarial
        ).generator,
    }


def codes_of(stage: TokenizerStage, golden: Golden) -> Tensor:
    """The codes of the batch as the weights are now."""
    with torch.no_grad(), stage.exported.shown() as tokenizer:
        return tokenizer.encode(golden["in.x"].to(tokenizer.decoder.last_layer.dtype)).codes.flatten()


def set_as(stage: TokenizerStage, other: TokenizerStage) -> None:
    """Give a stage the weights of another one and what its optimizers remember, rounded to its own precision."""
    stage.tokenizer.load_state_dict(other.tokenizer.state_dict())
    stage.discriminator.load_state_dict(other.discriminator.state_dict())
    for mine, theirs in (
        (stage.optimizer, other.optimizer),
        (stage.discriminator_optimizer, other.discriminator_optimizer),
    ):
        mine.optimizer.load_state_dict(copy.deepcopy(theirs.optimizer.state_dict()))


def as_there(golden: Golden, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> Fabric:
    """The perceptual network of these numbers, and their `disc_factor`, which is 1 in all of the original's
    configurations."""
    schedule, share = stage_one.adversarial_schedule, loss_params(golden, {}).get("disc_factor", 1.0)

    def scaled(seen: int, **given: Any) -> AdversarialSchedule:
        generator, discriminator = schedule(seen, **given)
        return AdversarialSchedule(generator * share, discriminator * share)

    monkeypatch.setattr(stage_one, "adversarial_schedule", scaled)
    monkeypatch.setitem(
        objective.PERCEPTUAL, "vgg16", lambda dropout: random_lpips(golden, "loss.perceptual_loss.", dtype=dtype)
    )
    return Fabric(accelerator="cpu", precision="64-true" if dtype == torch.float64 else "32-true")


@pytest.mark.parametrize("path", fixtures("07b_"))
def test_five_steps_in_double_precision(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Golden.read(path)
    fabric = as_there(golden, torch.float64, monkeypatch)
    stage = prepared(golden, tmp_path / "images", fabric=fabric)
    codes = []
    for step, expected in enumerate(golden.facts["trajectory_float64"]):
        with fabric.init_tensor():  # Fabric gives what a network returns the type of new tensors
            found = one_step(stage, golden, step)
        codes.append(codes_of(stage, golden))
        assert found.keys() == expected.keys()
        for name in expected:
            assert found[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-12), (step, name)
    assert torch.equal(torch.stack(codes), golden["out.indices_after_each_step_64"].flatten(1))
    weights = in_their_names(stage.tokenizer, stage.discriminator)
    names = [key.removeprefix("final64.") for key in golden.tensors if key.startswith("final64.")]
    assert names
    for name in names:
        expected = golden[f"final64.{name}"].double()
        assert weights[name].dtype == torch.float64
        assert (weights[name] - expected).abs().max() <= 1e-9 * expected.abs().max(), name


@pytest.mark.parametrize("path", fixtures("07b_"))
def test_each_step_in_single_precision(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each from where the steps in double precision have come to.

    Five in a row tell processors apart and not programs: Adam divides a gradient by its own size, so that one that is
    rounding alone moves its weight by a whole step, and PyTorch's convolutions round as the processor's instructions
    have it. With SSE 4.1 in place of AVX2 losses are 1e-4 off after three steps.
    """
    golden = Golden.read(path)
    double = as_there(golden, torch.float64, monkeypatch)
    exact = prepared(golden, tmp_path / "double", fabric=double)
    perceptual = partial(random_lpips, golden, "loss.perceptual_loss.", dtype=torch.float32)
    monkeypatch.setitem(objective.PERCEPTUAL, "vgg16", lambda dropout: perceptual())
    stage = prepared(golden, tmp_path / "single", fabric=Fabric(accelerator="cpu", precision="32-true"))
    for step, expected in enumerate(golden.facts["trajectory_float64"]):
        set_as(stage, exact)
        found = one_step(stage, golden, step)
        with double.init_tensor():
            one_step(exact, golden, step)
        for name in expected:
            bound = max(20 * golden.facts["max_abs_diff_32_vs_64"].get(name, 0.0), 2e-6)
            assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=bound), (step, name)
    weights = in_their_names(stage.tokenizer, stage.discriminator)
    names = [key.removeprefix("final32.") for key in golden.tensors if key.startswith("final32.")]
    assert names
    for name in names:
        expected = golden[f"final64.{name}"].float()
        assert weights[name].dtype == torch.float32
        noise = (golden[f"final32.{name}"].double() - expected.double()).abs().max().item()
        torch.testing.assert_close(weights[name], expected, rtol=1e-4, atol=max(20 * noise, 2e-6))
