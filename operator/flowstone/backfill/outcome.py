"""What becomes of a batch's rows, once it is known how its run goes.

    queued -> running -> succeeded
                 |  \\-> queued   charged: the next attempt after a back-off
                 |               uncharged: disruption, a lost run, the crash of a batch-mate
                 |  \\-> failed   attempts used up
                 \\---> cancelled

Invariants:

1. Only what one partition did itself is charged to it: a failure it reported, the exit code of a batch that does
   not report, or the death of a process that worked on this partition alone.
2. A worker goes through its keys in order, so the first one it has not reported is the one it died on. That one
   is marked suspect and is handed out alone the next time; its batch-mates go back untouched. So a crash is
   charged at most once per hand-out, always to one partition, and every crash makes progress.
3. A batch is closed only when nothing of its run can act any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from flowstone.backfill.records import SUSPECT, OpenBatch, Row, RowChange, State
from flowstone.executor.port import Ended, Gone, Running, RunState

ERROR_LENGTH = 2000
"""Characters of an error that the ledger keeps; the beginning says what, so the end is cut."""

LEDGER_LOST = 75
"""Exit code of a worker that could not reach the ledger for minutes: nobody's fault."""

ATTEMPTS_USED_UP = "AttemptsUsedUp"
QUARANTINED = "Quarantined"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when a charged partition is tried again.

    Attributes:
        limit: Attempts after the first one.
        backoff_seconds: Wait before the first retry; it doubles with each one.
        max_backoff_seconds: Longest wait.
    """

    limit: int = 2
    backoff_seconds: float = 10
    max_backoff_seconds: float = 600

    def wait(self, attempts: int, jitter: float) -> timedelta:
        """Wait after `attempts` charged failures; `jitter` in 0..1 spreads it over its upper half."""
        full = min(self.max_backoff_seconds, self.backoff_seconds * 2.0 ** min(attempts - 1, 30))
        return timedelta(seconds=full * (0.5 + jitter / 2))


@dataclass(frozen=True, slots=True)
class Settlement:
    """What to write for one batch; `close` is the outcome it is closed with, None leaves it open."""

    fence: int
    changes: tuple[RowChange, ...]
    close: str | None


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for a whole settlement.

    Attributes:
        cancelled: The backfill is cancelled: nothing goes back to the queue.
        jitter: A new number in 0..1 for each call.
    """

    policy: RetryPolicy
    now: datetime
    cancelled: bool
    jitter: Callable[[], float]


def needs_settling(batch: OpenBatch, run: RunState) -> bool:
    """Whether there is anything to write for this batch."""
    over = not isinstance(run, Running) or (run.lost and batch.running > 0)
    return over or batch.unsettled > 0


def settle(batch: OpenBatch, rows: Sequence[Row], run: RunState, rules: Rules) -> Settlement:
    """Decide each row of a batch, and whether the batch is closed."""
    reported = [_charge(row, row.error or "failed", rules) for row in rows if _is_reported_failure(row)]
    unreported = [row for row in rows if row.state == "running"]
    return Settlement(
        fence=batch.fence,
        changes=(*reported, *_unreported(batch, unreported, run, rules)),
        close=_closing(run),
    )


def _is_reported_failure(row: Row) -> bool:
    return row.state == "failed" and row.reason is None


def _closing(run: RunState) -> str | None:
    match run:
        case Running():
            return None
        case Gone():
            return "gone"
        case Ended(disrupted=True):
            return "disrupted"
        case Ended(succeeded=succeeded):
            return "succeeded" if succeeded else "failed"


def _unreported(batch: OpenBatch, rows: Sequence[Row], run: RunState, rules: Rules) -> Iterable[RowChange]:
    match run:
        case Running(lost=False):
            return ()
        case Running() | Gone() | Ended(disrupted=True):
            return [_give_back(row, rules) for row in rows]
        case Ended(positions=positions) if positions is not None:
            return _by_position(rows, dict(positions), run, rules)
        case Ended(exit_code=code) if batch.reporting and code == LEDGER_LOST:
            return [_give_back(row, rules) for row in rows]
        case Ended() if batch.reporting:
            return _crashed(batch, rows, run, rules)
        case Ended(succeeded=True):
            return [_succeed(row) for row in rows]
        case Ended():
            return [_charge(row, describe(run), rules) for row in rows]


def _by_position(rows: Sequence[Row], errors: dict[int, str], run: Ended, rules: Rules) -> Iterable[RowChange]:
    """Outcomes that a worker without a database left behind; a position it does not name was not reached."""
    for position, row in enumerate(rows):
        error = errors.get(position)
        if error is None:
            yield _give_back(row, rules)
        elif error == "":
            yield _succeed(row)
        else:
            yield _charge(row, error, rules)


def _crashed(batch: OpenBatch, rows: Sequence[Row], run: Ended, rules: Rules) -> Iterable[RowChange]:
    if batch.partitions == 1:
        return [_charge(row, describe(run), rules, died=True) for row in rows]
    return [_give_back(row, rules, suspect=position == 0) for position, row in enumerate(rows)]


def describe(run: Ended) -> str:
    """How a run ended, in a sentence for people."""
    code = "no exit code" if run.exit_code is None else f"exit code {run.exit_code}"
    reason = f" ({run.reason})" if run.reason and run.reason != "Error" else ""
    message = f": {run.message.strip()}" if run.message.strip() else ""
    return f"{code}{reason}{message}"


def _succeed(row: Row) -> RowChange:
    return _change(row, "succeeded", attempts=row.attempts)


def _give_back(row: Row, rules: Rules, *, suspect: bool = False) -> RowChange:
    if rules.cancelled:
        return _change(row, "cancelled", reason="Cancelled", attempts=row.attempts, error=row.error)
    reason = SUSPECT if suspect else None
    return _change(row, "queued", reason=reason, attempts=row.attempts, error=row.error)


def _charge(row: Row, error: str, rules: Rules, *, died: bool = False) -> RowChange:
    attempts = row.attempts + 1
    again = attempts <= rules.policy.limit
    state: State = "failed" if not again else "cancelled" if rules.cancelled else "queued"
    reasons = {
        "failed": QUARANTINED if died else ATTEMPTS_USED_UP,
        "cancelled": "Cancelled",
        "queued": SUSPECT if died else None,
    }
    return _change(
        row,
        state,
        reason=reasons[state],
        attempts=attempts,
        not_before=rules.now + rules.policy.wait(attempts, rules.jitter()) if state == "queued" else None,
        error=error[:ERROR_LENGTH],
        charged=True,
    )


def _change(
    row: Row,
    state: State,
    *,
    attempts: int,
    reason: str | None = None,
    not_before: datetime | None = None,
    error: str | None = None,
    charged: bool = False,
) -> RowChange:
    return RowChange(
        partition=row.partition,
        expected=row.state,
        state=state,
        reason=reason,
        attempts=attempts,
        not_before=not_before,
        error=error,
        charged=charged,
    )
