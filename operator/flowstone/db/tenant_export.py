"""Writes all of a tenant's rows into one file, from which `tenant_restore` brings them back.

The file is a zip archive: `manifest.json` says whose rows these are and describes each table, and each table's rows lie
in a member of its own as COPY wrote them. It appears under its name only when it is whole and on the disk; its digest
is that of the file as it is read back.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from psycopg import errors as pg
from psycopg import sql

from flowstone.db.connection import LONG_SECONDS, Transaction
from flowstone.errors import ExportFailed, LedgerRefused

FORMAT = 1
"""Version of the archive; `tenant_restore` refuses others."""

MANIFEST = "manifest.json"

CHUNK_BYTES = 1 << 20

Kind = Literal["ledger", "tenant", "own"]

_COLUMNS = """
    SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull
    FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %(schema)s AND c.relname = %(table)s AND a.attnum > 0 AND NOT a.attisdropped
      AND a.attgenerated = '' ORDER BY a.attnum
"""


@dataclass(frozen=True, slots=True)
class Source:
    """Some rows of a table.

    Attributes:
        kind: `ledger`; `tenant` for a table with all tenants' rows; `own` for one that the tenant made.
        column: Says whose a row is; empty for the tenant's own table.
        value: What it says for this tenant.
        owner: Who the tenant's own table belongs to: it is read with that role's rights, and none of ours.
    """

    kind: Kind
    schema: str
    table: str
    column: str = ""
    value: str = ""
    owner: str = ""


class Archive:
    """An archive that is being written."""

    def __init__(self, target: zipfile.ZipFile, about: Mapping[str, Any]) -> None:
        self._zip = target
        self._about = about
        self._tables: list[dict[str, Any]] = []

    def add(self, tx: Transaction, source: Source) -> None:
        """Append the rows of a table, in constant memory.

        Raises:
            LedgerRefused: Row security hides rows even from the table's owner.
        """
        columns = tx.rows(_COLUMNS, {"schema": source.schema, "table": source.table})
        member = f"data/{len(self._tables):04}.copy"
        digest, rows = hashlib.sha256(), 0
        with self._zip.open(member, "w", force_zip64=True) as out:
            for part in _copied(tx, source, [name for name, _, _ in columns]):
                digest.update(part)
                rows += bytes(part).count(b"\n")  # COPY writes a line per row, and breaks within values as \n
                out.write(part)
        described = [{"name": name, "type": kind, "required": required} for name, kind, required in columns]
        names = {"kind": source.kind, "schema": source.schema, "table": source.table, "column": source.column}
        self._tables.append(
            {**names, "columns": described, "rows": rows, "member": member, "sha256": digest.hexdigest()}
        )

    def close(self) -> None:
        """Write the manifest."""
        self._zip.writestr(MANIFEST, json.dumps({"format": FORMAT, **self._about, "tables": self._tables}, indent=1))


@contextmanager
def archive(folder: Path, name: str, about: Mapping[str, Any]) -> Iterator[Archive]:
    """Yield an archive to fill; it is at `folder/name` when the block has ended without an error.

    Raises:
        ExportFailed: It cannot be written there.
    """
    fresh = folder / f".{name}.partial"
    try:
        with os.fdopen(os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
                made = Archive(target, about)
                yield made
                made.close()
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, folder / name)
    except OSError as error:
        raise ExportFailed(f"exports in {folder}: {error.strerror or error}: make it a writable folder") from error


def digest_of(file: Path) -> str:
    """Return SHA-256 of a file, in hexadecimal.

    Raises:
        ExportFailed: It cannot be read.
    """
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise ExportFailed(f"{file}: {error.strerror or error}: put the export back, or export again") from error


def _copied(tx: Transaction, source: Source, columns: list[str]) -> Iterator[bytes | bytearray | memoryview[int]]:
    """Yield what COPY writes; rows in it may take their time as long as they come."""
    tx.run("SELECT set_config('statement_timeout', '0', true)")
    table, names = sql.Identifier(source.schema, source.table), sql.SQL(", ").join(map(sql.Identifier, columns))
    listed = sql.SQL("({})").format(names) if columns else sql.SQL("")
    query = sql.SQL("COPY {} {} TO STDOUT").format(table, listed)
    if source.column:
        value = sql.Literal(source.value)
        select = sql.SQL("COPY (SELECT {} FROM {} WHERE {} = {}) TO STDOUT")
        query = select.format(names, table, sql.Identifier(source.column), value)
    try:
        with as_owner(tx, source.schema, source.table, source.owner), tx.connection.cursor().copy(query) as copy:
            for part in copy:
                tx.extend(LONG_SECONDS)
                yield part
    except pg.InsufficientPrivilege as error:
        raise LedgerRefused(f"table {source.schema}.{source.table}: its rows are hidden from the operator") from error


@contextmanager
def as_owner(tx: Transaction, schema: str, table: str, owner: str) -> Iterator[None]:
    """Read a tenant's own table as its owner, whatever he has shut it against; afterwards it is as it was.

    A policy that would be applied even so ends in an error: no function of the tenant's runs here.

    Args:
        owner: Empty for a table that is read with the operator's own rights.
    """
    if not owner:
        yield
        return
    role, name = sql.Identifier(owner), sql.Identifier(schema, table)
    with tx.connection.transaction(force_rollback=True):
        tx.connection.execute(sql.SQL("SET LOCAL ROLE {}").format(role))
        tx.run("SELECT set_config('row_security', 'off', true)")
        tx.connection.execute(sql.SQL("ALTER TABLE {} NO FORCE ROW LEVEL SECURITY").format(name))
        tx.connection.execute(sql.SQL("GRANT SELECT ON {} TO {}").format(name, role))
        yield
