"""Memory of a serving process: glibc's allocator and Python's garbage collector.

glibc keeps freed memory in one arena per thread. After a hundred models were loaded and unloaded, those arenas hold
more than the models did. Other C libraries lack these calls, or do not need them.

Under load Python's collector scans all objects several times a second. Each scan stops the process for 40 ms, and most
objects exist from startup to exit.
"""

import contextlib
import ctypes
import gc

_ARENA_MAX = -8  # glibc's M_ARENA_MAX


def use_one_arena() -> None:
    """All threads allocate from one arena. Call it before threads start. onnxruntime has its own."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


def freeze() -> None:
    """Exempts all current objects from garbage collection. Those without references are freed as before."""
    gc.collect()
    gc.freeze()


def trim() -> None:
    """Returns freed memory to the system."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
