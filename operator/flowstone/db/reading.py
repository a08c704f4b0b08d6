"""What the ledger says about one backfill: counts, batches, rows, failures, intervals. Nothing here locks."""

from __future__ import annotations

from typing import get_args

from flowstone.backfill.outcome import IN_VAIN
from flowstone.backfill.records import Counts, Failure, Interval, OpenBatch, Retry, Row, Skipped, State, Vain
from flowstone.db.connection import Transaction

SHOWN_ERROR = 2000
"""Characters of an error that are read back; a scope's login wrote it, and may have written much."""

# A failure that nobody settled still occupies its batch, so it counts as running. One statement, one snapshot.
_COUNTS = """
    SELECT coalesce((SELECT total FROM flowstone.backfill WHERE uid = %(uid)s), 0), s.state, s.n, (
        SELECT count(*) FROM flowstone.materialization
        WHERE backfill = %(uid)s AND state = 'failed' AND reason IS NULL
    ), (SELECT pruned_counts FROM flowstone.backfill WHERE uid = %(uid)s)
    FROM (SELECT NULL AS state, 0 AS n UNION ALL (
        SELECT state, count(*) FROM flowstone.materialization WHERE backfill = %(uid)s GROUP BY state
    )) AS s
"""

_NEXT_RETRY = """
    SELECT not_before, coalesce(left(error, %(shown)s), '') FROM flowstone.materialization
    WHERE backfill = %(uid)s AND state = 'queued' AND not_before IS NOT NULL AND not_before > now()
    ORDER BY not_before LIMIT 1
"""

_OPEN_BATCHES = """
    SELECT b.fence, b.scope, b.job_name, b.job_uid, b.template_digest, b.reporting, b.partitions,
           m.running, m.unsettled, b.opened_at
    FROM flowstone.batch AS b CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE state = 'running') AS running,
               count(*) FILTER (WHERE state = 'failed' AND reason IS NULL) AS unsettled
        FROM flowstone.materialization WHERE fence = b.fence
    ) AS m
    WHERE b.backfill = %(uid)s AND b.state = 'open'
    ORDER BY b.fence
"""

_ROWS = """
    SELECT partition, ordinal, state, reason, attempts, left(error, %(shown)s)
    FROM flowstone.materialization WHERE fence = %(fence)s ORDER BY ordinal
"""

_FAILURES = """
    SELECT m.partition, coalesce(left(m.error, %(shown)s), m.reason), coalesce(b.job_name, ''), m.attempts
    FROM flowstone.materialization AS m LEFT JOIN flowstone.batch AS b ON b.fence = m.fence
    WHERE m.backfill = %(uid)s AND m.state = 'failed' AND m.reason IS NOT NULL
    ORDER BY m.ordinal LIMIT %(limit)s
"""

# A backfill's ordinals are 0, 1, 2, ... with one state each, so a run ends where the next row of any other state
# stands: a few looks into the index for each run, however long it is.
_INTERVALS = """
    WITH RECURSIVE runs (first, stop, number) AS (
        SELECT -1::bigint, 0::bigint, 0
        UNION ALL
        SELECT head.ordinal, coalesce(least(other.queued, other.running, other.succeeded, other.failed,
                                            other.skipped, other.cancelled), b.total), runs.number + 1
        FROM runs
        CROSS JOIN LATERAL (
            SELECT ordinal FROM flowstone.materialization
            WHERE backfill = %(uid)s AND state = %(state)s AND ordinal >= runs.stop ORDER BY ordinal LIMIT 1
        ) AS head
        CROSS JOIN LATERAL (SELECT {others}) AS other
        CROSS JOIN (SELECT total FROM flowstone.backfill WHERE uid = %(uid)s) AS b
        WHERE runs.number < %(limit)s
    )
    SELECT f.partition, l.partition, r.stop - r.first
    FROM runs AS r
    CROSS JOIN LATERAL (
        SELECT partition FROM flowstone.materialization
        WHERE backfill = %(uid)s AND state = %(state)s AND ordinal = r.first LIMIT 1
    ) AS f
    CROSS JOIN LATERAL (
        SELECT partition FROM flowstone.materialization
        WHERE backfill = %(uid)s AND state = %(state)s AND ordinal = r.stop - 1 LIMIT 1
    ) AS l
    WHERE r.number > 0 ORDER BY r.first
"""

_NEXT_OF_STATE = """
    (SELECT ordinal FROM flowstone.materialization
     WHERE %(state)s <> '{state}' AND backfill = %(uid)s AND state = '{state}' AND ordinal > head.ordinal
     ORDER BY ordinal LIMIT 1) AS {state}
"""

