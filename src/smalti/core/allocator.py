"""A glibc setting: keep freed memory in the process, for steps that allocate the same memory again and again."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # names of the settings in glibc's malloc.h
MAX_INT = 2**31 - 1  # thresholds of 2 GiB: nothing smaller is returned
PADDING = 2**26
"""Bytes by which the heap grows beyond each request."""


def keep_memory() -> bool:
    """Keep the memory of freed CPU tensors in this process instead of returning it to the system.
    Returns whether it is kept.

    By default glibc returns freed blocks of some MiB to the system, and the next feature map of a convolution is new
    memory, whose pages the system first fills with zeros. This takes a fifth or more of the time in which a CPU
    encodes or decodes an image (docs/log.md). Peak memory does not change, but the process keeps it until it ends.
    Call this function once, at the start, as smalti's commands do. It does nothing on systems without glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    with suppress(OSError, AttributeError):  # another C library
        set_option = ctypes.CDLL("libc.so.6").mallopt
        return all(
            set_option(option, value) == 1
            for option, value in ((MMAP_THRESHOLD, MAX_INT), (TRIM_THRESHOLD, MAX_INT), (TOP_PAD, PADDING))
        )
    return False


def release_memory() -> bool:
    """Return the freed memory of this process to the system. Returns whether any was returned.

    A server calls it after each job, so that the memory of a large image is not kept. It does nothing on systems
    without glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    with suppress(OSError, AttributeError):  # another C library
        return bool(ctypes.CDLL("libc.so.6").malloc_trim(0))
    return False
