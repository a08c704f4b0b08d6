"""Pooled connections that work for the tenant in force."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg_pool import ConnectionPool

from flowstone.db import tenant_session
from flowstone.db.connection import CHECKOUT_SECONDS, WIRE, translated
from flowstone.tenant.capability import required
from flowstone.tenant.signing import ContextKeys

APPLICATION_NAME = "flowstone-client"
"""What `pg_stat_activity` shows; every role can read it, so it names no tenant."""

POOL_SIZE = 4
"""Connections a client holds at most."""


class TenantPool:
    """A pool of a pooled login's connections; each checkout is bound to the tenant in force, and cleared afterwards.

    Args:
        conninfo: Connection string of a member of `flowstone_pool`.
        keys: What contexts are signed with; the environment's file when left out.
    """

    def __init__(self, conninfo: str, keys: ContextKeys | None, *, size: int = POOL_SIZE) -> None:
        self._keys = keys
        self._pool: ConnectionPool[tenant_session.TenantConnection] = ConnectionPool(
            conninfo,
            connection_class=tenant_session.TenantConnection,
            kwargs={**WIRE, "application_name": APPLICATION_NAME},
            min_size=0,
            max_size=size,
            timeout=CHECKOUT_SECONDS,
            name="tenants",
            open=True,
        )

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    @contextmanager
    def connection(self) -> Iterator[tenant_session.TenantConnection]:
        """Yield a connection whose transaction works for the tenant in force; commits at the end, rolls back on errors.

        Raises:
            TenantRequired: No tenant is set.
            TenantUnknown: No active tenant of that id is registered.
            UnsafeLogin: The login is not bound by row level security.
            LedgerUnavailable: Postgres does not answer.
        """
        required()
        with translated():
            connection = self._pool.getconn()
        try:
            with connection.transaction():
                tenant_session.bind(connection, self._keys)
                yield connection
        finally:
            self._give_back(connection)

    def _give_back(self, connection: tenant_session.TenantConnection) -> None:
        """Clear the session, in this thread: a pool that is closed drops what its own threads have still to clear.

        What could not be cleared serves nobody else.
        """
        cleared = False
        try:
            tenant_session.discard(connection)
            cleared = True
        except psycopg.Error:
            pass  # it is broken, or in the middle of something
        finally:
            if not cleared:
                connection.close()
            self._pool.putconn(connection)
