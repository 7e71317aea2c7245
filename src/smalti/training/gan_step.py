"""The game of one step of stage 1: how generator (the tokenizer) and discriminator take their turns.

Every play has one signature. The plays know no logger, no device and no schedule: how far the game has come is told them in two
numbers, `Strength`, and how a network is moved along its gradients in two functions of `Players`.

Letters: B batch, C channels, H W pixels, h w code grid, D dimension of a code.
Source: arXiv 2012.09841, equations 5 to 7, and its published code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, final

import torch
from torch import Tensor

from smalti.losses.adversarial import ADVERSARIAL, LeCam, gradient_penalty, lecam
from smalti.losses.diff_augment import Augmentation, draw_augmentation
from smalti.losses.objective import (
    AdversarialSettings,
    ObjectiveSettings,
    Reconstruction,
    ReconstructionLoss,
    balanced_gradient,
    pulls,
)
from smalti.tokenizer.quantizers import Quantized

Quantize = Callable[[Tensor], Quantized]
Values = dict[str, Tensor]


class Strength(NamedTuple):
    """How far the game has come."""

    generator: float
    """Factor in [0,1] of the adversarial term in the generator's loss: how much it listens."""
    discriminator: float
    """Factor in [0,1] of the discriminator's loss."""


class Draws(NamedTuple):
    """What chance decides in one step."""

    shift: tuple[int, int]
    """Pixels (down, right) by which the perceptual network's grid is moved over the images."""
    augmentation: Augmentation
    """Of the images that the discriminator sees."""


UNCHANGED = Draws((0, 0), Augmentation(None, None, None))
"""Nothing is shifted or changed."""


def draws_of(settings: ObjectiveSettings, batch: int, *, generator: torch.Generator) -> Draws:
    """Settings, and how many images there are -> the draws of one step. Nothing is drawn that no setting asks for."""
    largest = settings.perceptual_shift
    down, right = torch.randint(largest + 1, (2,), generator=generator).tolist() if largest else (0, 0)
    return Draws((down, right), draw_augmentation(settings.adversarial.augment, batch, generator=generator))


@final
@dataclass(frozen=True, kw_only=True)
class Players:
    """Both networks, and what they play by. They are in training mode, and so is `score`."""

    generate: Callable[[Tensor, Quantize], tuple[Tensor, Quantized, Tensor]]
    """Images (B,C,H,W) -> features (B,D,h,w), codes, reconstructions (B,C,H,W)."""
    judge: Callable[[Tensor], Tensor]
    """Images (B,C,H,W) -> logits."""
    score: ReconstructionLoss
    last_layer: Tensor
    """The decoder's last weight, for equation 7."""
    settings: ObjectiveSettings
    backward: Callable[..., object]
    """A loss () -> gradients in all that it depends on, or in `inputs=` alone."""
    judge_weights: Sequence[Tensor]
    """What the discriminator learns, so that its loss is sent no further."""
    move_generator: Callable[[], Tensor]
    """Step along the tokenizer's gradients and forget them -> their norm ()."""
    move_judge: Callable[[], Tensor]
    """Likewise for the discriminator."""
    draws: Draws = UNCHANGED
    penalty: float = 1.0
    """Factor of R1 in this step; see `penalty_at`."""


def penalty_at(step: int, *, settings: AdversarialSettings) -> float:
    """Which step of the training this is, from 0 -> the factor of R1 in it: `r1_every` in every so-manieth step, else 0.

    Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", section 3.1 (lazy regularization): over the
    training the penalty is as strong, at a fraction of its cost.
    """
    return float(settings.r1_every) if step % settings.r1_every == 0 else 0.0


class Played(NamedTuple):
    """What a step leaves behind."""

    features: Tensor
    """(B,D,h,w), without gradient."""
    codes: Tensor
    """(B,h,w), that the features took."""
    anchors: LeCam
    values: Values
    """What is worth recording, each () and without gradient."""


class Play(Protocol):
    """Images (B,C,H,W) in [-1,1] -> a step of both networks."""

    def __call__(
        self, players: Players, images: Tensor, *, quantize: Quantize, strength: Strength, anchors: LeCam
    ) -> Played: ...


