"""FlowStone from Python: materializations of the tenant in force, and backfills.

    with FlowStone.connect() as stone, with_tenant("acme"):
        stone.materializations.insert("daily_report", "2025-01-15")
        stone.materializations.list_all()

Two logins are at work: tenants' rows are seen through a pooled one that row level security binds, and the queue of
backfills is run by the operator's. Without a URL an embedded PostgreSQL has both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from psycopg import errors as pg

from flowstone.client_backfills import Backfills
from flowstone.db import embedded_tenants, schema
from flowstone.db.connection import translated, wired
from flowstone.db.ledger import Ledger
from flowstone.db.materializations import Materializations
from flowstone.db.tenant_pool import TenantPool
from flowstone.db.tenant_session import TenantConnection
from flowstone.db.tenants import TenantRegistry, TenantRow
from flowstone.errors import SchemaNotCompatible, UnsafeLogin
from flowstone.guard import GuardContext, Guards, RegisteredTenant
from flowstone.local import LocalMachine, home_of
from flowstone.tenant.capability import required
from flowstone.tenant.signing import ContextKeys, cluster_id

_MAY_QUEUE = "SELECT pg_catalog.has_table_privilege('flowstone.backfill', 'INSERT')"


class FlowStone:
    """A connection to FlowStone's ledger; close it, or use it in a `with` statement.

    Attributes:
        materializations: What was materialized for the tenant in force.
        backfills: Backfills of the tenant in force, or of no tenant.
    """

    def __init__(
        self,
        pool: TenantPool,
        operator_url: str,
        *,
        create_tenants: bool,
        cluster: str,
        guards: Guards | None = None,
        home: Path | None = None,
        closing: Callable[[], None] = lambda: None,
    ) -> None:
        self._pool = pool
        self._operator_url = operator_url
        self._create_tenants = create_tenants
        self._cluster = cluster
        self._ledger: Ledger | None = None
        self._known: set[str] = set()
        self._closing = ExitStack()
        self._closing.callback(closing)
        self._closing.callback(pool.close)
        self._home = home or home_of(None)
        guards = guards or Guards.installed()
        self.materializations = Materializations(self.connection, cluster, guards, self._guarded)
        self.backfills = Backfills(self._open_ledger, self._tenant, guards, cluster, self._local_machine)

    @classmethod
    def connect(
        cls,
        url: str | None = None,
        key: str | os.PathLike[str] | None = None,
        *,
        create_tenants: bool | None = None,
        operator_url: str | None = None,
        folder: str | os.PathLike[str] | None = None,
        cluster: str | None = None,
        guards: Guards | None = None,
    ) -> Self:
        """Connect to a ledger; nothing is sent before it is used, except to start an embedded one.

        Args:
            url: Connection string or URI of a login in `flowstone_pool`. Without one an embedded PostgreSQL is started.
            key: File with the key that contexts are signed with; `FLOWSTONE_CONTEXT_KEY_FILE` when left out.
            create_tenants: Register unknown tenants when they are first used; by default only in the embedded database.
            operator_url: Connection string of `flowstone_operator`, for backfills; `url` when left out.
            folder: Where the embedded database lies, and what functions leave behind: logs of failed runs, logins;
                the user's data directory when left out.
            cluster: Cluster id of the scopes; `FLOWSTONE_CLUSTER_ID` when left out, or else "local".
            guards: Asked before a backfill is queued or a report is kept, and which assets are listed; the installed
                ones when left out.

        Raises:
            UnsafeLogin: The key file is not as it should be.
            LedgerUnavailable: The embedded server does not start.
        """
        where = None if folder is None else Path(folder)
        cluster = cluster or cluster_id()
        if url is None:
            home = embedded_tenants.open_home(where, cluster)
            return cls(
                TenantPool(home.pool_url, home.keys),
                home.operator_url,
                create_tenants=True if create_tenants is None else create_tenants,
                cluster=cluster,
                guards=guards,
                home=home_of(where),
                closing=home.close,
            )
        keys = None if key is None else ContextKeys.from_file(key, cluster)
        return cls(
            TenantPool(url, keys),
            operator_url or url,
            create_tenants=bool(create_tenants),
            cluster=cluster,
            guards=guards,
            home=home_of(where),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections, and the embedded server when nobody else uses it."""
        self._closing.close()

    @contextmanager
    def connection(self) -> Iterator[TenantConnection]:
        """Yield a psycopg connection for queries of one's own, in a transaction that works for the tenant in force.

        Raises:
            TenantRequired: No tenant is set.
            TenantUnknown: No active tenant of that id is registered.
            UnsafeLogin: The login is not bound by row level security.
        """
        if self._create_tenants:
            self._tenant(required().tenant_id)
        with self._pool.connection() as connection:
            yield connection

    def _tenant(self, tenant_id: str) -> TenantRow:
        """Return the row of an active tenant, registering it first where that is wanted."""
        registry = TenantRegistry(self._open_ledger().database, self._cluster)
        if self._create_tenants and tenant_id not in self._known:
            registry.register(tenant_id)
            self._known.add(tenant_id)
        return registry.active(tenant_id)

    def _guarded(self) -> GuardContext:
        """What guards are told of the tenant in force."""
        tenant_id = required().tenant_id
        return GuardContext(RegisteredTenant(tenant_id, cache(lambda: self._tenant(tenant_id).tier)))

    def _local_machine(self, ledger: Ledger) -> LocalMachine:
        return LocalMachine(ledger, self._operator_url, self._home, os.environ)

    def _open_ledger(self) -> Ledger:
        if self._ledger is None:
            _require_operator(self._operator_url)
            self._ledger = Ledger.connect(self._operator_url, cluster=self._cluster)
            self._closing.callback(self._ledger.close)
            self._ledger.check_schema()
        return self._ledger


def _require_operator(url: str) -> None:
    """Return when this login may run the queue.

    Raises:
        UnsafeLogin: It may not; says which one to use.
        SchemaNotCompatible: There is no ledger yet.
    """
    with translated(), psycopg.connect(wired(url, "flowstone-client"), autocommit=True) as connection:
        try:
            row = connection.execute(_MAY_QUEUE).fetchone()
        except (pg.UndefinedTable, pg.InvalidSchemaName):
            raise SchemaNotCompatible(0, schema.head()) from None
        except pg.InsufficientPrivilege:
            row = None
    if row != (True,):
        raise UnsafeLogin("this login may not run backfills: pass operator_url= with the login of flowstone_operator")
