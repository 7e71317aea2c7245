"""3x3 convolutions of frozen weights by fewer products: Winograd's F(4x4, 3x3).

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.3. A square of 4 x 4 results needs
6 x 6 products for each pair of channels, not 16 x 9: a quarter. What is spent instead are two small linear maps of every square,
before and after; where there are many channels they cost little, and weights that never change are mapped once. PyTorch's GPU
libraries do the like by themselves, its CPU library does not.

Letters: B batch, C channels in, K channels out, H W pixels, h w squares (H/4, W/4), T squares taken at once.
"""

from __future__ import annotations

from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SQUARES = 512
"""How many are taken at once, a picture at least: few enough that what is between the maps stays in the processor's cache."""

LEAST = 256
"""Channels out below which the direct way is as fast (measured on two AVX2 cores)."""

# The paper's matrices; the two-dimensional maps are their products with themselves.
_BEFORE = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_AFTER = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_WEIGHT = ((6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24))  # times 1/24


def mapped(weight: Tensor) -> Tensor:
    """The weight (K,C,3,3) of a convolution -> what `convolve` takes (36,C,K), four times as many numbers."""
    K, C = weight.shape[:2]
    line = torch.tensor(_WEIGHT, dtype=torch.float64, device=weight.device) / 24
    return torch.einsum("ix,kcxy,jy->ijck", line, weight.double(), line).reshape(36, C, K).to(weight.dtype)


def convolve(x: Tensor, weights: Tensor) -> Tensor:
    """x (B,C,H,W), H and W divisible by 4, and `mapped` weights (36,C,K) -> (B,K,H,W): stride 1, one pixel of zeros around.

    The gradient with respect to x is that of the same products, by the transposed maps; the weights have none. In float32 the
    result is within about 1e-5 of the largest one, ten times as far as that of the direct way.
    """
    result: Tensor = _Convolution.apply(x, weights)  # type: ignore[no-untyped-call]
    return result


@final
class FrozenConvolution(nn.Module):
    """(B,C,H,W) -> (B,K,H,W): a 3x3 convolution with one pixel of zeros around, for weights that do not learn.

    It is computed by `convolve` where that is faster: on a CPU, from 256 channels on, in full precision and where squares fit;
    else by PyTorch. The mapped weights (231 MB for all of VGG16) are made when they are first needed, and anew when the
    weights have changed.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        convolution = nn.Conv2d(channels, out_channels, 3, padding=1)  # for its initial values
        assert convolution.bias is not None
        self.weight, self.bias = convolution.weight, convolution.bias
        self._mapped = torch.empty(0)
        self._mapped_from: tuple[int, int, torch.dtype] = (0, 0, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        if not self._suits(x):
            return F.conv2d(x, self.weight, self.bias, padding=1)
        return convolve(x, self._weights()).add_(self.bias.view(-1, 1, 1))

    def _suits(self, x: Tensor) -> bool:
        frozen = not self.weight.requires_grad and not self.bias.requires_grad
        plain = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and x.dtype == self.weight.dtype
        return frozen and plain and len(self.weight) >= LEAST and x.shape[2] % 4 == 0 and x.shape[3] % 4 == 0

    @torch.no_grad()
    def _weights(self) -> Tensor:
        now = (self.weight.data_ptr(), self.weight._version, self.weight.dtype)
        if now != self._mapped_from:
            self._mapped, self._mapped_from = mapped(self.weight), now
        return self._mapped


@final
class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(weights)
        B, C, H, W = x.shape
        h, w, K = H // 4, W // 4, weights.shape[2]
        before, after = _maps(x)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (B,H+2,W+2,C)
        result = torch.empty((B, K, H, W), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        out = result.permute(0, 2, 3, 1).view(B, h, 4, w, 4, K)
        for some, target in zip(*(torch.split(each, _pictures(h * w)) for each in (padded, out)), strict=True):
            squares = some.unfold(1, 6, 4).unfold(2, 6, 4).permute(4, 5, 0, 1, 2, 3)  # (6,6,B,h,w,C)
            values = (before @ squares.reshape(36, -1)).view(36, -1, C)  # (36,T,C)
            products = torch.bmm(values, weights)  # (36,T,K)
            results = (after @ products.view(36, -1)).view(4, 4, -1, h, w, K)
            target.copy_(results.permute(2, 3, 0, 4, 1, 5))  # (B,h,4,w,4,K)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Every step of `forward` transposed, from the last to the first."""
        (weights,) = ctx.saved_tensors
        B, K, H, W = gradient.shape
        h, w, C = H // 4, W // 4, weights.shape[1]
        before, after = _maps(gradient)
        given = gradient.permute(0, 2, 3, 1).reshape(B, h, 4, w, 4, K)
        padded = gradient.new_zeros(B, H + 2, W + 2, C)
        for some, target in zip(*(torch.split(each, _pictures(h * w)) for each in (given, padded)), strict=True):
            results = some.permute(2, 4, 0, 1, 3, 5).reshape(16, -1)  # (16,T*K)
            products = (after.T @ results).view(36, -1, K)  # (36,T,K)
            values = torch.bmm(products, weights.transpose(1, 2))  # (36,T,C)
            squares = (before.T @ values.view(36, -1)).view(6, 6, -1, h, w, C)
            for i in range(6):  # neighbouring squares overlap by two pixels
                for j in range(6):
                    target[:, i : i + H - 3 : 4, j : j + W - 3 : 4] += squares[i, j]
        return padded[:, 1:-1, 1:-1].permute(0, 3, 1, 2), None  # (B,C,H,W)


def _maps(x: Tensor) -> tuple[Tensor, Tensor]:
    before, after = (torch.tensor(matrix, dtype=x.dtype, device=x.device) for matrix in (_BEFORE, _AFTER))
    return torch.kron(before, before), torch.kron(after, after)  # (36,36), (16,36)


def _pictures(squares: int) -> int:
    """How many pictures of so many squares are taken at once."""
    return max(SQUARES // squares, 1)
