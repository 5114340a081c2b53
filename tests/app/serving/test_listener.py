"""Real sockets: who gets in once nobody else shall."""

import socket
import sys

import pytest

from app.serving.listener import accept_pending, refuse_connections


def test_who_has_connected_is_let_in() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        came = accept_pending(listener)
    assert sorted(each.getpeername() for each in came) == sorted(each.getsockname() for each in clients)
    for each in (*came, *clients):
        each.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can drop who asks for a connection")
def test_nobody_else_can_connect_and_who_has_goes_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        elsewhere = listener.dup()  # as a worker holds it
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