class _Pass(NamedTuple):
    """A pass through the tokenizer and the distance of what came out. Losses are taken at `images`, a copy without history:
    the gradient there is then sent through the decoder once, whatever it is made of."""

    features: Tensor  # (B,D,h,w)
    quantized: Quantized
    reconstructions: Tensor  # (B,C,H,W), with history
    images: Tensor  # (B,C,H,W), a leaf
    distance: Reconstruction


def alone(players: Players, images: Tensor, *, quantize: Quantize, strength: Strength, anchors: LeCam) -> Played:
    """The tokenizer without a discriminator: VQ-VAE, or with the perceptual term the VQGAN before its game."""
    taken = _pass(players, images, quantize)
    (gradient,) = torch.autograd.grad(taken.distance.total, taken.images)
    values = {**_values(players, taken), "gradient_norm": _learn(players, taken, gradient)}
    return Played(taken.features.detach(), taken.quantized.codes, anchors, values)


def simultaneous(players: Players, images: Tensor, *, quantize: Quantize, strength: Strength, anchors: LeCam) -> Played:
    """Both learn from one pass of each: the discriminator sees the reconstructions from before the generator's step.

    Until the generator listens (strength 0) the discriminator is not asked what it thinks of a reconstruction.
    """
    settings = players.settings.adversarial
    taken = _pass(players, images, quantize)
    asked_of = _asked_of(players, images, strength)
    augment = players.draws.augmentation
    listening = strength.generator * _is_ahead(settings, anchors)
    fake, real = players.judge(augment(taken.images)), players.judge(augment(asked_of))
    balanced = balanced_gradient(
        taken.reconstructions,
        taken.images,
        distance=taken.distance.total,
        fake=fake,
        last_layer=players.last_layer,
        settings=settings,
        strength=listening,
    )
    learned, anchors = _judge_learns(players, asked_of, real, fake, strength=strength, anchors=anchors)
    asked = {"generator": balanced.generator} if listening else {}
    values = {
        **_values(players, taken),
        **asked,
        "adaptive_weight": balanced.weight,
        **learned,
        "gradient_norm": _learn(players, taken, balanced.gradient),
    }
    return Played(taken.features.detach(), taken.quantized.codes, anchors, values)


def alternating(players: Players, images: Tensor, *, quantize: Quantize, strength: Strength, anchors: LeCam) -> Played:
    """The original's two turns on each batch: the generator steps, and then the discriminator on new reconstructions."""
    features, quantized, values = generators_turn(
        players, images, quantize=quantize, strength=strength, anchors=anchors
    )
    learned, anchors = judges_turn(players, images, quantize=quantize, strength=strength, anchors=anchors)
    return Played(features, quantized.codes, anchors, values | learned)


def generators_turn(
    players: Players, images: Tensor, *, quantize: Quantize, strength: Strength, anchors: LeCam
) -> tuple[Tensor, Quantized, Values]:
    """The first turn of `alternating` -> features (B,D,h,w), codes, and what is recorded.

    The discriminator is asked from the first step on, also while its word does not count (as in the original: the running
    statistics of a BatchNorm move with it). `full_weight` is what the adversarial term is multiplied with at full strength,
    `total` the whole loss.
    """
    taken = _pass(players, images, quantize)
    pull = pulls(
        taken.reconstructions,
        taken.images,
        distance=taken.distance.total,
        fake=players.judge(players.draws.augmentation(taken.images)),
        last_layer=players.last_layer,
        settings=players.settings.adversarial,
    )
    listening = strength.generator * _is_ahead(players.settings.adversarial, anchors)
    weight = listening * pull.weight
    # Where nothing is listened to, a gradient that is not finite does no harm either.
    gradient = pull.toward_data + weight * pull.toward_real if listening else pull.toward_data
    codebook = players.settings.codebook_weight * taken.quantized.loss.detach()
    total = taken.distance.total.detach() + weight * pull.generator + codebook
    values = {
        **_values(players, taken),
        "generator": pull.generator,
        "adaptive_weight": weight,
        "full_weight": pull.weight,
        "total": total,
        "gradient_norm": _learn(players, taken, gradient),
    }
    return taken.features.detach(), taken.quantized, values


