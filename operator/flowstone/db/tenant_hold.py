"""Takes a tenant's context off a connection when the block that gave it ends, or steps aside for another tenant's.

Guarded cursors refuse by themselves. A cursor made before the connection was bound, or made by hand, does not: it must
find a transaction whose context is void, in which the database shows no row. So at the end of the block the signature
goes, and so do server-side cursors: one of the same name takes the place of each, which fails when rows are asked of it
and can be closed. Closing alone would make the driver's own CLOSE fail, and a later commit would quietly roll back. The
scope stays: the database gives the transaction to no other tenant, whatever the program has forgotten about it.

An idle connection has no context to lose, and a failed transaction runs nothing. A connection that is in the middle of
something, in another thread, a pipeline or a half-read stream, cannot be asked, so its socket is shut: whoever waits on
it gets an error, and the server rolls back.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from typing import Any
from weakref import ref

import psycopg
from psycopg.pq import ExecStatus, PipelineStatus, TransactionStatus

from flowstone.db.tenant_binding import Binding
from flowstone.tenant.capability import required

_MARK = "flowstone_hold"
_VOID = (
    b"SELECT pg_catalog.set_config('flowstone.context', pg_catalog.left(held, -64) || pg_catalog.repeat('0', 64), true)"
    b" FROM pg_catalog.current_setting('flowstone.context', true) AS held WHERE pg_catalog.length(held) > 64"
)
"""Puts zeros in the place of the signature; `flowstone.enter_tenant` still compares the scope."""
_CURSORS = b"SELECT name FROM pg_catalog.pg_cursors"
_ENDED = (
    b"CLOSE %b; DECLARE %b CURSOR FOR SELECT pg_catalog.current_setting('rows of a with_tenant block that has ended')"
)
_RESUME = b"SELECT pg_catalog.set_config('flowstone.context', $1, true)"

Driver = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


def hold(connection: Driver, binding: Binding) -> None:
    """Remember for the block in force that this connection has its context."""
    capability = required()
    made = Hold(connection, binding)
    vars(connection)[_MARK] = made
    capability.hold(connection, made)


def let_go(connection: Driver) -> None:
    """Forget whose context it had: the session was cleared, and serves somebody else next."""
    vars(connection).pop(_MARK, None)


class Hold:
    """One block's context on one connection, until another block gives the connection its own."""

    def __init__(self, connection: Driver, binding: Binding) -> None:
        self._connection = ref(connection)
        self._binding = binding
        self._flow = _flow()

    def leave(self) -> None:
        """The block has ended."""
        if connection := self._current():
            let_go(connection)
            self._binding.withdrawn()
            if not self._send(connection, lambda: _end(connection)):
                _cut(connection)

    def pause(self) -> None:
        """Another tenant's block begins inside; what is in the middle of something keeps its cursor to itself."""
        connection = self._current()
        if connection and self._flow == _flow() and self._send(connection, lambda: connection.pgconn.exec_(_VOID)):
            self._binding.withdrawn()

    def resume(self) -> None:
        """That block has ended; the transaction gets back the context that it had."""
        connection, context = self._current(), self._binding.paused_context
        if connection and context and self._flow == _flow():
            self._send(connection, lambda: connection.pgconn.exec_params(_RESUME, [context.encode()]))

    def _current(self) -> Driver | None:
        connection = self._connection()
        if connection is None or connection.closed or vars(connection).get(_MARK) is not self:
            return None
        return connection

    def _send(self, connection: Driver, run: Callable[[], Any]) -> bool:
        """Run a statement in the open transaction, if there is one; returns False when that could not be done.

        It goes past psycopg's cursors, because a plain `with` cannot await an asynchronous one; it is one round trip.
        """
        if connection.pgconn.transaction_status in (TransactionStatus.IDLE, TransactionStatus.INERROR):
            return True
        if isinstance(connection, psycopg.AsyncConnection):
            free = not connection.lock.locked() and self._flow[0] == threading.get_ident()
            return free and _ran(connection, run)
        if not connection.lock.acquire(blocking=False):
            return False
        try:
            return _ran(connection, run)
        finally:
            connection.lock.release()


def _ran(connection: Driver, run: Callable[[], Any]) -> bool:
    pgconn = connection.pgconn
    open_now = pgconn.transaction_status == TransactionStatus.INTRANS
    if not open_now or pgconn.pipeline_status != PipelineStatus.OFF:
        return False
    try:
        return bool(run().status == ExecStatus.TUPLES_OK)
    except psycopg.Error:
        return False


def _end(connection: Driver) -> Any:
    """Take the context away, and what its cursors have still to give."""
    found = connection.pgconn.exec_(_CURSORS)
    for row in range(found.ntuples):
        name = b'"%b"' % (found.get_value(row, 0) or b"").replace(b'"', b'""')
        connection.pgconn.exec_(_ENDED % (name, name))
    return connection.pgconn.exec_(_VOID)


def _cut(connection: Driver) -> None:
    """Shut the socket and leave closing to whoever uses it, who may be waiting on it in another thread."""
    try:
        with socket.socket(fileno=os.dup(connection.pgconn.socket)) as shared:
            shared.shutdown(socket.SHUT_RDWR)
    except (OSError, psycopg.Error):  # it is broken already
        return


def _flow() -> tuple[int, int | None]:
    """Return which thread and which asyncio task runs."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident(), None if task is None else id(task)
