"""Makes glibc keep freed memory in the process."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST_KEPT = 32 << 20  # bytes, the most that glibc allows: larger arrays are always returned
_KEPT = 512 << 20  # free bytes at the end of the heap that are kept


def keep_freed() -> None:
    """Every training step frees and allocates the same activations. By default glibc returns them to the system, and
    each page has to be mapped again: a seventh of the CPU time on two cores. Other C libraries are left unchanged.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, _KEPT)
