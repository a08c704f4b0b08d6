"""What a status tells beside the counts, looked up in the ledger; the operator and the local mode share it."""

from __future__ import annotations

from flowstone.backfill.records import Counts
from flowstone.backfill.status import Details, intervals_text
from flowstone.db.ledger import Ledger

RATE_WINDOW = 60.0
"""Seconds over which the throughput is measured."""


def look_up(ledger: Ledger, uid: str, counts: Counts) -> Details:
    """What costs a query over many rows, and is therefore only looked up when it can be shown."""
    return Details(
        failures=ledger.failures(uid) if counts.failed else (),
        rate=ledger.throughput(uid, RATE_WINDOW),
        succeeded=intervals_text(ledger.intervals(uid, "succeeded")),
        failed=intervals_text(ledger.intervals(uid, "failed")),
    )
