"""A bootstrapped database with tables of tenants, and its proof, for the tests of the proof."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
import structlog
from alembic.migration import MigrationContext
from alembic.operations import Operations

from flowstone.db import tenant_table
from flowstone.db.bootstrap import bootstrap
from flowstone.db.canaries import Canaries
from flowstone.db.ledger import Ledger
from flowstone.db.proof import IsolationProof, verify
from flowstone.tenant.proof import Report
from flowstone.tenant.protection import protect
from flowstone.tenant.signing import ContextKeys
from tests.postgres.conftest import TEMPLATE, Place, copied, prepare
from tests.postgres.servers import Server, ends, local

assert tenant_table.ALL  # its import registers the operation
CLUSTER = "c1"
KEYS = ContextKeys.generate(CLUSTER)

PARTITIONED = """
CREATE TABLE public.stay (
    tenant_id text COLLATE "C" NOT NULL DEFAULT flowstone.tenant_id(), day date, note text,
    PRIMARY KEY (tenant_id, day)
) PARTITION BY RANGE (day);
CREATE TABLE public.booking_2026 PARTITION OF public.stay FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
ALTER TABLE public.booking_2026 ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
"""

RIGHTS = """
REVOKE ALL ON DATABASE {0} FROM PUBLIC;
GRANT CONNECT ON DATABASE {0} TO flowstone_operator, flowstone_pool, flowstone_namespace, flowstone_tenant;
GRANT TEMPORARY, CREATE ON DATABASE {0} TO flowstone_operator;
"""

ROWS = """
INSERT INTO public.booking (tenant_id, note) VALUES ('tenant_a', 'x'), ('tenant_a', 'y'), ('tenant_b', 'x');
INSERT INTO public.stay (tenant_id, day, note) VALUES ('tenant_a', '2026-02-01', 'x'), ('tenant_b', '2026-03-01', 'y');
"""


@dataclass(frozen=True)
class Proving:
    """A database that is proven."""

    place: Place
    ledger: Ledger

    @property
    def canaries(self) -> Canaries:
        """The canaries of this database."""
        return Canaries(self.ledger.database, CLUSTER, self.place.operator)

    def verify(self, keys: ContextKeys | None = KEYS) -> Report:
        """Prove it once."""
        return verify(self.ledger.database, self.place.operator, cluster=CLUSTER, keys=keys)

    def proof(self, **options: Any) -> IsolationProof:
        """Return the operator's proof."""
        values = {"cluster": CLUSTER, "keys": KEYS, "log": structlog.get_logger(), **options}
        return IsolationProof(self.ledger.database, self.place.operator, **values)

    def admin(self, *statements: str) -> None:
        """Do something by hand, as a superuser."""
        with self.place.connect() as connection:
            for statement in statements:
                connection.execute(statement.encode())


def prepare_proving(server: Server) -> None:
    """Make the database that `proving` copies: bootstrapped, with tables of tenants; no BYPASSRLS for the operator."""
    prepare(server)
    template = Place(server, TEMPLATE)
    bootstrap(template.admin, keys=KEYS, log=structlog.get_logger())
    tables(template)
    with server.connect() as admin:
        admin.execute("ALTER ROLE flowstone_operator NOBYPASSRLS")


@contextmanager
def proving(server: Server) -> Iterator[Proving]:
    """A fresh copy; the rights on a database are not copied along."""
    for place in copied(server):
        with place.connect() as admin:
            admin.execute(RIGHTS.format(place.name).encode())
        with Ledger.connect(place.operator, cluster=CLUSTER) as ledger:
            yield Proving(place, ledger)


@pytest.fixture(scope="module", params=ends(), ids=lambda major: f"pg{major}")
def any_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The oldest and the newest server of this machine, bootstrapped."""
    with local(request.param) as server:
        prepare_proving(server)
        yield server


@pytest.fixture
def field(any_server: Server) -> Iterator[Proving]:
    """A bootstrapped database with tables of tenants; its operator has no BYPASSRLS."""
    with proving(any_server) as field:
        yield field


def tables(place: Place) -> None:
    """Make a table with op.tenant_table, and a partitioned one with the same statements."""
    engine = sa.create_engine(
        "postgresql+psycopg://", creator=partial(psycopg.connect, place.admin), poolclass=sa.NullPool
    )
    with engine.begin() as connection:
        op: Any = Operations(MigrationContext.configure(connection))
        columns = (sa.Column("id", sa.BigInteger, sa.Identity()), sa.Column("note", sa.Text))
        op.tenant_table("booking", *columns, sa.UniqueConstraint("tenant_id", "note"), key=["id"])
    with place.connect() as admin:
        admin.execute(PARTITIONED)
        for statement in protect("public.stay", ["day", "note"], actions=tenant_table.ALL):
            admin.execute(statement.encode())
        admin.execute(ROWS)
