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
from smalti.kernels.decode_block import FEW, Panels, Step
from smalti.kernels.native import reaches

Module = TypeVar("Module", bound=nn.Module)


def packed(module: Module) -> Module:
    """A module -> one that computes the same up to rounding, sooner for few rows, and carries no gradients.

    Its linear maps hold their weights a second time, ordered for our C file, or where that cannot be compiled for oneDNN; and
    where it can, blocks go by their `step`. All else is the module's own. Where neither has anything to offer (other devices, other
    types than float32) it is the module itself.
    """
    children = {name: _packed(child) for name, child in module.named_children()}
    if all(child is module.get_submodule(name) for name, child in children.items()):
        return module
    twin = copy.copy(module)
    twin.__dict__["_modules"] = children
    return twin


class Block(nn.Module, abc.ABC):
    """A block of a prior of which our C file does all but the attention."""

    @abc.abstractmethod
    def step(self) -> Step:
        """What the C file does of it. All linear maps of this block are `Panels` already."""

    @abc.abstractmethod
    def stepped(self, step: Step, x: Tensor, *given: Any, **named: Any) -> Tensor:
        """As `forward` up to rounding, by its `step`, which takes x."""


@final
class _Quick(nn.Module):
    """As the block it is made of, by our C file where few codes are read: (B, T, D) -> (B, T, D)."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block, self.step = block, block.step()

    def forward(self, x: Tensor, *given: Any) -> Tensor:
        made: Tensor = self.block.stepped(self.step, x, *given) if self.step.takes(x) else self.block(x, *given)
        return made


def _packed(module: nn.Module) -> nn.Module:
    if not isinstance(module, nn.Linear):
        twin = packed(module)
        return (
            _Quick(twin)
            if isinstance(twin, Block) and decode_block.available() and reaches(*twin.parameters())
            else twin
        )
    if module.weight.device.type != "cpu" or module.weight.dtype != torch.float32:
        return module
    if decode_block.available():
        return Panels(module)
    offered: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return _OneDNN(module) if offered else module


@final
class _OneDNN(nn.Module):
    """(..., D) -> (..., E), as the `nn.Linear` it is made of, by oneDNN."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.ordered = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 4)  # for about 4 rows

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() > FEW * x.shape[-1] or x.dtype != torch.float32:
            return F.linear(x, self.weight, self.bias)
        made: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.ordered, self.bias, "none", [], "")
        return made
