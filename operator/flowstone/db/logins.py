"""Logins of scopes: one role per scope and slot, made by the operator, known by their OID.

Provisioning is a line of steps that may break off after any of them and be started again: `ensure` makes the role
without the right to log in, its row in `login_scope` and its membership, in one transaction; the caller writes
the Secret; `set_password` lets the role log in. Names are random and never used again, and say nothing: every
role of a server can read them.

The operator becomes a member of each login (NOINHERIT, so it gains and loses nothing by it): only a member of a
role may end that role's sessions.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import psycopg
from psycopg import errors as pg
from psycopg import pq, sql

from flowstone.db.connection import Database, Transaction, translated, wired
from flowstone.db.passwords import apply_verifier
from flowstone.db.roles import APART, NAMESPACES, OPERATOR, TENANTS
from flowstone.errors import LedgerBusy, LedgerRefused, LedgerUnavailable
from flowstone.tenant.credentials import KEEPALIVES
from flowstone.tenant.statements import assigned

Prefix = Literal["ns", "tn"]
Slot = Literal["a", "b"]

GROUPS: dict[Prefix, str] = {"ns": NAMESPACES, "tn": TENANTS}
"""Group that holds the rights of a scope's login, by the prefix of its name."""

NAME_CHARACTERS = 20
"""Random base32 characters in a login's name: 100 bits."""

CONNECTION_LIMIT = 500
"""Sessions one login may have at a time: more than any cap of batches, less than a runaway pod."""

_FIND = """
    SELECT s.role_name, s.role_oid, r.rolcanlogin
    FROM flowstone.login_scope AS s
    LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = s.role_oid AND r.rolname = s.role_name
    WHERE s.scope = %(scope)s AND s.slot = %(slot)s
    FOR UPDATE OF s
"""

_LOCK = "SELECT 1 FROM flowstone.login_scope WHERE role_name = %(name)s FOR UPDATE"

_INSERT = """
    INSERT INTO flowstone.login_scope (role_name, role_oid, scope, slot, tenant_id)
    SELECT r.rolname, r.oid, %(scope)s, %(slot)s, %(tenant)s FROM pg_catalog.pg_roles AS r WHERE r.rolname = %(name)s
    RETURNING role_oid
"""

# The linter takes a tenant's login for its own only when its name is made of the registry's word.
_BASE = "SELECT role_base FROM flowstone.tenant WHERE scope = %(scope)s AND tenant_id = %(tenant)s FOR NO KEY UPDATE"

_RECORD_BASE = """
    UPDATE flowstone.tenant SET role_base = %(base)s
    WHERE scope = %(scope)s AND tenant_id = %(tenant)s AND role_base IS NULL
"""

_ELSEWHERE = "SELECT rolname::text, rolcanlogin FROM pg_catalog.pg_roles WHERE oid = %(oid)s"

_LACKING = """
    SELECT NOT pg_catalog.has_function_privilege(r.oid, 'pg_catalog.pg_terminate_backend(int, bigint)', 'EXECUTE')
       AND NOT EXISTS (
           SELECT FROM pg_catalog.pg_auth_members AS m JOIN pg_catalog.pg_roles AS g ON g.oid = m.roleid
           WHERE m.member = r.oid AND g.rolname IN ('flowstone_tenant', 'flowstone_namespace'))
    FROM pg_catalog.pg_roles AS r WHERE r.rolname = %(name)s
"""

_TRANSIENT = ("too many", "starting up", "shutting down", "recovery", "reserved", "no pg_hba.conf entry")
"""Words of refusals that say nothing about the password."""


@dataclass(frozen=True, slots=True)
class Login:
    """A scope's role.

    Attributes:
        role_oid: The server's number for it; a role of the same name with another number is a stranger.
        can_login: A password was set once; before that the role is not let in.
    """

    role_name: str
    role_oid: int
    scope: str
    slot: Slot
    can_login: bool


@dataclass(frozen=True, slots=True)
class Shape:
    """What a new login is given.

    Attributes:
        connections: Sessions that it may have at a time.
        settings: As `name=value`.
    """

    connections: int = CONNECTION_LIMIT
    settings: tuple[str, ...] = tuple(sorted(KEEPALIVES))


