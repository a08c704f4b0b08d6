"""The worker's one connection to the ledger, made anew with patience when it breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
from psycopg import Connection

from flowstone.errors import LedgerUnavailable
from flowstone.worker.process import Surroundings

Result = TypeVar("Result")

PATIENCE = 300.0
"""Seconds for which a worker tries to reach the ledger before it gives up and its unreported partitions go back."""

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0

_PARAMETERS: dict[str, Any] = {
    "application_name": "flowstone-worker",
    "connect_timeout": 10,
    # A cut network is noticed within about a minute, also while a long statement runs on the server.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


class Patience:
    """Waits with growing pauses after each failure, and gives up after a time."""

    def __init__(self, around: Surroundings, seconds: float) -> None:
        self._around = around
        self._until = around.clock() + seconds
        self._pause = _FIRST_PAUSE

    def wait(self, error: Exception) -> None:
        """Pause before the next try.

        Raises:
            LedgerUnavailable: the time is up.
        """
        if self._around.clock() > self._until:
            raise LedgerUnavailable(f"The ledger does not answer: {error}") from error
        self._around.log("ledger.waiting", error=str(error).strip())
        self._around.pause(self._pause * (0.5 + self._around.chance()))
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)


class Session:
    """A connection that is there when it is needed.

    What `conninfo` does not say (in a pod: everything) libpq reads from the `PG*` variables.
    """

    def __init__(self, around: Surroundings, conninfo: str = "", patience: float = PATIENCE) -> None:
        self._conninfo = conninfo
        self._around = around
        self._patience = patience
        self._connection: Connection[Any] | None = None

    def connection(self) -> Connection[Any]:
        """Return the connection, outside any transaction.

        Raises:
            LedgerUnavailable: the ledger did not answer for as long as the session's patience lasts.
        """
        if self._connection is None or self._connection.closed:
            self._connection = self._connected()
        return self._connection

    def close(self) -> None:
        """End the connection; an open transaction is rolled back by the server."""
        if self._connection is not None:
            self._connection.close()

    def ask(self, action: Callable[[Connection[Any]], Result]) -> Result:
        """Return what an action answers, in a transaction of its own, repeated until its commit is certain.

        The action must be one that may take place twice.

        Raises:
            LedgerUnavailable: the ledger did not answer for as long as the session's patience lasts.
        """
        patience = Patience(self._around, self._patience)
        while True:
            try:
                return self._once(action)
            except psycopg.OperationalError as error:
                patience.wait(error)

    def _once(self, action: Callable[[Connection[Any]], Result]) -> Result:
        connection = self.connection()
        try:
            result = action(connection)
            connection.commit()
        except psycopg.Error:
            put_back(connection)
            raise
        return result

    def _connected(self) -> Connection[Any]:
        patience = Patience(self._around, self._patience)
        while True:
            try:
                return Connection.connect(self._conninfo, **_PARAMETERS)
            except psycopg.OperationalError as error:
                patience.wait(error)


def put_back(connection: Connection[Any]) -> None:
    """Roll back whatever is open, or drop the connection where that is not possible any more."""
    try:
        connection.rollback()
        connection.autocommit = False
    except psycopg.Error:
        connection.close()
