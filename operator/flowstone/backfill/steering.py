"""What a person steers with: tokens that ask once, and a budget of failures.

The budget counts partitions that failed for good, less those that a `resume` has forgiven: the earliest ones. With
a window it looks at the last n finished partitions only. What it stopped stays stopped, though the window moves on
while open batches end, until the budget is another one, or `resume` or `retryFailed` says something new.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from flowstone.api.backfill import BackfillSpec, FailureBudget
from flowstone.backfill.records import BackfillRecord, CommonError, Counts, Orders
from flowstone.backfill.standing import most_frequent


def orders(spec: BackfillSpec, record: BackfillRecord) -> Orders | None:
    """The tokens that are new; None when there is none. What is cancelled is never tried again."""
    resume = spec.resume if spec.resume != record.resumed else None
    retry_failed = spec.retry_failed if spec.retry_failed != record.retried and not spec.cancel else None
    return Orders(resume, retry_failed) if resume or retry_failed else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a failure budget says: whether it is passed, how many failures it saw and how many it allows."""

    passed: bool
    failures: int
    allowed: int


def mark(budget: FailureBudget) -> str:
    """The budget as text, to know it again."""
    return json.dumps(budget.to_dict(), sort_keys=True)


def allowed(budget: FailureBudget, total: int) -> int:
    """How many failures a budget allows: a percentage is one of the window, or of all partitions."""
    if budget.count is not None:
        return budget.count
    return (budget.window or total) * (budget.percent or 0) // 100


def needs_spread(budget: FailureBudget, counts: Counts, forgiven: int) -> int | None:
    """Which of the last failures decides, counted from the latest; None when the counts alone do."""
    most = allowed(budget, counts.total)
    if budget.window is None or counts.failed - forgiven <= most:
        return None
    return most + 1


def judge_budget(budget: FailureBudget, counts: Counts, record: BackfillRecord, spread: int | None) -> Verdict:
    """Whether a budget is passed.

    Args:
        counts: The counts now.
        record: What was forgiven, and which budget stopped the backfill before.
        spread: Partitions that finished since the failure that `needs_spread` asks for, itself included.
    """
    most = allowed(budget, counts.total)
    failures = max(0, counts.failed - record.forgiven)
    near = budget.window is None or (spread is not None and spread <= budget.window)
    return Verdict(record.stopped == mark(budget) or (failures > most and near), failures, most)


def told(budget: FailureBudget, verdict: Verdict, common: CommonError | None) -> str:
    """Why the backfill stopped, and how to go on, for people."""
    among = f" of the last {budget.window} finished" if budget.window else ""
    return (
        f"more partitions failed than spec.failureBudget allows, {verdict.allowed}{among}; "
        f"{verdict.failures} failed since the start or the last resume{most_frequent(common)}; "
        "raise the budget, or set spec.resume to a new value, to go on"
    )
