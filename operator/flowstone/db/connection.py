"""How the ledger reaches Postgres: a pool, one transaction at a time, a deadline on each, errors translated.

Postgres may be away for seconds or for hours, and the way to it may swallow packets without a word. So nothing
here waits without an end: connecting has a timeout, an idle wire is probed by keepalives, and a transaction that
passes its deadline has its socket shut down from outside, because a proxy that stands still answers keepalives
for ever. Each of these surfaces as `LedgerUnavailable`, and the pool renews its connections by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from flowstone.db.deadline import Deadline
from flowstone.errors import LedgerBusy, LedgerRefused, LedgerUnavailable

Connection = psycopg.Connection[TupleRow]
Pool = ConnectionPool[Connection]

APPLICATION_NAME = "flowstone-operator"
"""What `pg_stat_activity` shows for the ledger's sessions, or begins with where a replica has a name."""

POOL_SIZE = 8
"""Connections one replica holds at most."""

CHECKOUT_SECONDS = 5.0
"""Longest wait for a free connection; then the ledger counts as unavailable."""

DEADLINE_SECONDS = 9.0
"""Longest life of an ordinary transaction, seen from this side of the wire."""

LONG_SECONDS = 300.0
"""Longest life of the transactions that touch every row of a backfill: planning, cancelling."""

RECONNECT_SECONDS = 5.0
"""How long the pool goes on trying by itself; afterwards each request makes it try again, without a long back-off."""

WIRE: Mapping[str, str | int] = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 3,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 8000,
}
"""libpq parameters: a peer that vanished is noticed within 10 seconds, whether we wait for it or it for us."""

SESSION = {
    "lock_timeout": "2s",
    "statement_timeout": "8s",
    "idle_in_transaction_session_timeout": "30s",
    "search_path": "pg_catalog, pg_temp",
    "timezone": "UTC",
    "jit": "off",
    "random_page_cost": "1.1",
}
"""Settings of each session: it waits 2 s for a lock, and leaves none behind when this process dies."""


def session_name(pod: str, token: str) -> str:
    """What all sessions of one replica are called; at most the 63 bytes that Postgres keeps of a name.

    Args:
        pod: For people.
        token: Eight characters that no other replica has, nor this one after a restart.
    """
    return f"{APPLICATION_NAME} {pod[:35]}/{token}"


def open_pool(conninfo: str, *, size: int = POOL_SIZE, name: str = APPLICATION_NAME) -> Pool:
    """Make the pool without waiting for Postgres, which may not be there yet."""
    return ConnectionPool(
        wired(conninfo, name),
        kwargs={"autocommit": True, "prepare_threshold": None},  # a generic plan knows no array's length
        min_size=1,
        max_size=size,
        timeout=CHECKOUT_SECONDS,
        reconnect_timeout=RECONNECT_SECONDS,
        configure=_configure,
        name="ledger",
        open=True,
    )


def wired(conninfo: str, application: str) -> str:
    """A connection string with the time-outs of `WIRE` and the name the session shall show."""
    return make_conninfo(conninfo, **{**WIRE, "application_name": application})


def _configure(connection: Connection) -> None:
    """Give a new session its settings, in one round trip."""
    calls = ", ".join("set_config(%s, %s, false)" for _ in SESSION)
    connection.execute(f"SELECT {calls}".encode(), [word for pair in SESSION.items() for word in pair])


