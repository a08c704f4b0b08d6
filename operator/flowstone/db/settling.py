"""How outcomes become history: changes to rows under one fence, the batch closed when nothing of it is left.

A change is void when the row no longer carries the fence or is no longer in the state it was decided on: a worker
may report while the operator decides. Rows and batches that a scope's login could have locked are taken with
NOWAIT: the operator never waits for a tenant.
"""

from __future__ import annotations

from collections.abc import Sequence

from flowstone.backfill.records import RowChange
from flowstone.db import registry
from flowstone.db.connection import Transaction
from flowstone.db.models import ERROR_BYTES
from flowstone.errors import LedgerBusy

ORPHANED = "Orphaned"
"""Outcome of a batch whose backfill is gone."""

CHUNK_ROWS = 50_000
"""Queued rows that one transaction ends, at most: about a second, so that nobody waits for the lock in vain."""

_LOCK_BATCH = "SELECT state FROM flowstone.batch WHERE fence = %(fence)s FOR UPDATE NOWAIT"

_LOCK_ROWS = """
    SELECT 1 FROM flowstone.materialization
    WHERE fence = %(fence)s AND partition = ANY(%(partitions)s)
    ORDER BY ordinal FOR UPDATE NOWAIT
"""

_CHANGE = """
    WITH change AS (
        SELECT * FROM unnest(
            %(partitions)s::text[], %(expected)s::text[], %(states)s::text[], %(reasons)s::text[],
            %(attempts)s::int[], %(not_before)s::timestamptz[], %(errors)s::text[], %(charged)s::bool[]
        ) AS c (partition, expected, state, reason, attempts, not_before, error, charged)
    ), changed AS (
        UPDATE flowstone.materialization AS m
        SET state = c.state, reason = c.reason, attempts = c.attempts, not_before = c.not_before, error = c.error,
            fence = CASE WHEN c.state = 'queued' THEN NULL ELSE m.fence END,
            started_at = CASE WHEN c.state = 'queued' THEN NULL ELSE m.started_at END,
            finished_at = CASE WHEN c.state = 'queued' THEN NULL ELSE coalesce(m.finished_at, clock_timestamp()) END
        FROM change AS c
        WHERE m.fence = %(fence)s AND m.partition = c.partition AND m.state = c.expected
          AND (m.state <> 'failed' OR m.reason IS NULL)
        RETURNING m.scope, m.asset, m.partition, m.backfill, c.attempts, c.error, c.charged
    )
    INSERT INTO flowstone.attempt (scope, asset, partition, backfill, fence, attempt, error)
    SELECT scope, asset, partition, backfill, %(fence)s, attempts, error FROM changed WHERE charged
"""

_LEFT = """
    SELECT EXISTS (
        SELECT FROM flowstone.materialization
        WHERE fence = %(fence)s AND (state = 'running' OR (state = 'failed' AND reason IS NULL))
    )
"""

_CLOSE = """
    UPDATE flowstone.batch SET state = 'closed', closed_at = clock_timestamp(), outcome = %(outcome)s
    WHERE fence = %(fence)s AND state = 'open'
"""

_RECORD_JOB = """
    UPDATE flowstone.batch SET job_name = %(name)s, job_uid = %(uid)s
    WHERE fence = (SELECT fence FROM flowstone.batch WHERE fence = %(fence)s AND state = 'open' FOR UPDATE NOWAIT)
"""

# A queued row is changed under the backfill's lock alone, so a place that was read stays right until it is used.
_END_QUEUED = """
    UPDATE flowstone.materialization SET state = %(state)s, reason = %(reason)s, not_before = NULL
    WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM flowstone.materialization
        WHERE backfill = %(uid)s AND state = 'queued' AND (%(scope)s::text IS NULL OR scope = %(scope)s) LIMIT %(rows)s
    ))
"""

_LOCK_ORPHANS = """
    SELECT 1 FROM flowstone.materialization
    WHERE backfill = %(uid)s AND (state = 'running' OR (state = 'failed' AND reason IS NULL))
    ORDER BY ordinal FOR UPDATE NOWAIT
"""

