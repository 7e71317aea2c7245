"""Prepacked linear maps for few rows: decoding reads all of a prior's weights for each code.

Notation: R rows, D inputs or width, E outputs, B sequences, T codes of one call, N heads, d head dimension.
"""

from __future__ import annotations

import abc
import copy
from typing import Any, TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.kernels import decode_block
from smalti.kernels.decode_block import MAX_ROWS, BlockDescription, DecodeBlock, PackedLinear
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
    """A transformer block of a prior, (B, T, D) and a context -> (B, T, D), that the C file can compute for few codes.

    `forward(x, context, *, rotation, query_index)`: `context` holds what the codes of earlier calls left, such as a
    cache. `rotation` is of blocks that rotate queries and keys. With `query_index` (B, t) the output is (B, t, D), and
    of the other codes only keys and values are computed.
    """

    @abc.abstractmethod
    def description(self) -> BlockDescription:
        """The block's layers around the attention, from which the C file's computation is derived."""

    @abc.abstractmethod
    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, context: Any) -> Tensor:
        """Queries, keys and values of a call, (B, N, T, d) each -> attention output (B, N, T, d), as in `forward`."""


@final
class _FastBlock(nn.Module):
    """The block that it is made of, by the C file if few codes are read and all of them are queries."""

    def __init__(self, block: DecodableBlock) -> None:
        super().__init__()
        self.block, self.decode_block = block, DecodeBlock(block.description())

    def forward(self, x: Tensor, context: Any, **options: Any) -> Tensor:
        all_are_queries = x.shape[1] == 1 or options.get("query_index") is None
        rotation = options.get("rotation")
        one_rotation = rotation is None or rotation.key_cosines.dim() == 2  # of the whole batch
        if all_are_queries and one_rotation and self.decode_block.is_supported(x):
            qkv = self.decode_block.project_qkv(x, rotation)  # 3 x (B, N, T, d)
            return self.decode_block.finish(x, self.block.attend(*qkv, context))
        output: Tensor = self.block(x, context, **options)
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
