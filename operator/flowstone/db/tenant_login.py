"""Whether a login may be used for tenants' work: only one that row level security binds.

Superusers, BYPASSRLS logins and table owners read past every policy without an error, and who reads the signing key may
be any tenant, so the test is made by
asking the catalogue, once per connection, and not by trusting a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flowstone.errors import UnsafeLogin

POOL_ROLE = "flowstone_pool"
TENANT_ROLE = "flowstone_tenant"

REMEDY = (
    "connect with a login of its own: CREATE ROLE app LOGIN PASSWORD '...' NOSUPERUSER NOBYPASSRLS NOCREATEROLE "
    f"IN ROLE {POOL_ROLE}"
)

LOGIN_QUERY = """
SELECT CASE
    WHEN r.rolsuper THEN 'it is a superuser'
    WHEN r.rolbypassrls THEN 'it has BYPASSRLS'
    WHEN r.rolcreaterole THEN 'it has CREATEROLE, and so could become another role'
    WHEN r.rolreplication THEN 'it has REPLICATION, and so could read every row from the log'
    WHEN current_user <> session_user THEN 'it acts under another role (SET ROLE)'
    WHEN EXISTS (SELECT FROM pg_catalog.pg_roles b WHERE pg_catalog.pg_has_role(r.oid, b.oid, 'MEMBER') AND (
        b.rolsuper OR b.rolbypassrls OR b.rolcreaterole OR b.rolname IN ('flowstone_owner', 'flowstone_operator',
        'pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program', 'pg_maintain')))
        THEN 'it may become a role that sees every row (SET ROLE)'
    WHEN EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relrowsecurity
        AND pg_catalog.pg_has_role(r.oid, c.relowner, 'MEMBER')) THEN 'it owns a protected table'
    WHEN EXISTS (SELECT FROM pg_catalog.pg_roles b
        JOIN pg_catalog.pg_class c ON c.relname = 'context_key' AND c.relnamespace = (
            SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname = 'flowstone')
        WHERE pg_catalog.pg_has_role(r.oid, b.oid, 'MEMBER')
          AND (pg_catalog.has_table_privilege(b.oid, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, TRIGGER')
               OR pg_catalog.has_any_column_privilege(b.oid, c.oid, 'SELECT, INSERT, UPDATE')))
        THEN 'it may read or change the key that contexts are signed with (flowstone.context_key), as members of '
             'pg_read_all_data and pg_write_all_data may'
    WHEN EXISTS (SELECT FROM pg_catalog.pg_roles g WHERE g.rolname = 'flowstone_namespace'
        AND pg_catalog.pg_has_role(r.oid, g.oid, 'MEMBER'))
        THEN 'it is in flowstone_namespace, whose logins see work without a tenant'
    END,
    EXISTS (SELECT FROM pg_catalog.pg_roles g WHERE g.rolname = 'flowstone_pool'
        AND pg_catalog.pg_has_role(r.oid, g.oid, 'USAGE')),
    EXISTS (SELECT FROM pg_catalog.pg_roles g WHERE g.rolname = 'flowstone_tenant'
        AND pg_catalog.pg_has_role(r.oid, g.oid, 'USAGE'))
FROM pg_catalog.pg_roles r WHERE r.rolname = session_user
"""
"""One row: why the login is unsafe or NULL, is it a pooled one, is it a tenant's own."""

OWN_TENANT_QUERY = "SELECT tenant_id FROM flowstone.login_scope WHERE role_name = session_user"
"""The tenant whose own login this is; row level security shows a login its own row alone."""


@dataclass(frozen=True, slots=True)
class LoginKind:
    """What a safe login is: a pooled one that acts for many tenants, or one tenant's own."""

    kind: Literal["pool", "tenant"]


def judge_login(row: Sequence[Any] | None) -> LoginKind:
    """Decide from the row of `LOGIN_QUERY`.

    Raises:
        UnsafeLogin: Row level security does not bind this login, or it belongs to neither group.
    """
    unsafe, pool, tenant = row if row is not None else ("it is not in the catalogue", False, False)
    if unsafe:
        raise UnsafeLogin(f"this login may not do tenants' work, because {unsafe}: {REMEDY}")
    if pool and tenant:
        raise UnsafeLogin(f"this login is in both {POOL_ROLE} and {TENANT_ROLE}: take it out of one")
    if not pool and not tenant:
        raise UnsafeLogin(f"this login is not a member of {POOL_ROLE}: GRANT {POOL_ROLE} TO it")
    return LoginKind("tenant" if tenant else "pool")
