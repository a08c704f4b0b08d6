"""How history ends: the rows of backfills that finished long ago go, in chunks, each a transaction of its own.

`latest` is never touched, so what is Missing stays the same. A backfill whose resource is still there keeps its row,
and in it the counts as they were: it stays finished, and its status stays true. Where the resource is gone too, the
row goes last.
"""

from __future__ import annotations

from dataclasses import asdict

from psycopg.types.json import Jsonb

from flowstone.db import reading
from flowstone.db.connection import Transaction

CHUNK_ROWS = 5_000
"""Rows that one transaction takes away, at most."""

# SKIP LOCKED: what another replica prunes, retries or plans right now is left to it.
_NEXT = """
    SELECT uid::text, pruned_counts IS NOT NULL, closed_at IS NOT NULL FROM flowstone.backfill
    WHERE cluster = %(cluster)s AND finished_at < now() - make_interval(days => %(days)s)
      AND (pruned_at IS NULL OR closed_at IS NOT NULL)
    ORDER BY finished_at LIMIT 1 FOR UPDATE SKIP LOCKED
"""

_KEEP_COUNTS = "UPDATE flowstone.backfill SET pruned_counts = %(counts)s WHERE uid = %(uid)s"

_DELETE = """
    DELETE FROM flowstone.{table}
    WHERE ctid = ANY(ARRAY(SELECT ctid FROM flowstone.{table} WHERE backfill = %(uid)s LIMIT %(rows)s))
"""

_DELETES = tuple(_DELETE.format(table=table) for table in ("attempt", "materialization", "batch"))

_DONE = "UPDATE flowstone.backfill SET pruned_at = now() WHERE uid = %(uid)s"

_FORGET = "DELETE FROM flowstone.backfill WHERE uid = %(uid)s"


def prune(tx: Transaction, cluster: str, days: int, rows: int) -> bool:
    """Take away one chunk of what finished longest ago; False when there is nothing left to take."""
    found = tx.row(_NEXT, {"cluster": cluster, "days": days})
    if found is None:
        return False
    uid, begun, closed = found
    if not begun:
        tx.run(_KEEP_COUNTS, {"uid": uid, "counts": Jsonb(asdict(reading.counts(tx, uid)))})
    left = rows
    for delete in _DELETES:
        left -= tx.run(delete, {"uid": uid, "rows": left})
    if left > 0:
        tx.run(_FORGET if closed else _DONE, {"uid": uid})
    return True
