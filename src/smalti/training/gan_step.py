"""One GAN step of stage 1: losses of tokenizer and discriminator, gradients, clipping, a check that all is finite,
optimizer steps.

`simultaneous` is the default, `alternating` is that of the original code, `reconstruction_only` has no discriminator.
All three map (networks, images, inputs of the step) to a `GANStepResult`, and average over several processes and over
the parts of a batch whose gradients are accumulated.

Notation: B batch, C channels, H W pixels, h w code grid, D dimension of a code. Source: arXiv 2012.09841, equations 5
to 7, and its published code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from lightning_fabric import Fabric
from torch import Tensor

from smalti.losses.adversarial import ADVERSARIAL, LeCam, gradient_penalty, lecam
from smalti.losses.diff_augment import Augmentation, draw_augmentation
from smalti.losses.objective import (
    AdversarialSettings,
    ObjectiveSettings,
    Reconstruction,
    ReconstructionLoss,
    balanced_gradient,
    loss_gradients,
)
from smalti.tokenizer.quantizers import Quantized
from smalti.training.optimizer_step import (
    apply_gradients,
    clip_gradients,
    gradient_sync,
    mean_of_parts,
    mean_of_processes,
    not_finite,
)

Quantize = Callable[[Tensor], Quantized]
Values = dict[str, Tensor]


class AdversarialSchedule(NamedTuple):
    """The factors of the adversarial losses in one step."""

    generator: float
    """Factor in [0,1] of the adversarial term in the generator's loss."""
    discriminator: float
    """Factor in [0,1] of the discriminator's loss."""


class RandomChoices(NamedTuple):
    """The random choices of one step."""

    shift: tuple[int, int]
    """Pixels (down, right) by which the perceptual network's grid is moved over the images."""
    augmentation: Augmentation
    """Of the discriminator's inputs."""


NO_CHOICES = RandomChoices((0, 0), Augmentation(None, None, None))
"""No shift and no augmentation."""


def draw_choices(settings: ObjectiveSettings, batch: int, *, generator: torch.Generator) -> RandomChoices:
    """Settings and the number of images -> the random choices of one step. Draws only what the settings need."""
    largest = settings.perceptual_shift
    down, right = torch.randint(largest + 1, (2,), generator=generator).tolist() if largest else (0, 0)
    return RandomChoices((down, right), draw_augmentation(settings.adversarial.augment, batch, generator=generator))


def r1_factor_at(step: int, *, settings: AdversarialSettings) -> float:
    """Number of the training step, from 0 -> the factor of R1 in it: `r1_every` in every `r1_every`-th step, else 0.

    Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", section 3.1 (lazy regularization): over
    the training the penalty is as strong, at a fraction of its cost.
    """
    return float(settings.r1_every) if step % settings.r1_every == 0 else 0.0


@final
@dataclass(frozen=True, kw_only=True)
class GAN:
    """Tokenizer and discriminator, their losses and optimizers. Networks and losses are in training mode."""

    fabric: Fabric
    autoencoder: Any
    """Module: images (B,C,H,W), a quantizer -> features (B,D,h,w), `Quantized`, reconstructions (B,C,H,W)."""
    discriminator: Any
    """Module: images (B,C,H,W) -> logits. Both modules may be wrapped for several processes."""
    discriminator_weights: Sequence[Tensor]
    """The inputs of the discriminator's backward pass, so that it goes no further."""
    reconstruction_loss: ReconstructionLoss
    last_layer: Tensor
    """The decoder's last weight, for equation 7."""
    settings: ObjectiveSettings
    optimizer: Any
    discriminator_optimizer: Any
    grad_clip: float = 0.0
    """Largest norm of the tokenizer's gradients; 0 does not clip."""
    discriminator_grad_clip: float = 0.0


@final
@dataclass(frozen=True, kw_only=True)
class StepInputs:
    """What one step depends on besides networks and images."""

    quantize: Quantize
    """Features (B,D,h,w) -> `Quantized`."""
    schedule: AdversarialSchedule
    lecam_ema: LeCam
    """The running means of the discriminator's logits before this step."""
    lr: float
    discriminator_lr: float
    choices: RandomChoices = NO_CHOICES
    r1_factor: float = 1.0
    """Factor of R1 in this step; see `r1_factor_at`."""
    accumulate: int = 1
    """Number of equal parts of the batch whose gradients are accumulated."""


class GANStepResult(NamedTuple):
    """What a step gives besides the new weights."""

    features: Tensor
    """(B,D,h,w), without gradient."""
    codes: Tensor
    """(B,h,w) of the features."""
    lecam_ema: LeCam
    values: Values
    """Named metrics (), without gradient, averaged over all processes."""
    stepped: bool
    """Whether the tokenizer's optimizer made its step."""
    not_finite: list[str]
    """The names of the metrics that are not finite. Optimizers that had not stepped before they were known made no
    step."""


