"""Where tensors live, chosen by name, and the memory layout that is fast there."""

from __future__ import annotations

import torch

from smalti.errors import SmaltiError


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
        torch.empty(1, device=device).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError, ImportError) as error:
        first = str(error).splitlines()[0].split(". ")[0]
        raise SmaltiError(f"device {name!r} cannot be used here ({first}); try --device cpu") from error
    return device
