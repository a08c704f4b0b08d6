"""Reads what there is of a tenant, from the registry and the server's catalogue, as the operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from flowstone.db.connection import Database, Transaction
from flowstone.db.logins import acting_as
from flowstone.db.roles import OPERATOR
from flowstone.tenant.observed import Login, Registration, Slot

REGISTRATION = """
    SELECT tenant_id, tier, isolation, state, max_parallel, resource_uid, role_base, active_slot, namespaces,
           rotated_at, rotate_token, revoked_at, suspended_at, retain_until, export_digest, purged_at, database_made_at
    FROM flowstone.tenant WHERE cluster = %(cluster)s AND tenant_id = %(tenant)s
"""

# A role is ours when it has the recorded number; without its row in login_scope, when the operator is its member, since
# only who made it can have become one. Any session may call itself a login check: where a login is to be shut out, all
# of its sessions count. A login may give itself settings of any size; what is too long is none of ours.
_LOGINS = """
    SELECT n.slot, n.name, s.role_oid IS NOT NULL, r.oid IS NOT NULL AND CASE
               WHEN s.role_oid IS NOT NULL THEN s.role_oid = r.oid
               ELSE pg_catalog.pg_has_role(%(operator)s, r.oid, 'MEMBER') END,
           s.scope IS NOT DISTINCT FROM %(scope)s AND s.tenant_id IS NOT DISTINCT FROM %(tenant)s
               AND s.slot IS NOT DISTINCT FROM n.slot,
           r.rolcanlogin, r.rolconnlimit, r.rolvaliduntil < 'infinity',
           ARRAY[CASE WHEN r.rolsuper THEN 'SUPERUSER' END, CASE WHEN r.rolcreaterole THEN 'CREATEROLE' END,
                 CASE WHEN r.rolcreatedb THEN 'CREATEDB' END, CASE WHEN r.rolreplication THEN 'REPLICATION' END,
                 CASE WHEN r.rolbypassrls THEN 'BYPASSRLS' END, CASE WHEN NOT r.rolinherit THEN 'NOINHERIT' END],
           ARRAY(SELECT g.rolname::text FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles g ON g.oid = m.roleid
                 WHERE m.member = r.oid),
           ARRAY(SELECT g.rolname::text FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles g ON g.oid = m.member
                 WHERE m.roleid = r.oid),
           ARRAY(SELECT left(unnest(c.setconfig), 500) FROM pg_catalog.pg_db_role_setting c
                 WHERE c.setrole = r.oid AND c.setdatabase = 0),
           ARRAY(SELECT d.datname::text FROM pg_catalog.pg_db_role_setting c
                 JOIN pg_catalog.pg_database d ON d.oid = c.setdatabase WHERE c.setrole = r.oid),
           (SELECT count(*) FROM pg_catalog.pg_stat_activity a WHERE a.usesysid = r.oid
               AND (a.application_name IS DISTINCT FROM 'flowstone-login-check' OR NOT r.rolcanlogin))
    FROM (VALUES ('a', %(base)s || '_a'), ('b', %(base)s || '_b')) AS n (slot, name)
    LEFT JOIN flowstone.login_scope s ON s.role_name = n.name
    LEFT JOIN pg_catalog.pg_roles r ON r.rolname = n.name
    WHERE s.role_oid IS NOT NULL OR r.oid IS NOT NULL
"""

_STRANGERS = """
    SELECT role_name FROM flowstone.login_scope
    WHERE scope = %(scope)s AND (%(base)s::text IS NULL OR role_name NOT IN (%(base)s || '_a', %(base)s || '_b'))
"""

_OLDEST_BATCH = """
    SELECT min(opened_at), clock_timestamp() FROM flowstone.batch WHERE scope = %(scope)s AND state = 'open'