def gan_step(gan: GAN, images: Tensor, inputs: StepInputs) -> GANStepResult:
    """Images (B,C,H,W) in [-1,1] -> one step of tokenizer and discriminator, as the settings choose."""
    if not gan.settings.adversarial.weight:
        return reconstruction_only(gan, images, inputs)
    return UPDATES[gan.settings.adversarial.updates](gan, images, inputs)


def reconstruction_only(gan: GAN, images: Tensor, inputs: StepInputs) -> GANStepResult:
    """A step of the tokenizer without a discriminator: VQ-VAE, or with the perceptual term VQGAN before its GAN."""
    parts = []
    for part in _parts(images, inputs):
        with gradient_sync(gan.fabric, (gan.autoencoder,), enabled=part.last):
            features, quantized, reconstructions = gan.autoencoder(part.images, inputs.quantize)
            fake_images = _at_least_float32(reconstructions.detach()).requires_grad_()
            reconstruction = gan.reconstruction_loss(part.images, fake_images, inputs.choices.shift)
            (gradient,) = torch.autograd.grad(reconstruction.total, fake_images)
            _generator_backward(gan, reconstructions, gradient, quantized, parts=inputs.accumulate)
        values = _reconstruction_values(gan, reconstruction, quantized)
        parts.append(_PartResult(features.detach(), quantized.codes, inputs.lecam_ema, values))
    norms = {"gradient_norm": clip_gradients(gan.fabric, gan.autoencoder, gan.optimizer, gan.grad_clip)}
    values = mean_of_processes(gan.fabric, {**mean_of_parts([part.values for part in parts]), **norms})
    invalid = not_finite(values)
    if not invalid:
        apply_gradients(gan.optimizer, lr=inputs.lr)
    gan.optimizer.zero_grad(set_to_none=True)
    return _merge_parts(parts, values, stepped=not invalid, invalid=invalid)


def simultaneous(gan: GAN, images: Tensor, inputs: StepInputs) -> GANStepResult:
    """Both networks learn from one pass of each: the discriminator's fakes are those from before the generator's step.

    While the factor of the generator's adversarial term is 0, its gradient is not computed.
    """
    settings, factors = gan.settings.adversarial, inputs.schedule
    generator_factor = factors.generator * _discriminator_leads(inputs.lecam_ema, settings)
    parts = []
    for part in _parts(images, inputs):
        with gradient_sync(gan.fabric, (gan.autoencoder, gan.discriminator), enabled=part.last):
            # All losses are taken at `fake_images`, a leaf with the values of the reconstructions: the gradient there
            # passes the decoder once, whatever it is made of.
            features, quantized, reconstructions = gan.autoencoder(part.images, inputs.quantize)
            fake_images = _at_least_float32(reconstructions.detach()).requires_grad_()
            reconstruction = gan.reconstruction_loss(part.images, fake_images, inputs.choices.shift)
            real_images = _real_images(part.images, settings, inputs)
            fake = gan.discriminator(part.augmentation(fake_images))
            real = gan.discriminator(part.augmentation(real_images))
            # Equations 6 and 7: the reconstruction loss (which with the codebook loss below is equation 4) and the
            # adversarial loss, multiplied by the adaptive weight.
            balanced = balanced_gradient(
                reconstructions,
                fake_images,
                distance=reconstruction.total,
                fake=fake,
                last_layer=gan.last_layer,
                settings=settings,
                strength=generator_factor,
            )
            # Equation 5, the discriminator's side, by default as a hinge loss.
            discriminator_loss, discriminator_values, lecam_ema = _discriminator_loss(
                real, fake, real_images, settings=settings, inputs=inputs
            )
            gan.fabric.backward(discriminator_loss / inputs.accumulate, inputs=gan.discriminator_weights)
            _generator_backward(gan, reconstructions, balanced.gradient, quantized, parts=inputs.accumulate)
        values = _reconstruction_values(gan, reconstruction, quantized) | {"adaptive_weight": balanced.weight}
        values |= {"generator": balanced.generator} if generator_factor else {}
        parts.append(_PartResult(features.detach(), quantized.codes, lecam_ema, values | discriminator_values))
    norms = {
        "discriminator_gradient_norm": clip_gradients(
            gan.fabric, gan.discriminator, gan.discriminator_optimizer, gan.discriminator_grad_clip
        ),
        "gradient_norm": clip_gradients(gan.fabric, gan.autoencoder, gan.optimizer, gan.grad_clip),
    }
    values = mean_of_processes(gan.fabric, {**mean_of_parts([part.values for part in parts]), **norms})
    invalid = not_finite(values)
    if not invalid:
        apply_gradients(gan.discriminator_optimizer, lr=inputs.discriminator_lr)
        apply_gradients(gan.optimizer, lr=inputs.lr)
    gan.discriminator_optimizer.zero_grad(set_to_none=True)
    gan.optimizer.zero_grad(set_to_none=True)
    return _merge_parts(parts, values, stepped=not invalid, invalid=invalid)


