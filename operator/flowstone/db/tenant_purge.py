"""Deletes a tenant's rows for good; before, it writes them into a file, or digests them where there is no place for it.

What belongs to a tenant is found in the catalogue: the ledger's tables by scope, every table whose policies are a
tenant table's by `tenant_id`, and the tenant's own schema or database.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from psycopg import errors as pg
from psycopg import sql

from flowstone.db.connection import LONG_SECONDS, Database, Transaction
from flowstone.db.logins import Logins
from flowstone.db.own_databases import OwnDatabases
from flowstone.db.role_drop import drop_role, let_go
from flowstone.db.tenant_export import Source, archive, digest_of
from flowstone.errors import LedgerRefused
from flowstone.tenant.desired import APART, Desired
from flowstone.tenant.observed import Observed, Registration
from flowstone.tenant.own_database import Names
from flowstone.tenant.steps import Export, Purge

CHUNK = 10_000
"""Rows deleted in one transaction."""

LEDGER = ("attempt", "latest", "batch", "materialization", "backfill")
"""The ledger's tables with rows of a scope, in the order in which they are emptied."""

_TENANT_TABLES = """
    SELECT n.nspname, c.relname FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname <> 'flowstone' AND NOT n.nspname ^@ 'pg_'
      AND EXISTS (SELECT FROM pg_catalog.pg_policy p WHERE p.polrelid = c.oid AND p.polname = 'tenant_rows')
      AND NOT EXISTS (SELECT FROM flowstone.tenant t WHERE t.role_base = n.nspname)
      AND NOT EXISTS (SELECT FROM flowstone.login_scope s WHERE s.role_oid = c.relowner)
    ORDER BY 1, 2
"""
"""In a schema of its own, or a temporary one, a tenant can make a table that looks like one; its triggers, policies and
casts would run as us."""


_SCHEMA_TABLES = """
    SELECT c.relname, pg_catalog.pg_get_userbyid(c.relowner)::text FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %(base)s AND c.relkind = 'r' ORDER BY 1
"""
"""What a tenant made in a schema of its own."""

_SOME_RELATIONS = """
    SELECT CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
        WHEN 'c' THEN 'TYPE' ELSE 'TABLE' END, c.relname
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %(schema)s AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'c')
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                      WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'i')
    LIMIT 200
"""
"""What stands on its own: an identity column's sequence goes with its table."""

Rows = tuple[sql.Identifier, sql.Identifier, sql.Literal]
"""A table, and the column and value that say which of its rows."""


