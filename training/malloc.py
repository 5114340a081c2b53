"""How this process keeps the memory that it has freed."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST_KEPT = 32 << 20  # bytes, the most that glibc allows: a larger array goes back to the system when it is freed
_KEPT = 512 << 20  # bytes that lie free at the end of the heap before they go back


def keep_freed() -> None:
    """Every step of training frees and asks for the same activations; given back in between, each page is fetched anew.

    Of two cores' time that was a seventh. Only glibc needs to be told, and musl, macOS and Windows are left alone.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, _KEPT)
