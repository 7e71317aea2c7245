"""How the decoder's gradient reaches the features through the choice of a code, which has no derivative of its own.

Notation: N vectors, D their dimension. Sources: van den Oord et al. 2017 (VQ-VAE, arXiv 1711.00937), section 3.2; Fifty
et al. 2024, "Restructuring vector quantization with the rotation trick" (arXiv 2410.06424), section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

GradientName = Literal["straight-through", "rotation"]
"""A name in `GRADIENTS`, as settings give it."""


def straight_through(features: Tensor, chosen: Tensor) -> Tensor:
    """Features and the vectors chosen for them, of one shape -> the chosen ones; their gradient reaches the features as
    it is."""
    return features + (chosen - features).detach()


def rotated(features: Tensor, chosen: Tensor) -> Tensor:
    """Features (N,D) and the vectors chosen for them (N,D) -> the chosen ones; their gradient is turned on its way.

    The vector q chosen for e is written as q = lambda R e: R rotates e's direction into q's, lambda = |q| / |e|
    stretches, and both count as constants (section 4.2 there). With unit vectors and r = (e + q) / |e + q|, R = I - 2 r
    r^T + 2 q e^T. So the angle between gradient and code becomes the angle between gradient and feature. Where a
    feature is zero there is no direction to turn; its value is the code's all the same.
    """
    e, q = F.normalize(features.detach(), dim=1), F.normalize(chosen.detach(), dim=1)
    r = F.normalize(e + q, dim=1)
    stretch = chosen.detach().norm(dim=1, keepdim=True) / features.detach().norm(dim=1, keepdim=True).clamp(min=1e-6)
    turned = features - 2 * r * (r * features).sum(1, keepdim=True) + 2 * q * (e * features).sum(1, keepdim=True)
    return straight_through(stretch * turned, chosen)  # the value without the rounding of the rotation


GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"straight-through": straight_through, "rotation": rotated}
