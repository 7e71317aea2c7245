"""`smalti doctor`: hardware, weights, optional dependencies, and a suggested first command."""

from __future__ import annotations

import math
import os
import platform
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from smalti.cli.console import CONSOLE
from smalti.core.capacity import available_cores

if TYPE_CHECKING:
    import torch

    from smalti.training.config import TokenizerTraining

GIB = 2**30
EXTRAS = {"web": "uvicorn", "onnx": "onnxscript", "check-web": "playwright"}
"""Extra -> a package that comes with it alone."""

BYTES_PER_WEIGHT = 20
"""Bytes: the weight, its gradient, two moments of Adam and the running average, in float32."""
ACTIVATION_FACTOR = 2
"""Activations that a step keeps, as a multiple of those of the tokenizer: the discriminator and the perceptual network
together keep about as much."""
MEMORY_SHARE = 0.8
"""The fraction of the free memory that a training may use."""
ACCUMULATION_STEPS = (1, 2, 4, 8)
"""Values of `run.accumulate` that are suggested. If even the largest does not suffice, a smaller recipe is
suggested."""
MIN_FREE_DISK = 1.0
"""GiB of disk below which downloads and checkpoints will fail."""


def doctor() -> None:
    """Report the hardware, available weights and extras of this machine, and suggest a first command."""
    import torch

    from smalti.core.devices import pick_device
    from smalti.core.version import __version__

    device = pick_device("auto")
    memory = free_memory(device)
    lines = {
        "smalti": f"{__version__}, Python {platform.python_version()}, PyTorch {torch.__version__}",
        "device": _device(device),
        "cores": f"{available_cores()}, of which PyTorch uses {torch.get_num_threads()}",
        "free memory": f"{memory / GIB:.1f} GiB",
        "free disk": f"{_free_disk(Path.cwd()) / GIB:.1f} GiB here, {_free_disk(_cache()) / GIB:.1f} GiB for "
        f"{_cache()}",
        "precision": _precision(device),
        "3x3 convolutions on the CPU": _convolutions(),
        **dict(_weights()),
        "extras": ", ".join(f"{extra} {'yes' if find_spec(package) else 'no'}" for extra, package in EXTRAS.items()),
        "suggested command": suggested_command(device, memory),
    }
    for key, value in lines.items():
        CONSOLE.print(f"{key}: {value}", soft_wrap=True)
    for warning in _warnings(memory):
        CONSOLE.print(f"warning: {warning}", soft_wrap=True)


def free_memory(device: torch.device) -> int:
    """Free bytes of the GPU, or of the machine as far as this process may use them (limits of a container count)."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = (line.split() for line in meminfo.read_text("utf-8").splitlines())
        free = next((int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:"), free)
    limits = [Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current")]
    if all(path.is_file() for path in limits):  # in a container
        limit, used = (path.read_text("utf-8").strip() for path in limits)
        free = free if limit == "max" else min(free, int(limit) - int(used))
    return max(free, 0)


def _device(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        others = f", and {torch.cuda.device_count() - 1} more" if torch.cuda.device_count() > 1 else ""
        return f"cuda, {properties.name} with {properties.total_memory / GIB:.0f} GiB{others}"
    if device.type == "cpu":
        return f"cpu, {platform.machine()} {torch.backends.cpu.get_cpu_capability()}; no GPU that PyTorch can use"
    return str(device)


def _precision(device: torch.device) -> str:
    from smalti.core.devices import multiplies_bfloat16

    if multiplies_bfloat16(device):
        return "bfloat16 (run.precision=bf16-mixed) or float32"
    kind = "processor" if device.type == "cpu" else "GPU"
    return f"float32 (run.precision=32-true); this {kind} has no known bfloat16 instructions"


def _cache() -> Path:
    from smalti.core.published_weights import cache_folder

    return cache_folder()


def _free_disk(folder: Path) -> int:
    """Free bytes of the disk that holds `folder`, or would hold it."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def _convolutions() -> str:
    """Whether smalti's convolution kernels are used, otherwise why not."""
    import torch

    from smalti.kernels import native, winograd

    if winograd.available():
        return "smalti's Winograd kernels"
    compiler = os.environ.get("CC", "cc")
    if os.environ.get("SMALTI_DIRECT"):
        why = "SMALTI_DIRECT is set"
    elif shutil.which(compiler) is None:
        why = f"there is no C compiler {compiler}; with one they are about twice as fast"
    elif (
        platform.machine() in ("x86_64", "AMD64") and torch.backends.cpu.get_cpu_capability() not in native.INSTRUCTIONS
    ):
        why = "this processor has no AVX2"
    else:
        why = f"{compiler} could not compile them (OpenMP is needed), or {_cache()} cannot be written to"
    return f"PyTorch's: {why}"


