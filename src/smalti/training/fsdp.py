"""A prior whose weights, gradients and moments lie in parts, one in each process (FSDP): for priors that no device holds whole.

Each block is gathered when it computes and let go after. What is written is whole, so that a run may go on with another strategy
or number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor

from smalti.core.errors import SmaltiError

Joined = TypeVar("Joined", bound=nn.Module)


def sharding(processes: int, blocks: Callable[[Any], nn.ModuleList]) -> ModelParallelStrategy:
    """The strategy that shards what `fabric.setup_module` is given; `blocks`: its parts, which are gathered one at a time.

    Raises `SmaltiError` where PyTorch is older than 2.6.
    """
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise SmaltiError(
            f"run.strategy = 'fsdp' needs PyTorch 2.6 or later, not {torch.__version__}; install it, or set run.strategy=ddp"
        ) from error

    def shard(module: Joined, mesh: DeviceMesh) -> Joined:
        for block in blocks(module):
            fully_shard(block, mesh=mesh["data_parallel"])
        fully_shard(module, mesh=mesh["data_parallel"])
        return module

    return ModelParallelStrategy(shard, data_parallel_size=processes, tensor_parallel_size=1)


def whole(tensor: Tensor) -> Tensor:
    """A tensor, perhaps of which this process holds a part -> all of it; every process has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def save(fabric: Fabric, path: Path, state: Mapping[str, Any]) -> None:
    """Write modules, optimizers and plain values, as `Fabric.save` does, whole."""
    if not isinstance(fabric.strategy, ModelParallelStrategy):
        fabric.save(path, dict(state))
        return
    plain = {name: each.state_dict() if hasattr(each, "state_dict") else each for name, each in state.items()}
    gathered = _gathered(plain)
    if fabric.is_global_zero:
        torch.save(gathered, path)
    fabric.barrier()


def load(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    """Fill modules and optimizers with what `save` wrote, and replace the plain values, as `Fabric.load` does."""
    if not isinstance(fabric.strategy, ModelParallelStrategy):
        fabric.load(path, state, weights_only=True)
        return
    read = torch.load(path, map_location="cpu", weights_only=True)
    for name, each in state.items():
        if isinstance(each, torch.optim.Optimizer):
            each.load_state_dict(_shared_out(read[name], each))
        elif isinstance(each, nn.Module):
            own = each.state_dict()
            each.load_state_dict({key: _like(value, own.get(key)) for key, value in read[name].items()})
        else:
            state[name] = read[name]


def _shared_out(read: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole state of an optimizer -> the part of this process: moments lie as the weights do that they belong to."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = {
        place: {
            name: _like(value, weights[place]) if value.shape == weights[place].shape else value
            for name, value in moments.items()
        }
        for place, moments in read["state"].items()
    }
    return {**read, "state": state}


def _like(value: Tensor, pattern: Tensor | None) -> Tensor:
    """A whole tensor -> spread over the processes as another of its shape is."""
    if not isinstance(pattern, DTensor):
        return value
    return distribute_tensor(value.to(pattern.device), pattern.device_mesh, pattern.placements)


def _gathered(value: Any) -> Any:
    """Nested mappings and lists -> the same with each tensor whole, and on the CPU."""
    if isinstance(value, Tensor):
        return whole(value.detach()).cpu()
    if isinstance(value, Mapping):
        return {key: _gathered(each) for key, each in value.items()}
    return [_gathered(each) for each in value] if isinstance(value, list) else value
