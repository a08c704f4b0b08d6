"""Tokens and the failure budget, decided on counts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone.api.backfill import BackfillSpec, FailureBudget
from flowstone.api.parse import parse_backfill
from flowstone.backfill.records import BackfillRecord, CommonError, Counts, Orders
from flowstone.backfill.steering import Verdict, judge_budget, mark, needs_spread, orders, told

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
RECORD = BackfillRecord("u", 1, "c", "n", "b", "s", "a", "h", "h", 100, NOW, NOW, None, None)


def spec(**fields: Any) -> BackfillSpec:
    """A spec with these fields."""
    return parse_backfill({"metadata": {"name": "b"}, "spec": {"asset": "daily", **fields}}).spec


def budget(**fields: Any) -> FailureBudget:
    """A budget with these fields."""
    found = spec(failureBudget=fields).failure_budget
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("fields", "honoured", "expected"),
    [
        ({}, {}, None),
        ({"resume": "a"}, {}, Orders("a", None)),
        ({"resume": "a"}, {"resumed": "a"}, None),
        ({"resume": "b", "retryFailed": "x"}, {"resumed": "a", "retried": "x"}, Orders("b", None)),
        ({"retryFailed": "y"}, {"retried": "x"}, Orders(None, "y")),
        ({}, {"resumed": "a", "retried": "x"}, None),
        ({"retryFailed": "y", "cancel": True}, {"retried": "x"}, None),
    ],
)
def test_a_token_asks_once(fields: dict[str, Any], honoured: dict[str, str], expected: Orders | None) -> None:
    """Only another value than the last one asks; taking a token away asks for nothing; cancelled stays cancelled."""
    record = replace(RECORD, resumed=honoured.get("resumed"), retried=honoured.get("retried"))
    assert orders(spec(**fields), record) == expected


@pytest.mark.parametrize(
    ("fields", "failed", "forgiven", "spread", "expected"),
    [
        ({"count": 0}, 0, 0, None, Verdict(False, 0, 0)),
        ({"count": 0}, 1, 0, None, Verdict(True, 1, 0)),
        ({"count": 3}, 3, 0, None, Verdict(False, 3, 3)),
        ({"count": 3}, 7, 4, None, Verdict(False, 3, 3)),
        ({"count": 3}, 8, 4, None, Verdict(True, 4, 3)),
        ({"percent": 5}, 10, 0, None, Verdict(False, 10, 10)),
        ({"percent": 5}, 11, 0, None, Verdict(True, 11, 10)),
        ({"percent": 100}, 200, 0, None, Verdict(False, 200, 200)),
        ({"count": 2, "window": 10}, 50, 0, 10, Verdict(True, 50, 2)),
        ({"count": 2, "window": 10}, 50, 0, 11, Verdict(False, 50, 2)),
        ({"percent": 50, "window": 3}, 2, 0, 3, Verdict(True, 2, 1)),
        ({"percent": 50, "window": 3}, 2, 0, 4, Verdict(False, 2, 1)),
    ],
)
def test_the_budget(fields: dict[str, int], failed: int, forgiven: int, spread: int | None, expected: Verdict) -> None:
    """Passed when more failed than allowed: of 200 in all, of those not forgiven, close enough for the window."""
    counts = Counts(total=200, failed=failed, succeeded=200 - failed)
    assert judge_budget(budget(**fields), counts, replace(RECORD, forgiven=forgiven), spread) == expected


def test_the_ledger_is_asked_only_when_the_counts_do_not_decide() -> None:
    """With a window and more failures than allowed, the last failure beyond those allowed decides."""
    counts = Counts(total=100, failed=5, succeeded=50, queued=45)
    assert needs_spread(budget(count=4), counts, 0) is None
    assert needs_spread(budget(count=5, window=10), counts, 0) is None
    assert needs_spread(budget(count=4, window=10), counts, 1) is None
    assert needs_spread(budget(count=4, window=10), counts, 0) == 5


def test_a_stop_lasts_until_the_budget_is_another_one() -> None:
    """The window moves on while open batches end; that alone lifts no stop, a raised budget does."""
    counts = Counts(total=100, failed=5, succeeded=90, queued=5)
    one, raised = budget(count=4, window=10), budget(count=5, window=10)
    stopped = replace(RECORD, stopped=mark(one))
    assert judge_budget(one, counts, stopped, 90).passed is True
    assert judge_budget(raised, counts, stopped, None).passed is False


@given(outcomes=st.lists(st.booleans(), max_size=40), most=st.integers(0, 5), window=st.integers(1, 12))
def test_the_window_is_what_one_would_count(outcomes: list[bool], most: int, window: int) -> None:
    """For any order of outcomes the verdict is that of counting the failures among the last ones."""
    failures = [place for place, failed in enumerate(reversed(outcomes)) if failed]
    limits = budget(count=most, window=window)
    counts = Counts(total=len(outcomes), failed=len(failures), succeeded=len(outcomes) - len(failures))
    nth = needs_spread(limits, counts, 0)
    spread = None if nth is None else failures[nth - 1] + 1
    assert judge_budget(limits, counts, RECORD, spread).passed == (sum(outcomes[-window:]) > most)


def test_the_message_names_reason_error_and_remedy() -> None:
    """People read how many failed, why mostly, and what to do."""
    text = told(budget(count=2, window=50), Verdict(True, 7, 2), CommonError("ValueError: x\n  at line 3", 6))
    assert "2 of the last 50 finished" in text
    assert "7 failed" in text
    assert "(6 times): ValueError: x at line 3;" in text
    assert "spec.resume" in text
    assert len(told(budget(count=2), Verdict(True, 3, 2), CommonError("x" * 5000, 3))) < 700
