"""GAN steps: the original's alternating step against a slow copy of it, and what all kinds of step have in common."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.losses.adversarial import ADVERSARIAL, LeCam
from smalti.losses.base import Discriminator
from smalti.losses.discriminator import DISCRIMINATORS
from smalti.losses.objective import AdversarialSettings, ObjectiveSettings, ReconstructionLoss
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings
from smalti.training import gan_step as gan_steps
from smalti.training.config import OptimizerSettings
from smalti.training.gan_step import (
    GAN,
    UPDATES,
    AdversarialSchedule,
    GANStepResult,
    StepInputs,
    draw_choices,
    gan_step,
    r1_factor_at,
)
from smalti.training.optimizer import build_optimizer
from tests import reference

SIDE = 16
QUANTIZER = {
    "codebook_size": 16,
    "codebook_dim": 8,
    "l2_normalize": False,
    "beta_on": "codebook",
    "kmeans_iterations": 0,
    "dead_code_threshold": 0.0,
}


class SmallGAN:
    """A tokenizer, a discriminator (by default with BatchNorm) and their optimizers, in double precision,
    from one seed."""

    def __init__(self, **adversarial: Any) -> None:
        torch.manual_seed(0)
        # 24 channels have 8 groups of norms: were a channel a group of its own,
        # biases before it would move by rounding alone.
        autoencoder = {
            "base_channels": 24,
            "channel_multipliers": [1, 1],
            "res_blocks": 1,
            "latent_channels": 8,
            "zero_residuals": False,
        }
        model = parse(VQGANSettings, {"autoencoder": autoencoder, "quantizer": QUANTIZER}, where="test")
        self.settings = parse(
            ObjectiveSettings,
            {
                "perceptual": "none",
                "codebook_weight": 0.7,
                "adversarial": {
                    "weight": 0.8,
                    "lecam": 0.0,
                    "discriminator": {"base_channels": 8, "layers": 1, "norm": "batch"},
                    **adversarial,
                },
            },
            where="test",
        )
        self.tokenizer = VQGAN(model).double()
        chosen = self.settings.adversarial.discriminator
        self.discriminator: Discriminator = DISCRIMINATORS[chosen.name](chosen).double()
        self.score = ReconstructionLoss(self.settings)
        options = OptimizerSettings(lr=1e-3, betas=(0.5, 0.9))
        self.optimizers = [
            build_optimizer([{"params": list(module.parameters())}], options)
            for module in (self.tokenizer, self.discriminator)
        ]
        self.images = torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64) * 2 - 1
        self.stepped: list[str] = []
        for name, optimizer in zip(("generator", "discriminator"), self.optimizers, strict=True):
            optimizer.register_step_pre_hook(partial(self.note_step, name))

    def note_step(self, name: str, *_: object) -> None:
        self.stepped.append(name)
        if name == "discriminator":
            self.gradients = [w.grad.clone() for w in self.discriminator.parameters() if w.grad is not None]

    def gan(self) -> GAN:
        return GAN(
            fabric=Fabric(accelerator="cpu"),
            autoencoder=self.autoencode,
            discriminator=self.discriminator,
            discriminator_weights=[weight for weight in self.discriminator.parameters() if weight.requires_grad],
            reconstruction_loss=self.score,
            last_layer=self.tokenizer.decoder.last_layer,
            settings=self.settings,
            optimizer=self.optimizers[0],
            discriminator_optimizer=self.optimizers[1],
        )

    def autoencode(self, images: Tensor, quantize: Callable[[Tensor], Any]) -> Any:
        features = self.tokenizer.features(images)
        quantized = quantize(features)
        return features, quantized, self.tokenizer.decode(quantized.latents)

    def inputs(self, generator: float, discriminator: float, **changes: Any) -> StepInputs:
        values = {
            "quantize": self.tokenizer.quantizer.schedule(0, length=1),
            "schedule": AdversarialSchedule(generator, discriminator),
            "lecam_ema": LeCam.start(),
            "lr": 1e-3,
            "discriminator_lr": 1e-3,
        }
        return StepInputs(**{**values, **changes})

    def step(self, generator: float, discriminator: float, **changes: Any) -> GANStepResult:
        """A step with these factors of the adversarial losses."""
        return gan_step(self.gan(), self.images, self.inputs(generator, discriminator, **changes))

    def slowly(self, factor: float) -> dict[str, float]:
        """One batch of the original, in its own order: three backward passes, two forward passes (spec 3.1 and 3.5)."""
        reconstructions, quantized = self.tokenizer(self.images)
        nll = (self.images - reconstructions).abs().mean()
        generator = -self.discriminator(reconstructions).mean()
        last = self.tokenizer.decoder.last_layer
        reconstruction_gradient, adversarial_gradient = (
            torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (nll, generator)
        )
        weight = (reconstruction_gradient / (adversarial_gradient + 1e-4)).clamp(0, 1e4).detach() * 0.8
        total = nll + weight * factor * generator + 0.7 * quantized.loss
        self.discriminator.requires_grad_(False)
        torch.autograd.backward(total)
        self.discriminator.requires_grad_(True)
        self.optimizers[0].step()
        self.optimizers[0].zero_grad()
        with torch.no_grad():
            reconstructions, _ = self.tokenizer(self.images)
        real, fake = self.discriminator(self.images), self.discriminator(reconstructions)
        scored = factor * 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        torch.autograd.backward(scored)
        self.optimizers[1].step()
        self.optimizers[1].zero_grad()
        logged = {"total": total, "full_weight": weight, "generator": generator, "discriminator": scored}
        return {name: value.item() for name, value in logged.items()}

    def state(self) -> dict[str, Tensor]:
        both = nn.ModuleDict({"tokenizer": self.tokenizer, "discriminator": self.discriminator}).state_dict()
        return {name: value.clone() for name, value in both.items() if not name.endswith("quantizer.use")}


def test_the_alternating_step_is_the_original_step_for_step() -> None:
    """Four batches, the first two before the discriminator counts."""
    ours, slow = SmallGAN(updates="alternating"), SmallGAN()
    for factor in (0.0, 0.0, 1.0, 1.0):
        result = ours.step(factor, factor)
        expected = slow.slowly(factor)
        found = {name: float(result.values[name]) for name in expected}
        assert found == pytest.approx(expected, rel=1e-10, abs=1e-14)
        assert float(result.values["adaptive_weight"]) == pytest.approx(factor * expected["full_weight"], rel=1e-10)
    assert ours.stepped == ["generator", "discriminator"] * 4
    a, b = ours.state(), slow.state()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-9, atol=1e-12, msg=name)


def test_before_the_start_the_weights_stay_and_the_count_of_steps_does_not() -> None:
    gan = SmallGAN(updates="alternating")
    before = copy.deepcopy(gan.discriminator.state_dict())
    gan.step(0.0, 0.0)
    for name, value in gan.discriminator.state_dict().items():
        assert value.equal(before[name]) == ("running" not in name and "num_batches" not in name), name
    (state,) = {int(each["step"]) for each in gan.optimizers[1].state.values()}
    assert state == 1
    (counted,) = [
        int(value) for name, value in gan.discriminator.state_dict().items() if name.endswith("num_batches_tracked")
    ]
    assert counted == 3  # the generator's fakes, then images and fakes


@pytest.mark.parametrize("updates", sorted(UPDATES))
def test_every_kind_of_step_records_the_same(updates: str) -> None:
    gan = SmallGAN(updates=updates)
    result = gan.step(0.5, 1.0)
    terms = {"reconstruction", "pixel", "codebook", "generator", "adaptive_weight", "discriminator", "real_logits"}
    assert terms | {"fake_logits", "lecam", "gradient_norm", "discriminator_gradient_norm"} <= result.values.keys()
    assert result.features.shape == (2, 8, SIDE // 2, SIDE // 2)
    assert not result.features.requires_grad
    assert result.codes.shape == (2, SIDE // 2, SIDE // 2)
    assert result.lecam_ema.updates == 1
    assert sorted(gan.stepped) == ["discriminator", "generator"]
    assert all(value.dtype in (torch.float64, torch.float32) and value.ndim == 0 for value in result.values.values())
    assert result.values["reconstruction"].dtype == torch.float64
    assert not any(value.requires_grad for value in result.values.values())


def test_the_discriminator_of_a_simultaneous_step_sees_what_was_made_before_it() -> None:
    """The discriminator's loss is that of the logits of the generator's loss."""
    found = SmallGAN(updates="simultaneous").step(1.0, 1.0).values
    assert float(found["fake_logits"]) == pytest.approx(-float(found["generator"]), rel=1e-12)
    later = SmallGAN(updates="alternating").step(1.0, 1.0).values
    assert float(later["fake_logits"]) != pytest.approx(-float(later["generator"]), rel=1e-6)


@pytest.mark.parametrize("updates", sorted(UPDATES))
def test_a_late_discriminator_does_not_move(updates: str) -> None:
    gan = SmallGAN(updates=updates)
    before = [weight.clone() for weight in gan.discriminator.parameters()]
    values = gan.step(0.0, 0.0).values
    assert all(weight.equal(old) for weight, old in zip(gan.discriminator.parameters(), before, strict=True))
    assert float(values["discriminator"]) == 0.0
    gan.step(0.0, 1.0)
    assert not all(weight.equal(old) for weight, old in zip(gan.discriminator.parameters(), before, strict=True))


def test_a_discriminator_that_is_not_finite_does_no_harm_before_it_counts() -> None:
    """In the original 0 times infinity would end the training."""
    gan = SmallGAN(updates="alternating")
    with torch.no_grad():
        next(gan.discriminator.parameters()).fill_(torch.inf)
    gan.step(0.0, 0.0)
    assert all(weight.isfinite().all() for weight in gan.tokenizer.parameters())


def test_without_an_adversarial_weight_the_discriminator_is_left_out() -> None:
    gan = SmallGAN(weight=0.0)
    assert set(gan.step(1.0, 1.0).values) == {"reconstruction", "pixel", "codebook", "gradient_norm"}
    assert gan.stepped == ["generator"]


@pytest.mark.parametrize("updates", sorted(UPDATES))
def test_the_settings_choose_the_step(updates: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gan = SmallGAN(updates=updates)
    expected = gan.step(0.0, 0.0)
    monkeypatch.setitem(gan_steps.UPDATES, updates, lambda *_: expected)
    assert gan.step(1.0, 1.0) is expected


def test_nothing_narrows_double_precision() -> None:
    gan = SmallGAN(updates="alternating", lecam=0.1)
    values = gan.step(1.0, 1.0).values
    assert {values[name].dtype for name in ("total", "generator", "discriminator", "lecam")} == {torch.float64}


# --- R1 --------------------------------------------------------------------------------------------------------------

R1 = {"r1": 5.0, "discriminator": {"name": "blur", "base_channels": 8, "patch_size": 1, "spectral": True}}


# The projected one is always spectrally normalized, so that every forward moves its weights a little.
@pytest.mark.parametrize(
    "chosen", [{"name": name, "base_channels": 8, "layers": 1, "patch_size": 1} for name in ("patch", "blur")]
)
@pytest.mark.parametrize("updates", sorted(UPDATES))
def test_the_penalty_is_that_of_each_image_by_itself(updates: str, chosen: dict[str, Any]) -> None:
    gan = SmallGAN(updates=updates, r1=5.0, discriminator=chosen)
    expected = reference.gradient_penalty(gan.discriminator, gan.images)
    values = gan.step(0.0, 1.0).values
    assert float(values["r1"]) == pytest.approx(expected, rel=1e-10)
    assert not values["r1"].requires_grad


@pytest.mark.parametrize("updates", sorted(UPDATES))
@pytest.mark.parametrize(("penalty", "factor"), [(1.0, 1.0), (4.0, 1.0), (1.0, 0.5)])
def test_the_discriminator_steps_along_loss_and_penalty(updates: str, penalty: float, factor: float) -> None:
    """Against the gradient of the whole loss by its definition, with half of gamma = 5."""
    chosen = {"name": "blur", "base_channels": 8, "layers": 1, "patch_size": 1}
    gan, slow = (SmallGAN(updates=updates, r1=5.0, discriminator=chosen) for _ in range(2))
    gan.step(0.0, factor, r1_factor=penalty)
    if updates == "alternating":  # the discriminator sees what the generator makes after its step
        slow.tokenizer.load_state_dict(gan.tokenizer.state_dict())
    with torch.no_grad():
        reconstructions, _ = slow.tokenizer(slow.images)
    images = slow.images.clone().requires_grad_()
    real, fake = slow.discriminator(images), slow.discriminator(reconstructions)
    (at_images,) = torch.autograd.grad(real.sum(), images, create_graph=True)
    loss = ADVERSARIAL["hinge"].discriminator(real, fake) + penalty * 2.5 * at_images.square().sum() / real.numel()
    expected = torch.autograd.grad(factor * loss, list(slow.discriminator.parameters()))
    for found, each in zip(gan.gradients, expected, strict=True):
        torch.testing.assert_close(found, each, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("updates", sorted(UPDATES))
def test_a_step_without_penalty_is_the_plain_one(updates: str) -> None:
    lazy, plain = SmallGAN(updates=updates, **R1), SmallGAN(updates=updates, **{**R1, "r1": 0.0})
    values = [gan.step(1.0, 1.0, r1_factor=0.0).values for gan in (lazy, plain)]
    assert values[0].keys() == values[1].keys()
    assert "r1" not in values[0]
    a, b = lazy.state(), plain.state()
    assert all(a[name].equal(b[name]) for name in a)


def test_the_penalty_holds_the_slope_at_real_images_down() -> None:
    slopes = {}
    for gamma in (0.0, 100.0):
        gan = SmallGAN(r1=gamma, discriminator={"base_channels": 8, "layers": 1})
        for _ in range(20):
            gan.step(0.0, 1.0)
        slopes[gamma] = reference.gradient_penalty(gan.discriminator, gan.images)
    assert slopes[100.0] < 0.5 * slopes[0.0]


def test_a_lazy_penalty_is_as_strong_in_the_mean() -> None:
    for every in (1, 3):
        settings = parse(AdversarialSettings, {"r1": 1.0, "r1_every": every}, where="test")
        factors = [r1_factor_at(step, settings=settings) for step in range(6)]
        assert sum(factors) == 6
        assert [step for step, factor in enumerate(factors) if factor] == list(range(0, 6, every))


def test_a_penalty_needs_logits_of_single_images() -> None:
    with pytest.raises(SmaltiError, match=r"r1 = 5 .*norm = 'batch'.*set discriminator.norm to group, or r1 to 0"):
        SmallGAN(r1=5.0)


def test_under_autocast_the_penalty_is_finite_and_learned_along() -> None:
    gan = SmallGAN(**R1)
    gan.discriminator.float()
    gan.tokenizer.float()
    gan.images = gan.images.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = gan.step(1.0, 1.0).values
    assert values["r1"].dtype == torch.float32
    assert values["r1"] > 0
    assert all(gradient.isfinite().all() for gradient in gan.gradients)


# --- label maps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixel", ["cross_entropy", "bce"])
def test_label_maps_are_learned_alone(pixel: str) -> None:
    """Reconstructions are logits, also where autocast leaves them in half precision; there is nothing to judge them."""
    torch.manual_seed(0)
    autoencoder = {
        "channels": 5,
        "base_channels": 24,
        "channel_multipliers": [1, 1],
        "res_blocks": 1,
        "latent_channels": 8,
    }
    tokenizer = VQGAN(parse(VQGANSettings, {"autoencoder": autoencoder, "quantizer": QUANTIZER}, where="test"))
    values = {"pixel": pixel, "perceptual": "none", "adversarial": {"weight": 0}}
    settings = parse(ObjectiveSettings, values, where="test")
    optimizer = build_optimizer([{"params": list(tokenizer.parameters())}], OptimizerSettings(lr=3e-3))
    labels = torch.arange(SIDE).div(4, rounding_mode="floor").expand(2, SIDE, SIDE)
    images = F.one_hot(labels, 5).movedim(-1, 1).float()

    def autoencode(images: Tensor, quantize: Callable[[Tensor], Any]) -> Any:
        features = tokenizer.features(images)
        quantized = quantize(features)
        return features, quantized, tokenizer.decode(quantized.latents)

    def refused(images: Tensor) -> Tensor:
        raise AssertionError("the discriminator was called")

    gan = GAN(
        fabric=Fabric(accelerator="cpu"),
        autoencoder=autoencode,
        discriminator=refused,
        discriminator_weights=(),
        reconstruction_loss=ReconstructionLoss(settings),
        last_layer=tokenizer.decoder.last_layer,
        settings=settings,
        optimizer=optimizer,
        discriminator_optimizer=None,
    )
    inputs = StepInputs(
        quantize=tokenizer.quantizer.bypass,
        schedule=AdversarialSchedule(1.0, 1.0),
        lecam_ema=LeCam.start(),
        lr=3e-3,
        discriminator_lr=0.0,
    )
    losses = []
    for count in range(25):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=count == 0):
            losses.append(float(gan_step(gan, images, inputs).values["pixel"]))
    assert losses[-1] < 0.5 * losses[0]
    _, _, logits = autoencode(images, tokenizer.quantizer.bypass)
    assert (logits.argmax(1) == labels).float().mean() > 0.9


# --- chance, and a margin
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", sorted(UPDATES))
def test_real_and_generated_images_are_changed_alike_before_the_discriminator(updates: str) -> None:
    gan = SmallGAN(updates=updates, augment=["color", "translation", "cutout"])
    choices = draw_choices(gan.settings, len(gan.images), generator=torch.Generator().manual_seed(3))
    seen: list[Tensor] = []

    def watched(images: Tensor) -> Tensor:
        seen.append(images.detach())
        return gan.discriminator(images)  # type: ignore[no-any-return]

    with torch.no_grad():
        before, _ = gan.tokenizer(gan.images)
    watched_gan = dataclasses.replace(gan.gan(), discriminator=watched)
    gan_step(watched_gan, gan.images, gan.inputs(1.0, 1.0, choices=choices))
    augment = choices.augmentation
    assert any(each.equal(augment(gan.images)) for each in seen)
    torch.testing.assert_close(seen[0], augment(before))
    assert not any(each.equal(gan.images) for each in seen)


def test_draws_are_those_of_their_generator_and_settings() -> None:
    settings = SmallGAN(augment=["color"]).settings
    shifted = dataclasses.replace(settings, perceptual_shift=5)
    first, again = (draw_choices(shifted, 3, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.shift == again.shift
    assert first.augmentation.color is not None
    assert again.augmentation.color is not None
    assert first.augmentation.color.equal(again.augmentation.color)
    assert first.augmentation.cutout is None
    shifts = {draw_choices(shifted, 1, generator=torch.Generator().manual_seed(seed)).shift for seed in range(200)}
    assert shifts == {(down, right) for down in range(6) for right in range(6)}
    assert draw_choices(settings, 3, generator=torch.Generator().manual_seed(1)).shift == (0, 0)


@pytest.mark.parametrize("updates", sorted(UPDATES))
@pytest.mark.parametrize(("lead", "counts"), [(0.4, False), (0.6, True)])
def test_the_adversarial_term_counts_only_while_the_discriminator_leads(
    updates: str, lead: float, counts: bool
) -> None:
    gan, plain = SmallGAN(updates=updates, margin=0.5), SmallGAN(updates=updates)
    ema = LeCam(real=torch.tensor(lead), fake=torch.tensor(0.0), updates=torch.tensor(9.0))
    values = gan.step(1.0, 1.0, lecam_ema=ema).values
    assert bool(values["adaptive_weight"]) == counts
    plain.step(1.0 if counts else 0.0, 1.0)
    a, b = gan.state(), plain.state()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-9, atol=1e-12, msg=name)
