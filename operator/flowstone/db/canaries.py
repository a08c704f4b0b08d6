"""The canaries: two tenants that nobody is, so that one can be set at the other's rows on a database that people use.

They are registered under ids that no Tenant can have. While the proof runs, they have a password that nobody else
knows, a few rows in the ledger and in `flowstone.canary`, and a pooled login beside them; afterwards none of that is
left. All of it is made by the operator's login. One proof runs at a time: the lease on the first canary's row of the
registry sees to that.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from uuid import uuid4

import psycopg
from psycopg import errors as pg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from flowstone.db.connection import Connection, Database, Transaction, translated, wired
from flowstone.db.lock_watch import Locker, kept_free, naming_lockers
from flowstone.db.logins import Logins
from flowstone.db.passwords import apply_verifier, scram_verifier
from flowstone.db.role_drop import drop_role
from flowstone.db.roles import OPERATOR, POOL, TENANTS
from flowstone.db.tenant_steps import random_stem
from flowstone.errors import LedgerBusy, LedgerError, LedgerRefused
from flowstone.tenant.names import CANARY_PREFIX, tenant_scope

TABLE = "flowstone.canary"
"""Where only canaries have rows."""

LEASE_SECONDS = 120
"""A proof that breaks off keeps others from running for so long."""

SECRET = "victim's secret"  # noqa: S105 - a text that no other row has
VICTIM_ID = 900

_TABLES = {"canary": "tenant_id", "materialization": "scope", "batch": "scope", "latest": "scope", "attempt": "scope"}
"""Where canaries leave rows, and by which column they are found."""

_REGISTER = """
    INSERT INTO flowstone.tenant (cluster, tenant_id, scope, role_base)
    VALUES (%(cluster)s, %(tenant)s, %(scope)s, %(base)s) ON CONFLICT (tenant_id) DO NOTHING
"""

_LEASE = """
    UPDATE flowstone.tenant SET lease_owner = %(owner)s, lease_until = clock_timestamp() + make_interval(secs => %(s)s)
    WHERE tenant_id = %(tenant)s AND (lease_owner IS NULL OR lease_until < clock_timestamp())
"""

_BATCH = """
    INSERT INTO flowstone.batch (backfill, scope, job_name, template_digest, partitions)
    VALUES (%(uid)s, %(scope)s, 'canary', 'canary', 2) RETURNING fence
"""

_PARTITIONS = """
    INSERT INTO flowstone.materialization (scope, asset, partition, backfill, ordinal, state, fence)
    SELECT %(scope)s, 'canary', n::text, %(uid)s, n, 'running', %(fence)s FROM generate_series(0, 1) n
