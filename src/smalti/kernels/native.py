"""smalti's C files -> libraries, compiled once per machine and kept in the cache folder.

A library is loaded only from a folder that no other user can write into; where the cache is none, each process compiles
its own in a temporary one.

What is computed in C is what PyTorch computes, sooner or more exactly; where there is no compiler, PyTorch does.
`SMALTI_DIRECT` in the environment leaves all to PyTorch.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from smalti.core.errors import SmaltiError
from smalti.core.files import write_atomically
from smalti.core.private_folder import is_private, make_private_folder
from smalti.core.published_weights import cache_folder

LANES, PANEL = 8, 16
"""As in lanes.h: floats of a register, by which channels and widths are divisible, and P, numbers of a panel."""

OPTIONS = ("-O3", "-fopenmp", "-shared", "-fPIC")
_WIDE = ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl")
INSTRUCTIONS = {"AVX2": ("-mavx2", "-mfma"), "AVX512": ("-mavx2", "-mfma", *_WIDE)}
"""Options for each kind of x86 processor that PyTorch tells apart; for an older one PyTorch is as fast."""


def compile_library(source: Path) -> ctypes.CDLL | None:
    """A C file -> its library, compiled in about two seconds unless it is cached; None if it cannot be compiled.

    The cache is used if it `is_private`: otherwise another user of this machine could put their own library there.
    """
    compiler, options = shutil.which(os.environ.get("CC", "cc")), _instructions()
    if compiler is None or options is None or os.environ.get("SMALTI_DIRECT"):
        return None
    files = (source, *sorted(Path(__file__).parent.glob("*.h")))
    contents = "".join(file.read_text("utf-8") for file in files) + " ".join((platform.machine(), *OPTIONS, *options))
    name = f"{source.stem}-{hashlib.sha256(contents.encode()).hexdigest()[:16]}.so"
    command = [compiler, *OPTIONS, *options, str(source), "-lm", "-o"]
    try:
        if make_private_folder(cached := cache_folder() / "kernels"):
            with suppress(OSError, SmaltiError):  # no room, nothing may be written or run there, or a damaged library
                return _loaded(cached / name, command)
        with tempfile.TemporaryDirectory(prefix="smalti-") as folder:  # with a mode of 700; a loaded library stays
            return _loaded(Path(folder) / name, command)
    except (OSError, SmaltiError, subprocess.SubprocessError):
        return None  # no OpenMP, no room anywhere


def _loaded(path: Path, command: list[str]) -> ctypes.CDLL:
    """A library in a private folder; one that is not there yet, or that others could have changed, is compiled."""
    if not (path.is_file() and is_private(path)):
        write_atomically(path, lambda to: _compile([*command, str(to)]))
        path.chmod(0o700)
    return ctypes.CDLL(str(path))


def require_library(library: ctypes.CDLL | None) -> ctypes.CDLL:
    """The result of `compile_library`, after `is_supported` has checked it."""
    assert library is not None, "checked by is_supported"
    return library


def is_cpu_float32(*tensors: Tensor) -> bool:
    """Whether C may read these tensors: float32 on the CPU, and not under compilation, tracing or autocast."""
    tracing = torch.compiler.is_compiling() or torch._C._is_tracing() or torch.is_autocast_enabled("cpu")
    return not tracing and all(
        type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" and tensor.dtype == torch.float32
        for tensor in tensors
    )


def _instructions() -> tuple[str, ...] | None:
    if platform.machine() in ("x86_64", "AMD64"):
        return INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability())
    return ()


def _compile(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=120)
