"""The C library's memory, held together, where it is glibc's; others have no such calls, or no such need.

glibc keeps what was freed in as many pools as there are threads. After a hundred models that came and went, those hold
more than the models did.
"""

import contextlib
import ctypes

_ARENA_MAX = -8  # its M_ARENA_MAX


def hold_together() -> None:
    """All threads from one pool. To be called before there are any. Tensors come from pools of onnxruntime's own."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


def give_back() -> None:
    """To the system, what was freed."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
