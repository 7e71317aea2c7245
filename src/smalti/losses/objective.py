"""What the tokenizer is trained for: pixel, perceptual and logit terms, and the discriminator's, balanced at the image.

The original back-propagates three times through the decoder's neighborhood: for the reconstruction, for the adversarial
term, and for their weighted sum. All three gradients pass through the image, so here both are taken *there* once,
weighed with equation 7, and their sum goes through the decoder in a single backward pass.

Several processes have a share of the batch each. All losses are means over a share, whose gradients data-parallel
training averages; the one quantity that is no mean, equation 7, is taken of gradients averaged here. So the step is
that of one process.

Notation: B batch, C channels, H W pixels. Source: arXiv 2012.09841, equations 5 to 7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple, final

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from smalti.core.distributed import all_reduce_mean
from smalti.core.settings import Amount, Natural, Positive, ProperFraction, settings
from smalti.losses.adversarial import ADVERSARIAL, adaptive_weight
from smalti.losses.diff_augment import Policy
from smalti.losses.discriminator import DiscriminatorSettings
from smalti.losses.feature_distance import FeatureDistance, efficientnet_distance
from smalti.losses.logits import LogitDistance, logit_distance
from smalti.losses.patch_discriminator import PatchSettings
from smalti.losses.perceptual import Perceptual, perceptual
from smalti.losses.periodic import periodic_error
from smalti.losses.pixel import LABEL_LOSSES, PIXEL_LOSSES

Weight = Annotated[float, Field(ge=0)]


@settings
class AdversarialSettings:
    """The patch discriminator and the weight of its term in the generator's loss."""

    weight: Weight = 0.4
    """Factor of the generator's term; 0 trains no discriminator at all."""
    loss: Literal["hinge", "vanilla", "nonsaturating"] = "hinge"
    weighting: Literal["adaptive", "fixed"] = "adaptive"
    """"adaptive" multiplies `weight` with equation 7; "fixed" does not."""
    max_weight: Weight = 1e4
    """Largest adaptive weight."""
    start: Amount = 0.3
    """When the adversarial term of the generator starts, as a fraction of the training or in images."""
    ramp: Amount = 0.2
    """Over how much of the training the term then rises to its full weight, likewise; 0 switches it on at once."""
    discriminator_from_start: bool = True
    """The discriminator learns from the first step. False: its loss is multiplied by 0 before `start`, as the
    original's, whose optimizer steps all the same."""
    updates: Literal["simultaneous", "alternating"] = "simultaneous"
    """"simultaneous": both networks learn from one pass of each. "alternating": the original's two steps for each
    batch, the discriminator's on reconstructions by the generator just updated."""
    lecam: Weight = 0.01
    """Weight of the LeCam regularizer of the discriminator."""
    r1: Weight = 0.0
    """Weight (the paper's gamma) of the penalty on the discriminator's gradients at real images. 0 computes none; it
    needs a discriminator that scores each image by itself, so not one with norm "batch"."""
    r1_every: Positive = 1
    """The penalty is taken in every n-th step only, n times as strong: 16 in StyleGAN2, which makes it cheap."""
    augment: tuple[Policy, ...] = ()
    """DiffAugment: random changes of real and generated images before the discriminator, the same for both: "color",
    "translation", "cutout". They keep a discriminator from memorizing a small data set."""
    margin: Weight = 0.0
    """The generator's adversarial term counts only while the running means of the logits of real and of generated
    images are more than this apart. 0: always."""
    discriminator: DiscriminatorSettings = PatchSettings()

    @model_validator(mode="after")
    def _each_by_itself(self) -> AdversarialSettings:
        if self.r1 and self.discriminator.mixes_batch:
            raise ValueError(
                f"r1 = {self.r1:g} penalizes how an image's logits change with that image, but with discriminator.norm "
                "= 'batch' they change with all others too; set discriminator.norm to group, or r1 to 0"
            )
        return self


