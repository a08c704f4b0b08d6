"""What becomes of a batch's rows, once it is known how its run goes.

    queued -> running -> succeeded
                 |  \\-> queued   charged: the next attempt after a back-off
                 |               uncharged: disruption, a lost run, the crash of a batch-mate
                 |  \\-> failed   attempts used up
                 \\---> cancelled

Invariants:

1. Only what one partition did itself is charged to it: a failure it reported, the exit code of a batch that does
   not report, or the death of a process that worked on this partition alone.
2. An exit code that speaks for a whole batch charges each partition of it. With their attempts used up they are not
   given up: the batch is split in two, and so on, until what fails is alone. When part after part fails and nothing
   succeeds, it is not the partitions: then they fail together.
3. A worker goes through its keys in order, so the first one it has not reported is the one it died on. That one
   is marked suspect and is handed out alone the next time; its batch-mates go back untouched. So a crash is
   charged at most once per hand-out, always to one partition, and every crash makes progress.
4. A batch is closed only when nothing of its run can act any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from flowstone.backfill.records import SUSPECT, OpenBatch, Row, RowChange, State
from flowstone.executor.port import Ended, Gone, Running, RunState

ERROR_LENGTH = 2000
"""Characters of an error that the ledger keeps; the beginning says what, so the end is cut."""

OUTCOME_LENGTH = 300
"""Characters of why a batch ended without fault that the ledger keeps."""

LEDGER_LOST = 75
"""Exit code of a worker that could not reach the ledger for minutes: nobody's fault, if its message says so too.

A program may choose this code by itself, and then it is a crash like any other.
"""

GONE, DISRUPTED, RETURNED, UNSTARTED = IN_VAIN = ("gone", "disrupted", "returned", "unstarted")
"""How batches end that charged nobody: without a trace, from outside, by a worker that never reached the ledger, with a
command that could not be started."""

_SAYS_NOTHING = ("", "Error")
"""Reasons of an end that tell people nothing."""

_REMEDIES = {
    "DeadlineExceeded": "its pod ran longer than the template's activeDeadlineSeconds: raise that, or make batches"
    " smaller with spec.batchSize or spec.targetBatchSeconds",
}
"""What people can do about an end, by its reason."""

ATTEMPTS_USED_UP = "AttemptsUsedUp"
QUARANTINED = "Quarantined"

HOPELESS = 30
"""Parts that fail in a row before it is no partition's fault: more than it takes to split the largest batch to one."""


