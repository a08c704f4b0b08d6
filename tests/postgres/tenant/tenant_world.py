"""A cluster in memory and a real database in which tenants are reconciled, for the tests of tenants."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog

from flowstone.backfill.secret import Endpoint
from flowstone.db.bootstrap import hardened
from flowstone.db.ledger import Ledger
from flowstone.db.logins import Logins
from flowstone.db.own_databases import OwnDatabases
from flowstone.db.tenant_catalogue import TenantCatalogue
from flowstone.db.tenant_purge import TenantPurge
from flowstone.db.tenant_steps import TenantSteps
from flowstone.kube.paths import core, custom
from flowstone.tenant.changes import Ending
from flowstone.tenant.reconcile import TenantEnvironment, TenantReconciler
from flowstone.tenant.verdicts import Verdicts
from tests.postgres.conftest import Place, copied, prepare
from tests.postgres.servers import Server, ends, local
from tests.postgres.tenant.memory_kube import MemoryKube

CLUSTER = "c1"
ACME = custom("tenants", None, "acme")


@contextmanager
def plain_server(major: int, **settings: str) -> Iterator[Server]:
    """A server on which the operator has CREATEROLE and CREATEDB, and no BYPASSRLS."""
    with local(major, **settings) as server:
        prepare(server)
        with server.connect() as connection:
            connection.execute("ALTER ROLE flowstone_operator NOBYPASSRLS")
        yield server


def homes(server: Server) -> Iterator[Place]:
    """A fresh, migrated database, in which the operator may make schemas; tenants' databases are dropped afterwards."""
    for place in copied(server):
        with place.connect() as connection:
            connection.execute(f"GRANT CREATE ON DATABASE {place.name} TO flowstone_operator".encode())
        yield place
        with server.connect() as admin:
            for (name,) in admin.execute("SELECT datname FROM pg_database WHERE datname ^@ 'tn_'").fetchall():
                admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
            for (name,) in admin.execute("SELECT rolname FROM pg_roles WHERE rolname ~ '^tn_.*_o$'").fetchall():
                admin.execute(f"DROP ROLE {name}".encode())


@pytest.fixture(scope="module", params=ends(), ids=lambda major: f"pg{major}")
def any_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The oldest and the newest server of this machine."""
    with plain_server(request.param) as server:
        yield server


@pytest.fixture
def home(any_server: Server) -> Iterator[Place]:
    """A fresh, migrated database."""
    yield from homes(any_server)


@dataclass
class World:
    """A cluster in memory and a real database, and what a tenant's tests do to them."""

    place: Place
    ledger: Ledger
    kube: MemoryKube
    reconciler: TenantReconciler
    issued: list[str] = field(default_factory=list)

    async def settle(self, name: str = "acme") -> float | None:
        """Reconcile until nothing is left to do at once."""
        for _ in range(10):
            again = await self.reconciler("", name)
            if again is None or again > 1:
                return again
        raise AssertionError("it never settles")

    def secret(self, namespace: str = "one") -> dict[str, str]:
        """Return the Secret of a namespace as text."""
        found = self.kube.objects[core("secrets", namespace, "flowstone-tenant-acme")]
        return {key: base64.b64decode(value).decode() for key, value in found["data"].items()}

    def login(self, secret: dict[str, str] | None = None) -> psycopg.Connection[Any]:
        """Log in with what a Secret holds."""
        return psycopg.connect((secret or self.secret())["uri"], autocommit=True)

    def condition(self, kind: str) -> tuple[str, str, str]:
        """Return status, reason and message of a condition."""
        for one in self.kube.objects[ACME]["status"]["conditions"]:
            if one["type"] == kind:
                return one["status"], one["reason"], one["message"]
        raise KeyError(kind)

    def tenant(self, **spec: Any) -> None:
        """Apply the Tenant `acme`."""
        body = {"kind": "Tenant", "metadata": {"name": "acme"}, "spec": {"namespaces": ["one", "two"], **spec}}
        self.kube.put(ACME, body)

    def admin(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Do something by hand, as a superuser."""
        with self.place.connect() as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []


@asynccontextmanager
async def inhabited(
    home: Place, *, exports: Path | None = None, ending: Ending | None = None, **spec: Any
) -> AsyncIterator[World]:
    """A cluster with three namespaces, and a Tenant `acme` in two of them that is provisioned."""
    kube = MemoryKube()
    for namespace in ("one", "two", "three"):
        kube.put(core("namespaces", None, namespace), {"metadata": {"name": namespace}})
    with Ledger.connect(home.operator, cluster=CLUSTER) as ledger:
        issued: list[str] = []

        def new_password() -> str:
            issued.append(secrets.token_urlsafe(24))
            return issued[-1]

        logins = Logins(ledger.database)
        databases = OwnDatabases(ledger.database, home.operator)
        environment = TenantEnvironment(
            kube=kube,
            ledger=ledger,
            catalogue=TenantCatalogue(ledger.database, CLUSTER),
            steps=TenantSteps(ledger.database, logins, databases, CLUSTER),
            purge=TenantPurge(ledger.database, logins, databases, CLUSTER, exports),
            ending=ending or Ending(exports=exports is not None),
            databases=databases,
            cluster=CLUSTER,
            owner="test",
            login_conninfo=home.operator,
            endpoint=Endpoint(home.server.host, str(home.server.port), home.name),
            verdicts=Verdicts(lambda: hardened(ledger.database), lambda: None, clock=time.monotonic),
            new_password=new_password,
            now=lambda: datetime.now(UTC),
            log=structlog.get_logger(),
            drift_shown=timedelta(0),
        )
        world = World(home, ledger, kube, TenantReconciler(environment), issued)
        world.tenant(**spec)
        assert await world.settle() == 60
        yield world
