"""The proxy that stands between programs and their servers in tests of faults."""

from __future__ import annotations

import socket
import struct

import pytest

from tests.postgres.proxy import Proxy

RESETS = struct.pack("ii", 1, 0)
"""SO_LINGER: closing the socket sends a reset, as the kernel does for a process that is killed with data unread."""


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_the_server_hears_that_its_client_is_gone(reset: bool) -> None:
    """Whichever way a client's connection ends, the server's end of it ends too: no session is left half open."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Proxy(server.getsockname()[1]) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port)) as client,
    ):
        client.sendall(b"hello")
        session, _ = server.accept()
        with session:
            session.settimeout(10)
            assert session.recv(5) == b"hello"
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESETS)
            client.close()
            assert session.recv(1) == b""
