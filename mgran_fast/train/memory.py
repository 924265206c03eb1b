"""Keeping the memory of a training step for the next one, on the CPU.

A step frees hundreds of megabytes of activations and the next one wants as many. The C library gives free memory back
at once, and the system clears every page of new memory: 2 % of a step of a ResNet-50, measured on one core. A caching
allocator, as torch has for GPUs, is what is missing; glibc can be told to keep what it was given.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import sys

_log = logging.getLogger(__name__)

# malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_NEVER, _LARGEST = 2**31 - 1, 32 << 20


@functools.cache
def keep() -> bool:
    """Keep freed memory in this process from now on; whether that could be done (Linux with glibc).

    For processes whose main work is training: memory that was used once stays with the process until it ends.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    # From mmap, which is unmapped when it is freed, only what is larger than glibc allows; nothing of the heap back.
    settings = ((_M_MMAP_THRESHOLD, _LARGEST), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, 64 << 20))
    kept = all(mallopt(*setting) == 1 for setting in settings)
    _log.debug("freed memory is %s", "kept" if kept else "given back: mallopt refused")
    return kept
