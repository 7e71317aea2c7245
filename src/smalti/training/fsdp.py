"""A prior whose weights, gradients and moments lie in parts, one in each process (FSDP): for priors that no device
holds whole.

Each block is gathered when it computes and let go after. What is written is whole, so that a run may resume with
another strategy or number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from smalti.core.errors import SmaltiError

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)

Joined = TypeVar("Joined", bound=nn.Module)


def sharding(processes: int, blocks: Callable[[Any], nn.ModuleList]) -> ModelParallelStrategy:
    """The strategy that shards what `fabric.setup_module` is given; `blocks`: its parts, which are gathered one at a
    time.

    Raises `SmaltiError` if PyTorch is older than 2.6.
    """
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise SmaltiError(
            f"run.strategy = 'fsdp' needs PyTorch 2.6 or later, not {torch.__version__}; install it, or set "
            "run.strategy=ddp"
        ) from error

    def shard(module: Joined, mesh: DeviceMesh) -> Joined:
        for block in blocks(module):
            fully_shard(block, mesh=mesh["data_parallel"])
        fully_shard(module, mesh=mesh["data_parallel"])
        return module

    return ModelParallelStrategy(shard, data_parallel_size=processes, tensor_parallel_size=1)


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor, perhaps of which this process holds a part -> all of it; every process has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def save(fabric: Fabric, path: Path, state: Mapping[str, Any]) -> None:
    """Write modules, optimizers and plain values, as `Fabric.save` does, whole."""
    if not isinstance(fabric.strategy, ModelParallelStrategy):
        fabric.save(path, dict(state))
        return
    whole_state: dict[str, Any] = {}
    for name, each in state.items():
        if isinstance(each, torch.optim.Optimizer):
            module, optimizer = _owner(each, state), _unwrapped(each)
            whole_state[name] = _by_place(get_optimizer_state_dict(module, optimizer, options=_WHOLE))
        else:
            is_module = isinstance(each, nn.Module)
            whole_state[name] = get_model_state_dict(_unwrapped(each), options=_WHOLE) if is_module else each
    if fabric.is_global_zero:
        torch.save(whole_state, path)
    fabric.barrier()


def load(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    """Fill modules and optimizers with what `save` wrote, and replace the plain values, as `Fabric.load` does."""
    if not isinstance(fabric.strategy, ModelParallelStrategy):
        fabric.load(path, state, weights_only=True)
        return
    read = torch.load(path, map_location="cpu", weights_only=True)
    for name, each in state.items():
        if isinstance(each, torch.optim.Optimizer):
            module = _owner(each, state)
            set_optimizer_state_dict(module, _unwrapped(each), _by_name(read[name], module, each), options=_WHOLE)
        elif isinstance(each, nn.Module):
            set_model_state_dict(_unwrapped(each), read[name], options=_WHOLE)
        else:
            state[name] = read[name]


def _unwrapped(each: Any) -> Any:
    """A module or an optimizer, perhaps wrapped by Fabric -> itself."""
    if isinstance(each, _FabricModule):
        return each.module
    return each.optimizer if isinstance(each, _FabricOptimizer) else each


def _owner(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> nn.Module:
    """The module of a state whose weights an optimizer moves."""
    first = optimizer.param_groups[0]["params"][0]
    modules: list[nn.Module] = [_unwrapped(each) for each in state.values() if isinstance(each, nn.Module)]
    return next(module for module in modules if any(weight is first for weight in module.parameters()))


def _by_place(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of an optimizer by the names of weights -> by their numbers, as `Optimizer.state_dict` has it."""
    if not state:  # on all processes but the first
        return {}
    numbers = {name: index for index, name in enumerate(n for group in state["param_groups"] for n in group["params"])}
    groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {numbers[name]: moments for name, moments in state["state"].items()}, "param_groups": groups}


def _by_name(state: Mapping[str, Any], module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The inverse of `_by_place`."""
    named = {id(weight): name for name, weight in module.named_parameters()}
    names = [named[id(weight)] for group in optimizer.param_groups for weight in group["params"]]
    groups = [{**group, "params": [names[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[number]: moments for number, moments in state["state"].items()}, "param_groups": groups}