@dataclass(frozen=True, slots=True)
class Unheard(Running):
    """A run whose reports nobody can read at present, be it over or not: it goes on, for all that may be decided."""


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
    why: str = ""

    @property
    def outcome(self) -> str | None:
        """How the batch ended, as the ledger keeps it."""
        return f"{self.close}: {self.why[:OUTCOME_LENGTH]}" if self.close and self.why else self.close


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for a whole settlement.

    Attributes:
        cancelled: The backfill is cancelled: nothing goes back to the queue.
        jitter: A new number in 0..1 for each call.
        stopped: Somebody asked for the runs to be stopped.
        failed_parts: Parts of split batches that failed since anything last succeeded.
    """

    policy: RetryPolicy
    now: datetime
    cancelled: bool
    jitter: Callable[[], float]
    stopped: bool = False
    failed_parts: int = 0


def needs_settling(batch: OpenBatch, run: RunState) -> bool:
    """Whether there is anything to write for this batch."""
    over = not isinstance(run, Running) or (run.lost and batch.running > 0)
    return over or batch.unsettled > 0


def would_split(batch: OpenBatch, rows: Sequence[Row], run: RunState, policy: RetryPolicy) -> bool:
    """Whether a settlement splits the batch, or would if that had any hope."""
    if not isinstance(run, Ended) or run.succeeded or run.blameless or run.positions is not None or batch.reporting:
        return False
    running = [row for row in rows if row.state == "running"]
    return len(running) > 1 and any(row.attempts >= policy.limit for row in running)


def settle(batch: OpenBatch, rows: Sequence[Row], run: RunState, rules: Rules) -> Settlement:
    """Decide each row of a batch, and whether the batch is closed."""
    reported = [_charge(row, row.error or "failed", rules) for row in rows if _is_reported_failure(row)]
    unreported = [row for row in rows if row.state == "running"]
    close = _closing(batch, run, rules)
    return Settlement(
        fence=batch.fence,
        changes=(*reported, *_unreported(batch, unreported, run, rules)),
        close=close,
        why=describe(run) if isinstance(run, Ended) and close in IN_VAIN else "",
    )


def _is_reported_failure(row: Row) -> bool:
    return row.state == "failed" and row.reason is None


def _closing(batch: OpenBatch, run: RunState, rules: Rules) -> str | None:
    match run:
        case Running():
            return None
        case Gone() | Ended(disrupted=True) if rules.stopped:
            return "stopped"
        case Gone():
            return GONE
        case Ended(disrupted=True):
            return DISRUPTED
        case Ended(unstarted=True):
            return UNSTARTED
        case Ended(exit_code=code) if code == LEDGER_LOST and run.positions is not None:
            return RETURNED
        case Ended(succeeded=succeeded):
            return "succeeded" if succeeded else "failed"


def _unreported(batch: OpenBatch, rows: Sequence[Row], run: RunState, rules: Rules) -> Iterable[RowChange]:
    match run:
        case Running(lost=False):
            return ()
        case Running() | Gone() | Ended(blameless=True):
            return [_give_back(row, rules) for row in rows]
        case Ended(positions=positions) if positions is not None:
            return _by_position(batch, rows, dict(positions), run, rules)
        case Ended() if batch.reporting:
            return _crashed(batch, rows, run, rules)
        case Ended(succeeded=True):
            return [_succeed(row) for row in rows]
        case Ended():
            return _failed_whole(batch, rows, run, rules)


def _by_position(
    batch: OpenBatch, rows: Sequence[Row], errors: dict[int, str], run: Ended, rules: Rules
) -> Iterable[RowChange]:
    """Outcomes that a worker without a database left behind; a position it does not name was not reached."""
    unreached = []
    for position, row in enumerate(rows):
        error = errors.get(position)
        if error is None:
            unreached.append(row)
        elif error == "":
            yield _succeed(row)
        else:
            yield _charge(row, error, rules)
    if run.succeeded or run.exit_code == LEDGER_LOST:
        yield from (_give_back(row, rules) for row in unreached)
    else:
        yield from _crashed(batch, unreached, run, rules)


def _failed_whole(batch: OpenBatch, rows: Sequence[Row], run: Ended, rules: Rules) -> list[RowChange]:
    """Charge everybody, after one back-off for all, so that they stay together; split those with no attempt left."""
    error, together = describe(run), replace(rules, jitter=_same(rules.jitter()))
    if not would_split(batch, rows, run, rules.policy) or rules.cancelled:
        died = any(row.attempts > rules.policy.limit for row in rows)
        return [_charge(row, error, together, died=died) for row in rows]
    if rules.failed_parts >= HOPELESS:
        told = f"{error}; the last {rules.failed_parts} batches failed too, however small, and none succeeded"
        return [_charge(row, told, together) for row in rows]
    spent = [row for row in rows if row.attempts >= rules.policy.limit]
    parts = {row.partition: int(place >= (len(spent) + 1) // 2) for place, row in enumerate(spent)}
    return [
        _split(row, f"{SUSPECT} {batch.fence}/{parts[row.partition]}", error)
        if row.partition in parts
        else _charge(row, error, together)
        for row in rows
    ]


def _same(number: float) -> Callable[[], float]:
    return lambda: number


def _split(row: Row, part: str, error: str) -> RowChange:
    text = error[:ERROR_LENGTH]
    return _change(row, "queued", reason=part, attempts=row.attempts + 1, error=text, charged=True)


def _crashed(batch: OpenBatch, rows: Sequence[Row], run: Ended, rules: Rules) -> Iterable[RowChange]:
    if batch.partitions == 1:
        return [_charge(row, describe(run), rules, died=True) for row in rows]
    return [_give_back(row, rules, suspect=position == 0) for position, row in enumerate(rows)]


def describe(run: Ended) -> str:
    """How a run ended, in a sentence for people."""
    code = "no exit code" if run.exit_code is None else f"exit code {run.exit_code}"
    words = [run.reason, _REMEDIES.get(run.reason, "")]  # before the message, whose end may be cut
    reason = f" ({': '.join(filter(None, words))})" if run.reason not in _SAYS_NOTHING else ""
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
