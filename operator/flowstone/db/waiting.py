"""Which other backfill a stuck one waits for: no two of them work on the same partition at the same time."""

from __future__ import annotations

from dataclasses import dataclass

from flowstone.db.connection import Database

LOOKED_AT = 100
"""Queued rows that are looked at: a backfill that is handed nothing waits with its first ones."""

_FIND = """
    SELECT b.uid::text, b.name, coalesce(b.lease_until > clock_timestamp(), false)
    FROM (
        SELECT scope, asset, partition FROM flowstone.materialization
        WHERE backfill = %(uid)s AND state = 'queued' ORDER BY ordinal LIMIT %(rows)s
    ) AS q
    JOIN flowstone.materialization AS m USING (scope, asset, partition)
    JOIN flowstone.backfill AS b ON b.uid = m.backfill
    WHERE m.backfill <> %(uid)s
      AND (m.state = 'running'
           OR (m.state = 'queued' AND b.seq < (SELECT seq FROM flowstone.backfill WHERE uid = %(uid)s)))
    LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The backfill that is waited for.

    Attributes:
        worked_on: Somebody works on it now, so waiting makes sense.
    """

    uid: str
    name: str
    worked_on: bool


def waits_for(database: Database, uid: str) -> Waiting | None:
    """Return the backfill that holds partitions which this one has queued, or None."""
    with database.transaction() as tx:
        row = tx.row(_FIND, {"uid": uid, "rows": LOOKED_AT})
    return None if row is None else Waiting(*row)