def judges_turn(
    players: Players, images: Tensor, *, quantize: Quantize, strength: Strength, anchors: LeCam
) -> tuple[Values, LeCam]:
    """The second turn of `alternating`, a new pass through the tokenizer as it is now -> what is recorded, and the anchors.

    At strength 0 the discriminator's gradients are zeros and its optimizer steps all the same, as in the original: its weights
    stay, the count in Adam's bias correction goes on.
    """
    with torch.no_grad():
        _, _, reconstructions = players.generate(images, quantize)
    asked_of = _asked_of(players, images, strength)
    augment = players.draws.augmentation
    real, fake = players.judge(augment(asked_of)), players.judge(augment(_precise(reconstructions)))
    return _judge_learns(players, asked_of, real, fake, strength=strength, anchors=anchors)


PLAYS: dict[str, Play] = {"simultaneous": simultaneous, "alternating": alternating}


def play_of(settings: ObjectiveSettings) -> Play:
    """The play that the settings ask for."""
    return PLAYS[settings.adversarial.updates] if settings.adversarial.weight else alone


def _precise(images: Tensor) -> Tensor:
    """Reconstructions, which autocast may have left in half precision, in float32 at least."""
    return images.to(torch.promote_types(images.dtype, torch.float32))


def _pass(players: Players, images: Tensor, quantize: Quantize) -> _Pass:
    features, quantized, reconstructions = players.generate(images, quantize)
    fake = _precise(reconstructions.detach()).requires_grad_()
    distance = players.score(images, fake, players.draws.shift)
    return _Pass(features, quantized, reconstructions, fake, distance)


def _values(players: Players, taken: _Pass) -> Values:
    distance = taken.distance
    values = {"reconstruction": distance.total, "pixel": distance.pixel, "codebook": taken.quantized.loss}
    return _detached({**values, **{name: getattr(distance, name) for name in players.settings.terms}})


def _detached(values: Values) -> Values:
    return {name: value.detach() for name, value in values.items()}


def _learn(players: Players, taken: _Pass, gradient: Tensor) -> Tensor:
    """The tokenizer's step: the gradient at the images goes through the decoder, with the codebook's terms, in one pass.

    Returns the norm () of all gradients.
    """
    surrogate = (_precise(taken.reconstructions) * gradient).sum()
    players.backward(surrogate + players.settings.codebook_weight * taken.quantized.loss)
    return players.move_generator()


def _is_ahead(settings: AdversarialSettings, anchors: LeCam) -> bool:
    """Whether the discriminator knows real from generated images by the margin; without a margin it is always believed."""
    return not settings.margin or bool(anchors.real - anchors.fake > settings.margin)


def _r1(players: Players, strength: Strength) -> float:
    """What R1 is multiplied with in this step, without its half."""
    return players.settings.adversarial.r1 * players.penalty * strength.discriminator


def _asked_of(players: Players, images: Tensor, strength: Strength) -> Tensor:
    """The images that the discriminator is shown, as a leaf of the graph where its gradients at them are penalized."""
    return images.detach().requires_grad_() if _r1(players, strength) else images


def _judge_learns(
    players: Players, images: Tensor, real: Tensor, fake: Tensor, *, strength: Strength, anchors: LeCam
) -> tuple[Values, LeCam]:
    """Logits of images and of reconstructions -> the discriminator's step. What is recorded is the loss it stepped along.

    R1 is taken of the logits that are there already, which came through the discriminator as it is wrapped: a data-parallel
    wrapper sees one backward pass, with every weight's gradient in it once, and autocast is as it was.
    """
    settings = players.settings.adversarial
    anchors = anchors.update(real, fake)
    loss = strength.discriminator * ADVERSARIAL[settings.loss].discriminator(real, fake)
    held = strength.discriminator * lecam(real, fake, anchors.real, anchors.fake)
    total = loss + settings.lecam * held
    values = {"discriminator": loss, "real_logits": real.mean(), "fake_logits": fake.mean(), "lecam": held}
    if weight := _r1(players, strength):
        values["r1"] = gradient_penalty(real, images)
        total = total + 0.5 * weight * values["r1"]
    players.backward(total, inputs=players.judge_weights)
    return {**_detached(values), "discriminator_gradient_norm": players.move_judge()}, anchors
