"""The differential: what a tenant's login sees is what the explicit predicate says, and the tenants together are all.

The same question is put twice, to row level security and to a WHERE clause, and the answers are compared. Each table
with tenants' rows is also tried from a canary's login: no foreign row may be seen, and none may be made. What is tried
there is rolled back, and no canary leaves a row in a table that is not the ledger's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import psycopg
from psycopg import errors as pg
from psycopg import sql

from flowstone.db.canaries import Cage, Canary
from flowstone.db.connection import LONG_SECONDS, Connection, Database, translated
from flowstone.tenant.linter import COMMON
from flowstone.tenant.proof import Finding

COUNTED_BYTES = 32 * 2**20
"""Tables larger than this are not counted whole, so that a proof does not read them all."""

_TABLES = f"""
    {COMMON}
    SELECT t.nspname, t.relname, 'tenant_id',
           (SELECT coalesce(sum(pg_relation_size(p.relid)), 0) FROM pg_partition_tree(t.oid) p) <= {COUNTED_BYTES},
           t.relkind = 'p', has_table_privilege(t.oid, 'SELECT')
               AND has_schema_privilege(t.nspname::text, 'USAGE')
    FROM tenant_table t WHERE t.tenant IS NOT NULL AND NOT t.child ORDER BY 1, 2
"""  # noqa: S608 - put together from constants

_LEDGER = (("flowstone", "materialization"), ("flowstone", "batch"))


@dataclass(frozen=True, slots=True)
class Table:
    """A table to compare.

    Attributes:
        column: By which its rows are a tenant's: `tenant_id`, or `scope` in the ledger.
        small: It may be counted whole.
        readable: The operator may read it.
    """

    schema: str
    name: str
    column: str
    small: bool
    partitioned: bool
    readable: bool

    @property
    def label(self) -> str:
        """Its name for people."""
        return f"{self.schema}.{self.name}"

    @property
    def names(self) -> Mapping[str, sql.Composable]:
        """What stands for it in a statement."""
        return {"table": sql.Identifier(self.schema, self.name), "column": sql.Identifier(self.column)}


def compare(database: Database, cage: Cage) -> tuple[int, list[Finding]]:
    """Compare all tables with tenants' rows; returns the number of comparisons and what differs.

    Raises:
        LedgerUnavailable: Postgres went away.
    """
    with database.transaction() as tx:
        rows = tx.rows(_TABLES)
    tables = [Table(*row) for row in rows]
    tables += [Table(schema, name, "scope", small=False, partitioned=False, readable=True) for schema, name in _LEDGER]
    found: list[Finding] = []
    made = 0
    for answer in _answers(database, cage, tables):
        made += 1
        found += answer
    return made, found


Answer = Sequence[Finding]


def _answers(database: Database, cage: Cage, tables: Sequence[Table]) -> Iterator[Answer]:
    for canary in (cage.attacker, cage.victim):
        with translated(), closing(psycopg.connect(canary.conninfo, autocommit=True)) as connection:
            connection.execute("SET statement_timeout = '8s'; SET lock_timeout = '2s'")
            for table in tables:
                yield _seen(database, connection, table, canary)
                if table.column == "tenant_id" and not table.partitioned:  # there the routing of rows answers first
                    yield _made(connection, table, cage)
    for table in tables:
        if table.small and table.readable:
            yield _summed(database, table)


def _seen(database: Database, connection: Connection, table: Table, canary: Canary) -> Answer:
    """Compare a login's rows with those of the explicit predicate."""
    whose = canary.tenant_id if table.column == "tenant_id" else canary.scope
    whole = sql.SQL(
        "SELECT count(*) FILTER (WHERE mine), count(*) FILTER (WHERE NOT mine) FROM "
        "(SELECT {column} IS NOT DISTINCT FROM %s AS mine FROM {table} LIMIT 100000) t"
    ).format(**table.names)
    try:
        seen = connection.execute(whole, [whose]).fetchone()
    except pg.InsufficientPrivilege:
        return []  # a table that tenants may not read
    own, foreign = seen or (0, 0)
    if foreign:
        return [_finding(table, "a tenant's login sees rows of others")]
    wanted = _explicit(database, table, whose) if table.readable else own
    if own != wanted:
        return [_finding(table, f"a tenant's login sees {own} rows, the explicit predicate {wanted}")]
    return []


def _explicit(database: Database, table: Table, whose: str) -> int:
    query = sql.SQL("SELECT count(*) FROM {table} WHERE {column} = %s").format(**table.names)
    with database.transaction() as tx:
        row = tx.connection.execute(query, [whose]).fetchone()
        return int(row[0]) if row else 0


def _made(connection: Connection, table: Table, cage: Cage) -> Answer:
    """Try to make a row for somebody else; row security answers before any constraint does."""
    stranger = cage.victim.tenant_id if connection.info.user == cage.attacker.role_name else cage.attacker.tenant_id
    insert = sql.SQL("INSERT INTO {table} ({column}) VALUES (%s)").format(**table.names)
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(insert, [stranger])
    except (pg.InsufficientPrivilege, pg.RaiseException):
        return []
    except (pg.LockNotAvailable, pg.QueryCanceled):
        raise  # somebody locks the table, which says nothing of its policies
    except pg.Error as error:
        return [_finding(table, f"a tenant's login may write for another tenant (stopped only by {error.sqlstate})")]
    return [_finding(table, "a tenant's login writes rows for another tenant")]


def _summed(database: Database, table: Table) -> Answer:
    """Compare the sum over all tenants with the whole."""
    query = sql.SQL(
        "SELECT (SELECT count(*) FROM {table}), (SELECT coalesce(sum(n), 0) FROM "
        "(SELECT (SELECT count(*) FROM {table} o WHERE o.{column} = t.{column}) AS n "
        "FROM (SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL) t) s)"
    ).format(**table.names)
    with database.transaction(LONG_SECONDS) as tx:
        row = tx.connection.execute(query).fetchone()
    if row is None or row[0] == row[1]:
        return []
    return [_finding(table, f"{row[0]} rows in all, {row[1]} over all tenants")]


def _finding(table: Table, detail: str) -> Finding:
    remedy = "compare its policies with op.tenant_table's, and REINDEX it"
    return Finding("difference", "rows differ from the predicate", f"{table.label}: {detail}", remedy)
