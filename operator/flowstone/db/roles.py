"""The fixed roles of the ledger, and what each of them is for; made by `migrate`, before the first revision runs.

    flowstone_owner      NOLOGIN   owns the schema and all in it; nobody logs in as it
    flowstone_operator   LOGIN     runs the ledger and makes the scopes' logins
    flowstone_pool       NOLOGIN   group of the tenant API's pooled logins
    flowstone_namespace  NOLOGIN   group of all logins of work without a tenant, one per namespace
    flowstone_tenant     NOLOGIN   group of all logins of tenants whose rows are in this database
    flowstone_apart      NOLOGIN   group of all logins of tenants with a database of their own: no right here

Table grants and policies go to the groups, never to a single scope's login: thousands of grants do not fit into
one row of pg_class, and a policy per login makes planning quadratic.

The operator is NOINHERIT. It administers the groups and so becomes a member of them; would it inherit, then
the restrictive floor of their policies would hold for the operator too and lock it out of its own ledger on
every server that does not give it BYPASSRLS.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from psycopg import errors as pg
from psycopg import sql
from structlog.typing import FilteringBoundLogger

from flowstone.db.connection import Connection

OWNER = "flowstone_owner"
OPERATOR = "flowstone_operator"
POOL = "flowstone_pool"
NAMESPACES = "flowstone_namespace"
TENANTS = "flowstone_tenant"
APART = "flowstone_apart"

SCOPE_GROUPS = (NAMESPACES, TENANTS, APART)
"""Groups whose members are the logins of scopes."""

POSTGRES_16 = 160000
"""From this server version on, membership has INHERIT and SET options of its own."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of a role: its keyword, the column of pg_roles, and whether work can go on without it."""

    keyword: str
    column: str
    wanted: bool
    needed: bool = True


NOLOGIN = Attribute("LOGIN", "rolcanlogin", wanted=False)

ROLES: dict[str, Sequence[Attribute]] = {
    OWNER: (NOLOGIN,),
    POOL: (NOLOGIN,),
    NAMESPACES: (NOLOGIN,),
    TENANTS: (NOLOGIN,),
    APART: (NOLOGIN,),
    OPERATOR: (
        Attribute("LOGIN", "rolcanlogin", wanted=True),
        Attribute("INHERIT", "rolinherit", wanted=False),
        Attribute("CREATEROLE", "rolcreaterole", wanted=True),
        Attribute("CREATEDB", "rolcreatedb", wanted=True, needed=False),
        Attribute("BYPASSRLS", "rolbypassrls", wanted=True, needed=False),
    ),
}
"""What `migrate` makes of each role; what the server does not give and is not needed is only logged."""


def ensure_roles(connection: Connection, log: FilteringBoundLogger) -> None:
    """Make the fixed roles and memberships; says nothing and writes nothing when all is as it should be.

    Args:
        connection: An autocommit connection of the installer.
        log: Told which attribute the server did not give.
    """
    for name, attributes in ROLES.items():
        _ensure_role(connection, name)
        for attribute in attributes:
            _ensure_attribute(connection, name, attribute, log)
    for group in (*SCOPE_GROUPS, POOL):  # of the pool for the proof's own login, which lives as long as the proof runs
        _ensure_admin(connection, group)
    if not _is_superuser(connection):
        _inherit_owner(connection)


def _ensure_role(connection: Connection, name: str) -> None:
    if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone():
        return
    with suppress(pg.DuplicateObject, pg.UniqueViolation):  # another replica's init container was faster
        connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(name)))


def _ensure_attribute(connection: Connection, name: str, attribute: Attribute, log: FilteringBoundLogger) -> None:
    query = sql.SQL("SELECT {} FROM pg_roles WHERE rolname = %s").format(sql.Identifier(attribute.column))
    if connection.execute(query, [name]).fetchone() == (attribute.wanted,):
        return
    keyword = sql.SQL(attribute.keyword if attribute.wanted else f"NO{attribute.keyword}")
    try:
        connection.execute(sql.SQL("ALTER ROLE {} {}").format(sql.Identifier(name), keyword))
    except pg.InsufficientPrivilege as error:
        if attribute.needed:
            raise
        log.warning("role-attribute-not-given", role=name, attribute=attribute.keyword, server=str(error).strip())


def _ensure_admin(connection: Connection, group: str) -> None:
    """Let the operator put logins into a group, without inheriting what the group may do."""
    query = """
        SELECT 1 FROM pg_auth_members
        WHERE roleid = %s::regrole AND member = %s::regrole AND admin_option
    """
    if connection.execute(query, [group, OPERATOR]).fetchone():
        return
    options = "WITH ADMIN OPTION"
    if connection.info.server_version >= POSTGRES_16:
        options = "WITH ADMIN TRUE, INHERIT FALSE, SET FALSE"
    grant = sql.SQL("GRANT {} TO {} {}").format(sql.Identifier(group), sql.Identifier(OPERATOR), sql.SQL(options))
    connection.execute(grant)


def _is_superuser(connection: Connection) -> bool:
    row = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
    return row == (True,)


def _inherit_owner(connection: Connection) -> None:
    """Make the installer a member of the owner: who is no superuser may then still own and change its objects."""
    row = connection.execute("SELECT pg_has_role(current_user, %s, 'USAGE')", [OWNER]).fetchone()
    if row == (True,):
        return
    options = "WITH INHERIT TRUE, SET TRUE" if connection.info.server_version >= POSTGRES_16 else ""
    grant = sql.SQL("GRANT {} TO CURRENT_USER {}").format(sql.Identifier(OWNER), sql.SQL(options))
    connection.execute(grant)


def bypasses_row_security(connection: Connection) -> bool:
    """Whether the connected role may COPY into tables under row level security."""
    query = "SELECT rolsuper OR rolbypassrls FROM pg_catalog.pg_roles WHERE rolname = current_user"
    return connection.execute(query).fetchone() == (True,)
