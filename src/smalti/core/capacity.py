"""Memory and cores available to this process, and a check that refuses work that needs far more memory."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from smalti.core.errors import SmaltiError

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says how much a container may have."""


def machine_memory() -> int:
    """Bytes of memory that this process can have at most; 0 where the system does not say it."""
    found = []
    with suppress(AttributeError, ValueError, OSError):  # systems without these names
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in _LIMITS:
        with suppress(ValueError, OSError):  # "max" is not a number
            found.append(int(Path(limit).read_text()))
    return min((size for size in found if size > 0), default=0)


def available_cores() -> int:
    """How many cores this process may use, at least 1: a batch system or a container often allows fewer than the
    machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def check_memory(needed: int, what: str) -> None:
    """Raise `SmaltiError` if `what` takes more bytes than this machine has; that it takes less is no promise."""
    most = machine_memory()
    if most and needed > most:
        raise SmaltiError(
            f"{what} would take about {_in_words(needed)} of memory, and this machine has {_in_words(most)}; ask for "
            "less"
        )


def _in_words(size: int) -> str:
    for unit in ("MiB", "GiB", "TiB"):
        size //= 1024
        if size < 1024 * 1024:
            return f"{size / 1024:,.0f} {unit}" if size >= 10 * 1024 else f"{size / 1024:,.1f} {unit}"
    return f"{size / 1024:,.0f} TiB"
