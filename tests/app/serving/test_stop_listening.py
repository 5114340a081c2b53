"""Real sockets: which connections are accepted after the listener is closed to new ones."""

import socket
import sys

import pytest

from app.serving.stop_listening import accept_pending, refuse_connections


def test_pending_connections_are_accepted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        accepted = accept_pending(listener)
    assert sorted(each.getpeername() for each in accepted) == sorted(each.getsockname() for each in clients)
    for each in (*accepted, *clients):
        each.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can drop connection requests")
def test_new_connections_are_refused_and_existing_ones_continue() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        elsewhere = listener.dup()  # as a worker has it
        with socket.create_connection(address) as early:
            inside, _ = listener.accept()
            with socket.create_connection(address, timeout=5):
                refuse_connections(listener)
                with pytest.raises(TimeoutError), socket.create_connection(address, timeout=0.3):
                    pass
                early.sendall(b"still here")
                assert inside.recv(10) == b"still here"
                (late,) = accept_pending(elsewhere)
            inside.close()
            late.close()
    with pytest.raises(ConnectionRefusedError), socket.create_connection(address, timeout=5):
        pass
