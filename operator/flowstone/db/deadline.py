"""A last resort against a server that says nothing: sockets are shut down when their time is over.

One thread sees to all of them. It is woken only for a deadline before the one that it waits for; with deadlines of
one length that is hardly ever, so a transaction costs no change of threads.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self


class Wired(Protocol):
    """Whatever has a socket; a connection of psycopg is one."""

    def fileno(self) -> int:
        """The socket's file descriptor."""
        ...


class Deadline:
    """Shuts a connection's socket down when its time is over; `extend` gives it more.

    Args:
        connection: The connection whose owner may be stuck in a read or a write.
        seconds: How long from now.
    """

    def __init__(self, connection: Wired, seconds: float) -> None:
        self._wire = socket.socket(fileno=os.dup(connection.fileno()))  # the connection may close its own meanwhile
        self.extend(seconds)

    def extend(self, seconds: float) -> None:
        """Let the transaction go on for `seconds` from now."""
        self.until = time.monotonic() + seconds

    def shut(self) -> None:
        """Break the connection off, whatever it waits for."""
        with suppress(OSError):  # already closed by the other side
            self._wire.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        _WATCH.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _WATCH.remove(self)
        self._wire.close()


class _Watch:
    """The thread, begun with the first deadline."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open: set[Deadline] = set()
        self._wakes_at = math.inf
        self._thread: threading.Thread | None = None

    def add(self, deadline: Deadline) -> None:
        with self._changed:
            self._open.add(deadline)
            if self._thread is None or not self._thread.is_alive():  # a fork takes no thread along
                self._thread = threading.Thread(target=self._run, name="ledger-deadlines", daemon=True)
                self._thread.start()
            elif deadline.until < self._wakes_at:
                self._changed.notify()

    def remove(self, deadline: Deadline) -> None:
        with self._changed:
            self._open.discard(deadline)

    def _run(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                for deadline in [one for one in self._open if one.until <= now]:
                    deadline.shut()
                    self._open.discard(deadline)
                self._wakes_at = min((one.until for one in self._open), default=math.inf)
                self._changed.wait(self._wakes_at - now if self._open else None)


_WATCH = _Watch()