def _weights() -> Iterator[tuple[str, str]]:
    """The lines of the published files: whether and where each is on this machine."""
    from smalti.core.errors import SmaltiError
    from smalti.core.published_weights import WEIGHTS, found_weights

    for name, entry in WEIGHTS.items():
        try:
            there = found_weights(name)
        except SmaltiError as error:
            yield "weights", str(error)
            return
        yield f"weights {name}", f"{there}" if there else f"missing, downloaded when needed: {entry.about}"


def suggested_command(device: torch.device, memory: int) -> str:
    """A device and its free bytes -> a suggested first command.

    On a GPU it uses the recipe f16 for photographs if a batch, whole or in parts, fits into memory; otherwise the
    recipe small.
    """
    from smalti.training.config import TokenizerTraining, resolve

    for recipe in ("f16", "small") if device.type == "cuda" else ("small",):
        settings = resolve(TokenizerTraining, stage="tokenizer", recipe=recipe, overrides=())
        fixed, per_image = memory_needed(settings)
        batch = settings.run.batch
        for parts in (parts for parts in ACCUMULATION_STEPS if batch % parts == 0):
            need = fixed + per_image * batch / parts
            if need <= MEMORY_SHARE * memory:
                accumulate = f" --set run.accumulate={parts}" if parts > 1 else ""
                command = f"smalti train tokenizer IMAGES --out RUN --recipe {recipe}{accumulate}"
                return f"{command} (batches of {batch}, {batch // parts} at once, about {need / GIB:.1f} GiB)"
    return "too little free memory even for the recipe small; free some, or use another machine"


def memory_needed(settings: TokenizerTraining) -> tuple[float, float]:
    """A training of stage 1 -> the bytes that it needs, about: independent of the batch, and per image of a part.

    The activations that a tokenizer with these settings saves for the gradient are counted for two small images, one
    twice as large as the other. Their difference, scaled to the size of the training images, is the memory per image.
    """
    import torch

    from smalti.tokenizer.vqgan import VQGAN

    with torch.device("meta"):  # the weights are never used, so they are not initialized
        tokenizer = VQGAN(settings.model)
    tokenizer.to_empty(device="cpu")
    channels, side = settings.model.autoencoder.channels, 2 * tokenizer.factor

    def saved_bytes(tiles: int) -> int:
        """The activations that autograd saves for an image of 2 f x 2 f `tiles` pixels."""
        sizes: list[int] = []

        def record_size(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(record_size, lambda tensor: tensor):
            tokenizer.decode(tokenizer.features(torch.zeros(1, channels, side, side * tiles)))
        return sum(sizes)

    image = (saved_bytes(2) - saved_bytes(1)) * math.prod(settings.images.size) / side**2
    half = 0.5 if settings.run.precision.startswith(("bf16", "16")) else 1.0
    count = sum(parameter.numel() for parameter in tokenizer.parameters())
    return BYTES_PER_WEIGHT * count, ACTIVATION_FACTOR * half * image


def _warnings(memory: int) -> Iterator[str]:
    import torch

    if os.environ.get("SMALTI_DIRECT"):
        yield "SMALTI_DIRECT is set, which slows down training on a CPU; unset it"
    if available_cores() > 1 and torch.get_num_threads() == 1:
        yield (
            f"PyTorch uses one thread of {available_cores()} cores; unset OMP_NUM_THREADS, or set it to "
            f"{available_cores()}"
        )
    if _free_disk(_cache()) < MIN_FREE_DISK * GIB:
        yield f"there is little disk space for downloads in {_cache()}; free some, or change SMALTI_CACHE"
    if _free_disk(Path.cwd()) < MIN_FREE_DISK * GIB:
        yield "there is little disk space here, and a run keeps two checkpoints; free some, or choose another --out"
    if memory < GIB:
        yield f"only {memory / GIB:.1f} GiB of memory are free"
