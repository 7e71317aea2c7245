"""Linear maps packed for few rows: a prior that lays codes reads all its weights for each of them.

Letters: R rows, D numbers read, E numbers made.
"""

from __future__ import annotations

import copy
from typing import TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

FEW = 32
"""Rows up to which packed weights are sooner; with more, products are what costs, and plain ones are as fast."""


def packed(module: Module) -> Module:
    """A module -> one that computes the same up to rounding, sooner for few rows, and carries no gradients.

    Its linear maps hold their weights a second time, as oneDNN orders them. All else is the module's own. Where oneDNN has
    nothing to offer (other devices, other types than float32) it is the module itself.
    """
    children = {name: _packed(child) for name, child in module.named_children()}
    if all(child is module.get_submodule(name) for name, child in children.items()):
        return module
    twin = copy.copy(module)
    twin.__dict__["_modules"] = children
    return twin


def _packed(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Linear):
        suits = module.weight.device.type == "cpu" and module.weight.dtype == torch.float32
        offered: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return _PackedLinear(module) if suits and offered else module
    return packed(module)


@final
class _PackedLinear(nn.Module):
    """(..., D) -> (..., E), as the `nn.Linear` it is made of."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.ordered = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 4)  # for about 4 rows

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() > FEW * x.shape[-1] or x.dtype != torch.float32:
            return F.linear(x, self.weight, self.bias)
        made: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.ordered, self.bias, "none", [], "")
        return made