class Transaction:
    """One transaction: a connection, and the deadline that can be extended while there is progress."""

    def __init__(self, connection: Connection, deadline: Deadline) -> None:
        self.connection = connection
        self._deadline = deadline

    def rows(self, query: str, parameters: Mapping[str, Any] | None = None) -> list[TupleRow]:
        """Run one statement and return all its rows."""
        return self.connection.execute(query.encode(), parameters).fetchall()

    def row(self, query: str, parameters: Mapping[str, Any] | None = None) -> TupleRow | None:
        """Run one statement and return its first row, or None."""
        return self.connection.execute(query.encode(), parameters).fetchone()

    def run(self, query: str, parameters: Mapping[str, Any] | None = None) -> int:
        """Run one statement and return how many rows it changed."""
        return self.connection.execute(query.encode(), parameters).rowcount

    def run_each(self, statements: Iterable[str]) -> None:
        """Run statements without parameters, one after the other."""
        for statement in statements:
            self.run(statement)

    def plan_without(self, *methods: str) -> None:
        """Keep the planner from some ways to join, such as `hashjoin`, until the transaction ends.

        A million rows that came in a second ago are in no statistics, and a planner that expects one row of them joins
        in ways that take minutes for what takes milliseconds.
        """
        for method in methods:
            self.run("SELECT set_config(%(name)s, 'off', true)", {"name": f"enable_{method}"})

    def extend(self, seconds: float) -> None:
        """Give the transaction `seconds` more from now, on this side and in the server."""
        self._deadline.extend(seconds)

    def allow(self, seconds: float) -> None:
        """Let single statements of this transaction take up to `seconds`."""
        self.run("SELECT set_config('statement_timeout', %(ms)s, true)", {"ms": str(round(seconds * 1000))})
        self.extend(seconds)


@contextmanager
def lone(conninfo: str, seconds: float = DEADLINE_SECONDS) -> Iterator[Transaction]:
    """Yield a connection beside the pool, in autocommit, for another database or for what no transaction may do.

    Raises:
        LedgerUnavailable: Postgres is away, or broke off.
        LedgerBusy: A row or table is locked by somebody else.
        LedgerRefused: Postgres refused a statement.
    """
    target = wired(conninfo, APPLICATION_NAME)
    with (
        translated(),
        psycopg.connect(target, autocommit=True, prepare_threshold=None) as connection,
        Deadline(connection, seconds) as deadline,
    ):
        _configure(connection)
        yield Transaction(connection, deadline)


class Database:
    """The pool as the ledger uses it: `with database.transaction() as tx`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @contextmanager
    def transaction(self, seconds: float = DEADLINE_SECONDS) -> Iterator[Transaction]:
        """Yield a transaction, committed at the end, rolled back by any exception.

        Raises:
            LedgerUnavailable: Postgres is away, or broke off; whether the commit happened is then unknown.
            LedgerBusy: A row or table is locked by somebody else.
            LedgerRefused: Postgres refused a statement.
        """
        with self.autocommit(seconds) as tx, tx.connection.transaction():
            yield tx

    @contextmanager
    def autocommit(self, seconds: float = DEADLINE_SECONDS) -> Iterator[Transaction]:
        """Yield what makes each statement a transaction of its own, in a third of the round trips.

        Raises:
            LedgerUnavailable, LedgerBusy, LedgerRefused: As `transaction`.
        """
        with translated(), self._checkout() as connection, Deadline(connection, seconds) as deadline:
            yield Transaction(connection, deadline)

    @contextmanager
    def _checkout(self) -> Iterator[Connection]:
        """Borrow a connection; when it breaks, renew the others too: the server restarted under all of them."""
        with self._pool.connection() as connection:
            try:
                yield connection
            finally:
                if connection.broken:
                    self._pool.drain()


_GONE = (psycopg.OperationalError, psycopg.InterfaceError, pg.IdleInTransactionSessionTimeout)
"""What the driver raises when a connection is lost, refused or taking too long."""


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's and the pool's exceptions into FlowStone's."""
    try:
        yield
    except (pg.LockNotAvailable, pg.DeadlockDetected, pg.SerializationFailure) as error:
        raise LedgerBusy(f"rows of the ledger are locked by another session: {_first_line(error)}") from error
    except (*_GONE, PoolTimeout, PoolClosed, TooManyRequests) as error:
        raise LedgerUnavailable(f"the ledger in Postgres does not answer: {_first_line(error)}") from error
    except psycopg.Error as error:
        raise LedgerRefused(f"Postgres refused a statement: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """The message without DETAIL and CONTEXT, which carry rows' values."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
