"""The optimiser's schedule, and the running average of the weights that is exported."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor, nn

from smalti.training.config import OptimiserSettings


def build_optimiser(groups: Iterable[dict[str, Any]], settings: OptimiserSettings) -> torch.optim.AdamW:
    """Parameter groups -> AdamW, fused."""
    return torch.optim.AdamW(list(groups), lr=settings.rate, betas=settings.betas, fused=True)


def rate_at(seen: int, *, length: int, settings: OptimiserSettings) -> float:
    """How much was seen -> the learning rate: linear warm-up, then a cosine down to `final` times `rate`."""
    progress = min(seen / length, 1.0)
    if progress < settings.warm_up:
        return settings.rate * progress / settings.warm_up
    after = (progress - settings.warm_up) / max(1 - settings.warm_up, 1e-9)
    return settings.rate * (settings.final + (1 - settings.final) * 0.5 * (1 + math.cos(math.pi * after)))


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The l2 norm () of all gradients together."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


M = TypeVar("M", bound=nn.Module)


@final
class Average(Generic[M]):
    """A running average of a module's weights, whose half-life is a share of what has been seen.

    Karras et al. 2024 (EDM2, section 3): early weights are forgotten at the pace at which training goes on, so that one setting
    serves runs of any length.
    """

    def __init__(self, module: M, *, half_life: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.half_life = half_life

    @torch.no_grad()
    def update(self, module: M, *, seen: int, step: int) -> None:
        """After a step that brought the count from `seen` to `seen + step`: move toward the module's weights."""
        weight = 1 - 0.5 ** (step / (self.half_life * (seen + step)))
        mine: list[Tensor] = [parameter.data for parameter in self.module.parameters()]
        theirs: list[Tensor] = [parameter.data for parameter in module.parameters()]
        torch._foreach_lerp_(mine, theirs, weight)
        for buffer, source in zip(self.module.buffers(), module.buffers(), strict=True):
            buffer.copy_(source)
