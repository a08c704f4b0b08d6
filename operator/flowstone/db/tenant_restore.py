"""Brings the rows of a tenant's export back, under a tenant that is registered now; as a superuser, all or nothing.

The new tenant may have another id, and must after a purge: the old one is never free again. Its rows and what it has
materialized come back; the history of its backfills stays in the file. Tables of its own come back with their columns
and rows; indexes, constraints, views and functions are not in an export.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from flowstone.db.connection import Connection, translated, wired
from flowstone.db.tenant_export import CHUNK_BYTES, FORMAT, MANIFEST
from flowstone.errors import ExportFailed, LedgerRefused, TenantUnknown
from flowstone.tenant.desired import APART

_TYPE = re.compile(r'[\w ,.()\[\]"]+')
"""What a type's name may be made of; it comes from a file."""

# Its checks would run in this session, where RESET ROLE gives a superuser's rights back. One that is not there yet
# could be made between this look and its use.
_FOREIGN_TYPES = """
    SELECT DISTINCT k.name, coalesce(r.rolname::text, 'nobody: it is not there')
    FROM unnest(%s::text[]) AS k (name) LEFT JOIN pg_catalog.pg_type t ON t.oid = pg_catalog.to_regtype(k.name)
    LEFT JOIN pg_catalog.pg_roles r ON r.oid = t.typowner WHERE r.rolsuper IS NOT TRUE ORDER BY 1
"""
"""Types that do not belong to a superuser."""

_TARGET = "SELECT scope, isolation, role_base, state FROM flowstone.tenant WHERE tenant_id = %s"

_FOUND = """
    SELECT a.attname::text, a.attidentity <> '' FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = pg_catalog.to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
"""


@dataclass(frozen=True, slots=True)
class Target:
    """The tenant that the rows come back under.

    Attributes:
        base: Name of its schema or database, and beginning of its logins' names.
    """

    tenant_id: str
    scope: str
    isolation: str
    base: str


@dataclass(frozen=True, slots=True)
class Restored:
    """What came back.

    Attributes:
        rows: By table.
        left: Tables whose rows stayed in the file: the history of backfills.
    """

    rows: Mapping[str, int]
    left: tuple[str, ...]


def restore(conninfo: str, file: Path, tenant_id: str) -> Restored:
    """Bring the rows in a file back.

    Args:
        conninfo: A superuser's connection string, to the ledger's database.
        file: What the operator wrote.
        tenant_id: A registered tenant's id.

    Raises:
        ExportFailed: The file is no export, or damaged; nothing is restored.
        TenantUnknown: There is no such tenant, or it was purged.
        LedgerRefused: No superuser; a table or column is missing; rows are there already. Nothing is restored.
    """
    with _opened(file) as archive, translated(), _session(conninfo) as connection:
        tables = _manifest(archive, file)
        target = _target(connection, tenant_id)
        own = [one for one in tables if one["kind"] == "own"]
        if own and target.isolation == "Shared":
            raise LedgerRefused(
                f"{file}: has tables of the tenant's own: register the tenant with isolation Schema or Database"
            )
        rows: dict[str, int] = {}
        with connection.transaction():
            _quiet(connection)
            for one in tables:
                if one["kind"] == "tenant" or (one["kind"], one["table"]) == ("ledger", "latest"):
                    rows[_label(one)] = _rows(connection, archive, one, target)
            if target.isolation == APART and own:
                with _session(make_conninfo(conninfo, dbname=target.base)) as inside, inside.transaction():
                    _quiet(inside)
                    rows |= _own(inside, archive, own, target)
            else:
                rows |= _own(connection, archive, own, target)
    return Restored(rows, tuple(_label(one) for one in tables if _label(one) not in rows and one["kind"] != "own"))


@contextmanager
def _session(conninfo: str) -> Iterator[Connection]:
    with psycopg.connect(wired(conninfo, "flowstone-restore"), autocommit=True) as connection:
        yield connection


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(file)
    except (OSError, zipfile.BadZipFile) as error:
        raise ExportFailed(f"{file}: no export of a tenant: {error}") from error
    with closing(archive):
        yield archive


def _manifest(archive: zipfile.ZipFile, file: Path) -> list[dict[str, Any]]:
    try:
        manifest = json.loads(archive.read(MANIFEST))
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ExportFailed(f"{file}: no export of a tenant: it has no manifest") from error
    if manifest.get("format") != FORMAT:
        raise ExportFailed(f"{file}: format {manifest.get('format')}: restore it with the version that wrote it")
    return list(manifest["tables"])


def _target(connection: Connection, tenant_id: str) -> Target:
    if connection.execute("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user").fetchone() != (
        True,
    ):
        raise LedgerRefused("restoring a tenant writes past row level security: connect as a superuser")
    row = connection.execute(_TARGET, [tenant_id]).fetchone()
    if row is None or row[3] == "purged":
        raise TenantUnknown(
            "no tenant of this id is registered, or it was purged: apply a Tenant with a new id, and restore under that"
        )
    return Target(tenant_id, str(row[0]), str(row[1]), str(row[2] or ""))