def alternating(gan: GAN, images: Tensor, inputs: StepInputs) -> GANStepResult:
    """The original's two optimizer steps for each batch: the generator's, and the discriminator's on new
    reconstructions.

    A step is skipped where the norm of its gradients is not finite; the discriminator's also where the generator's was
    skipped. The whole batch is one part: gradients are not accumulated.
    """
    features, quantized, values, stepped = generator_step(gan, images, inputs)
    discriminator_values, lecam_ema = discriminator_step(gan, images, inputs, skip=not stepped)
    values = mean_of_processes(gan.fabric, values | discriminator_values)
    return GANStepResult(features, quantized.codes, lecam_ema, values, stepped, not_finite(values))


def generator_step(gan: GAN, images: Tensor, inputs: StepInputs) -> tuple[Tensor, Quantized, Values, bool]:
    """The first half of `alternating` -> features (B,D,h,w), `Quantized`, metrics, whether the optimizer stepped.

    The discriminator is computed from the first step on, also while the factor of its term is 0 (as in the original:
    the running statistics of a BatchNorm move with it). `full_weight` is the weight of the adversarial term at factor
    1, `total` the whole loss.
    """
    features, quantized, reconstructions = gan.autoencoder(images, inputs.quantize)
    fake_images = _at_least_float32(reconstructions.detach()).requires_grad_()
    reconstruction = gan.reconstruction_loss(images, fake_images, inputs.choices.shift)
    # Equation 7
    gradients = loss_gradients(
        reconstructions,
        fake_images,
        distance=reconstruction.total,
        fake=gan.discriminator(inputs.choices.augmentation(fake_images)),
        last_layer=gan.last_layer,
        settings=gan.settings.adversarial,
    )
    factor = inputs.schedule.generator * _discriminator_leads(inputs.lecam_ema, gan.settings.adversarial)
    weight = factor * gradients.weight
    # Equation 6
    codebook_loss = gan.settings.codebook_weight * quantized.loss.detach()
    total = reconstruction.total.detach() + weight * gradients.generator + codebook_loss
    # With factor 0 a gradient that is not finite does no harm either.
    gradient = gradients.reconstruction_gradient
    gradient = gradient + weight * gradients.adversarial_gradient if factor else gradient
    _generator_backward(gan, reconstructions, gradient, quantized, parts=1)
    norm = clip_gradients(gan.fabric, gan.autoencoder, gan.optimizer, gan.grad_clip)
    stepped = bool(norm.isfinite())
    if stepped:
        apply_gradients(gan.optimizer, lr=inputs.lr)
    gan.optimizer.zero_grad(set_to_none=True)
    values = {
        **_reconstruction_values(gan, reconstruction, quantized),
        "generator": gradients.generator,
        "adaptive_weight": weight,
        "full_weight": gradients.weight,
        "total": total,
        "gradient_norm": norm,
    }
    return features.detach(), quantized, values, stepped


def discriminator_step(gan: GAN, images: Tensor, inputs: StepInputs, *, skip: bool = False) -> tuple[Values, LeCam]:
    """The second half of `alternating`, with a new pass through the tokenizer -> metrics, and the new LeCam means.

    At factor 0 the discriminator's gradients are zeros and its optimizer steps all the same, as in the original: its
    weights stay, the count in Adam's bias correction continues. `skip`: compute everything, but make no step.
    """
    settings, augmentation = gan.settings.adversarial, inputs.choices.augmentation
    with torch.no_grad():
        _, _, reconstructions = gan.autoencoder(images, inputs.quantize)
    real_images = _real_images(images, settings, inputs)
    real = gan.discriminator(augmentation(real_images))
    fake = gan.discriminator(augmentation(_at_least_float32(reconstructions)))
    loss, values, lecam_ema = _discriminator_loss(real, fake, real_images, settings=settings, inputs=inputs)
    gan.fabric.backward(loss, inputs=gan.discriminator_weights)
    optimizer = gan.discriminator_optimizer
    norm = clip_gradients(gan.fabric, gan.discriminator, optimizer, gan.discriminator_grad_clip)
    if not skip and bool(norm.isfinite()):
        apply_gradients(optimizer, lr=inputs.discriminator_lr)
    optimizer.zero_grad(set_to_none=True)
    return {**values, "discriminator_gradient_norm": norm}, lecam_ema


