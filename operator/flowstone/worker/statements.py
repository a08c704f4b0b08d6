"""The SQL with which a worker reports; each statement names the row's whole key and its fence.

`clock_timestamp()` and not `now()`: the transaction began before the user's function ran.
"""

from __future__ import annotations

from dataclasses import dataclass

MARK_REPORTING = "UPDATE flowstone.batch SET reporting = true WHERE fence = %(fence)s AND state = 'open' RETURNING 1"

RUNNING = """
SELECT partition, attempts FROM flowstone.materialization
WHERE fence = %(fence)s AND backfill = %(backfill)s AND scope = %(scope)s AND asset = %(asset)s AND state = 'running'
"""

_ROW = """
scope = %(scope)s AND asset = %(asset)s AND partition = %(partition)s AND backfill = %(backfill)s
AND fence = %(fence)s
"""

BEGIN = f"""
SELECT pg_current_xact_id()::text,
       EXISTS (SELECT FROM flowstone.materialization WHERE {_ROW} AND state = 'running')
"""  # noqa: S608  # only the constant above is put in

SUCCEED = f"""
UPDATE flowstone.materialization SET state = 'succeeded', finished_at = clock_timestamp(), error = NULL
WHERE {_ROW} AND state = 'running' AND pg_current_xact_id_if_assigned()::text = %(transaction)s
RETURNING 1
"""  # noqa: S608

SUCCEED_AFTERWARDS = f"""
UPDATE flowstone.materialization SET state = 'succeeded', finished_at = clock_timestamp(), error = NULL
WHERE {_ROW} AND state = 'running' RETURNING 1
"""  # noqa: S608

FAIL = f"""
UPDATE flowstone.materialization SET state = 'failed', finished_at = clock_timestamp(), error = %(error)s
WHERE {_ROW} AND state = 'running' RETURNING 1
"""  # noqa: S608

FAIL_ALL = """
UPDATE flowstone.materialization SET state = 'failed', finished_at = clock_timestamp(), error = %(error)s
WHERE fence = %(fence)s AND backfill = %(backfill)s AND scope = %(scope)s AND asset = %(asset)s AND state = 'running'
"""

FIND = f"SELECT state FROM flowstone.materialization WHERE {_ROW}"  # noqa: S608

SAME_TRANSACTION = "SELECT pg_current_xact_id_if_assigned()::text = %(transaction)s"


@dataclass(frozen=True, slots=True)
class RowKey:
    """Which row of the ledger one partition of a batch is."""

    scope: str
    asset: str
    partition: str
    backfill: str
    fence: int


def commit_sql(row: RowKey) -> str:
    """Return one statement that records success and aborts the transaction when the partition was handed on.

    It is a complete text without parameters, for any program in any language. Texts are written in hexadecimal, so
    that no key can end a literal, and no driver takes a `%`, `:`, `?` or `$` in one for a parameter of its own.
    """
    return (  # literals are hexadecimal and the fence is an integer
        "DO $flowstone$ BEGIN "  # noqa: S608
        "UPDATE flowstone.materialization "
        "SET state = 'succeeded', finished_at = pg_catalog.clock_timestamp(), error = NULL "
        f"WHERE scope = {_literal(row.scope)} AND asset = {_literal(row.asset)} "
        f"AND partition = {_literal(row.partition)} "
        f"AND backfill = CAST({_literal(row.backfill)} AS pg_catalog.uuid) "
        f"AND fence = {row.fence:d} AND state = 'running'; "
        "IF NOT FOUND THEN RAISE EXCEPTION 'flowstone: this partition was handed to another worker, or is already "
        "recorded; nothing of this transaction is kept'; END IF; "
        "END $flowstone$"
    )


def _literal(text: str) -> str:
    return f"pg_catalog.convert_from(pg_catalog.decode('{text.encode().hex()}', 'hex'), 'UTF8')"