def _quiet(connection: Connection) -> None:
    """Let no trigger run: what they did when the rows were written is in the file too."""
    connection.execute("SET LOCAL session_replication_role = replica")
    connection.execute("SET LOCAL search_path = pg_catalog, pg_temp")


def _rows(connection: Connection, archive: zipfile.ZipFile, one: Mapping[str, Any], target: Target) -> int:
    """Insert the rows of a table of many tenants, as the new tenant's."""
    table, names = sql.Identifier(one["schema"], one["table"]), [str(column["name"]) for column in one["columns"]]
    found: dict[str, bool] = dict(connection.execute(_FOUND, [table.as_string()]).fetchall())
    missing = [name for name in names if name not in found]
    if missing:
        raise LedgerRefused(
            f"{_label(one)}: no column {', '.join(missing)}: bring the schema to what it was, or add it"
        )
    listed = sql.SQL(", ").join(map(sql.Identifier, names))
    stage = sql.SQL("CREATE TEMPORARY TABLE restored ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA")
    connection.execute(stage.format(listed, table))
    _copy(connection, archive, one, sql.SQL("COPY pg_temp.restored ({}) FROM STDIN").format(listed))
    whose = target.scope if one["column"] == "scope" else target.tenant_id
    given = sql.SQL(", ").join(sql.Literal(whose) if name == one["column"] else sql.Identifier(name) for name in names)
    insert = sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM pg_temp.restored")
    count = connection.execute(insert.format(table, listed, given)).rowcount
    connection.execute("DROP TABLE pg_temp.restored")
    for name in (name for name in names if found[name]):
        _advance(connection, table, name)
    return count


def _advance(connection: Connection, table: sql.Identifier, column: str) -> None:
    """Let an identity column go on after the greatest number that came back."""
    query = "SELECT pg_catalog.pg_get_serial_sequence(%s, %s)"
    [(sequence,)] = connection.execute(query, [table.as_string(), column]).fetchall()
    advance = sql.SQL("SELECT setval({0}, greatest((SELECT max({1}) FROM {2}), (SELECT last_value FROM {3})))")
    connection.execute(advance.format(sql.Literal(sequence), sql.Identifier(column), table, sql.SQL(str(sequence))))


def _own(
    connection: Connection, archive: zipfile.ZipFile, tables: Sequence[Mapping[str, Any]], target: Target
) -> dict[str, int]:
    """Make the tenant's own tables, as its own login: nothing of what it once wrote runs with a superuser's rights."""
    rows = {}
    for one in tables:
        schema = one["schema"] if target.isolation == APART else target.base
        if schema == "flowstone":  # the batches of a database of its own; the operator makes them anew
            continue
        table = sql.Identifier(schema, one["table"])
        connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(f"{target.base}_a")))
        if schema not in (target.base, "public"):
            connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
        columns = sql.SQL(", ").join(map(_column, one["columns"]))
        _refuse_foreign_types(connection, one)
        connection.execute(sql.SQL("CREATE TABLE {} ({})").format(table, columns))
        listed = sql.SQL(", ").join(sql.Identifier(column["name"]) for column in one["columns"])
        _copy(connection, archive, one, sql.SQL("COPY {} ({}) FROM STDIN").format(table, listed))
        connection.execute("RESET ROLE")
        rows[_label(one)] = int(one["rows"])
    return rows


def _refuse_foreign_types(connection: Connection, one: Mapping[str, Any]) -> None:
    kinds = [str(column["type"]) for column in one["columns"]]
    for kind, owner in connection.execute(_FOREIGN_TYPES, [kinds]).fetchall():
        raise LedgerRefused(
            f"{_label(one)}: type {kind} belongs to {owner}, and its checks would run with a superuser's rights: "
            "make it as a superuser, from what you know of it, or load this table by hand as the tenant's own login"
        )


def _column(column: Mapping[str, Any]) -> sql.Composable:
    kind = str(column["type"])
    if not _TYPE.fullmatch(kind):
        raise ExportFailed(f"type {kind}: no name of a type: the manifest was changed")
    required = " NOT NULL" if column["required"] else ""
    return sql.SQL("{} {}").format(sql.Identifier(column["name"]), sql.SQL(f"{kind}{required}"))


def _copy(connection: Connection, archive: zipfile.ZipFile, one: Mapping[str, Any], query: sql.Composed) -> None:
    digest = hashlib.sha256()
    try:
        with archive.open(one["member"]) as member, connection.cursor().copy(query) as copy:
            while part := member.read(CHUNK_BYTES):
                digest.update(part)
                copy.write(part)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ExportFailed(f"{_label(one)}: its rows are missing or damaged: {error}") from error
    if digest.hexdigest() != one["sha256"]:
        raise ExportFailed(f"{_label(one)}: its rows are not those that were exported: take another copy of the file")


def _label(one: Mapping[str, Any]) -> str:
    return f"{one['schema']}.{one['table']}"
