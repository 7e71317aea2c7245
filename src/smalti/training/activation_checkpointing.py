"""What is done to the blocks of a network from outside, without a change of its weights' names, its copies or its
results: to compute them again in the backward pass instead of remembering what they made, and to compile them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from smalti.core.errors import SmaltiError
from smalti.tokenizer.blocks import AttentionBlock, ResidualBlock, ResolutionLevel
from smalti.tokenizer.vqgan import VQGAN

VARIANTS = 256
"""Compiled forms of one piece of code; more than all blocks of the largest networks have."""


def recompute(blocks: Iterable[nn.Module]) -> None:
    """Let each block remember its input alone, and compute the rest again in the backward pass (Chen et al. 2016,
    "Training Deep Nets with Sublinear Memory Cost").

    A training step then needs the memory of one block's insides at a time, for about a third more time. Results and
    gradients are the same: GroupNorm has no running statistics, and dropout draws the same numbers again.
    Call it after copies were made.
    """
    for block in blocks:
        block.forward = partial(_again, block.forward)


def _again(forward: Callable[..., Any], *given: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*given, **options)
    return checkpoint(forward, *given, use_reentrant=False, **options)


def tokenizer_blocks(tokenizer: VQGAN) -> list[nn.Module]:
    """What `recompute` is for in a tokenizer: each residual and each attention block."""
    return [block for block in tokenizer.modules() if isinstance(block, ResidualBlock | AttentionBlock)]


def tokenizer_stages(tokenizer: VQGAN) -> list[nn.Module]:
    """What `compiled` is for in a tokenizer: the blocks of each resolution, and those in the middle.

    Not the whole decoder: equation 7 needs the gradient of its last layer only, and a compiled network computes all
    its gradients at once. Not the quantizer, which searches in pieces whose number depends on the image.
    """
    stages = [module for module in tokenizer.modules() if isinstance(module, ResolutionLevel)]
    return [*stages, tokenizer.encoder.middle, tokenizer.decoder.middle]


def compiled(modules: Iterable[nn.Module], *, device: torch.device) -> None:
    """Compile each module in place, when it is first used. Raises `SmaltiError` if nothing can be compiled.

    Each is compiled for the sizes that it meets. Modules of one class share their code, and the compiler takes them for
    one whose sizes change: it would otherwise compile for any size, which is slower (and in PyTorch 2.13 fails), and
    soon give up.
    """
    check_compiler(device)
    from torch._dynamo import config  # slow to import

    options: Any = config
    options.cache_size_limit = max(options.cache_size_limit, VARIANTS)
    for module in modules:
        module.compile(dynamic=False)


def check_compiler(device: torch.device) -> None:
    """Compile a trifle, to find out now rather than in the first step. Raises `SmaltiError` with the compiler's first
    words."""
    try:
        torch.compile(_trifle)(torch.zeros(8, device=device))
    except Exception as error:  # the compiler's stages raise many kinds
        words = [line.strip() for line in str(error).splitlines() if line.strip()]
        first = words[0] if words else type(error).__name__
        raise SmaltiError(
            f"run.compile = true, but nothing can be compiled for {device.type} here ({first}); install a C++ compiler "
            "(g++ or clang), for GPUs also triton, or set run.compile=false"
        ) from error


def _trifle(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1
