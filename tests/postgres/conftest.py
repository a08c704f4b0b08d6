"""A real server for the session, and for each test a database of its own with the ledger in it."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import psycopg
import pytest
import structlog
from psycopg import sql
from psycopg.rows import TupleRow

from flowstone.backfill.records import ClaimRequest, NewBackfill, Select
from flowstone.db.ledger import Ledger
from flowstone.db.logins import Logins
from flowstone.db.migrate import migrate
from flowstone.db.passwords import scram_verifier
from tests.postgres.servers import Server, installed, local

OPERATOR_PASSWORD = "operator-secret-0815"
WORKER_PASSWORD = "worker-secret-2342"
CLUSTER = "c1"
SCOPE = "n/c1/analytics"
OTHER_SCOPE = "n/c1/sales"

TEMPLATE = "flowstone_template"

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Place:
    """One database on a server, with the ledger in it."""

    server: Server
    name: str

    @property
    def admin(self) -> str:
        """The installer's connection string."""
        return self.server.conninfo(self.name)

    @property
    def operator(self) -> str:
        """The operator's connection string."""
        return self.server.conninfo(self.name, "flowstone_operator", OPERATOR_PASSWORD)

    def login(self, role_name: str) -> str:
        """A scope's connection string."""
        return self.server.conninfo(self.name, role_name, WORKER_PASSWORD)

    def connect(self) -> psycopg.Connection[TupleRow]:
        """The superuser's autocommit connection."""
        return psycopg.connect(self.admin, autocommit=True)

    def all(self, query: str, *parameters: object) -> list[TupleRow]:
        """What the superuser sees."""
        with self.connect() as connection:
            return connection.execute(query.encode(), parameters).fetchall()


@pytest.fixture(scope="session")
def migrated_server() -> Iterator[Server]:
    """The newest server of this machine, with a migrated database to copy."""
    with local(max(installed())) as server:
        prepare(server)
        yield server


def prepare(server: Server) -> None:
    """Make the database that each test copies."""
    with server.connect() as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
    migrate(server.conninfo(TEMPLATE), operator_password=OPERATOR_PASSWORD, log=structlog.get_logger())


def copied(server: Server) -> Iterator[Place]:
    """A fresh database, dropped afterwards together with the logins made in it."""
    name = f"test_{next(_numbers)}"
    with server.connect() as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(TEMPLATE))
        )
    place = Place(server, name)
    yield place
    roles = [role for (role,) in place.all("SELECT role_name FROM flowstone.login_scope")]
    with server.connect() as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        for role in roles:
            connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


@pytest.fixture
def place(migrated_server: Server) -> Iterator[Place]:
    """A fresh, migrated database."""
    yield from copied(migrated_server)


@pytest.fixture
def empty_database(migrated_server: Server) -> Iterator[Place]:
    """A fresh database without a ledger."""
    name = f"empty_{next(_numbers)}"
    with migrated_server.connect() as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    yield Place(migrated_server, name)
    with migrated_server.connect() as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def ledger(place: Place) -> Iterator[Ledger]:
    """The ledger of a fresh database, as the operator."""
    with Ledger.connect(place.operator, cluster=CLUSTER) as ledger:
        yield ledger


@pytest.fixture
def logins(ledger: Ledger) -> Logins:
    """The logins of a fresh database, as the operator makes them."""
    return Logins(ledger.database)


def login(logins: Logins, scope: str) -> str:
    """Make a scope's login with the test's password; return its name."""
    made = logins.ensure(scope, "ns")
    logins.set_password(made.role_name, scram_verifier(WORKER_PASSWORD))
    return made.role_name


@pytest.fixture
def worker(place: Place, logins: Logins) -> Iterator[psycopg.Connection[TupleRow]]:
    """An autocommit connection of the login of SCOPE."""
    with psycopg.connect(place.login(login(logins, SCOPE)), autocommit=True) as connection:
        yield connection


Register = Callable[..., str]


@pytest.fixture
def register(ledger: Ledger) -> Register:
    """Registers a backfill and returns its uid."""

    def make(asset: str = "daily", scope: str = SCOPE, cluster: str = CLUSTER) -> str:
        uid = str(uuid.uuid4())
        new = NewBackfill(
            uid=uid,
            cluster=cluster,
            namespace="analytics",
            name=f"{asset}-{uid[:4]}",
            scope=scope,
            asset=f"{cluster}/analytics/{asset}",
            spec={"asset": asset},
            spec_hash="spec-1",
        )
        ledger.register(new)
        return uid

    return make


Queue = Callable[..., str]


@pytest.fixture
def queue(ledger: Ledger, register: Register) -> Queue:
    """Registers and plans a backfill over keys and returns its uid."""

    def make(keys: list[str], *, select: Select = "Missing", asset: str = "daily", scope: str = SCOPE) -> str:
        uid = register(asset, scope)
        ledger.plan(uid, [(scope, key) for key in keys], total=len(keys), set_hash="set-1", select=select)
        return uid

    return make


request = partial(
    ClaimRequest,
    max_parallel=100,
    operator_limit=1000,
    batch_size=1,
    order="Ascending",
    select="Missing",
    template_digest="digest-1",
    job_prefix="bf-01234567-",
)
"""A claim that nothing limits, unless told."""
