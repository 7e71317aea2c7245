"""The optimizer and its schedule, and what is exported: the weights, or their running average."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor, nn

from smalti.training.config import OptimizerSettings
from smalti.training.fsdp import full_tensor


def build_optimizer(groups: Iterable[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.AdamW:
    """Parameter groups -> AdamW, fused; groups that say no weight decay have that of the settings. Where it is 0 this
    is Adam."""
    options: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas, "weight_decay": settings.weight_decay}
    return torch.optim.AdamW(list(groups), fused=True, **options)


def rate_at(seen: int, *, length: int, settings: OptimizerSettings) -> float:
    """How much was seen -> the learning rate: linear warm-up, then cosine decay to `final_lr` times `lr`.

    With `warmup` 0 and `final_lr` 1 it is constant.
    """
    progress = min(seen / length, 1.0)
    if progress < settings.warmup:
        return settings.lr * progress / settings.warmup
    after = (progress - settings.warmup) / max(1 - settings.warmup, 1e-9)
    return settings.lr * (settings.final_lr + (1 - settings.final_lr) * 0.5 * (1 + math.cos(math.pi * after)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


M = TypeVar("M", bound=nn.Module)


class Exported(ABC, Generic[M]):
    """The weights that are validated, shown and exported: `module` follows the one that is trained."""

    module: M

    @abstractmethod
    def update(self, module: M, *, seen: int, step: int) -> None:
        """After a step that brought the count from `seen` to `seen + step`."""

    @abstractmethod
    def shown(self) -> AbstractContextManager[M]:
        """The module, in evaluation mode while the block runs."""


@final
class Average(Exported[M]):
    """A running average of a module's weights, whose half-life is a fraction of what has been seen.

    Karras et al. 2024 (EDM2, section 3): early weights are forgotten at the pace at which training continues, so that
    one setting serves runs of any length.
    """

    def __init__(self, module: M, *, half_life: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.half_life = half_life

    @torch.no_grad()
    def update(self, module: M, *, seen: int, step: int) -> None:
        """Move toward the module's weights."""
        weight = 1 - 0.5 ** (step / (self.half_life * (seen + step)))
        averages: list[Tensor] = [parameter.data for parameter in self.module.parameters()]
        weights: list[Tensor] = [full_tensor(parameter.data) for parameter in module.parameters()]
        torch._foreach_lerp_(averages, weights, weight)
        for buffer, source in zip(self.module.buffers(), module.buffers(), strict=True):
            buffer.copy_(source)

    @contextmanager
    def shown(self) -> Iterator[M]:
        yield self.module


@final
class Latest(Exported[M]):
    """The trained module itself, without a copy: what the original exports."""

    def __init__(self, module: M) -> None:
        self.module = module

    def update(self, module: M, *, seen: int, step: int) -> None:
        """Does nothing."""
        assert module is self.module, "what is exported is what is trained"

    @contextmanager
    def shown(self) -> Iterator[M]:
        modes = [(each, each.training) for each in self.module.modules()]
        self.module.eval()
        try:
            yield self.module
        finally:
            for each, training in modes:  # parts of it may be frozen, and in evaluation mode
                each.training = training


def exported(module: M, *, half_life: float) -> Average[M] | Latest[M]:
    """A module that will be trained -> what of it is exported: its running average, or with half-life 0 the module
    itself."""
    return Average(module, half_life=half_life) if half_life else Latest(module)
