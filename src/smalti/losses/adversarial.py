"""Adversarial losses as pure functions: logits -> losses, gradients -> the weight between them, and the ramp.

Notation: B batch, C channels, H W pixels. `real` and `fake` are a discriminator's logits, of any shape, on images of
the data and on images of the generator. Every loss is a mean over all logits, so images of any size weigh alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.core.distributed import all_reduce_mean


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Logits -> (): half of mean relu(1 - real) + mean relu(1 + fake). The default of VQGAN.

    Lim and Ye 2017, "Geometric GAN". It is 1 where all logits are 0 and 0 where every logit is beyond the margin.
    """
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def linear_generator(fake: Tensor) -> Tensor:
    """Logits -> (): -mean fake, unbounded. The original uses it with both of its discriminator losses."""
    return -fake.mean()


def logistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Logits -> (): half of mean softplus(-real) + mean softplus(fake), the cross entropy of Goodfellow et al. 2014."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def nonsaturating_generator(fake: Tensor) -> Tensor:
    """Logits -> (): mean softplus(-fake), whose gradient fades once the fakes pass (Goodfellow et al. 2014)."""
    return F.softplus(-fake).mean()


hinge_generator = linear_generator


class Adversarial(NamedTuple):
    """A pair of adversarial losses: (real, fake) -> () for the discriminator, (fake) -> () for the generator."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


ADVERSARIAL: dict[str, Adversarial] = {
    "hinge": Adversarial(discriminator=hinge_discriminator, generator=hinge_generator),
    "vanilla": Adversarial(
        discriminator=logistic_discriminator, generator=linear_generator
    ),  # the original's "vanilla"
    "nonsaturating": Adversarial(discriminator=logistic_discriminator, generator=nonsaturating_generator),
}


def _precise(values: Tensor) -> Tensor:
    """The values without gradient, in float32 at least: a norm or a slow mean in half precision would be wrong."""
    return values.detach().to(torch.promote_types(values.dtype, torch.float32))


def adaptive_weight(
    reconstruction_gradient: Tensor, adversarial_gradient: Tensor, *, limit: float = 1e4, epsilon: float = 1e-4
) -> Tensor:
    """Two gradients of the decoder's last weights -> (): clamp(|reconstruction| / (|adversarial| + epsilon), 0, limit).

    Esser et al. 2021, equation 7: the adversarial term, multiplied by this, moves those weights as strongly as the
    reconstruction does. The paper writes epsilon 1e-6, its code 1e-4; the code is followed. The norms are taken in
    float32 at least, and the result carries no gradient. Where a gradient is not finite, the weight is not either.
    """
    reconstruction = torch.linalg.vector_norm(_precise(reconstruction_gradient))
    adversarial = torch.linalg.vector_norm(_precise(adversarial_gradient))
    weight: Tensor = reconstruction / (adversarial + epsilon)
    return weight.clamp(0.0, limit)


def lecam(real: Tensor, fake: Tensor, ema_real: Tensor, ema_fake: Tensor) -> Tensor:
    """Logits and their two running means () -> (): mean relu(real - ema_fake)^2 + mean relu(ema_real - fake)^2.

    Tseng et al. 2021, "Regularizing Generative Adversarial Networks under Limited Data", equation 3: the discriminator
    is kept from driving its logits on the two kinds of image apart. The relu is in the authors' code and not in
    their equation: a logit on the far side of the other kind's mean costs nothing. Add it, with a small weight
    (0.001 to 0.05), to the discriminator's loss.
    """
    return F.relu(real - ema_fake).square().mean() + F.relu(ema_real - fake).square().mean()


def gradient_penalty(real: Tensor, images: Tensor) -> Tensor:
    """Logits (B,..), and the images (B,C,H,W) they were computed from -> (): R1, with a graph to learn along.

    Mescheder, Geiger and Nowozin 2018, "Which Training Methods for GANs do actually Converge?", equation 9: the mean
    over images of |grad D|^2, of which the discriminator's loss gets gamma / 2. There D gives an image one logit. Here
    the gradient is that of the sum of an image's logits, and its square is divided by their number: were the patches
    apart, the mean over patches of their own penalties. So images of any size have the same weight.

    `images` must require gradients, and each image's logits must depend on that image alone (no BatchNorm).
    """
    (gradient,) = torch.autograd.grad(real.sum(), images, create_graph=True)
    precise = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return precise.square().sum() / real.numel()


class LeCam(NamedTuple):
    """The running means () of the discriminator's logits that `lecam` needs, as an immutable value.

    `updates` counts, as a tensor (), what the means have seen, so that nothing waits for a GPU. Several processes have
    the same means: those of the logits of all.
    """

    real: Tensor
    fake: Tensor
    updates: Tensor

    @classmethod
    def start(cls, device: torch.device | str = "cpu") -> LeCam:
        """Means of nothing: update them before the first use."""
        zero = torch.zeros((), device=device)
        return cls(real=zero, fake=zero, updates=zero)

    def update(self, real: Tensor, fake: Tensor, *, decay: float = 0.999) -> LeCam:
        """This step's logits, of any shape -> new means; the old ones stay as they were. Float32 at least,
        without gradient.

        The first 1 / (1 - decay) updates make a plain mean of all seen, since an exponential mean that begins at 0
        would pull the logits there.
        """
        now_real, now_fake = all_reduce_mean(torch.stack((_precise(real).mean(), _precise(fake).mean())))
        weight = (1.0 / (self.updates.to(now_real.dtype) + 1.0)).clamp(min=1.0 - decay)
        return LeCam(
            real=self.real + weight * (now_real - self.real),
            fake=self.fake + weight * (now_fake - self.fake),
            updates=self.updates + 1.0,
        )


def ramp(seen: float, *, start: float, length: float) -> float:
    """How much was seen -> a factor in [0, 1]: 0 up to `start`, then rising evenly, 1 from `start + length` on.

    All three in one unit, such as images or steps. With length 0 it is the original's switch: 1 once `seen >= start`.
    """
    if length <= 0:
        return 1.0 if seen >= start else 0.0
    return min(max((seen - start) / length, 0.0), 1.0)
