"""A TCP proxy that can be frozen or cut, to stand between the ledger and its server."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

CHUNK = 65536


class Proxy:
    """Forwards a port to another one, until it is told not to; both on the loopback address unless said otherwise.

    `freeze` swallows what comes from then on, in both directions, and keeps every connection open: the peer's kernel
    answers keepalives, nobody else does. `cut` closes all connections and takes no new ones. `thaw` ends both; bytes
    swallowed meanwhile are lost, so connections of that time are closed.
    """

    def __init__(self, target: int, *, host: str = "127.0.0.1", listen: str = "127.0.0.1") -> None:
        self._target = (host, target)
        self._listener = socket.create_server((listen, 0))
        self.port: int = self._listener.getsockname()[1]
        self._flowing = threading.Event()
        self._flowing.set()
        self._cut = False
        self._last_words: bytes | None = None
        self._mute = threading.Event()
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flowing.set()
        self.cut()
        self._listener.close()

    def freeze(self) -> None:
        """Stand still, without closing anything."""
        self._flowing.clear()

    def mute_after(self, words: bytes) -> None:
        """Let nothing back once a request with these words went through: it happens, and nobody hears of it."""
        self._last_words = words

    def cut(self) -> None:
        """Close all connections, and each new one at once."""
        self._cut = True
        self._close_all()

    def thaw(self) -> None:
        """Forward again."""
        self._close_all()
        self._cut = False
        self._last_words = None
        self._mute.clear()
        self._flowing.set()

    def _close_all(self) -> None:
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._cut:
                client.close()
                continue
            try:
                server = socket.create_connection(self._target, timeout=5)
            except OSError:  # the target is down: so is this
                client.close()
                continue
            server.settimeout(None)
            with self._lock:
                self._sockets += [client, server]
            threading.Thread(target=self._forward, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._forward, args=(server, client, True), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                if not answers and self._last_words and self._last_words in data:
                    self._mute.set()
                if self._flowing.is_set() and not (answers and self._mute.is_set()):
                    sink.sendall(data)
        with suppress(OSError):  # also after a reset, as of a process that is killed with an answer unread
            sink.shutdown(socket.SHUT_RDWR)