class TenantPurge:
    """Exports and purges tenants of one cluster.

    Args:
        database: The ledger's, as in `ledger.database`.
        exports: Folder for the files with tenants' rows; without one their rows are only digested.
    """

    def __init__(
        self,
        database: Database,
        logins: Logins,
        databases: OwnDatabases,
        cluster: str,
        exports: Path | None = None,
    ) -> None:
        self._database = database
        self._logins = logins
        self._databases = databases
        self._cluster = cluster
        self._exports = exports

    def apply(self, change: Export | Purge, desired: Desired, observed: Observed) -> None:
        """Export, or digest where there is no place for exports; or delete.

        Raises:
            ExportFailed: The file cannot be written.
            LedgerRefused: The operator may not delete from a table; the message names it.
        """
        if isinstance(change, Export):
            row = observed.registration
            text = self._digest(desired, row) if self._exports is None else self._stored(desired, row, self._exports)
            with self._database.transaction() as tx:
                values = {"digest": text, "until": change.retain_until}
                self._note(tx, desired, "export_digest = %(digest)s, retain_until = %(until)s", values)
        else:
            self._purge(desired, observed)

    def _stored(self, desired: Desired, row: Registration | None, folder: Path) -> str:
        """Write all rows into a file; what a tenant can change no more may take its time."""
        base = row.role_base if row is not None and row.role_base else "none"
        name = f"{desired.tenant_id}-{base}.zip"
        about = {
            "cluster": self._cluster,
            "tenant": desired.tenant_id,
            "isolation": row.isolation if row is not None else desired.isolation,
            "schema": base,
            "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        own = _own_database(row)
        with archive(folder, name, about) as made:
            with self._database.transaction(LONG_SECONDS) as tx:
                tx.run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                for source in self._sources(tx, desired, base):
                    made.add(tx, source)
            if own is not None:
                self._databases.export(own, made.add)
        return f"{name}:{digest_of(folder / name)}"

    def _sources(self, tx: Transaction, desired: Desired, base: str) -> Iterator[Source]:
        for name in LEDGER:
            yield Source("ledger", "flowstone", name, "scope", desired.scope)
        for schema, name in tx.rows(_TENANT_TABLES):
            yield Source("tenant", schema, name, "tenant_id", desired.tenant_id)
        for name, owner in tx.rows(_SCHEMA_TABLES, {"base": base}):
            yield Source("own", base, name, owner=owner)

    def _digest(self, desired: Desired, row: Registration | None) -> str:
        """Digest all rows, as evidence of what is deleted."""
        own = _own_database(row)
        digest = hashlib.sha256((self._databases.digest(own) if own else "").encode())
        with self._database.transaction(LONG_SECONDS) as tx:
            tx.allow(LONG_SECONDS)
            for table, column, value in self._tables(tx, desired):
                digest.update(f"{table.as_string()}\n".encode())
                query = sql.SQL("COPY (SELECT t::text FROM {} t WHERE {} = {} ORDER BY 1) TO STDOUT")
                with tx.connection.cursor().copy(query.format(table, column, value)) as copy:
                    for part in copy:
                        digest.update(part)
        return digest.hexdigest()

    def _purge(self, desired: Desired, observed: Observed) -> None:
        row = observed.registration
        if row is None or row.state != "suspended":
            raise LedgerRefused("tenant: only a suspended one is purged")
        with self._database.transaction() as tx:
            tables = list(self._tables(tx, desired))
        for table, column, value in tables:
            self._empty(table, column, value)
        if row.role_base and observed.schema_exists:
            self._drop_schema(row.role_base)
        own = _own_database(row)
        if own:
            self._databases.drop(own)
        for login in observed.logins.values():
            if login.exists and login.mapped:
                self._drop(login.role_name)
        with self._database.transaction() as tx:
            self._note(tx, desired, "state = 'purged', purged_at = clock_timestamp(), active_slot = NULL", {})

    def _drop_schema(self, schema: str) -> None:
        """Drop a tenant's own schema, some relations at a time: each takes a lock, and the server has few of them."""
        name = {"schema": schema}
        while True:
            with self._database.transaction(LONG_SECONDS) as tx:
                tx.allow(LONG_SECONDS)
                found = tx.rows(_SOME_RELATIONS, name)
                if not found:
                    tx.connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
                    return
                for kind, relation in found:
                    drop = sql.SQL("DROP {} IF EXISTS {} CASCADE").format(
                        sql.SQL(kind), sql.Identifier(schema, relation)
                    )
                    tx.connection.execute(drop)

    def _drop(self, role_name: str) -> None:
        """Drop a login; one that other tenants gave rights on their own tables stays as a name that leads nowhere."""
        try:
            self._logins.drop(role_name)
        except LedgerRefused as error:
            if not isinstance(error.__cause__, pg.DependentObjectsStillExist | pg.InsufficientPrivilege):
                raise
            with self._database.transaction() as tx:
                tx.run("DELETE FROM flowstone.login_scope WHERE role_name = %(name)s", {"name": role_name})
                let_go(tx.connection, role_name)
                drop_role(tx.connection, role_name)

    def _empty(self, table: sql.Identifier, column: sql.Identifier, value: sql.Literal) -> None:
        """Delete the rows whose column has a value, some at a time."""
        text = "DELETE FROM {0} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {0} WHERE {1} = {2} LIMIT {3}))"
        query = sql.SQL(text).format(table, column, value, sql.Literal(CHUNK))
        while True:
            with self._database.transaction(LONG_SECONDS) as tx:
                tx.allow(LONG_SECONDS)
                if not tx.connection.execute(query).rowcount:
                    return

    def _tables(self, tx: Transaction, desired: Desired) -> Iterator[Rows]:
        for name in LEDGER:
            yield sql.Identifier("flowstone", name), sql.Identifier("scope"), sql.Literal(desired.scope)
        for schema, name in tx.rows(_TENANT_TABLES):
            yield sql.Identifier(schema, name), sql.Identifier("tenant_id"), sql.Literal(desired.tenant_id)

    def _note(self, tx: Transaction, desired: Desired, assignments: str, values: Mapping[str, object]) -> None:
        query = f"UPDATE flowstone.tenant SET {assignments} WHERE cluster = %(cluster)s AND tenant_id = %(tenant)s"  # noqa: S608 - constants
        tx.run(query, {"cluster": self._cluster, "tenant": desired.tenant_id, **values})


def _own_database(row: Registration | None) -> Names | None:
    """Return the names of the tenant's own database, if it has one; nobody is to be let in any more."""
    return Names(row.role_base, ()) if row is not None and row.isolation == APART and row.role_base else None
