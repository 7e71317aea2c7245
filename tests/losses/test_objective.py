"""The objective of stage 1: one backward pass through the decoder against the three of the original."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.losses import objective
from smalti.losses.adversarial import ADVERSARIAL
from smalti.losses.objective import AdversarialSettings, ObjectiveSettings, ReconstructionLoss, balanced_gradient
from smalti.losses.patch_discriminator import PatchDiscriminator, PatchSettings
from smalti.losses.perceptual import Backbone, Perceptual
from smalti.losses.pixel import LABEL_LOSSES, PIXEL_LOSSES
from tests import reference

LOSSES: list[Literal["hinge", "vanilla", "nonsaturating"]] = ["hinge", "vanilla", "nonsaturating"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Uniform in [-1, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Scene:
    """A small decoder of three convolutions, a discriminator, and the losses of one step, in double precision."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.decoder = nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3)
        ).double()
        last = self.decoder[-1]
        assert isinstance(last, nn.Conv2d)
        self.last_layer = last.weight
        self.discriminator = PatchDiscriminator(PatchSettings(base_channels=8, layers=1)).double()
        with torch.no_grad():
            for parameter in self.discriminator.parameters():
                parameter.mul_(5.0)  # large enough that the generator's gradient is of the size of the other
        self.images = noise(2, 3, 10, 10, seed=1).double()
        self.latents = noise(2, 4, 12, 12, seed=2).double()
        self.score = ReconstructionLoss(ObjectiveSettings(perceptual="none"))

    def distance(self, reconstructions: Tensor) -> Tensor:
        total: Tensor = self.score(self.images, reconstructions).total
        return total

    def parameters(self) -> list[Tensor]:
        return list(self.decoder.parameters())

    def surrogate(self, settings: AdversarialSettings, *, strength: float) -> tuple[tuple[Tensor, ...], Any]:
        """The decoder's gradients by one backward pass with the balanced gradient, and the balance."""
        reconstructions = self.decoder(self.latents)
        images = reconstructions.detach().requires_grad_()
        balanced = balanced_gradient(
            reconstructions,
            images,
            distance=self.distance(images),
            fake=self.discriminator(images),
            last_layer=self.last_layer,
            settings=settings,
            strength=strength,
        )
        return torch.autograd.grad(reconstructions, self.parameters(), balanced.gradient), balanced


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("strength", "limit"), [(1.0, 1e4), (0.3, 1e4), (1.0, 0.5)])
def test_one_backward_pass_gives_what_three_give(loss: str, strength: float, limit: float) -> None:
    scene = Scene()
    settings = parse(AdversarialSettings, {"loss": loss, "weight": 0.8, "max_weight": limit}, where="test")
    found, balanced = scene.surrogate(settings, strength=strength)

    reconstructions = scene.decoder(scene.latents)
    generator = ADVERSARIAL[loss].generator(scene.discriminator(reconstructions))
    nll, weight = scene.distance(reconstructions), 0.8 * strength
    expected = reference.balanced(
        nll, generator, scene.parameters(), last_layer=scene.last_layer, weight=weight, limit=limit
    )
    plain = torch.autograd.grad(scene.distance(scene.decoder(scene.latents)), scene.parameters())
    for a, b, without in zip(found, expected, plain, strict=True):
        torch.testing.assert_close(a, b)
        assert not torch.allclose(a, without, rtol=1e-2)
    torch.testing.assert_close(balanced.generator, generator.detach())
    assert not balanced.generator.requires_grad
    assert not balanced.weight.requires_grad


def test_adaptive_terms_pull_the_last_layer_equally() -> None:
    """Equation 7 in words: with weight 1, both terms have the same norm at the decoder's last weights."""
    scene = Scene()
    (_, balanced) = scene.surrogate(AdversarialSettings(weight=1.0), strength=1.0)
    reconstructions = scene.decoder(scene.latents)
    generator = ADVERSARIAL["hinge"].generator(scene.discriminator(reconstructions))
    terms = (scene.distance(reconstructions), balanced.weight * generator)
    norms = [torch.autograd.grad(term, scene.last_layer, retain_graph=True)[0].norm() for term in terms]
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-2, atol=0.0)


