"""The memory of a process that serves.

The C library's is held together, where it is glibc's; others have no such calls, or no such need. glibc keeps what was
freed in as many pools as there are threads. After a hundred models that came and went, those hold more than the models
did.

Python's is looked through for cycles again and again, all of it some times a second under load: 40 ms, in which nobody
is answered, for what was there from the start and stays to the end.
"""

import contextlib
import ctypes
import gc

_ARENA_MAX = -8  # its M_ARENA_MAX


def use_one_arena() -> None:
    """All threads from one pool. To be called before there are any. Tensors come from pools of onnxruntime's own."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


def freeze() -> None:
    """All that there is now, for good: it is not looked through any more. What nobody refers to is freed as before."""
    gc.collect()
    gc.freeze()


def trim() -> None:
    """To the system, what was freed."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
