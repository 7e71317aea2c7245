"""The plays of stage 1: the original's two turns against a slow copy of them, and what all plays have in common."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.losses.adversarial import ADVERSARIAL, LeCam
from smalti.losses.base import Discriminator
from smalti.losses.discriminator import DISCRIMINATORS
from smalti.losses.objective import AdversarialSettings, ObjectiveSettings, ReconstructionLoss
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings
from smalti.training.config import OptimizerSettings
from smalti.training.gan_step import (
    PLAYS,
    Played,
    Players,
    Strength,
    alone,
    alternating,
    draws_of,
    penalty_at,
    play_of,
    simultaneous,
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


class Game:
    """A tokenizer, a discriminator (by default with BatchNorm) and their optimizers, in double precision, from one seed."""

    def __init__(self, **adversarial: Any) -> None:
        torch.manual_seed(0)
        # 24 channels have 8 groups of norms: were a channel a group of its own, biases before it would move by rounding alone.
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
        judge = self.settings.adversarial.discriminator
        self.judge: Discriminator = DISCRIMINATORS[judge.name](judge).double()
        self.score = ReconstructionLoss(self.settings)
        options = OptimizerSettings(lr=1e-3, betas=(0.5, 0.9))
        self.optimizers = [
            build_optimizer([{"params": list(module.parameters())}], options) for module in (self.tokenizer, self.judge)
        ]
        self.images = torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64) * 2 - 1
        self.moved: list[str] = []

    def players(self, *, penalty: float = 1.0) -> Players:
        def mover(place: int) -> Callable[[], Tensor]:
            def step() -> Tensor:
                self.moved.append(("generator", "judge")[place])
                if place == 1:
                    self.gradients = [weight.grad for weight in self.judge.parameters() if weight.grad is not None]
                self.optimizers[place].step()
                self.optimizers[place].zero_grad()
                return torch.zeros(())

            return step

        return Players(
            generate=self.generate,
            judge=self.judge,
            score=self.score,
            last_layer=self.tokenizer.decoder.last_layer,
            settings=self.settings,
            backward=torch.autograd.backward,
            judge_weights=[weight for weight in self.judge.parameters() if weight.requires_grad],
            move_generator=mover(0),
            move_judge=mover(1),
            penalty=penalty,
        )

    def generate(self, images: Tensor, quantize: Callable[[Tensor], Any]) -> Any:
        features = self.tokenizer.features(images)
        quantized = quantize(features)
        return features, quantized, self.tokenizer.decode(quantized.latents)

    def play(self, strength: Strength, *, penalty: float = 1.0) -> Played:
        quantize = self.tokenizer.quantizer.at(0, length=1)
        return play_of(self.settings)(
            self.players(penalty=penalty), self.images, quantize=quantize, strength=strength, anchors=LeCam.start()
        )

    def slowly(self, factor: float) -> dict[str, float]:
        """One batch of the original, in its own order: three backward passes, two forward passes (spec 3.1 and 3.5)."""
        reconstructions, quantized = self.tokenizer(self.images)
        nll = (self.images - reconstructions).abs().mean()
        generator = -self.judge(reconstructions).mean()
        last = self.tokenizer.decoder.last_layer
        toward_data, toward_real = (
            torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (nll, generator)
        )
        weight = (toward_data / (toward_real + 1e-4)).clamp(0, 1e4).detach() * 0.8
        total = nll + weight * factor * generator + 0.7 * quantized.loss
        self.judge.requires_grad_(False)
        torch.autograd.backward(total)
        self.judge.requires_grad_(True)
        self.optimizers[0].step()
        self.optimizers[0].zero_grad()
        with torch.no_grad():
            reconstructions, _ = self.tokenizer(self.images)
        real, fake = self.judge(self.images), self.judge(reconstructions)
        judged = factor * 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        torch.autograd.backward(judged)
        self.optimizers[1].step()
        self.optimizers[1].zero_grad()
        logged = {"total": total, "full_weight": weight, "generator": generator, "discriminator": judged}
        return {name: value.item() for name, value in logged.items()}

    def state(self) -> dict[str, Tensor]:
        both = nn.ModuleDict({"tokenizer": self.tokenizer, "judge": self.judge}).state_dict()
        return {name: value.clone() for name, value in both.items() if not name.endswith("quantizer.use")}


def test_the_alternating_play_is_the_original_step_for_step() -> None:
    """Four batches, the first two before the discriminator counts."""
    ours, slow = Game(updates="alternating"), Game()
    for factor in (0.0, 0.0, 1.0, 1.0):
        played = ours.play(Strength(factor, factor))
        expected = slow.slowly(factor)
        found = {name: float(played.values[name]) for name in expected}
        assert found == pytest.approx(expected, rel=1e-10, abs=1e-14)
        assert float(played.values["adaptive_weight"]) == pytest.approx(factor * expected["full_weight"], rel=1e-10)
    assert ours.moved == ["generator", "judge"] * 4
    a, b = ours.state(), slow.state()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-9, atol=1e-12, msg=name)


def test_before_the_start_the_weights_stay_and_the_count_of_steps_does_not() -> None:
    game = Game(updates="alternating")
    before = copy.deepcopy(game.judge.state_dict())
    game.play(Strength(0.0, 0.0))
    for name, value in game.judge.state_dict().items():
        assert value.equal(before[name]) == ("running" not in name and "num_batches" not in name), name
    (state,) = {int(each["step"]) for each in game.optimizers[1].state.values()}
    assert state == 1
    (counted,) = [int(value) for name, value in game.judge.state_dict().items() if name.endswith("num_batches_tracked")]
    assert counted == 3  # the generator's fakes, then images and fakes


@pytest.mark.parametrize("play", sorted(PLAYS))
def test_every_play_has_one_signature_and_records_the_same(play: str) -> None:
    game = Game(updates=play)
    played = game.play(Strength(0.5, 1.0))
    terms = {"reconstruction", "pixel", "codebook", "generator", "adaptive_weight", "discriminator", "real_logits"}
    assert terms | {"fake_logits", "lecam", "gradient_norm", "discriminator_gradient_norm"} <= played.values.keys()
    assert played.features.shape == (2, 8, SIDE // 2, SIDE // 2)
    assert not played.features.requires_grad
    assert played.codes.shape == (2, SIDE // 2, SIDE // 2)
    assert played.anchors.updates == 1
    assert sorted(game.moved) == ["generator", "judge"]
    assert all(value.dtype in (torch.float64, torch.float32) and value.ndim == 0 for value in played.values.values())
    assert played.values["reconstruction"].dtype == torch.float64
    assert not any(value.requires_grad for value in played.values.values())


def test_the_joint_play_judges_what_was_made_before_the_step() -> None:
    """The discriminator's loss is that of the logits that the generator heard."""
    found = Game(updates="simultaneous").play(Strength(1.0, 1.0)).values
    assert float(found["fake_logits"]) == pytest.approx(-float(found["generator"]), rel=1e-12)
    later = Game(updates="alternating").play(Strength(1.0, 1.0)).values
    assert float(later["fake_logits"]) != pytest.approx(-float(later["generator"]), rel=1e-6)


