"""Does what was decided about a tenant's registration, roles, schema and rows; each step is one transaction."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from psycopg import sql

from flowstone.db.connection import LONG_SECONDS, Database, Transaction
from flowstone.db.logins import Logins, Shape, end
from flowstone.db.own_databases import OwnDatabases
from flowstone.db.passwords import scram_verifier
from flowstone.errors import LedgerRefused, TenantRefused
from flowstone.tenant.desired import Desired
from flowstone.tenant.observed import Slot
from flowstone.tenant.own_database import Names
from flowstone.tenant.statements import statements
from flowstone.tenant.steps import (
    Change,
    EndSessions,
    EndStatements,
    Export,
    MakeDatabase,
    MakeLogin,
    Purge,
    Record,
    Register,
    Remap,
    Restore,
    RestoreDatabase,
    Unmap,
)

_REGISTER = """
    INSERT INTO flowstone.tenant
        (cluster, tenant_id, scope, tier, isolation, max_parallel, resource_uid, role_base, rotate_token)
    VALUES (%(cluster)s, %(tenant)s, %(scope)s, %(tier)s, %(isolation)s, %(limit)s, %(uid)s, %(base)s, %(token)s)
    ON CONFLICT (cluster, tenant_id) DO UPDATE SET role_base = coalesce(tenant.role_base, excluded.role_base)
"""

_REMAP = """
    INSERT INTO flowstone.login_scope (role_name, role_oid, scope, slot, tenant_id)
    SELECT r.rolname, r.oid, %(scope)s, %(slot)s, %(tenant)s FROM pg_catalog.pg_roles r WHERE r.rolname = %(name)s
    ON CONFLICT (role_name) DO UPDATE
    SET role_oid = excluded.role_oid, scope = excluded.scope, slot = excluded.slot, tenant_id = excluded.tenant_id
"""

_RECORDED = frozenset(
    [
        "tier",
        "isolation",
        "max_parallel",
        "resource_uid",
        "state",
        "suspended_at",
        "retain_until",
        "export_digest",
        "purged_at",
        "namespaces",
        "active_slot",
        "rotated_at",
        "rotate_token",
        "revoked_at",
        "database_made_at",
    ]
)
"""Columns that `Record` may write."""

_LEASE = """
    UPDATE flowstone.tenant AS t
    SET lease_owner = %(owner)s, lease_until = clock_timestamp() + make_interval(secs => %(seconds)s)
    FROM (
        SELECT cluster, tenant_id FROM flowstone.tenant
        WHERE cluster = %(cluster)s AND tenant_id = %(tenant)s
          AND (lease_owner IS NULL OR lease_owner = %(owner)s OR lease_until < clock_timestamp())
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS free
    WHERE t.cluster = free.cluster AND t.tenant_id = free.tenant_id
"""


class TenantSteps:
    """Applies steps to the tenants of one cluster.

    Args:
        database: The ledger's, as in `ledger.database`.
        databases: Those of tenants that have one of their own.
        token: So many random characters for a new tenant's role names.
    """

    def __init__(
        self,
        database: Database,
        logins: Logins,
        databases: OwnDatabases,
        cluster: str,
        *,
        stem: Callable[[], str] | None = None,
    ) -> None:
        self._database = database
        self._logins = logins
        self._databases = databases
        self._cluster = cluster
        self._stem = stem or random_stem

    def take_lease(self, tenant_id: str, owner: str, seconds: float) -> bool:
        """Whether `owner` has the tenant for the next `seconds`."""
        values = {"cluster": self._cluster, "tenant": tenant_id, "owner": owner, "seconds": seconds}
        with self._database.transaction() as tx:
            return tx.run(_LEASE, values) == 1

    def apply(self, change: Change, desired: Desired, base: str | None) -> None:
        """Do one step.

        Args:
            change: The step; those that concern Secrets are none of this class's.
            desired: The tenant.
            base: Beginning of its role names, and name of its schema or database; None before it is registered.

        Raises:
            TenantRefused: Another cluster that shares this database has a tenant of that id.
            LedgerRefused: Postgres refused, such as for a right that the operator lacks.
        """
        if isinstance(change, Register):
            return self._register(desired)
        if base is None:
            raise LedgerRefused("tenant: not registered yet: register it first")
        names: dict[Slot, str] = {"a": f"{base}_a", "b": f"{base}_b"}
        match change:
            case MakeLogin(slot, connections, settings):
                stem, shape = base.removeprefix("tn_"), Shape(connections, settings)
                self._logins.ensure(
                    desired.scope, "tn", desired.tenant_id, slot, stem, apart=desired.apart, shape=shape
                )
            case MakeDatabase(slots):
                self._databases.make(Names(base, tuple(names[slot] for slot in slots)))
            case RestoreDatabase(slots):
                self._databases.restore(Names(base, tuple(names[slot] for slot in slots)))
            case Restore(slot, password):
                self.set_password(names[slot], password)
            case EndSessions(slot):
                self._logins.end_sessions(names[slot])
            case _:
                with self._database.transaction(LONG_SECONDS if isinstance(change, Export | Purge) else 9.0) as tx:
                    self._apply_in(tx, change, desired, names, base)
        return None

    def set_password(self, role_name: str, password: str) -> None:
        """Let a login in with a password; only its verifier leaves this process."""
        self._logins.set_password(role_name, scram_verifier(password))

    def _apply_in(
        self, tx: Transaction, change: Change, desired: Desired, names: Mapping[Slot, str], base: str
    ) -> None:
        match change:
            case Record(values):
                self._record(tx, desired, values)
            case Remap(slot):
                values = {"name": names[slot], "slot": slot, "scope": desired.scope, "tenant": desired.tenant_id}
                tx.run(_REMAP, values)
            case Unmap(role_name):
                values = {"name": role_name, "scope": desired.scope}
                tx.run("DELETE FROM flowstone.login_scope WHERE role_name = %(name)s AND scope = %(scope)s", values)
            case EndStatements(slot, pids):
                end(tx, names[slot], list(pids))
            case _:
                tx.run_each(statements(change, names, base))

    def _register(self, desired: Desired) -> None:
        values = {
            "cluster": self._cluster,
            "tenant": desired.tenant_id,
            "scope": desired.scope,
            "tier": desired.tier,
            "isolation": desired.isolation,
            "limit": desired.max_parallel,
            "uid": desired.uid,
            "base": f"tn_{self._stem()}",
            "token": desired.rotate_token,
        }
        try:
            with self._database.transaction() as tx:
                tx.run(_REGISTER, values)
        except LedgerRefused as error:
            raise TenantRefused(
                "another cluster that shares this database has a tenant of this id: choose another spec.id, or give "
                "the clusters databases of their own"
            ) from error

    def _record(self, tx: Transaction, desired: Desired, values: Mapping[str, Any]) -> None:
        unknown = set(values) - _RECORDED
        if unknown:
            raise LedgerRefused(f"tenant: {sorted(unknown)}: no such columns")
        pairs = sql.SQL(", ").join(
            sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in sorted(values)
        )
        query = sql.SQL(
            "UPDATE flowstone.tenant SET {} WHERE cluster = %(own_cluster)s AND tenant_id = %(own_tenant)s"
        ).format(pairs)
        tx.connection.execute(query, {**values, "own_cluster": self._cluster, "own_tenant": desired.tenant_id})


def random_stem() -> str:
    """Return 20 random characters of base32: 100 bits, never seen before."""
    alphabet = "abcdefghijklmnopqrstuvwxyz234567"
    return "".join(secrets.choice(alphabet) for _ in range(20))
