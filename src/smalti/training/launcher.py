"""The processes of a run: how many there are, how they are started or joined, and what the first does for all.

One process trains by default. Under `torchrun` and under Slurm's `srun` those that were started there are joined; with
`run.devices` above 1 and neither, Lightning Fabric starts the others on this machine.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar, final

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.plugins.precision.precision import Precision
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from smalti.core.devices import check_count, pick_device
from smalti.core.errors import SmaltiError, suggestion
from smalti.training.config import RunSettings
from smalti.training.fsdp import sharding

T = TypeVar("T")


def launch(run: RunSettings, *, blocks: Callable[[Any], nn.ModuleList] | None = None) -> Fabric:
    """The processes and devices of a run; under `torchrun` and Slurm this joins the others.

    `blocks`: where a model can be sharded, how what is trained is divided; see `sharding`.

    Raises `SmaltiError` for devices that the machine does not have, for a number of processes that is not what the
    launcher started, and for a strategy or an accelerator that cannot be.
    """
    _check_strategy(run, blocks)
    devices, nodes = arranged(run)
    try:
        fabric = Fabric(
            accelerator=run.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=_strategy(devices * nodes, blocks if run.strategy == "fsdp" else None),
            **_PRECISIONS[run.precision](run.accelerator),
        )
        fabric.launch()
    except (ValueError, RuntimeError, MisconfigurationException) as error:  # Fabric's words for what is not to be had
        first = " ".join(str(error).split())
        raise SmaltiError(f"cannot run on {devices} x {run.accelerator!r} with {run.strategy!r}: {first}") from error
    share = fabric.world_size * run.accumulate
    if run.batch % share:
        raise SmaltiError(
            f"run.batch = {run.batch} cannot be shared out evenly to {fabric.world_size} devices in {run.accumulate} "
            "parts each; "
            f"use a multiple of {share}"
        )
    return fabric


@final
class BFloat16(Precision):
    """Networks compute in bfloat16 where autocast finds it safe; weights, inputs and outputs are float32.

    As Fabric's own "bf16-mixed", but for what that shares with float16: a loss that is scaled, for whose sake only
    `fabric.backward` may ask for gradients. Equation 7 asks for some by itself.
    """

    precision = "bf16-mixed"

    def __init__(self, device: str) -> None:
        """`device`: the type of it, such as "cuda"."""
        self._device = device

    def forward_context(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device, dtype=torch.bfloat16)

    def convert_input(self, data: Any) -> Any:
        return apply_to_collection(data, dtype=Tensor, function=_single)

    def convert_output(self, data: Any) -> Any:
        return apply_to_collection(data, dtype=Tensor, function=_single)


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor


def _device_type(accelerator: str) -> str:
    """An accelerator as Fabric names it -> the type of its devices as PyTorch names it."""
    chosen = pick_device("auto").type
    return {"auto": chosen, "gpu": chosen}.get(accelerator, accelerator)


_PRECISIONS: dict[str, Callable[[str], dict[str, Any]]] = {  # of the accelerator: the arguments of Fabric
    "32-true": lambda accelerator: {"precision": "32-true"},
    "bf16-mixed": lambda accelerator: {"plugins": BFloat16(_device_type(accelerator))},
}


def arranged(run: RunSettings) -> tuple[int, int]:
    """The settings and the environment -> devices on each machine, and machines.

    Raises `SmaltiError` if both say a number and it is not the same.
    """
    if TorchElasticEnvironment.detect():
        started = int(os.environ["WORLD_SIZE"])
        here = int(os.environ.get("LOCAL_WORLD_SIZE", started))
        launcher = "torchrun"
    elif SLURMEnvironment.detect():
        started = int(os.environ["SLURM_NTASKS"])
        here = int(os.environ.get("SLURM_NTASKS_PER_NODE", started // int(os.environ.get("SLURM_NNODES", 1))))
        launcher = "Slurm"
    else:
        devices, nodes = run.devices or 1, run.nodes or 1
        if devices > 1:
            check_count(run.accelerator, devices)
        return devices, nodes
    devices, nodes = run.devices or here, run.nodes or started // here
    if devices * nodes != started:
        raise SmaltiError(
            f"run.devices = {devices} on run.nodes = {nodes} machines are {devices * nodes} processes, but {launcher} "
            "started "
            f"{started}; leave both settings out, and it decides"
        )
    return devices, nodes


def _check_strategy(run: RunSettings, blocks: Callable[[Any], nn.ModuleList] | None) -> None:
    known = ("auto", "ddp", "fsdp")
    if run.strategy not in known:
        raise SmaltiError(
            f"run.strategy = {run.strategy!r} is none of {', '.join(known)}; {suggestion(run.strategy, known)}"
        )
    if run.strategy == "fsdp" and blocks is None:
        raise SmaltiError(
            "run.strategy = 'fsdp' is for priors: a tokenizer's memory is in what it computes, not in its weights; set "
            "run.strategy=ddp, and where memory is short run.recompute=true, run.accumulate=2 or more, or "
            "run.precision=bf16-mixed"
        )
    if run.strategy == "fsdp" and not run.ema_half_life:
        raise SmaltiError(
            "run.strategy = 'fsdp' needs a running average, which is whole, to validate and to export; "
            "set run.ema_half_life above 0, "
            "or run.strategy=ddp"
        )


def _strategy(processes: int, blocks: Callable[[Any], nn.ModuleList] | None) -> Any:
    """Buffers are not sent around before each pass: they are alike everywhere, for everything that moves them is
    computed from what all processes saw (`all_gather`, SyncBatchNorm)."""
    if processes == 1:
        return "auto"
    if blocks is not None:
        return sharding(processes, blocks)
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before PyTorch 2.12
    options: dict[str, Any] = {name: False}
    return DDPStrategy(**options)


def synchronized(module: nn.Module, *, fabric: Fabric) -> nn.Module:
    """A module -> the same with batch norms whose statistics are of all processes together.

    Raises `SmaltiError` on CPUs, for which PyTorch has none.
    """
    if fabric.world_size == 1 or not any(isinstance(each, nn.BatchNorm2d) for each in module.modules()):
        return module
    if fabric.device.type == "cpu":
        raise SmaltiError(
            f"objective.adversarial.discriminator.norm = batch on {fabric.world_size} CPU processes: PyTorch shares "
            "the "
            "statistics of a batch norm between GPUs alone; set it to group, or train in one process"
        )
    convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
    return convert(module)


def first_alone(fabric: Fabric, action: Callable[[], T]) -> T:
    """Let the first process act while the others wait -> its result, in all. A `SmaltiError` there is raised in all."""
    if fabric.world_size == 1:
        return action()
    result, refusal = None, ""
    if fabric.is_global_zero:
        try:
            result = action()
        except SmaltiError as error:
            refusal = str(error)
    result, refusal = fabric.broadcast((result, refusal))
    if refusal:
        raise SmaltiError(refusal)
    return result  # type: ignore[return-value]


def is_first() -> bool:
    """Whether this process is the only one, or the first of those that a launcher started;
    known before they have met."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("SLURM_PROCID", "LOCAL_RANK"))


def is_started_with_others() -> bool:
    """Whether torchrun or Slurm started this process as one of several."""
    if TorchElasticEnvironment.detect():
        return os.environ["WORLD_SIZE"] != "1"
    return SLURMEnvironment.detect() and os.environ["SLURM_NTASKS"] != "1"


@contextmanager
def report_once() -> Iterator[None]:
    """Errors of all processes are reported by the first alone; the others exit with status 1 and print nothing."""
    try:
        yield
    except SmaltiError as error:
        if is_first():
            raise
        raise SystemExit(1) from error