UPDATES: dict[str, Callable[[GAN, Tensor, StepInputs], GANStepResult]] = {
    "simultaneous": simultaneous,
    "alternating": alternating,
}


class _Part(NamedTuple):
    """A part of a batch whose gradients are accumulated."""

    images: Tensor  # (B,C,H,W)
    augmentation: Augmentation
    last: bool


class _PartResult(NamedTuple):
    features: Tensor  # (B,D,h,w)
    codes: Tensor  # (B,h,w)
    lecam_ema: LeCam
    values: Values


def _parts(images: Tensor, inputs: StepInputs) -> Iterator[_Part]:
    first = 0
    for images_of_part in images.chunk(inputs.accumulate):
        after = first + len(images_of_part)
        augmentation = inputs.choices.augmentation.part(slice(first, after))
        yield _Part(images_of_part, augmentation, last=after == len(images))
        first = after


def _merge_parts(parts: Sequence[_PartResult], values: Values, *, stepped: bool, invalid: list[str]) -> GANStepResult:
    """The results of all parts -> that of the batch."""
    return GANStepResult(
        features=torch.cat([part.features for part in parts]),
        codes=torch.cat([part.codes for part in parts]),
        lecam_ema=_mean_ema(part.lecam_ema for part in parts),
        values=values,
        stepped=stepped,
        not_finite=invalid,
    )


def _mean_ema(emas: Iterable[LeCam]) -> LeCam:
    """Each part has updated the same old means: the mean is what the whole batch updates them to."""
    return LeCam(*(torch.stack(numbers).mean(0) for numbers in zip(*emas, strict=True)))


def _at_least_float32(images: Tensor) -> Tensor:
    """Reconstructions, which autocast may have left in half precision, in float32 at least."""
    return images.to(torch.promote_types(images.dtype, torch.float32))


def _reconstruction_values(gan: GAN, reconstruction: Reconstruction, quantized: Quantized) -> Values:
    values = {"reconstruction": reconstruction.total, "pixel": reconstruction.pixel, "codebook": quantized.loss}
    values |= {name: getattr(reconstruction, name) for name in gan.settings.terms}
    return {name: value.detach() for name, value in values.items()}


def _generator_backward(gan: GAN, images: Tensor, gradient: Tensor, quantized: Quantized, *, parts: int) -> None:
    """Reconstructions and the gradient at them (B,C,H,W) -> one backward pass through the decoder, with the codebook's
    loss."""
    surrogate = (_at_least_float32(images) * gradient).sum() + gan.settings.codebook_weight * quantized.loss
    gan.fabric.backward(surrogate / parts)


def _discriminator_leads(ema: LeCam, settings: AdversarialSettings) -> bool:
    """Whether the discriminator tells real from generated images by the margin; always true without a margin."""
    return not settings.margin or bool(ema.real - ema.fake > settings.margin)


def _r1_weight(settings: AdversarialSettings, inputs: StepInputs) -> float:
    """The factor of R1 in this step, without its half."""
    return settings.r1 * inputs.r1_factor * inputs.schedule.discriminator


def _real_images(images: Tensor, settings: AdversarialSettings, inputs: StepInputs) -> Tensor:
    """The discriminator's real images, as a leaf of the graph where R1 penalizes its gradients at them."""
    return images.detach().requires_grad_() if _r1_weight(settings, inputs) else images


def _discriminator_loss(
    real: Tensor, fake: Tensor, images: Tensor, *, settings: AdversarialSettings, inputs: StepInputs
) -> tuple[Tensor, Values, LeCam]:
    """Logits of real images and of reconstructions, and the real images -> the loss (), metrics, and the new LeCam
    means.

    R1 is computed from the same logits, which came through the discriminator as it is wrapped: a data-parallel wrapper
    sees one backward pass, with every weight's gradient in it once, and autocast is as it was.
    """
    factor = inputs.schedule.discriminator
    ema = inputs.lecam_ema.update(real, fake)
    loss = factor * ADVERSARIAL[settings.loss].discriminator(real, fake)
    regularizer = factor * lecam(real, fake, ema.real, ema.fake)
    total = loss + settings.lecam * regularizer
    values = {"discriminator": loss, "real_logits": real.mean(), "fake_logits": fake.mean(), "lecam": regularizer}
    if weight := _r1_weight(settings, inputs):
        values["r1"] = gradient_penalty(real, images)
        total = total + 0.5 * weight * values["r1"]
    return total, {name: value.detach() for name, value in values.items()}, ema