@pytest.mark.parametrize("play", sorted(PLAYS))
def test_a_late_discriminator_does_not_move(play: str) -> None:
    game = Game(updates=play)
    before = [weight.clone() for weight in game.judge.parameters()]
    values = game.play(Strength(0.0, 0.0)).values
    assert all(weight.equal(old) for weight, old in zip(game.judge.parameters(), before, strict=True))
    assert float(values["discriminator"]) == 0.0
    game.play(Strength(0.0, 1.0))
    assert not all(weight.equal(old) for weight, old in zip(game.judge.parameters(), before, strict=True))


def test_a_judge_without_a_finite_word_does_no_harm_before_it_counts() -> None:
    """In the original 0 times infinity would end the training."""
    game = Game(updates="alternating")
    with torch.no_grad():
        next(game.judge.parameters()).fill_(torch.inf)
    game.play(Strength(0.0, 0.0))
    assert all(weight.isfinite().all() for weight in game.tokenizer.parameters())


def test_no_weight_no_game() -> None:
    game = Game(weight=0.0)
    assert play_of(game.settings) is alone
    assert set(game.play(Strength(1.0, 1.0)).values) == {"reconstruction", "pixel", "codebook", "gradient_norm"}
    assert game.moved == ["generator"]
    assert play_of(Game(updates="simultaneous").settings) is simultaneous
    assert play_of(Game(updates="alternating").settings) is alternating


