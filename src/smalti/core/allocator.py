"""Keeps memory that is freed and allocated again in every step in the process."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # names of the settings in glibc's malloc.h
KEPT = 2**31 - 1  # the largest int, 2 GiB
PADDING = 2**26
"""Bytes by which the heap grows beyond each request."""


def keep_memory() -> bool:
    """Let this process keep the memory that tensors on the CPU give back -> whether it will.

    By default glibc hands blocks of some MiB back to the system when they are freed, and the next feature map of a convolution is
    new memory, whose every page the system fills with zeros first: a fifth and more of the time in which a CPU encodes or decodes a
    image (docs/log.md). The peak of memory stays as it was; the process keeps it until it ends. Call it once, before much is
    computed; smalti's commands do. Elsewhere than on Linux with glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    with suppress(OSError, AttributeError):  # another C library
        set_option = ctypes.CDLL("libc.so.6").mallopt
        return all(
            set_option(option, value) == 1
            for option, value in ((MMAP_THRESHOLD, KEPT), (TRIM_THRESHOLD, KEPT), (TOP_PAD, PADDING))
        )
    return False
