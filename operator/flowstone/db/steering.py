"""What a person asks of a backfill once: to go on after its failure budget, or to try again what failed.

A token is honoured when it differs from the one honoured last, which stands in the backfill's row; both change in
one transaction under that row's lock, so a token is honoured exactly once by any number of replicas.
"""

from __future__ import annotations

from flowstone.backfill.records import BackfillRecord, CommonError, Orders
from flowstone.db import registry
from flowstone.db.connection import LONG_SECONDS, Transaction

COMPARED = 1000
"""The latest failures that are looked at for the most frequent error."""

_REQUEUE = """
    UPDATE flowstone.materialization
    SET state = 'queued', reason = NULL, fence = NULL, attempts = 0, not_before = NULL, error = NULL,
        started_at = NULL, finished_at = NULL
    WHERE backfill = %(uid)s AND state = 'failed' AND reason IS NOT NULL
"""

_RETRIED = """
    UPDATE flowstone.backfill
    SET retried = %(token)s, forgiven = 0, stopped = NULL,
        finished_at = CASE WHEN %(number)s > 0 THEN NULL ELSE finished_at END
    WHERE uid = %(uid)s
"""

_RESUMED = """
    UPDATE flowstone.backfill
    SET resumed = %(token)s, stopped = NULL, forgiven = (
        SELECT count(*) FROM flowstone.materialization
        WHERE backfill = %(uid)s AND state = 'failed' AND reason IS NOT NULL
    )
    WHERE uid = %(uid)s
"""

# No wait is ever longer than this where it begins, so a longer one is left from before an edit of the policy.
_HASTEN = """
    UPDATE flowstone.materialization AS m SET not_before = clock_timestamp() + w.most
    FROM (
        SELECT q.ctid AS place, b.most
        FROM flowstone.materialization AS q
        CROSS JOIN LATERAL (
            SELECT make_interval(
                secs => least(%(longest)s, %(first)s * power(2, least(greatest(q.attempts, 1) - 1, 30)))
            ) AS most
        ) AS b
        WHERE q.backfill = %(uid)s AND q.state = 'queued' AND q.not_before IS NOT NULL
          AND q.not_before > clock_timestamp() + b.most
        LIMIT %(rows)s FOR UPDATE OF q SKIP LOCKED
    ) AS w
    WHERE m.ctid = w.place
"""

_STOP = """
    UPDATE flowstone.backfill SET stopped = %(budget)s
    WHERE uid = %(uid)s AND stopped IS DISTINCT FROM %(budget)s
"""

# A time that a worker wrote is cut to its batch's life. Batches that ended before the failure in question cannot
# hold anything later, so only the others are looked into.
_SPREAD = """
    WITH failure AS (
        SELECT greatest(b.opened_at, least(m.finished_at, coalesce(b.closed_at, clock_timestamp()))) AS at
        FROM flowstone.materialization AS m JOIN flowstone.batch AS b ON b.fence = m.fence
        WHERE m.backfill = %(uid)s AND m.state = 'failed' AND m.reason IS NOT NULL
        ORDER BY 1 DESC OFFSET %(nth)s - 1 LIMIT 1
    )
    SELECT count(*)
    FROM failure AS f
    JOIN flowstone.batch AS b ON b.backfill = %(uid)s AND (b.closed_at IS NULL OR b.closed_at >= f.at)
    JOIN flowstone.materialization AS m ON m.fence = b.fence
    WHERE (m.state = 'succeeded' OR (m.state = 'failed' AND m.reason IS NOT NULL))
      AND greatest(b.opened_at, least(m.finished_at, coalesce(b.closed_at, clock_timestamp()))) >= f.at
"""

# Errors that differ in numbers only, such as a date or an address, are the same error.
_COMMON = """
    SELECT min(error), count(*) FROM (
        SELECT left(error, 500) AS error FROM flowstone.materialization
        WHERE backfill = %(uid)s AND state = 'failed' AND reason IS NOT NULL AND error IS NOT NULL
        ORDER BY fence DESC LIMIT %(compared)s
    ) AS e
    GROUP BY regexp_replace(split_part(error, E'\\n', 1), '[0-9]+', '#', 'g') ORDER BY count(*) DESC, min(error) LIMIT 1
"""


def obey(tx: Transaction, uid: str, orders: Orders) -> BackfillRecord:
    """Honour new tokens, each once; see `Ledger.obey`."""
    tx.allow(LONG_SECONDS)
    record = registry.lock(tx, uid)
    if orders.retry_failed not in (None, record.retried):
        number = 0 if record.pruned else tx.run(_REQUEUE, {"uid": uid})
        tx.run(_RETRIED, {"uid": uid, "token": orders.retry_failed, "number": number})
    if orders.resume not in (None, record.resumed):
        tx.run(_RESUMED, {"uid": uid, "token": orders.resume})
    return registry.lock(tx, uid)


def hasten(tx: Transaction, uid: str, first: float, longest: float, rows: int) -> int:
    """Shorten waits that are longer than the back-off allows now."""
    return tx.run(_HASTEN, {"uid": uid, "first": float(first), "longest": float(longest), "rows": rows})


def stop(tx: Transaction, uid: str, budget: str | None) -> None:
    """Write down that this budget stopped the backfill, or that none does."""
    tx.run(_STOP, {"uid": uid, "budget": budget})


def spread(tx: Transaction, uid: str, nth: int) -> int | None:
    """How many partitions finished since the `nth` last failure, itself included; None without so many failures."""
    row = tx.row(_SPREAD, {"uid": uid, "nth": nth})
    return row[0] or None if row else None


def common_error(tx: Transaction, uid: str) -> CommonError | None:
    """The most frequent error among the latest failures."""
    row = tx.row(_COMMON, {"uid": uid, "compared": COMPARED})
    return CommonError(*row) if row else None