def test_at_strength_0_the_discriminator_is_not_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()

    def requested(*arguments: object) -> Tensor:
        raise AssertionError("the generator's loss was asked for")

    monkeypatch.setitem(ADVERSARIAL, "hinge", ADVERSARIAL["hinge"]._replace(generator=requested))
    monkeypatch.setitem(objective._BALANCES, "adaptive", requested)
    found, balanced = scene.surrogate(AdversarialSettings(), strength=0.0)
    expected = torch.autograd.grad(scene.distance(scene.decoder(scene.latents)), scene.parameters())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert (balanced.generator.item(), balanced.weight.item()) == (0.0, 0.0)


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_a_fixed_balance_is_the_weight_alone(strength: float) -> None:
    scene = Scene()
    found, balanced = scene.surrogate(AdversarialSettings(weighting="fixed", weight=0.6), strength=strength)
    reconstructions = scene.decoder(scene.latents)
    generator = ADVERSARIAL["hinge"].generator(scene.discriminator(reconstructions))
    total = scene.distance(reconstructions) + 0.6 * strength * generator
    assert balanced.weight.item() == pytest.approx(0.6 * strength)
    for a, b in zip(found, torch.autograd.grad(total, scene.parameters()), strict=True):
        torch.testing.assert_close(a, b)


def test_the_discriminator_can_learn_from_the_same_logits() -> None:
    """The graph behind `fake` is still there afterward, for the discriminator's own loss."""
    scene = Scene()
    reconstructions = scene.decoder(scene.latents)
    images = reconstructions.detach().requires_grad_()
    fake = scene.discriminator(images)
    distance, last_layer = scene.distance(images), scene.last_layer
    settings = AdversarialSettings()
    balanced_gradient(
        reconstructions,
        images,
        distance=distance,
        fake=fake,
        last_layer=last_layer,
        settings=settings,
        strength=1.0,
    )
    loss = ADVERSARIAL["hinge"].discriminator(scene.discriminator(scene.images), fake)
    gradients = torch.autograd.grad(loss, list(scene.discriminator.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(("pixel", "expected"), [("l1", (0.5 + 0.25) / 2), ("l2", (0.25 + 0.0625) / 2)])
def test_the_reconstruction_loss_is_a_mean_over_images(pixel: str, expected: float) -> None:
    score = ReconstructionLoss(parse(ObjectiveSettings, {"pixel": pixel, "perceptual": "none"}, where="test"))
    images = torch.zeros(2, 3, 4, 4)
    reconstructions = torch.stack((torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), -0.25))).requires_grad_()
    result = score(images, reconstructions)
    assert result.total.item() == pytest.approx(expected)
    assert result.pixel.item() == pytest.approx(expected)
    assert result.perceptual.item() == 0.0
    (gradient,) = torch.autograd.grad(result.total, reconstructions)
    assert (gradient[0] > 0).all()
    assert (gradient[1] < 0).all()


class Two(nn.Module):
    """Two images -> the distances 1 and 3."""

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        return others.new_tensor([1.0, 3.0])


def two(dropout: float) -> Any:
    return Two()


def test_the_perceptual_term_is_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(objective.PERCEPTUAL, "squeezenet", two)
    result = ReconstructionLoss(ObjectiveSettings(perceptual_weight=0.25))(
        torch.zeros(2, 3, 2, 2), torch.ones(2, 3, 2, 2)
    )
    assert (result.pixel.item(), result.perceptual.item(), result.total.item()) == (1.0, 2.0, 1.5)


def test_a_perceptual_term_of_weight_0_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error for images of two channels says so: "set its weight to 0"."""

    def loaded(dropout: float) -> Perceptual:
        raise AssertionError("the network was loaded")

    monkeypatch.setitem(objective.PERCEPTUAL, "squeezenet", loaded)
    result = ReconstructionLoss(ObjectiveSettings(perceptual_weight=0.0))(
        torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2)
    )
    assert (result.pixel.item(), result.perceptual.item(), result.total.item()) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize("name", ["squeezenet", "vgg16", "alexnet"])
def test_the_dropout_reaches_the_perceptual_term(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is active while the loss is in training mode and not when it validates."""
    requested = []

    def build(backbone: str, *, dropout: float) -> Perceptual:
        requested.append(backbone)
        return Perceptual(
            Backbone(nn.Sequential(nn.Conv2d(3, 8, 3)), taps=(0,), widths=(8,), smallest=3), dropout=dropout
        )

    monkeypatch.setattr(objective, "perceptual", build)
    settings: dict[str, Any] = {"perceptual": name, "perceptual_dropout": 0.5}
    score = ReconstructionLoss(parse(ObjectiveSettings, settings, where="test"))
    assert requested == [name]
    images, others = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
    torch.manual_seed(0)
    noisy = [score(images, others).perceptual.item() for _ in range(3)]
    assert len(set(noisy)) == 3
    score.eval()
    assert score(images, others).perceptual.item() == score(images, others).perceptual.item()


