"""How a stop closes the listening socket without resetting anybody: it accepts pending connections, refuses new ones.

Closing it alone would reset connections that arrive while the last pending ones are accepted and, with several workers,
those that arrive before the last worker closes it.
"""

import contextlib
import ctypes
import socket
import struct
import sys

# Classic BPF over the TCP header: drops packets that request a connection (SYN without ACK), passes all others.
# (code, jump if true, jump if false, constant)
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the flags
    (0x54, 0, 0, 0x12),  # mask SYN and ACK
    (0x15, 0, 1, 0x02),  # only SYN?
    (0x06, 0, 0, 0),  # then drop
    (0x06, 0, 0, 0xFFFFFFFF),  # else pass
)
_ATTACH_FILTER = 26  # SO_ATTACH_FILTER on Linux; Python's socket module lacks it


def refuse_connections(listener: socket.socket) -> None:
    """Drops new connection requests, in every process that has the socket open; pending connections stay in its queue.

    A client gets no answer, tries again after a second, and is refused if the socket is closed by then. Does nothing on
    systems other than Linux.
    """
    if sys.platform != "linux":
        return
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_SYN)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HP", len(_DROP_SYN), ctypes.addressof(buffer))
    with contextlib.suppress(OSError):  # sandboxes may lack it
        listener.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)


def accept_pending(listener: socket.socket) -> list[socket.socket]:
    """Accepts all pending connections, and closes the socket."""
    listener.setblocking(False)
    accepted = []
    with listener, contextlib.suppress(OSError):  # none is pending any more
        while True:
            accepted.append(listener.accept()[0])
    return accepted
