"""A last resort against a server that says nothing: sockets are shut down when their time is over.

One thread sees to all of them. It is woken only for a deadline before the one that it waits for; with deadlines of
one length that is hardly ever, so a transaction costs no change of threads.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
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
        clock: Monotonic seconds.
    """

    def __init__(self, connection: Wired, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._wire = socket.socket(fileno=os.dup(connection.fileno()))  # the connection may close its own meanwhile
        self._clock = clock
        self._until = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds until it is over."""
        return self._until - self._clock()

    def extend(self, seconds: float) -> None:
        """Let the transaction go on for `seconds` from now."""
        self._until = self._clock() + seconds

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
        self._wakes_at = float("inf")
        self._thread: threading.Thread | None = None

    def add(self, deadline: Deadline) -> None:
        with self._changed:
            self._open.add(deadline)
            if self._thread is None or not self._thread.is_alive():  # a fork takes no thread along
                self._thread = threading.Thread(target=self._run, name="ledger-deadlines", daemon=True)
                self._thread.start()
            elif time.monotonic() + deadline.left < self._wakes_at:
                self._changed.notify()

    def remove(self, deadline: Deadline) -> None:
        with self._changed:
            self._open.discard(deadline)

    def _run(self) -> None:
        with self._changed:
            while True:
                for deadline in [one for one in self._open if one.left <= 0]:
                    deadline.shut()
                    self._open.discard(deadline)
                left = min((one.left for one in self._open), default=None)
                self._wakes_at = float("inf") if left is None else time.monotonic() + left
                self._changed.wait(left)


_WATCH = _Watch()
