"""Prepacked linear maps for few rows: decoding reads all of a prior's weights for each code.

Letters: R rows, D inputs, E outputs.
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
    """A module -> an equivalent one, up to rounding, that is faster for few rows and has no gradients.

    Its linear maps hold a packed copy of their weights, for the C file or, if that cannot be compiled, for oneDNN;
    with the C file, blocks use their `DecodeBlock`. Everything else is shared with the module. If neither is
    available (other devices, other types than float32), the result is the module itself.
    """
    children = {name: _prepacked_child(child) for name, child in module.named_children()}
    if all(child is module.get_submodule(name) for name, child in children.items()):
        return module
    copied = copy.copy(module)
    copied.__dict__["_modules"] = children
    return copied


class DecodableBlock(nn.Module, abc.ABC):
    """A transformer block of a prior that the C file computes except for the attention."""

    @abc.abstractmethod
    def make_decode_block(self) -> DecodeBlock:
        """The part for the C file. All linear maps of this block are `PackedLinear` already."""

    @abc.abstractmethod
    def decode(self, decode_block: DecodeBlock, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As `forward` up to rounding, by its `decode_block`, which must support x."""


@final
class _FastBlock(nn.Module):
    """As the block it is made of, by the C file if few codes are read: (B, T, D) -> (B, T, D)."""

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