_CANCEL_RUNNING = """
    UPDATE flowstone.materialization SET state = 'cancelled', reason = %(reason)s, finished_at = clock_timestamp()
    WHERE backfill = %(uid)s AND (state = 'running' OR (state = 'failed' AND reason IS NULL))
"""

_LOCK_BATCHES = """
    SELECT 1 FROM flowstone.batch WHERE backfill = %(uid)s AND state = 'open' ORDER BY fence FOR UPDATE NOWAIT
"""

_CLOSE_BATCHES = """
    UPDATE flowstone.batch SET state = 'closed', closed_at = clock_timestamp(), outcome = %(reason)s
    WHERE backfill = %(uid)s AND state = 'open'
"""


def record_job(tx: Transaction, fence: int, job_name: str, job_uid: str) -> None:
    """Note which Job works off an open batch."""
    tx.run(_RECORD_JOB, {"fence": fence, "name": job_name, "uid": job_uid})


def settle(tx: Transaction, fence: int, changes: Sequence[RowChange], close: str | None) -> None:
    """Apply changes to the rows of a batch, and close it; see `Ledger.settle`."""
    if changes:
        tx.plan_without("nestloop")
        tx.rows(_LOCK_ROWS, {"fence": fence, "partitions": [change.partition for change in changes]})
        tx.run(_CHANGE, {"fence": fence, **_columns(changes)})
    if close is not None:
        _close(tx, fence, close)


def _close(tx: Transaction, fence: int, outcome: str) -> None:
    tx.row(_LOCK_BATCH, {"fence": fence})
    if tx.row(_LEFT, {"fence": fence}) == (True,):
        raise LedgerBusy(f"batch {fence} cannot be closed: some of its rows are not settled: read them again")
    tx.run(_CLOSE, {"fence": fence, "outcome": outcome})


def _columns(changes: Sequence[RowChange]) -> dict[str, list[object]]:
    return {
        "partitions": [change.partition for change in changes],
        "expected": [change.expected for change in changes],
        "states": [change.state for change in changes],
        "reasons": [change.reason for change in changes],
        "attempts": [change.attempts for change in changes],
        "not_before": [change.not_before for change in changes],
        "errors": [shortened(change.error) for change in changes],
        "charged": [change.charged for change in changes],
    }


def shortened(error: str | None) -> str | None:
    """An error that the ledger takes: at most ERROR_BYTES, and without the character Postgres has no place for."""
    if error is None:
        return None
    return error.replace("\0", "").encode("utf-8", "replace")[:ERROR_BYTES].decode("utf-8", "ignore")


def cancel(tx: Transaction, uid: str, rows: int, reason: str | None = None) -> int:
    """Cancel some of what is queued; what is running comes to its own end."""
    registry.lock(tx, uid)
    return tx.run(_END_QUEUED, {"uid": uid, "state": "cancelled", "reason": reason, "scope": None, "rows": rows})


def skip(tx: Transaction, uid: str, scope: str, reason: str, rows: int) -> int:
    """Skip some of what is queued of one scope."""
    registry.lock(tx, uid)
    return tx.run(_END_QUEUED, {"uid": uid, "state": "skipped", "reason": reason, "scope": scope, "rows": rows})


def close_orphan(tx: Transaction, uid: str) -> None:
    """End what runs of a backfill whose resource is gone, once nothing of it is queued; its history stays."""
    cancel(tx, uid, CHUNK_ROWS, ORPHANED)
    names = {"uid": uid, "reason": ORPHANED}
    tx.rows(_LOCK_ORPHANS, names)
    tx.run(_CANCEL_RUNNING, names)
    tx.rows(_LOCK_BATCHES, names)
    tx.run(_CLOSE_BATCHES, names)
    tx.run(
        "UPDATE flowstone.backfill SET closed_at = now(), finished_at = coalesce(finished_at, now())"
        " WHERE uid = %(uid)s AND closed_at IS NULL",
        names,
    )
