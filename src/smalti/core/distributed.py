"""Collective operations of processes that train together.

With one process every function is the identity. All processes must call it, in the same order.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def world() -> int:
    """The number of processes."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def all_gather(tensor: Tensor) -> Tensor:
    """(B,..) of this process -> (world B,..) of all, in the order of ranks, without gradient."""
    if world() == 1:
        return tensor
    local = tensor.detach().contiguous()
    gathered = [torch.empty_like(local) for _ in range(world())]
    distributed.all_gather(gathered, local)
    return torch.cat(gathered)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of this tensor over all processes, without gradient where there are several."""
    if world() == 1:
        return tensor
    total = tensor.detach().clone()
    distributed.all_reduce(total)
    return total


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """The mean of this tensor over all processes, with the gradient of this process's part.

    Where the mean enters a loss, each process so has the gradient of its own examples, scaled as if they were all:
    exactly what data-parallel training then averages.
    """
    if world() == 1:
        return tensor
    return tensor + (all_reduce_sum(tensor) / world() - tensor.detach())


def broadcast(tensor: Tensor) -> None:
    """Make `tensor` that of the first process, in place."""
    if world() > 1:
        distributed.broadcast(tensor, src=0)
