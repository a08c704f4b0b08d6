"""Whether a backfill that stands still waits for an older one over the same partitions."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from flowstone.backfill.records import Counts
from flowstone.backfill.standing import QUIET, WAITS_FOR_BACKFILL, Stand, Standing
from flowstone.db.ledger import Ledger
from flowstone.db.waiting import waits_for
from flowstone.errors import LedgerBusy, LedgerUnavailable


async def with_older(ledger: Ledger, uid: str, standing: Standing, counts: Counts | None) -> Standing:
    """The standing, with the older backfill by name when it is the reason why nothing is done.

    What that one hands on is done now and then, so only when nothing was finished for a while.
    """
    if standing.stand is not Stand.RUNNING or counts is None or counts.running or not counts.queued:
        return standing
    try:
        if await asyncio.to_thread(ledger.throughput, uid, QUIET.total_seconds()) > 0:
            return standing
        older = await asyncio.to_thread(waits_for, ledger.database, uid)
    except (LedgerBusy, LedgerUnavailable):  # the next pass asks again
        return standing
    if older is None:
        return standing
    words = f"Backfill {older.name} has the same partitions and was asked for earlier: this goes on when that is done"
    return replace(standing, reason=WAITS_FOR_BACKFILL, message=f"{standing.message}; {words}")
