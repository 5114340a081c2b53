"""The end of a listening socket at which nobody is let down: who has connected is let in, and nobody else can connect.

Closing it alone resets whoever connected while the last were let in; with several workers, whoever connected before
the last of them closed it.
"""

import contextlib
import ctypes
import socket
import struct
import sys

# Classic BPF over the TCP header: a packet that asks for a connection (SYN without ACK) is dropped, others pass.
# (code, jump if true, jump if false, constant)
_NO_NEWCOMERS = (
    (0x30, 0, 0, 13),  # load the byte of flags
    (0x54, 0, 0, 0x12),  # of them SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),  # then nothing of it is kept
    (0x06, 0, 0, 0xFFFFFFFF),  # else all
)
_ATTACH_FILTER = 26  # Linux's SO_ATTACH_FILTER, which Python does not name


def refuse_connections(listener: socket.socket) -> None:
    """Nobody can connect any more, in whichever process the socket is open; who has connected still waits in it.

    Who tries hears nothing, asks again a second later, and is refused if the socket is closed by then. Where the
    system is not Linux nothing happens.
    """
    if sys.platform != "linux":
        return
    code = b"".join(struct.pack("HBBI", *each) for each in _NO_NEWCOMERS)
    held = ctypes.create_string_buffer(code)
    program = struct.pack("HP", len(_NO_NEWCOMERS), ctypes.addressof(held))
    with contextlib.suppress(OSError):  # a sandbox that does not know it
        listener.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)


def accept_pending(listener: socket.socket) -> list[socket.socket]:
    """All who wait to be let in; the socket is closed."""
    listener.setblocking(False)
    came = []
    with listener, contextlib.suppress(OSError):  # that nobody waits
        while True:
            came.append(listener.accept()[0])
    return came
