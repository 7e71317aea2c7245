"""What all discriminators have in common.

Notation: B batch, C channels, H W pixels, N logits of an image.
"""

from __future__ import annotations

import abc

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class Discriminator(nn.Module, abc.ABC):
    """Images (B,C,H,W) in [-1, 1] -> logits (B,1,h,w) or (B,N), unbounded, high for "real"."""

    @abc.abstractmethod
    def forward(self, images: Tensor) -> Tensor: ...


def spectrally_normalized(module: nn.Module) -> None:
    """Divide the weight of every convolution in `module` by its largest singular value, from now on, in place.

    Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks", section 2.1: no convolution can
    then steepen the logits without bound. The singular value is followed by one power iteration at each forward in
    training mode, and stands still in evaluation. The learned weight moves to the key
    `parametrizations.weight.original`.
    """
    for layer in [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]:
        spectral_norm(layer)
