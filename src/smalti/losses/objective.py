"""What the tokenizer is trained for: pixel and perceptual terms, and the discriminator's, balanced at the picture.

The original back-propagates three times through the decoder's neighbourhood: for the reconstruction, for the adversarial term,
and for their weighted sum. All three gradients pass through the picture, so here both are taken *there* once, weighed with
equation 7, and their sum goes through the decoder in a single backward pass.

Letters: B batch, C channels, H W pixels.
Source: arXiv 2012.09841, equations 5 to 7.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, NamedTuple, final

import torch
from pydantic import Field
from torch import Tensor, nn

from smalti.losses.adversarial import ADVERSARIAL, PIXEL_LOSSES, adaptive_weight
from smalti.losses.discriminator import DiscriminatorSettings, PatchSettings
from smalti.losses.perceptual import Perceptual, perceptual
from smalti.settings import settings

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


@settings
class AdversarialSettings:
    """The patch discriminator and how much the generator listens to it."""

    weight: Weight = 0.4
    """Factor of the generator's term; 0 trains no discriminator at all."""
    loss: Literal["hinge", "vanilla", "nonsaturating"] = "hinge"
    balance: Literal["adaptive", "fixed"] = "adaptive"
    """"adaptive" multiplies `weight` with equation 7; "fixed" does not."""
    limit: Weight = 1e4
    """Largest adaptive weight."""
    start: Share = 0.3
    """Share of the training after which the generator begins to listen. The discriminator learns from the first step."""
    ramp: Share = 0.2
    """Share of the training over which the generator's term then rises to its full weight."""
    lecam: Weight = 0.01
    """Weight of the LeCam regulariser of the discriminator."""
    discriminator: DiscriminatorSettings = PatchSettings()


@settings
class ObjectiveSettings:
    """Weights of all terms of stage 1."""

    pixel: Literal["l1", "l2"] = "l1"
    perceptual: Literal["none", "squeezenet", "vgg16"] = "squeezenet"
    """The network of the LPIPS term; its published weights are looked for in $SMALTI_WEIGHTS, the cache, and then downloaded."""
    perceptual_weight: Weight = 1.0
    codebook_weight: Weight = 1.0
    adversarial: AdversarialSettings = AdversarialSettings()


class Reconstruction(NamedTuple):
    """How far reconstructions are from their pictures."""

    total: Tensor
    """(): mean over the batch of pixel + weight * perceptual distance (the original's `nll_loss`)."""
    pixel: Tensor
    """()."""
    perceptual: Tensor
    """(), unweighted."""


@final
class NoPerceptual(nn.Module):
    """Two batches of pictures (B,C,H,W) -> zeros (B,): the VQ-VAE's objective, and what needs no weights from elsewhere."""

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        return others.new_zeros(len(others))


PERCEPTUAL: dict[str, Callable[[], Perceptual | NoPerceptual]] = {
    "none": NoPerceptual,
    "squeezenet": partial(perceptual, "squeezenet"),
    "vgg16": partial(perceptual, "vgg16"),
}


@final
class ReconstructionLoss(nn.Module):
    """images (B,C,H,W), reconstructions (B,C,H,W) in [-1,1] -> `Reconstruction`. The perceptual network is frozen."""

    def __init__(self, settings: ObjectiveSettings) -> None:
        super().__init__()
        self.pixel = PIXEL_LOSSES[settings.pixel]
        self.perceptual = PERCEPTUAL[settings.perceptual]()
        self.weight = settings.perceptual_weight

    def forward(self, images: Tensor, reconstructions: Tensor) -> Reconstruction:
        pixel = self.pixel(images, reconstructions).mean()
        perceptual = self.perceptual(images, reconstructions).mean()
        return Reconstruction(pixel + self.weight * perceptual, pixel, perceptual)


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
    pictures: Tensor,
    *,
    distance: Tensor,
    fake: Tensor,
    last_layer: Tensor,
    settings: AdversarialSettings,
    strength: float,
) -> Balanced:
    """Combine the reconstruction's and the discriminator's gradients at the picture (Eq. 6 and 7).

    - reconstructions (B,C,H,W): with the generator's graph.
    - pictures (B,C,H,W): the same values as a leaf; `distance` () and `fake` (logits) were computed from it.
    - last_layer: the decoder's last weight. Its two gradient norms give the adaptive weight; to reach it from the picture's
      gradient costs one convolution's weight gradient each, not a pass through a loss network.
    - strength in [0,1]: how far the ramp has come. At 0 the discriminator is not asked.
    """
    (toward_data,) = torch.autograd.grad(distance, pictures)
    if strength == 0.0:
        zero = distance.new_zeros(())
        return Balanced(toward_data, zero, zero)
    generator = ADVERSARIAL[settings.loss].generator(fake)
    (toward_real,) = torch.autograd.grad(generator, pictures, retain_graph=True)
    weight = _BALANCES[settings.balance](reconstructions, toward_data, toward_real, last_layer, settings)
    weight = weight * settings.weight * strength
    return Balanced(toward_data + weight * toward_real, generator.detach(), weight)


def _adaptive(
    reconstructions: Tensor, toward_data: Tensor, toward_real: Tensor, last_layer: Tensor, settings: AdversarialSettings
) -> Tensor:
    at_last_layer = (
        torch.autograd.grad(reconstructions, last_layer, gradient, retain_graph=True)[0]
        for gradient in (toward_data, toward_real)
    )
    return adaptive_weight(*at_last_layer, limit=settings.limit)


def _fixed(
    reconstructions: Tensor, toward_data: Tensor, toward_real: Tensor, last_layer: Tensor, settings: AdversarialSettings
) -> Tensor:
    return reconstructions.new_ones(())


_BALANCES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, AdversarialSettings], Tensor]] = {
    "adaptive": _adaptive,
    "fixed": _fixed,
}