def test_the_objective_in_double_precision_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(objective.PERCEPTUAL, "squeezenet", two)
    score = ReconstructionLoss(ObjectiveSettings(perceptual_weight=0.1)).double()
    images, others = torch.zeros(2, 1, 1, 3).double(), torch.full((2, 1, 1, 3), 0.1).double() / 3
    result = score(images, others)
    assert {value.dtype for value in result} == {torch.float64}
    assert result.total.item() == pytest.approx(others[0, 0, 0, 0].item() + 0.1 * 2.0, rel=1e-15)

    scene = Scene()
    found, balanced = scene.surrogate(AdversarialSettings(weight=0.8), strength=0.7)
    reconstructions = scene.decoder(scene.latents)
    generator = ADVERSARIAL["hinge"].generator(scene.discriminator(reconstructions))
    expected = reference.balanced(
        scene.distance(reconstructions),
        generator,
        scene.parameters(),
        last_layer=scene.last_layer,
        weight=0.56,
        limit=1e4,
    )
    assert {balanced.weight.dtype, balanced.generator.dtype, balanced.gradient.dtype} == {torch.float64}
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("pixel", LABEL_LOSSES)
def test_label_maps_are_learned_without_perceptual_term_and_discriminator(pixel: str) -> None:
    alone = {"pixel": pixel, "perceptual": "none", "adversarial": {"weight": 0}}
    score = ReconstructionLoss(parse(ObjectiveSettings, alone, where="here"))
    images = torch.eye(4).view(1, 4, 2, 2)
    logits = noise(1, 4, 2, 2, seed=1).requires_grad_()
    result = score(images, logits)
    assert result.total.item() == LABEL_LOSSES[pixel](images, logits).mean().item()
    assert result.perceptual.item() == 0.0
    for wrong in ({"perceptual": "vgg16"}, {"adversarial": {"weight": 0.4}}):
        with pytest.raises(
            SmaltiError,
            match=rf"here: pixel = '{pixel}' .*set perceptual and logits to none "
            r"and hatch_weight and adversarial.weight to 0",
        ):
            parse(ObjectiveSettings, {**alone, **wrong}, where="here")
    parse(ObjectiveSettings, {"pixel": "l2", "perceptual": "vgg16"}, where="here")


def test_every_choice_of_the_settings_is_in_its_table() -> None:
    for key, table in (("pixel", PIXEL_LOSSES), ("perceptual", objective.PERCEPTUAL)):
        with pytest.raises(SmaltiError, match=rf"here: {key} = 'l7'") as raised:
            parse(ObjectiveSettings, {key: "l7"}, where="here")
        assert all(f"'{name}'" in str(raised.value) for name in table)
    for key, names in (("loss", ADVERSARIAL), ("weighting", objective._BALANCES)):
        with pytest.raises(SmaltiError, match=rf"here: adversarial\.{key} = 'l7'") as raised:
            parse(ObjectiveSettings, {"adversarial": {key: "l7"}}, where="here")
        assert all(f"'{name}'" in str(raised.value) for name in names)


def test_a_shift_moves_the_perceptual_networks_grid_over_both(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Watched(nn.Module):
        def forward(self, images: Tensor, others: Tensor) -> Tensor:
            seen.append((images, others))
            return others.new_zeros(len(others))

    monkeypatch.setitem(objective.PERCEPTUAL, "squeezenet", lambda dropout: Watched())
    score = ReconstructionLoss(ObjectiveSettings(perceptual_shift=3))
    images, others = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
    shifted, plain = score(images, others, (2, 3)), score(images, others)
    assert seen[0][0].equal(images[..., 2:, 3:])
    assert seen[0][1].equal(others[..., 2:, 3:])
    assert seen[1][0].equal(images)
    assert shifted.pixel == plain.pixel


def test_efficientnets_distance_has_no_dropout() -> None:
    with pytest.raises(SmaltiError, match=r"perceptual_dropout = 0\.5 is a dropout of LPIPS's weights"):
        parse(ObjectiveSettings, {"perceptual": "efficientnet", "perceptual_dropout": 0.5}, where="test")