class Logins:
    """Makes and ends the logins of scopes, as `flowstone_operator`.

    Args:
        database: The ledger's, as in `ledger.database`.
        token: So many random bytes.
    """

    def __init__(self, database: Database, *, token: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._database = database
        self._token = token

    def ensure(
        self,
        scope: str,
        prefix: Prefix,
        tenant_id: str | None = None,
        slot: Slot = "a",
        stem: str | None = None,
        *,
        apart: bool = False,
        shape: Shape | None = None,
    ) -> Login:
        """The login of a scope: the one that exists, or a new one that cannot log in yet.

        Args:
            scope: Whose rows it sees.
            prefix: "ns" for a namespace's work without a tenant, "tn" for a tenant's.
            tenant_id: The tenant, for "tn".
            slot: Which of the scope's two logins.
            stem: The random part of the name, when both slots shall share one; when left out, the one that the registry
                has for the tenant, or else a new one, which the registry keeps.
            apart: It works in a database of its own, and so gets no right on the ledger.
            shape: Its limit and settings if it is made now; the default ones when left out.

        Raises:
            LedgerBusy: Another replica makes the same login right now.
        """
        with self._database.transaction() as tx:
            known = self._known(tx, scope, slot)
            if known is None:
                name = f"{prefix}_{stem or _recorded_stem(tx, scope, tenant_id) or self._stem()}_{slot}"
                _create(tx, name, APART if apart else GROUPS[prefix], shape or Shape())
                known = Login(name, _map(tx, name, scope, slot, tenant_id), scope, slot, can_login=False)
            if tenant_id is not None and stem is None:
                base = known.role_name.removesuffix(f"_{slot}")
                tx.run(_RECORD_BASE, {"scope": scope, "tenant": tenant_id, "base": base})
            return known

    def _known(self, tx: Transaction, scope: str, slot: Slot) -> Login | None:
        """The recorded login, if its role is there: renamed back if need be; a row without a role is removed."""
        row = tx.row(_FIND, {"scope": scope, "slot": slot})
        if row is None:
            return None
        name, oid, can_login = row
        if can_login is None and (renamed := tx.row(_ELSEWHERE, {"oid": oid})):
            rename = sql.SQL("ALTER ROLE {} RENAME TO {}").format(sql.Identifier(renamed[0]), sql.Identifier(name))
            tx.connection.execute(rename)
            can_login = renamed[1]
        if can_login is None:
            tx.run("DELETE FROM flowstone.login_scope WHERE role_name = %(name)s", {"name": name})
            return None
        return Login(name, oid, scope, slot, can_login)

    def _stem(self) -> str:
        return base64.b32encode(self._token(NAME_CHARACTERS)).decode().lower()[:NAME_CHARACTERS]

    def set_password(self, role_name: str, verifier: str) -> None:
        """Let a scope's login in, with the password behind a SCRAM verifier (see `scram_verifier`).

        Raises:
            LedgerRefused: No scope's login has that name.
        """
        with self._database.transaction() as tx:
            _require(tx, role_name)
            apply_verifier(tx.connection, role_name, verifier)

    def end_sessions(self, role_name: str) -> int:
        """End all sessions of a scope's login; returns how many there were."""
        with self._database.transaction() as tx:
            _require(tx, role_name)
            query = "SELECT pid FROM pg_catalog.pg_stat_activity WHERE usename = %(name)s"
            return end(tx, role_name, [pid for (pid,) in tx.rows(query, {"name": role_name})])

    def drop(self, role_name: str) -> None:
        """Take a login away for good, with its row in `login_scope`, in one transaction; ends its sessions first.

        Default privileges that it has set, and large objects, go with it: they would keep the role for ever.

        Raises:
            LedgerRefused: Something in another database still belongs to it.
        """
        self.end_sessions(role_name)
        name = sql.Identifier(role_name)
        with self._database.transaction() as tx:
            _require(tx, role_name)
            tx.run("DELETE FROM flowstone.login_scope WHERE role_name = %(name)s", {"name": role_name})
            tx.connection.execute(sql.SQL("SET LOCAL ROLE {}").format(name))
            tx.connection.execute(sql.SQL("DROP OWNED BY {}").format(name))
            tx.connection.execute("RESET ROLE")
            tx.connection.execute(sql.SQL("DROP ROLE {}").format(name))


def _recorded_stem(tx: Transaction, scope: str, tenant_id: str | None) -> str | None:
    """The random part of a tenant's role names, once the registry has one."""
    row = tx.row(_BASE, {"scope": scope, "tenant": tenant_id})
    return row[0].removeprefix("tn_") if row and row[0] else None


def _create(tx: Transaction, name: str, group: str, shape: Shape) -> None:
    """With limit and settings at once: on a server with many roles each later change of a role is dear.

    From version 16 on the operator is an administrator of each role that it made, and after a change of any role the
    server looks all its memberships up again before it lets the operator change or become one.
    """
    create = sql.SQL("CREATE ROLE {} NOLOGIN CONNECTION LIMIT {} IN ROLE {} ROLE {}").format(
        sql.Identifier(name), sql.Literal(shape.connections), sql.Identifier(group), sql.Identifier(OPERATOR)
    )
    tx.connection.execute(create)
    tx.run_each(assigned(name, shape.settings))


def _map(tx: Transaction, name: str, scope: str, slot: Slot, tenant_id: str | None) -> int:
    try:
        row = tx.row(_INSERT, {"name": name, "scope": scope, "slot": slot, "tenant": tenant_id})
    except pg.UniqueViolation as error:
        raise LedgerBusy("another replica makes the same login: read it again") from error
    if row is None:
        raise LedgerRefused(f"role: {name}: not there after it was made: try again")
    return int(row[0])


def _require(tx: Transaction, role_name: str) -> None:
    """Refuse names that are no scope's login: nothing here may touch another role.

    The row stays locked until the transaction ends: Postgres refuses two sessions that change one role at a time
    ("tuple concurrently updated") instead of letting the second one wait.
    """
    if tx.row(_LOCK, {"name": role_name}) is None:
        raise LedgerRefused(f"role: {role_name}: not in flowstone.login_scope: the next look makes what is missing")


def end(tx: Transaction, role_name: str, pids: list[int]) -> int:
    """End sessions of one login, as that login: nobody else may, but a superuser."""
    with acting_as(tx, role_name):
        ended = tx.rows("SELECT pg_catalog.pg_terminate_backend(p) FROM unnest(%(pids)s::int[]) AS p", {"pids": pids})
    return sum(1 for (done,) in ended if done)


@contextmanager
def acting_as(tx: Transaction, role_name: str) -> Iterator[None]:
    """Act as a scope's login within the transaction, to end its sessions or to see since when they work.

    After `bootstrap` the functions for that are its group's. A login that is shut out has left the group; it is in it
    again inside this transaction, where nobody else sees it.
    """
    name = sql.Identifier(role_name)
    group = sql.Identifier(NAMESPACES if role_name.startswith("ns_") else TENANTS)
    lacking = tx.row(_LACKING, {"name": role_name}) == (True,)
    if lacking:
        tx.connection.execute(sql.SQL("GRANT {} TO {}").format(group, name))
    tx.connection.execute(sql.SQL("SET LOCAL ROLE {}").format(name))
    yield
    tx.connection.execute("RESET ROLE")
    if lacking:
        tx.connection.execute(sql.SQL("REVOKE {} FROM {}").format(group, name))


def try_login(conninfo: str) -> bool:
    """Whether Postgres lets this login in.

    Returns:
        False when it refuses the login or the password.

    Raises:
        LedgerUnavailable: It does not answer, or has no room, so nothing is known.
    """
    target = wired(conninfo, "flowstone-login-check")
    try:
        with psycopg.connect(target, autocommit=True):
            return True
    except psycopg.OperationalError as error:
        if _refused(target, str(error)):
            return False
        with translated():
            raise
    raise LedgerUnavailable("the ledger's login check broke off")


def _refused(target: str, message: str) -> bool:
    """Whether a failed connection was turned away by a server that takes others in.

    libpq gives no SQLSTATE for a failed connection; so the server is asked whether it takes connections at all.
    """
    if any(word in message for word in _TRANSIENT):
        return False
    return pq.PGconn.ping(target.encode()) == pq.Ping.OK
