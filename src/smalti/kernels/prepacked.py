"""Linear maps packed for few rows: a prior that lays codes reads all its weights for each of them.

Letters: R rows, D numbers read, E numbers made.
"""

from __future__ import annotations

import abc
import copy
from typing import Any, TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.kernels import decode_block
from smalti.kernels.decode_block import MAX_ROWS, DecodeBlock, PackedLinear
from smalti.kernels.native import is_cpu_float32

Module = TypeVar("Module", bound=nn.Module)


def prepacked(module: Module) -> Module:
    """A module -> one that computes the same up to rounding, sooner for few rows, and carries no gradients.

    Its linear maps hold their weights a second time, ordered for our C file, or where that cannot be compiled for oneDNN; and
    where it can, blocks go by their `step`. All else is the module's own. Where neither has anything to offer (other devices, other
    types than float32) it is the module itself.
    """
    children = {name: _prepacked_child(child) for name, child in module.named_children()}
    if all(child is module.get_submodule(name) for name, child in children.items()):
        return module
    copied = copy.copy(module)
    copied.__dict__["_modules"] = children
    return copied


class DecodableBlock(nn.Module, abc.ABC):
    """A block of a prior of which our C file does all but the attention."""

    @abc.abstractmethod
    def make_decode_block(self) -> DecodeBlock:
        """What the C file does of it. All linear maps of this block are `PackedLinear` already."""

    @abc.abstractmethod
    def decode(self, decode_block: DecodeBlock, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As `forward` up to rounding, by its `decode_block`, which takes x."""


@final
class _FastBlock(nn.Module):
    """As the block it is made of, by our C file where few codes are read: (B, T, D) -> (B, T, D)."""

    def __init__(self, block: DecodableBlock) -> None:
        super().__init__()
        self.block, self.decode_block = block, block.make_decode_block()

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        output: Tensor = (
            self.block.decode(self.decode_block, x, *args)
            if self.decode_block.is_supported(x)
            else self.block(x, *args)
        )
        return output


def _prepacked_child(module: nn.Module) -> nn.Module:
    if not isinstance(module, nn.Linear):
        child = prepacked(module)
        return (
            _FastBlock(child)
            if isinstance(child, DecodableBlock) and decode_block.available() and is_cpu_float32(*child.parameters())
            else child
        )
    if module.weight.device.type != "cpu" or module.weight.dtype != torch.float32:
        return module
    if decode_block.available():
        return PackedLinear(module)
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return _OneDNNLinear(module) if available else module


@final
class _OneDNNLinear(nn.Module):
    """(..., D) -> (..., E), as the `nn.Linear` it is made of, by oneDNN."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 4)  # for about 4 rows

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() > MAX_ROWS * x.shape[-1] or x.dtype != torch.float32:
            return F.linear(x, self.weight, self.bias)
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return output
