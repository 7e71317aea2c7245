"""Functions for the training steps of both stages: gradient accumulation, clipping, optimizer steps, checks for metrics
that are not finite, and means over the parts of a batch and over processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from smalti.core.distributed import all_reduce_sum
from smalti.training.fsdp import full_tensor
from smalti.training.optimizer import set_rate


class NotFiniteError(Exception):
    """A step was skipped because metrics are not finite; the networks are unchanged. `names`: the names of those
    metrics."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(", ".join(names))
        self.names = names


def clip_gradients(fabric: Fabric, module: Any, optimizer: Any, max_norm: float) -> Tensor:
    """Clip the gradients to a maximum norm, 0 for no limit -> their norm () before, which may not be finite.

    `module` and `optimizer` are those that `fabric.setup` returned.
    """
    limit = max_norm or math.inf
    norm = fabric.clip_gradients(module, optimizer, max_norm=limit, error_if_nonfinite=False)
    return full_tensor(torch.as_tensor(norm))


def apply_gradients(optimizer: Any, *, lr: float) -> None:
    """Make one optimizer step with the learning rate `lr`."""
    set_rate(optimizer, lr)
    optimizer.step()


def not_finite(values: Mapping[str, Tensor]) -> list[str]:
    """Named metrics () -> the names of those that are not finite. Waits for a GPU only once if all are finite."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for value in values.values():
        by_device.setdefault(value.device, []).append(value.isfinite())
    if all(bool(torch.stack(finite).all()) for finite in by_device.values()):
        return []
    return [name for name, value in values.items() if not bool(value.isfinite())]


def copied_buffers(module: nn.Module) -> list[Tensor]:
    """Copies of the buffers of a module, which a forward pass may change: batch norms have running statistics there."""
    return [buffer.clone() for buffer in module.buffers()]


@torch.no_grad()
def restore_buffers(module: nn.Module, copies: list[Tensor]) -> None:
    """Set the buffers of a module to what `copied_buffers` returned."""
    for buffer, copy in zip(module.buffers(), copies, strict=True):
        buffer.copy_(copy)


@contextmanager
def gradient_sync(fabric: Fabric, modules: Iterable[Any], *, enabled: bool) -> Iterator[None]:
    """In this context backward passes average gradients over processes only if `enabled`: for the last part
    of a batch."""
    with ExitStack() as stack:
        if not enabled and fabric.world_size > 1:
            for module in modules:
                stack.enter_context(fabric.no_backward_sync(module))
        yield


def mean_of_parts(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Named metrics () of the equal parts of a batch -> their means, each over the parts that have it."""
    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: torch.stack([part[name] for part in parts if name in part]).mean() for name in names}


def mean_of_processes(fabric: Fabric, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Named numbers (), on any device -> their means over all processes, the same in each, on the run's device."""
    if fabric.world_size == 1:
        return dict(values)
    stacked = torch.stack([value.detach().to(fabric.device, torch.float64) for value in values.values()])
    return dict(zip(values, (sum_of_processes(fabric, stacked) / fabric.world_size).unbind(), strict=True))


def sum_of_processes(fabric: Fabric, tensor: Tensor) -> Tensor:
    """A tensor of any shape, on any device -> the sum over all processes, on the run's device."""
    return all_reduce_sum(tensor.to(fabric.device)) if fabric.world_size > 1 else tensor


def quotient_of_processes(fabric: Fabric, total: float, count: float) -> float:
    """A sum and its number of terms -> the mean over all processes; a process may have no terms."""
    if fabric.world_size > 1:
        total, count = sum_of_processes(fabric, torch.tensor((total, count), dtype=torch.float64)).tolist()
    return total / count
