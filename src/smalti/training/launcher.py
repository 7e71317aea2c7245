"""The processes of a run: their number, how they are started or joined, and what the first one does for all.

One process trains by default. Under `torchrun` and Slurm's `srun` the process joins the others that they started.
Without them, and with `run.devices` above 1, Lightning Fabric starts the other processes on this machine.
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

from smalti.core.devices import check_device_count, pick_device
from smalti.core.errors import SmaltiError, suggestion
from smalti.training.config import RunSettings
from smalti.training.fsdp import sharding

T = TypeVar("T")


def launch(run: RunSettings, *, blocks: Callable[[Any], nn.ModuleList] | None = None) -> Fabric:
    """The processes and devices of a run; under `torchrun` and Slurm this joins the others.

    `blocks`: the trained module -> the blocks by which FSDP shards it (see `sharding`); None if it cannot be sharded.

    Raises `SmaltiError` for devices that the machine does not have, for a number of processes other than the launcher
    started, and for an unknown or unsuitable strategy or accelerator.
    """
    _check_strategy(run, blocks)
    devices, nodes = device_counts(run)
    try:
        fabric = Fabric(
            accelerator=run.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=_strategy(devices * nodes, blocks if run.strategy == "fsdp" else None),
            **_precision_arguments(run),
        )
        fabric.launch()
    except (ValueError, RuntimeError, MisconfigurationException) as error:  # how Fabric refuses them
        first = " ".join(str(error).split())
        raise SmaltiError(f"cannot run on {devices} x {run.accelerator!r} with {run.strategy!r}: {first}") from error
    parts = fabric.world_size * run.accumulate
    if run.batch % parts:
        raise SmaltiError(
            f"run.batch = {run.batch} cannot be divided evenly among {fabric.world_size} devices in {run.accumulate} "
            f"parts each; use a multiple of {parts}"
        )
    return fabric


@final
class BFloat16(Precision):
    """Networks compute in bfloat16 where autocast allows it; weights, inputs and outputs are float32.

    This replaces Fabric's own "bf16-mixed". Since float16 needs a scaled loss, Fabric permits gradients under mixed
    precision only through `fabric.backward`, but equation 7 calls `torch.autograd.grad`.
    """

    precision = "bf16-mixed"

    def __init__(self, device: str) -> None:
        """`device`: the type of the device, such as "cuda"."""
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
    return pick_device("auto").type if accelerator in ("auto", "gpu") else accelerator


def _precision_arguments(run: RunSettings) -> dict[str, Any]:
    """The setting `run.precision` -> the arguments of Fabric."""
    if run.precision == "bf16-mixed":
        return {"plugins": BFloat16(_device_type(run.accelerator))}
    return {"precision": run.precision}


def device_counts(run: RunSettings) -> tuple[int, int]:
    """The settings and the environment -> devices per machine, and machines.

    Raises `SmaltiError` if both give a number and the numbers differ.
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
            check_device_count(run.accelerator, devices)
        return devices, nodes
    devices, nodes = run.devices or here, run.nodes or started // here
    if devices * nodes != started:
        raise SmaltiError(
            f"run.devices = {devices} on run.nodes = {nodes} machines are {devices * nodes} processes, but {launcher} "
            f"started {started}; omit both settings to use those of the launcher"
        )
    return devices, nodes


def _check_strategy(run: RunSettings, blocks: Callable[[Any], nn.ModuleList] | None) -> None:
    known = ("auto", "ddp", "fsdp")
    if run.strategy not in known:
        raise SmaltiError(
            f"run.strategy = {run.strategy!r} is not one of {', '.join(known)}; {suggestion(run.strategy, known)}"
        )
    if run.strategy == "fsdp" and blocks is None:
        raise SmaltiError(
            "run.strategy = 'fsdp' is for priors: a tokenizer needs its memory for activations, not for weights; set "
            "run.strategy=ddp, and if memory is short run.recompute=true, run.accumulate=2 or more, or "
            "run.precision=bf16-mixed"
        )
    if run.strategy == "fsdp" and not run.ema_half_life:
        raise SmaltiError(
            "run.strategy = 'fsdp' validates and exports the EMA of the weights, which is not sharded; set "
            "run.ema_half_life above 0, or run.strategy=ddp"
        )


def _strategy(processes: int, blocks: Callable[[Any], nn.ModuleList] | None) -> Any:
    """The strategy of Fabric for a number of processes.

    DDP does not broadcast buffers before each pass. They are equal in all processes, since every update of a buffer is
    computed from the data of all processes (`all_gather`, SyncBatchNorm).
    """
    if processes == 1:
        return "auto"
    if blocks is not None:
        return sharding(processes, blocks)
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before PyTorch 2.12
    options: dict[str, Any] = {name: False}
    return DDPStrategy(**options)


def with_synchronized_norms(module: nn.Module, *, fabric: Fabric) -> nn.Module:
    """A module -> the same with batch norms whose statistics cover all processes.

    Raises `SmaltiError` on CPUs, for which PyTorch has no synchronized batch norm.
    """
    if fabric.world_size == 1 or not any(isinstance(each, nn.BatchNorm2d) for each in module.modules()):
        return module
    if fabric.device.type == "cpu":
        raise SmaltiError(
            f"objective.adversarial.discriminator.norm = batch on {fabric.world_size} CPU processes: PyTorch "
            "synchronizes batch norms on GPUs only; set it to group, or train in one process"
        )
    convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
    return convert(module)


def on_first_process(fabric: Fabric, action: Callable[[], T]) -> T:
    """Run `action` on the first process while the others wait -> its result, on all. A `SmaltiError` is raised on
    all."""
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


def is_first_process() -> bool:
    """Whether this process is the only one, or the first that a launcher started. Works before `launch`."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("SLURM_PROCID", "LOCAL_RANK"))


def is_one_of_several_processes() -> bool:
    """Whether torchrun or Slurm started this process as one of several."""
    if TorchElasticEnvironment.detect():
        return os.environ["WORLD_SIZE"] != "1"
    return SLURMEnvironment.detect() and os.environ["SLURM_NTASKS"] != "1"


@contextmanager
def errors_from_first_process() -> Iterator[None]:
    """Let only the first process report a `SmaltiError`; the others exit with status 1 and print nothing."""
    try:
        yield
    except SmaltiError as error:
        if is_first_process():
            raise
        raise SystemExit(1) from error
