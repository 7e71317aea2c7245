"""Select a device by name, and check how many devices of a kind this machine has."""

from __future__ import annotations

import torch

from smalti.core.capacity import available_cores
from smalti.core.errors import SmaltiError


def pick_device(name: str = "auto") -> torch.device:
    """ "auto" -> the first GPU (CUDA, then Apple's), else the CPU; any other name as PyTorch reads it.

    Raises `SmaltiError` for a device that this machine or build does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # fails for "meta", whose tensors have no data
    except (RuntimeError, AssertionError, ImportError) as error:
        first = str(error).splitlines()[0].split(". ")[0]
        raise SmaltiError(f"device {name!r} cannot be used here ({first}); try --device cpu") from error
    return device


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device is known to multiply bfloat16 in hardware.

    A CPU without it takes twenty times as long as in float32 (docs/log.md).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        has: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older versions of PyTorch
        return any(has.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return False


def check_device_count(accelerator: str, count: int) -> None:
    """Raise `SmaltiError` when this machine has fewer than `count` devices of the kind that a run is to use.

    `accelerator` as Lightning Fabric names it: "auto", "gpu", "cuda", "mps", "cpu". On CPUs each process needs a core.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        found, kind = torch.cuda.device_count(), "GPU"
    elif accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        found, kind = 1, "GPU"
    elif accelerator in ("auto", "cpu"):
        found, kind = available_cores(), "CPU core"
    else:
        return  # Lightning Fabric refuses a kind of device that this machine does not have
    if count > found:
        plural = "" if found == 1 else "s"
        raise SmaltiError(
            f"run.devices = {count}, but this machine has {found} {kind}{plural}; set run.devices={found} or less"
        )
