"""Where a backfill stands: one of a closed list of states, with the reason in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from flowstone.backfill.outcome import Unheard
from flowstone.backfill.records import CommonError, Counts, OpenBatch, Retry, Skipped
from flowstone.executor.port import Blockage, View


class Stand(StrEnum):
    """The rows of the design's condition table."""

    PLANNING = "Planning"
    ASSET_MISSING = "AssetNotFound"
    INVALID = "InvalidSpec"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    BUDGET_PASSED = "FailureBudgetPassed"
    BLOCKED = "Blocked"
    WAITING = "Waiting"
    SUCCEEDED = "Succeeded"
    PARTLY_FAILED = "PartlyFailed"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


WAITS_FOR_BACKFILL = "WaitsForBackfill"
"""Reason of a backfill that is handed nothing because an older one has the same partitions."""

WAITING_AFTER = timedelta(minutes=10)
"""Waiting for room in the cluster for longer is shown as blocked; before that it is everyday life."""

QUIET = timedelta(seconds=20)
"""After a batch has ended, what holds up some batches does not block a backfill for so long: between two of the others
nothing runs for a moment. Whoever sets a quota to nothing is told within half a minute."""

SHOWN = 300
"""Characters of an error in a message."""

FINISHED = frozenset({Stand.SUCCEEDED, Stand.PARTLY_FAILED, Stand.FAILED, Stand.CANCELLED})


@dataclass(frozen=True, slots=True)
class Standing:
    """A state, a CamelCase reason for machines and a sentence for people."""

    stand: Stand
    reason: str
    message: str

    @property
    def finished(self) -> bool:
        """Nothing more will happen for this spec."""
        return self.stand in FINISHED


def judge(
    counts: Counts,
    *,
    open_batches: int,
    cancelled: bool,
    suspended: Literal["Drain", "Kill"] | None = None,
    over_budget: str = "",
    blockage: Blockage | None = None,
    waited: timedelta = timedelta(0),
    started: int = 0,
    moving: bool = False,
    skipped: Sequence[Skipped] = (),
    retry: Retry | None = None,
    common: CommonError | None = None,
) -> Standing:
    """The standing of a planned backfill whose spec is valid.

    Args:
        suspended: The spec's `suspend`.
        over_budget: Why the failure budget is passed, "" when it is not.
        blockage: Why an open batch does not start, if one does not.
        waited: How long the oldest batch that has not started has been open.
        started: How many of the open batches have started.
        moving: Whether batches run in spite of the blockage, or did within `QUIET`; it matters where `is_shared`.
        skipped: Why partitions were skipped.
        retry: What waits for another attempt, if anything does.
        common: What most failures have in common.
    """
    if counts.open == 0 and open_batches == 0:
        return _finished(counts, skipped, common, cancelled=cancelled)
    if cancelled:
        queued = f", {counts.queued:,} partitions are still queued" if counts.queued else ""
        return Standing(Stand.RUNNING, "Cancelling", f"waiting for {open_batches} batches to stop{queued}")
    if over_budget:
        return Standing(Stand.BUDGET_PASSED, "FailureBudgetPassed", over_budget)
    if suspended:
        left = f"{open_batches} batches {'run to their end' if suspended == 'Drain' else 'are being stopped'}"
        message = f"suspended by spec.suspend: {suspended}; {left}; unset it to go on"
        return Standing(Stand.SUSPENDED, "SuspendedBySpec", message)
    if blockage is not None and not blockage.waiting and not (is_shared(blockage) and moving):
        return Standing(Stand.BLOCKED, blockage.reason, blockage.message)
    if blockage is not None and blockage.waiting and waited >= WAITING_AFTER:
        return Standing(Stand.WAITING, "Waiting", blockage.message)
    message = f"{counts.finished} of {counts.total} partitions finished, {open_batches} batches are out"
    if blockage is not None:
        held = "some are held up" if blockage.partial else f"{open_batches - started} of them wait to start"
        message += f", {held}: {_shortened(blockage.message)}"
    if retry is not None:
        message += f"; the next retry is at {retry.at:%H:%M:%S} UTC, after this error: {_shortened(retry.error)}"
    return Standing(Stand.RUNNING, "Running", message)


def is_shared(blockage: Blockage) -> bool:
    """Whether it lets some batches through: as many as there is room for, or those of other tenants."""
    return blockage.partial or blockage.reason == "QuotaExceeded"


def goes_on(batches: Sequence[OpenBatch], seen: Sequence[View], blockage: Blockage, now: datetime) -> bool:
    """Whether any open batch runs, or is about to, in spite of what holds others up.

    A run that nothing is heard of is one of those that are held up. Where there is room for some only, so is one that
    is slow to start.

    Args:
        batches: The open ones, with those that were handed out in this pass.
        seen: How they were found, as far as they were there before.
    """
    held = {one.batch.fence for one in seen if isinstance(one.run, Unheard) or (not blockage.partial and one.slow(now))}
    return any(batch.job_uid is not None and batch.fence not in held for batch in batches)


def _finished(counts: Counts, skipped: Sequence[Skipped], common: CommonError | None, *, cancelled: bool) -> Standing:
    why = "".join(f"; {one.count} skipped: {one.reason}" for one in skipped)
    if counts.cancelled:  # what was over before somebody cancelled it is what it was
        return Standing(Stand.CANCELLED, "Cancelled", f"cancelled: {tally(counts)}{why}")
    if counts.failed == 0 and not any(one.refused for one in skipped):
        return Standing(Stand.SUCCEEDED, "Succeeded", f"all done: {tally(counts)}{why}")
    if counts.failed == 0:  # what was asked for is not there, so it is no success
        stand = Stand.PARTLY_FAILED if counts.succeeded else Stand.FAILED
        return Standing(stand, "TenantRefused", f"{tally(counts)}{why}")
    stand = Stand.PARTLY_FAILED if counts.succeeded + counts.skipped else Stand.FAILED
    again = "create another Backfill with select: Failed" if cancelled else "set spec.retryFailed to a new value"
    remedy = f"see status.failures; {again} to try them again"
    return Standing(stand, str(stand), f"{tally(counts)}{why}{most_frequent(common)}; {remedy}")


def most_frequent(common: CommonError | None) -> str:
    """The most frequent error as the end of a sentence; "" for none."""
    return "" if common is None else f"; most frequent error ({common.count} times): {_shortened(common.error)}"


def _shortened(error: str) -> str:
    text = " ".join(error.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def tally(counts: Counts) -> str:
    """The counts in words, zeros left out: `362 succeeded, 3 failed of 365`."""
    parts = [
        f"{number} {name}"
        for name in ("succeeded", "failed", "skipped", "cancelled", "running", "queued")
        if (number := getattr(counts, name))
    ]
    return f"{', '.join(parts) or 'nothing'} of {counts.total}"