def test_nothing_narrows_double_precision() -> None:
    game = Game(updates="alternating", lecam=0.1)
    values = game.play(Strength(1.0, 1.0)).values
    assert {values[name].dtype for name in ("total", "generator", "discriminator", "lecam")} == {torch.float64}


# --- R1 --------------------------------------------------------------------------------------------------------------

R1 = {"r1": 5.0, "discriminator": {"name": "blur", "base_channels": 8, "space_to_depth": 1, "spectral": True}}


# The projected one is always spectrally normalized, so that every forward moves its weights a little.
@pytest.mark.parametrize(
    "judge", [{"name": name, "base_channels": 8, "layers": 1, "space_to_depth": 1} for name in ("patch", "blur")]
)
@pytest.mark.parametrize("play", sorted(PLAYS))
def test_the_penalty_is_that_of_each_image_by_itself(play: str, judge: dict[str, Any]) -> None:
    game = Game(updates=play, r1=5.0, discriminator=judge)
    expected = reference.gradient_penalty(game.judge, game.images)
    values = game.play(Strength(0.0, 1.0)).values
    assert float(values["r1"]) == pytest.approx(expected, rel=1e-10)
    assert not values["r1"].requires_grad


@pytest.mark.parametrize("play", sorted(PLAYS))
@pytest.mark.parametrize(("penalty", "strength"), [(1.0, 1.0), (4.0, 1.0), (1.0, 0.5)])
def test_the_discriminator_steps_along_loss_and_penalty(play: str, penalty: float, strength: float) -> None:
    """Against the gradient of the whole loss by its definition, with half of gamma = 5."""
    judge = {"name": "blur", "base_channels": 8, "layers": 1, "space_to_depth": 1}
    game, slow = (Game(updates=play, r1=5.0, discriminator=judge) for _ in range(2))
    game.play(Strength(0.0, strength), penalty=penalty)
    if play == "alternating":  # the discriminator sees what the generator makes after its step
        slow.tokenizer.load_state_dict(game.tokenizer.state_dict())
    with torch.no_grad():
        reconstructions, _ = slow.tokenizer(slow.images)
    images = slow.images.clone().requires_grad_()
    real, fake = slow.judge(images), slow.judge(reconstructions)
    (at_images,) = torch.autograd.grad(real.sum(), images, create_graph=True)
    loss = ADVERSARIAL["hinge"].discriminator(real, fake) + penalty * 2.5 * at_images.square().sum() / real.numel()
    expected = torch.autograd.grad(strength * loss, list(slow.judge.parameters()))
    for found, each in zip(game.gradients, expected, strict=True):
        torch.testing.assert_close(found, each, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("play", sorted(PLAYS))
def test_a_step_without_penalty_is_the_plain_one(play: str) -> None:
    lazy, plain = Game(updates=play, **R1), Game(updates=play, **{**R1, "r1": 0.0})
    values = [game.play(Strength(1.0, 1.0), penalty=0.0).values for game in (lazy, plain)]
    assert values[0].keys() == values[1].keys()
    assert "r1" not in values[0]
    a, b = lazy.state(), plain.state()
    assert all(a[name].equal(b[name]) for name in a)


def test_the_penalty_holds_the_slope_at_real_images_down() -> None:
    slopes = {}
    for gamma in (0.0, 100.0):
        game = Game(r1=gamma, discriminator={"base_channels": 8, "layers": 1})
        for _ in range(20):
            game.play(Strength(0.0, 1.0))
        slopes[gamma] = reference.gradient_penalty(game.judge, game.images)
    assert slopes[100.0] < 0.5 * slopes[0.0]


def test_a_lazy_penalty_is_as_strong_in_the_mean() -> None:
    for every in (1, 3):
        settings = parse(AdversarialSettings, {"r1": 1.0, "r1_every": every}, where="test")
        factors = [penalty_at(step, settings=settings) for step in range(6)]
        assert sum(factors) == 6
        assert [step for step, factor in enumerate(factors) if factor] == list(range(0, 6, every))


def test_a_penalty_needs_logits_of_single_images() -> None:
    with pytest.raises(SmaltiError, match=r"r1 = 5 .*norm = 'batch'.*set discriminator.norm to group, or r1 to 0"):
        Game(r1=5.0)


def test_under_autocast_the_penalty_is_finite_and_learned_along() -> None:
    game = Game(**R1)
    game.judge.float()
    game.tokenizer.float()
    game.images = game.images.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = game.play(Strength(1.0, 1.0)).values
    assert values["r1"].dtype == torch.float32
    assert values["r1"] > 0
    assert all(gradient.isfinite().all() for gradient in game.gradients)


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

    def step() -> Tensor:
        optimizer.step()
        optimizer.zero_grad()
        return torch.zeros(())

    def generate(images: Tensor, quantize: Callable[[Tensor], Any]) -> Any:
        features = tokenizer.features(images)
        quantized = quantize(features)
        return features, quantized, tokenizer.decode(quantized.latents)

    def refused(images: Tensor) -> Tensor:
        raise AssertionError("a discriminator was asked")

    players = Players(
        generate=generate,
        judge=refused,
        score=ReconstructionLoss(settings),
        last_layer=tokenizer.decoder.last_layer,
        settings=settings,
        backward=torch.autograd.backward,
        judge_weights=(),
        move_generator=step,
        move_judge=step,
    )
    assert play_of(settings) is alone
    losses = []
    for count in range(25):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=count == 0):
            played = play_of(settings)(
                players,
                images,
                quantize=tokenizer.quantizer.relaxed,
                strength=Strength(1.0, 1.0),
                anchors=LeCam.start(),
            )
        losses.append(float(played.values["pixel"]))
    assert losses[-1] < 0.5 * losses[0]
    _, _, logits = generate(images, tokenizer.quantizer.relaxed)
    assert (logits.argmax(1) == labels).float().mean() > 0.9


