"""Drops a role that others may have put into the access lists and policies of their own objects.

Every role can read all role names, and grant a right on its own table to any of them, also in a database of its own.
Postgres then refuses to drop that role until whoever granted it takes it back. A tenant could so keep another one from
being deleted, or the proof from running. So a role that cannot be dropped for this reason stays as a name: it is in no
group, nobody logs in as it, and it is never given to anybody again.
"""

from __future__ import annotations

from psycopg import errors as pg
from psycopg import sql

from flowstone.db.connection import Connection

_OWNS = """
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_shdepend AS d JOIN pg_catalog.pg_roles AS r ON r.oid = d.refobjid
        WHERE d.refclassid = 'pg_catalog.pg_authid'::regclass AND r.rolname = %(name)s
          AND d.deptype = 'o' AND d.classid <> 'pg_catalog.pg_default_acl'::regclass
    )
"""
"""Whether anything that holds rows belongs to it, in whatever database."""

_GROUPS = """
    SELECT g.rolname::text FROM pg_catalog.pg_auth_members AS m
    JOIN pg_catalog.pg_roles AS r ON r.oid = m.member JOIN pg_catalog.pg_roles AS g ON g.oid = m.roleid
    WHERE r.rolname = %(name)s
"""

_EXISTS = "SELECT FROM pg_catalog.pg_roles WHERE rolname = %(name)s"


def drop_role(connection: Connection, role_name: str) -> bool:
    """Drop a role if it is there; returns False when it stays as a name, because others gave it rights on their own.

    Raises:
        psycopg.errors.DependentObjectsStillExist: Something belongs to it.
    """
    if connection.execute(_EXISTS, {"name": role_name}).fetchone() is None:
        return True
    try:
        with connection.transaction():
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role_name)))
        return True
    except pg.DependentObjectsStillExist:
        if connection.execute(_OWNS, {"name": role_name}).fetchone() == (True,):
            raise
    shut_role(connection, role_name)
    return False


def shut_role(connection: Connection, role_name: str) -> None:
    """Take everything from a role but its name."""
    name = sql.Identifier(role_name)
    connection.execute(sql.SQL("ALTER ROLE {} NOLOGIN PASSWORD NULL").format(name))
    for (group,) in connection.execute(_GROUPS, {"name": role_name}).fetchall():
        connection.execute(sql.SQL("REVOKE {} FROM {}").format(sql.Identifier(group), name))


def let_go(connection: Connection, role_name: str) -> None:
    """Take away what a role has left in this database, as far as nobody's rights for it stand in the way.

    DROP OWNED fails as a whole where somebody gave it a right on a column of his own.
    """
    try:
        with connection.transaction():
            connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role_name)))
            connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role_name)))
            connection.execute("RESET ROLE")
    except pg.InsufficientPrivilege:
        return