# By way of the batches, since only what they carry can have finished lately; a worker may write any time it likes
# into finished_at, so a time outside the window (or before the batch) counts for nothing.
_THROUGHPUT = """
    SELECT count(*), (SELECT extract(epoch FROM now() - min(opened_at)) FROM flowstone.batch WHERE backfill = %(uid)s)
    FROM flowstone.batch AS b JOIN flowstone.materialization AS m ON m.fence = b.fence
    WHERE b.backfill = %(uid)s
      AND (b.state = 'open' OR b.closed_at > now() - make_interval(secs => %(window)s))
      AND m.state IN ('succeeded', 'failed')
      AND m.finished_at BETWEEN now() - make_interval(secs => %(window)s) AND now()
"""

# Not by the rows: one that failed and waits for its next attempt carries no fence any more. A batch that ended in vain
# may never have run, unless a row has its outcome.
_MOVED = """
    SELECT EXISTS (
        SELECT FROM flowstone.batch AS b
        WHERE b.backfill = %(uid)s AND b.state = 'closed' AND b.closed_at > now() - make_interval(secs => %(window)s)
          AND (split_part(b.outcome, ':', 1) <> ALL(%(vain)s)
               OR EXISTS (SELECT FROM flowstone.materialization AS m WHERE m.fence = b.fence))
    )
"""

# The median over a few batches, so that no single worker decides, whatever time it writes into finished_at; that time
# is also cut to its batch's life. Reports tell the pace without the start of the pod; an exit code does not.
_PACE = """
    WITH recent AS (
        (SELECT fence, reporting, opened_at, closed_at, 1 AS least FROM flowstone.batch
         WHERE backfill = %(uid)s AND state = 'closed' ORDER BY fence DESC LIMIT %(batches)s)
        UNION ALL
        (SELECT fence, reporting, opened_at, clock_timestamp(), 2 FROM flowstone.batch
         WHERE backfill = %(uid)s AND state = 'open' AND reporting ORDER BY fence LIMIT %(batches)s)
    )
    SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY CASE
        WHEN b.reporting AND f.n > 1 THEN extract(epoch FROM f.last - f.first) / (f.n - 1)
        ELSE extract(epoch FROM f.last - b.opened_at) / f.n END)
    FROM recent AS b CROSS JOIN LATERAL (
        SELECT count(*) AS n, min(t.at) AS first, max(t.at) AS last
        FROM flowstone.materialization AS m
        CROSS JOIN LATERAL (SELECT least(greatest(m.finished_at, b.opened_at), b.closed_at) AS at) AS t
        WHERE m.fence = b.fence AND m.state IN ('succeeded', 'failed')
    ) AS f
    WHERE f.n >= b.least
"""

# A batch that finished anything is known by the rows that still carry its fence.
_VAIN = """
    WITH recent AS (
        SELECT fence, opened_at, closed_at, outcome,
               split_part(outcome, ':', 1) = ANY(%(vain)s) AND NOT EXISTS (
                   SELECT FROM flowstone.materialization AS m WHERE m.fence = b.fence
               ) AS vain
        FROM flowstone.batch AS b
        WHERE backfill = %(uid)s AND state = 'closed' AND template_digest = %(digest)s
        ORDER BY fence DESC LIMIT %(limit)s
    )
    SELECT opened_at, closed_at, outcome FROM recent
    WHERE fence > coalesce((SELECT max(fence) FROM recent WHERE NOT vain), 0)
    ORDER BY closed_at DESC
"""

_FAILED_PARTS = """
    SELECT count(DISTINCT fence) FROM flowstone.attempt
    WHERE backfill = %(uid)s AND attempt > %(attempts)s AND fence > coalesce((
        SELECT max(fence) FROM flowstone.batch
        WHERE backfill = %(uid)s AND state = 'closed' AND outcome = 'succeeded'
    ), 0)
"""

PACE_BATCHES = 8
"""Closed batches, and as many open ones, that a measurement looks at."""


def counts(tx: Transaction, uid: str) -> Counts:
    """How many rows are in which state; all zero before planning, and as they were once rows were pruned."""
    total, unsettled, pruned = 0, 0, None
    by_state: dict[str, int] = {}
    for total, state, number, unsettled, pruned in tx.rows(_COUNTS, {"uid": uid}):  # noqa: B007  # the same in each
        if state is not None:
            by_state[state] = number
    if pruned is not None:
        return Counts(**pruned)
    if unsettled:
        by_state["running"] = by_state.get("running", 0) + unsettled
        by_state["failed"] -= unsettled
    return Counts(total=total, **by_state)