# --- chance, and a margin ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("play", sorted(PLAYS))
def test_real_and_generated_images_are_changed_alike_before_the_discriminator(play: str) -> None:
    game = Game(updates=play, augment=["color", "translation", "cutout"])
    draws = draws_of(game.settings, len(game.images), generator=torch.Generator().manual_seed(3))
    seen: list[Tensor] = []

    def watched(images: Tensor) -> Tensor:
        seen.append(images.detach())
        return game.judge(images)  # type: ignore[no-any-return]

    players = dataclasses.replace(game.players(), judge=watched, draws=draws)
    quantize = game.tokenizer.quantizer.at(0, length=1)
    with torch.no_grad():
        before, _ = game.tokenizer(game.images)
    play_of(game.settings)(players, game.images, quantize=quantize, strength=Strength(1.0, 1.0), anchors=LeCam.start())
    augment = draws.augmentation
    assert any(each.equal(augment(game.images)) for each in seen)
    torch.testing.assert_close(seen[0], augment(before))
    assert not any(each.equal(game.images) for each in seen)


def test_draws_are_those_of_their_generator_and_settings() -> None:
    settings = Game(augment=["color"]).settings
    shifted = dataclasses.replace(settings, perceptual_shift=5)
    first, again = (draws_of(shifted, 3, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.shift == again.shift
    assert first.augmentation.color is not None
    assert again.augmentation.color is not None
    assert first.augmentation.color.equal(again.augmentation.color)
    assert first.augmentation.cutout is None
    shifts = {draws_of(shifted, 1, generator=torch.Generator().manual_seed(seed)).shift for seed in range(200)}
    assert shifts == {(down, right) for down in range(6) for right in range(6)}
    assert draws_of(settings, 3, generator=torch.Generator().manual_seed(1)).shift == (0, 0)


@pytest.mark.parametrize("play", sorted(PLAYS))
@pytest.mark.parametrize(("ahead", "listens"), [(0.4, False), (0.6, True)])
def test_the_generator_listens_only_while_the_discriminator_is_ahead(play: str, ahead: float, listens: bool) -> None:
    game, plain = Game(updates=play, margin=0.5), Game(updates=play)
    anchors = LeCam(real=torch.tensor(ahead), fake=torch.tensor(0.0), updates=torch.tensor(9.0))
    quantize = game.tokenizer.quantizer.at(0, length=1)
    values = play_of(game.settings)(
        game.players(), game.images, quantize=quantize, strength=Strength(1.0, 1.0), anchors=anchors
    ).values
    assert bool(values["adaptive_weight"]) == listens
    plain.play(Strength(1.0 if listens else 0.0, 1.0))
    a, b = game.state(), plain.state()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-9, atol=1e-12, msg=name)