"""

_SCHEMA = """
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_namespace n
        WHERE n.nspname = %(base)s AND pg_catalog.pg_get_userbyid(n.nspowner) = %(operator)s
          AND NOT EXISTS (SELECT FROM pg_catalog.aclexplode(n.nspacl) x WHERE x.grantee NOT IN (
              SELECT r.oid FROM pg_catalog.pg_roles r
              WHERE r.rolname IN (%(operator)s, %(base)s || '_a', %(base)s || '_b')))
          AND (SELECT bool_and(pg_catalog.has_schema_privilege(r.oid, n.oid, 'CREATE')
                  AND pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE'))
               FROM pg_catalog.pg_roles r WHERE r.rolname IN (%(base)s || '_a', %(base)s || '_b'))
          AND (SELECT count(*) * (count(*) - 1) FROM pg_catalog.pg_roles r
               WHERE r.rolname IN (%(base)s || '_a', %(base)s || '_b'))
            = (SELECT count(*) FROM pg_catalog.pg_default_acl d
               WHERE d.defaclnamespace = n.oid AND d.defaclobjtype = 'r')
    )
"""

GRACE_SECONDS = 2
"""A statement is given so much longer than its limit, so that the server's own statement_timeout comes first."""


@dataclass(frozen=True, slots=True)
class View:
    """What the database knows of a tenant."""

    registration: Registration | None
    now: datetime
    logins: Mapping[Slot, Login]
    strangers: frozenset[str]
    oldest_batch: datetime | None
    schema_exists: bool


class TenantCatalogue:
    """Reads tenants of one cluster.

    Args:
        database: The ledger's, as in `ledger.database`.
    """

    def __init__(self, database: Database, cluster: str) -> None:
        self._database = database
        self._cluster = cluster

    def view(self, tenant_id: str, scope: str, *, statement_timeout: int) -> View:
        """Return what there is of a tenant; its statements are late after `statement_timeout` seconds, if not 0."""
        with self._database.transaction() as tx:
            row = tx.row(REGISTRATION, {"cluster": self._cluster, "tenant": tenant_id})
            registration = _registration(row) if row else None
            base = registration.role_base if registration else None
            values = {"scope": scope, "tenant": tenant_id, "base": base, "operator": OPERATOR}
            logins = {login.slot: login for login in map(_login, tx.rows(_LOGINS, values))} if base else {}
            if statement_timeout:
                logins = {slot: _with_late(tx, login, statement_timeout) for slot, login in logins.items()}
            [(oldest, now)] = tx.rows(_OLDEST_BATCH, values)
            strangers = frozenset(name for (name,) in tx.rows(_STRANGERS, values))
            schema = bool(base) and tx.row(_SCHEMA, values) == (True,)
            return View(registration, now, logins, strangers, oldest, schema)


def _registration(row: tuple[Any, ...]) -> Registration:
    values = list(row)
    values[8] = tuple(values[8])
    return Registration(*values)


def _login(row: tuple[Any, ...]) -> Login:
    slot, name, _, exists, mapped, can_login, limit, expires, attributes, groups, members, *rest = row
    settings, databases, sessions = rest
    return Login(
        role_name=name,
        slot=slot,
        exists=bool(exists),
        mapped=bool(mapped),
        can_login=bool(can_login),
        connection_limit=-1 if limit is None else limit,
        attributes=frozenset(one for one in attributes if one),
        groups=frozenset(groups),
        members=frozenset(members),
        settings=frozenset(settings),
        databases=frozenset(databases),
        expires=bool(expires),
        sessions=sessions,
    )


def _with_late(tx: Transaction, login: Login, seconds: int) -> Login:
    """Find statements that run too long; only a role itself is shown since when its sessions work."""
    if not login.exists:
        return login
    query = """
        SELECT pid FROM pg_catalog.pg_stat_activity WHERE usename = %(name)s AND state = 'active'
          AND clock_timestamp() - query_start > make_interval(secs => %(seconds)s)
    """
    with acting_as(tx, login.role_name):
        late = tuple(pid for (pid,) in tx.rows(query, {"name": login.role_name, "seconds": seconds + GRACE_SECONDS}))
    return replace(login, late=late)
