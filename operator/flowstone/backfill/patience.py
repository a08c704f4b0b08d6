"""When batch after batch ends in vain: how long the next one waits, and what people are told.

Evictions, lost machines, deleted Jobs and workers that never reach the ledger charge nobody, so nothing else ever ends
such a row of tries. Once in a while that is everyday life and costs no time; round after round it is something that
somebody has to look at. A command that could not be started is, from the first time on. An edited template starts anew,
since batches of another one do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from flowstone.backfill.outcome import UNSTARTED
from flowstone.backfill.records import Vain
from flowstone.executor.port import Blockage

FREE_ROUNDS = 2
"""Rounds in vain after which the next one comes at once."""

FIRST_WAIT = 10.0
"""Seconds of the first wait; it doubles with each further round."""

LONGEST_WAIT = 600.0
"""Seconds of the longest wait."""

_WORDS = {
    "gone": "Jobs were deleted by somebody else",
    "disrupted": "pods were evicted, preempted, deleted or not admitted",
    "returned": "workers gave up, exit code 75 (they could not reach the ledger)",
}


def rounds(vain: Iterable[Vain]) -> int:
    """How many batches ended one after the other; those side by side are one round.

    Args:
        vain: Batches, the last to end first.
    """
    number, began = 0, None
    for batch in vain:
        if began is None or batch.closed_at <= began:
            number, began = number + 1, batch.opened_at
    return number


def wait(number: int, free: int = FREE_ROUNDS) -> timedelta:
    """How long after the last of so many rounds the next one begins, when the first ones cost no time."""
    if number <= free:
        return timedelta(0)
    return timedelta(seconds=min(FIRST_WAIT * 2.0 ** (min(number, 30) - free - 1), LONGEST_WAIT))


def blockage(vain: Sequence[Vain], now: datetime) -> Blockage | None:
    """Why nothing is handed out yet; None when something may be.

    Args:
        vain: The latest batches that ended in vain, the last to end first; empty once anything was finished.
    """
    if not vain:
        return None
    number = rounds(vain)
    kind, _, why = vain[0].outcome.partition(": ")
    until = vain[0].closed_at + wait(number, 0 if kind == UNSTARTED else FREE_ROUNDS)
    if now >= until:
        return None
    left = round((until - now).total_seconds())
    if kind == UNSTARTED:
        return Blockage("CreateFailed", f"its command cannot be started: {why}; the next try is in {left} s")
    message = (
        f"{number} times in a row batches ended without having finished a partition, and without a fault of theirs: "
        f"{_WORDS.get(kind, kind)}{f', last: {why}' if why else ''}; the next try is in {left} s"
    )
    return Blockage("NoProgress", message)