"""

_SUCCESS = "UPDATE flowstone.materialization SET state = 'succeeded' WHERE fence = %(fence)s AND ordinal = 1"

_ROWS = "INSERT INTO flowstone.canary (id, parent, note) VALUES (1, NULL, %(first)s), (%(second)s, 1, %(note)s)"


@dataclass(frozen=True, slots=True)
class Canary:
    """One of the two, ready to log in.

    Attributes:
        fence: Of its open batch.
        conninfo: With its password of this run.
    """

    tenant_id: str
    scope: str
    role_name: str
    fence: int
    conninfo: str


@dataclass(frozen=True, slots=True)
class Cage:
    """Both canaries, and the pooled login.

    Attributes:
        pool: Its connection string; None when the operator may not make pooled logins.
        lockers: Sessions that were seen locking the canaries' table meanwhile.
    """

    attacker: Canary
    victim: Canary
    pool: str | None
    lockers: Sequence[Locker] = ()


class Canaries:
    """Lets the canaries out, and takes them back in.

    Args:
        database: The ledger's, as in `ledger.database`.
        cluster: The cluster's id.
        conninfo: Where the operator reaches Postgres; the canaries log in there.
        new_password: Makes passwords.
    """

    def __init__(
        self,
        database: Database,
        cluster: str,
        conninfo: str,
        *,
        new_password: Callable[[], str] = lambda: secrets.token_urlsafe(24),
    ) -> None:
        self._database = database
        self._cluster = cluster
        self._conninfo = conninfo
        self._new_password = new_password
        self._logins = Logins(database)
        self.ids = (canary_id(cluster, "a"), canary_id(cluster, "b"))

    @contextmanager
    def out(self) -> Iterator[Cage]:
        """Yield the cage; it is empty again afterwards.

        Raises:
            LedgerBusy: Another proof runs, or somebody locks a table; names table, session and remedy.
            LedgerRefused: The operator lacks a right for it.
        """
        owner = secrets.token_hex(8)
        bases = self._register(owner)
        try:
            with naming_lockers(self._database), kept_free(self._database, TABLE) as lockers:
                self._clean(bases)
                yield replace(self._made(bases), lockers=lockers)
        finally:
            with suppress(LedgerError):
                self._clean(bases)
            with suppress(LedgerError):
                self._release(owner)

    def _register(self, owner: str) -> list[str]:
        with self._database.transaction() as tx:
            for tenant in self.ids:
                scope = tenant_scope(self._cluster, tenant)
                values = {"cluster": self._cluster, "tenant": tenant, "scope": scope, "base": f"tn_{random_stem()}"}
                tx.run(_REGISTER, values)
            if tx.run(_LEASE, {"tenant": self.ids[0], "owner": owner, "s": LEASE_SECONDS}) != 1:
                raise LedgerBusy("another proof of isolation runs right now: try again in a minute")
            query = "SELECT role_base FROM flowstone.tenant WHERE tenant_id = ANY(%(ids)s) ORDER BY tenant_id"
            return [base for (base,) in tx.rows(query, {"ids": list(self.ids)})]

    def _release(self, owner: str) -> None:
        query = "UPDATE flowstone.tenant SET lease_owner = NULL, lease_until = NULL WHERE lease_owner = %(owner)s"
        with self._database.transaction() as tx:
            tx.run(query, {"owner": owner})

    def _made(self, bases: list[str]) -> Cage:
        attacker, victim = (self._canary(tenant, base) for tenant, base in zip(self.ids, bases, strict=True))
        _rows(attacker, 2, "attacker's other row")
        _rows(victim, VICTIM_ID, SECRET)
        return Cage(attacker, victim, self._pool(_pool_name(bases[0])))

    def _canary(self, tenant: str, base: str) -> Canary:
        scope = tenant_scope(self._cluster, tenant)
        login = self._logins.ensure(scope, "tn", tenant, "a", base.removeprefix("tn_"))
        password = self._new_password()
        with self._database.transaction() as tx:
            join = sql.SQL("GRANT {} TO {}").format(sql.Identifier(TENANTS), sql.Identifier(login.role_name))
            tx.connection.execute(join)  # somebody may have taken it away: then the controls would fail for ever
            fence = _partitions(tx, scope)
        self._logins.set_password(login.role_name, scram_verifier(password))
        return Canary(tenant, scope, login.role_name, fence, self._as(login.role_name, password))

    def _pool(self, name: str) -> str | None:
        """Make a pooled login for as long as the proof runs."""
        password = self._new_password()
        try:
            with self._database.transaction() as tx:
                _make_pooled(tx.connection, name)
                apply_verifier(tx.connection, name, scram_verifier(password))
        except LedgerRefused as error:
            if isinstance(error.__cause__, pg.InsufficientPrivilege):
                return None
            raise
        return self._as(name, password)

    def _as(self, role_name: str, password: str) -> str:
        target = make_conninfo(self._conninfo, user=role_name, password=password)
        return wired(target, "flowstone-proof")

    def _clean(self, bases: list[str]) -> None:
        scopes = [tenant_scope(self._cluster, tenant) for tenant in self.ids]
        with self._database.transaction() as tx:
            for table, column in _TABLES.items():
                whose = list(self.ids) if column == "tenant_id" else scopes
                query = sql.SQL("DELETE FROM flowstone.{} WHERE {} = ANY(%s)")
                tx.connection.execute(query.format(sql.Identifier(table), sql.Identifier(column)), [whose])
            for base in bases:
                _lock(tx.connection, f"{base}_a")
            drop_role(tx.connection, _pool_name(bases[0]))


def canary_id(cluster: str, letter: str) -> str:
    """Return the reserved tenant id of a cluster's canary."""
    return f"{CANARY_PREFIX}{hashlib.sha256(cluster.encode()).hexdigest()[:8]}-{letter}"


def _pool_name(base: str) -> str:
    return f"{base}_p"


def _partitions(tx: Transaction, scope: str) -> int:
    """Make an open batch with a running and a succeeded partition; return its fence."""
    values: dict[str, object] = {"scope": scope, "uid": uuid4()}
    [(fence,)] = tx.rows(_BATCH, values)
    tx.run(_PARTITIONS, {**values, "fence": fence})
    tx.run(_SUCCESS, {"fence": fence})
    return int(fence)


def _rows(canary: Canary, second: int, note: str) -> None:
    """Make a canary's rows as itself, as a tenant would."""
    with translated(), psycopg.connect(canary.conninfo, autocommit=True) as connection:
        connection.execute(_ROWS, {"first": f"first row of {canary.role_name}", "second": second, "note": note})


def _make_pooled(connection: Connection, role_name: str) -> None:
    """Make a pooled login, or use the one that could not be dropped after the last proof."""
    if connection.execute("SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = %s", [role_name]).fetchone():
        again = sql.SQL("GRANT {} TO {}").format(sql.Identifier(POOL), sql.Identifier(role_name))
        connection.execute(again)
        return
    create = sql.SQL("CREATE ROLE {} NOLOGIN CONNECTION LIMIT 4 IN ROLE {} ROLE {}").format(
        sql.Identifier(role_name), sql.Identifier(POOL), sql.Identifier(OPERATOR)
    )
    connection.execute(create)


def _lock(connection: Connection, role_name: str) -> None:
    """Keep a login from being used until the next proof."""
    query = "SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = %s AND rolcanlogin"
    if connection.execute(query, [role_name]).fetchone():
        lock = sql.SQL("ALTER ROLE {} NOLOGIN PASSWORD NULL").format(sql.Identifier(role_name))
        connection.execute(lock)