def queued(tx: Transaction, uid: str, most: int) -> int:
    """How many rows wait, counted up to `most`."""
    query = """
        SELECT count(*) FROM (
            SELECT FROM flowstone.materialization WHERE backfill = %(uid)s AND state = 'queued' LIMIT %(most)s
        ) AS waiting
    """
    return _number(tx, query, {"uid": uid, "most": most})


def failed(tx: Transaction, uid: str) -> int:
    """How many partitions failed for good."""
    query = """
        SELECT count(*) FROM flowstone.materialization
        WHERE backfill = %(uid)s AND state = 'failed' AND reason IS NOT NULL
    """
    return _number(tx, query, {"uid": uid})


def vain(tx: Transaction, uid: str, digest: str, limit: int) -> list[Vain]:
    """The latest closed batches of one template that finished nothing and charged nobody, the newest first."""
    names = {"uid": uid, "digest": digest, "limit": limit, "vain": list(IN_VAIN)}
    return [Vain(*row) for row in tx.rows(_VAIN, names)]


def failed_parts(tx: Transaction, uid: str, attempts: int) -> int:
    """Batches that failed since anything last succeeded, of partitions that have failed more than so often."""
    return _number(tx, _FAILED_PARTS, {"uid": uid, "attempts": attempts})


def _number(tx: Transaction, query: str, names: dict[str, object]) -> int:
    row = tx.row(query, names)
    return int(row[0]) if row else 0


def next_retry(tx: Transaction, uid: str) -> Retry | None:
    """The next row that comes out of its back-off, or None when none is in it."""
    row = tx.row(_NEXT_RETRY, {"uid": uid, "shown": SHOWN_ERROR})
    return Retry(*row) if row else None


def open_batches(tx: Transaction, uid: str) -> list[OpenBatch]:
    """The backfill's open batches, oldest first."""
    return [OpenBatch(*row) for row in tx.rows(_OPEN_BATCHES, {"uid": uid})]


def rows_of(tx: Transaction, fence: int) -> list[Row]:
    """The rows that carry a fence, by ordinal."""
    return [Row(*row) for row in tx.rows(_ROWS, {"fence": fence, "shown": SHOWN_ERROR})]


def scopes(tx: Transaction, uid: str) -> tuple[str, ...]:
    """Whose rows a backfill has."""
    query = "SELECT DISTINCT scope FROM flowstone.materialization WHERE backfill = %(uid)s"
    return tuple(sorted(scope for (scope,) in tx.rows(query, {"uid": uid})))


def skipped(tx: Transaction, uid: str, limit: int) -> list[Skipped]:
    """Why rows were skipped."""
    query = """
        SELECT coalesce(reason, ''), count(*) FROM flowstone.materialization
        WHERE backfill = %(uid)s AND state = 'skipped' GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT %(limit)s
    """
    return [Skipped(reason, count) for reason, count in tx.rows(query, {"uid": uid, "limit": limit})]


def failures(tx: Transaction, uid: str, limit: int) -> list[Failure]:
    """The first partitions that failed for good."""
    names = {"uid": uid, "limit": limit, "shown": SHOWN_ERROR}
    return [Failure(*row) for row in tx.rows(_FAILURES, names)]


def intervals(tx: Transaction, uid: str, state: State, limit: int) -> list[Interval]:
    """The first runs of consecutive ordinals in a state."""
    others = ", ".join(_NEXT_OF_STATE.format(state=each) for each in get_args(State))
    names = {"uid": uid, "state": state, "limit": limit}
    return [Interval(*row) for row in tx.rows(_INTERVALS.format(others=others), names)]


def throughput(tx: Transaction, uid: str, window_seconds: float) -> float:
    """Partitions per minute that succeeded or failed within the last `window_seconds`, or since the first hand-out."""
    finished, age = tx.row(_THROUGHPUT, {"uid": uid, "window": window_seconds}) or (0, None)
    if age is None:
        return 0.0
    return float(finished) * 60 / max(min(float(age), window_seconds), 1.0)


def moved(tx: Transaction, uid: str, window_seconds: float) -> bool:
    """Whether a batch that ran, whatever came of it, has ended within the last `window_seconds`."""
    return tx.row(_MOVED, {"uid": uid, "window": window_seconds, "vain": list(IN_VAIN)}) == (True,)


def pace(tx: Transaction, uid: str) -> float | None:
    """Seconds per partition, as recent batches have it; None when none of them tells."""
    row = tx.row(_PACE, {"uid": uid, "batches": PACE_BATCHES})
    return None if row is None or row[0] is None else float(row[0])
