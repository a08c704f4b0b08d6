"""Whether a backfill has moved of late: a batch of it ran and has ended, whatever came of it."""

from __future__ import annotations

from flowstone.backfill.outcome import IN_VAIN
from flowstone.db.connection import Database

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


def moved(database: Database, uid: str, window_seconds: float) -> bool:
    """Whether a batch that ran has ended within the last `window_seconds`."""
    with database.autocommit() as tx:
        return tx.row(_MOVED, {"uid": uid, "window": window_seconds, "vain": list(IN_VAIN)}) == (True,)
