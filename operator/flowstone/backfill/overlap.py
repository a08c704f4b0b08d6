"""Whether a backfill that stands still waits for an older one over the same partitions."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from flowstone.backfill.engine import in_thread
from flowstone.backfill.records import Counts
from flowstone.backfill.standing import QUIET, WAITS_FOR_BACKFILL, Stand, Standing
from flowstone.db.ledger import Ledger
from flowstone.db.waiting import Waiting, waits_for
from flowstone.errors import LedgerBusy, LedgerUnavailable


async def find_older(
    ledger: Ledger, uid: str, standing: Standing, counts: Counts | None, *, quiet: timedelta = timedelta(0)
) -> Waiting | None:
    """Why nothing is handed out although something is queued, if another backfill is the reason.

    Args:
        quiet: Ask only when nothing was finished for so long.
    """
    if standing.stand is not Stand.RUNNING or counts is None or counts.running or not counts.queued:
        return None
    try:
        if quiet and await in_thread(ledger.throughput, uid, quiet.total_seconds()) > 0:
            return None
        return await in_thread(waits_for, ledger.database, uid)
    except (LedgerBusy, LedgerUnavailable):  # the next pass asks again
        return None


async def with_older(ledger: Ledger, uid: str, standing: Standing, counts: Counts | None) -> Standing:
    """The standing, with the older backfill by name when it is the reason why nothing is done.

    What that one hands on is done now and then, so only when nothing was finished for a while.
    """
    older = await find_older(ledger, uid, standing, counts, quiet=QUIET)
    if older is None:
        return standing
    words = f"Backfill {older.name} has the same partitions and was asked for earlier: this goes on when that is done"
    return replace(standing, reason=WAITS_FOR_BACKFILL, message=f"{standing.message}; {words}")