@settings
class ObjectiveSettings:
    """Weights of all terms of stage 1."""

    pixel: Literal["l1", "l2", "bce", "cross_entropy"] = "l1"
    """"l1" and "l2" are for images in [-1, 1]; "bce" and "cross_entropy" for one-hot label maps in [0, 1], whose
    reconstructions are logits, and which have neither a perceptual term nor a discriminator."""
    perceptual: Literal["none", "efficientnet", "squeezenet", "vgg16", "alexnet"] = "squeezenet"
    """The network of the perceptual term. "efficientnet": a distance of its features, whose weights come with the
    installation. The others: LPIPS, whose published weights are looked for in $SMALTI_WEIGHTS, the cache,
    and then downloaded."""
    perceptual_weight: Weight = 1.0
    """With 0 the network is not even loaded."""
    perceptual_dropout: ProperFraction = 0.0
    """Dropout in the perceptual term while training. The original's accident is 0.5; 0 makes a steadier loss of the
    same mean."""
    perceptual_shift: Natural = 0
    """In training, image and reconstruction are shifted by up to this many pixels down and right before the perceptual
    network, both alike, drawn again each step. A network that subsamples prefers patterns with the period of its
    strides; where its grid never moves against the decoder's, the decoder learns to paint them."""
    logits: Literal["none", "squeezenet", "resnet50", "resnet50-v2"] = "none"
    """The classifier of ImageNet whose logits are compared, in addition to the LPIPS term or instead of it;
    weights are found likewise."""
    logits_weight: Weight = 0.1
    """With 0 the classifier is not even loaded."""
    hatch_weight: Weight = 0.0
    """Factor of the part of the error that repeats with `hatch_period`, see `losses.periodic`; 0 computes none."""
    hatch_period: Annotated[int, Field(ge=2)] = 4
    """In pixels: the autoencoder's patch_size."""
    codebook_weight: Weight = 1.0
    adversarial: AdversarialSettings = AdversarialSettings()

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms besides the pixel term that are computed, by their names in `Reconstruction`."""
        chosen = {
            "perceptual": (self.perceptual, self.perceptual_weight),
            "logits": (self.logits, self.logits_weight),
        }
        hatch = ("hatch",) if self.hatch_weight else ()
        return tuple(name for name, (network, weight) in chosen.items() if network != "none" and weight) + hatch

    @model_validator(mode="after")
    def _dropout_is_of_lpips(self) -> ObjectiveSettings:
        if self.perceptual == "efficientnet" and self.perceptual_dropout:
            raise ValueError(
                f"perceptual_dropout = {self.perceptual_dropout:g} is a dropout of LPIPS's weights, and the distance "
                "of efficientnet has none; set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _labels_are_not_images(self) -> ObjectiveSettings:
        networks = {
            "perceptual": self.perceptual,
            "logits": self.logits,
            "hatch_weight": self.hatch_weight,
            "adversarial.weight": self.adversarial.weight,
        }
        if self.pixel in LABEL_LOSSES and any(value not in ("none", 0.0) for value in networks.values()):
            raise ValueError(
                f"pixel = {self.pixel!r} compares label maps with logits, which no network made for images can look at "
                f"(here {', '.join(f'{name} = {value!r}' for name, value in networks.items())}); set perceptual and "
                "logits to none and hatch_weight and adversarial.weight to 0, or pixel to l1 or l2 for images"
            )
        return self


class Reconstruction(NamedTuple):
    """How far reconstructions are from their images."""

    total: Tensor
    """(): mean over the batch of pixel + weight * perceptual distance (the original's `nll_loss`) + weight * distance
    of logits + weight * hatch."""
    pixel: Tensor
    """()."""
    perceptual: Tensor
    """(), unweighted."""
    logits: Tensor
    """(), unweighted."""
    hatch: Tensor
    """(), unweighted; 0 where its weight is."""


@final
class NoDistance(nn.Module):
    """Two batches of images (B,C,H,W) -> zeros (B,): the VQ-VAE's objective, and what needs no weights from
    elsewhere."""

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        return others.new_zeros(len(others))


PERCEPTUAL: dict[str, Callable[[float], Perceptual | FeatureDistance | NoDistance]] = {  # of the dropout
    "none": lambda dropout: NoDistance(),
    "efficientnet": lambda dropout: efficientnet_distance(),
    "squeezenet": lambda dropout: perceptual("squeezenet", dropout=dropout),
    "vgg16": lambda dropout: perceptual("vgg16", dropout=dropout),
    "alexnet": lambda dropout: perceptual("alexnet", dropout=dropout),
}

LOGITS: dict[str, Callable[[], LogitDistance | NoDistance]] = {
    "none": NoDistance,
    "squeezenet": lambda: logit_distance("squeezenet"),
    "resnet50": lambda: logit_distance("resnet50"),
    "resnet50-v2": lambda: logit_distance("resnet50-v2"),
}


@final
class ReconstructionLoss(nn.Module):
    """images (B,C,H,W), reconstructions (B,C,H,W) -> `Reconstruction`. The networks of its terms are frozen.

    Both are in [-1, 1] for "l1" and "l2"; for the losses of label maps images are one-hot maps in [0, 1], and
    reconstructions logits. With a perceptual dropout the result is noisy while the module is in training mode: put it
    into evaluation mode (`eval()`) to validate.
    """

    def __init__(self, settings: ObjectiveSettings) -> None:
        super().__init__()
        self.pixel = PIXEL_LOSSES[settings.pixel]
        network = settings.perceptual if settings.perceptual_weight else "none"
        self.perceptual = PERCEPTUAL[network](settings.perceptual_dropout)
        self.logits = LOGITS[settings.logits if settings.logits_weight else "none"]()
        self.weight = settings.perceptual_weight
        self.logits_weight = settings.logits_weight
        self.hatch_weight, self.hatch_period = settings.hatch_weight, settings.hatch_period

    def forward(self, images: Tensor, reconstructions: Tensor, shift: tuple[int, int] = (0, 0)) -> Reconstruction:
        """`shift`: pixels (down, right) by which the perceptual network's grid is moved over both, see
        `perceptual_shift`."""
        pixel = self.pixel(images, reconstructions).mean()
        down, right = shift
        perceptual = self.perceptual(images[..., down:, right:], reconstructions[..., down:, right:]).mean()
        logits = self.logits(images, reconstructions).mean()
        total = pixel + self.weight * perceptual + self.logits_weight * logits
        if not self.hatch_weight:
            return Reconstruction(total, pixel, perceptual, logits, hatch=torch.zeros_like(pixel))
        hatch = periodic_error(images, reconstructions, period=self.hatch_period).mean()
        return Reconstruction(total + self.hatch_weight * hatch, pixel, perceptual, logits, hatch)


class LossGradients(NamedTuple):
    """The gradients of both losses with respect to the reconstructions (B,C,H,W), and the weight between them."""

    reconstruction_gradient: Tensor
    """(B,C,H,W): the gradient of the distance."""
    adversarial_gradient: Tensor
    """(B,C,H,W): the gradient of the generator's adversarial loss, unweighted."""
    generator: Tensor
    """(): that loss."""
    weight: Tensor
    """(): its factor before the schedule's."""


class Balanced(NamedTuple):
    """The gradient with respect to the reconstructions that goes through the decoder."""

    gradient: Tensor
    """(B,C,H,W)."""
    generator: Tensor
    """(): the generator's adversarial loss, unweighted."""
    weight: Tensor
    """(): what it was multiplied with, adaptive part and ramp included."""


def balanced_gradient(
    reconstructions: Tensor,
    images: Tensor,
    *,
    distance: Tensor,
    fake: Tensor,
    last_layer: Tensor,
    settings: AdversarialSettings,
    strength: float,
) -> Balanced:
    """Combine the reconstruction's and the discriminator's gradients at the image (Eq. 6 and 7).

    - reconstructions (B,C,H,W): with the generator's graph.
    - images (B,C,H,W): the same values as a leaf; `distance` () and `fake` (logits) were computed from it.
    - last_layer: the decoder's last weight. Its two gradient norms give the adaptive weight; to reach it from the
      image's gradient costs one convolution's weight gradient each, not a pass through a loss network.
    - strength in [0,1]: how far the ramp has come. At 0 the adversarial gradient is not computed.
    """
    if strength == 0.0:
        (reconstruction_gradient,) = torch.autograd.grad(distance, images)
        zero = distance.new_zeros(())
        return Balanced(reconstruction_gradient, zero, zero)
    gradients = loss_gradients(
        reconstructions, images, distance=distance, fake=fake, last_layer=last_layer, settings=settings
    )
    weight = gradients.weight * strength
    return Balanced(
        gradients.reconstruction_gradient + weight * gradients.adversarial_gradient, gradients.generator, weight
    )


def loss_gradients(
    reconstructions: Tensor,
    images: Tensor,
    *,
    distance: Tensor,
    fake: Tensor,
    last_layer: Tensor,
    settings: AdversarialSettings,
) -> LossGradients:
    """The gradients at the image of both terms, and the weight between them (Eq. 7). Arguments as of
    `balanced_gradient`."""
    (reconstruction_gradient,) = torch.autograd.grad(distance, images)
    generator = ADVERSARIAL[settings.loss].generator(fake)
    (adversarial_gradient,) = torch.autograd.grad(generator, images, retain_graph=True)
    weight = _BALANCES[settings.weighting](
        reconstructions, reconstruction_gradient, adversarial_gradient, last_layer, settings
    )
    return LossGradients(reconstruction_gradient, adversarial_gradient, generator.detach(), weight * settings.weight)


def _adaptive(
    reconstructions: Tensor,
    reconstruction_gradient: Tensor,
    adversarial_gradient: Tensor,
    last_layer: Tensor,
    settings: AdversarialSettings,
) -> Tensor:
    at_last_layer = [
        torch.autograd.grad(reconstructions, last_layer, gradient, retain_graph=True)[0]
        for gradient in (reconstruction_gradient, adversarial_gradient)
    ]
    # Norms are not means: they are taken of the whole batch's gradients, not of those of this process's share.
    data, real = all_reduce_mean(torch.stack(at_last_layer))
    return adaptive_weight(data, real, limit=settings.max_weight)


def _fixed(
    reconstructions: Tensor,
    reconstruction_gradient: Tensor,
    adversarial_gradient: Tensor,
    last_layer: Tensor,
    settings: AdversarialSettings,
) -> Tensor:
    return reconstructions.new_ones(())


_BALANCES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, AdversarialSettings], Tensor]] = {
    "adaptive": _adaptive,
    "fixed": _fixed,
}
