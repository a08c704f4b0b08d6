"""What becomes of a batch's rows, for every way its run can go."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone.backfill.outcome import RetryPolicy, Rules, Settlement, needs_settling, settle
from flowstone.backfill.records import OpenBatch, Row, State
from flowstone.executor.port import Ended, Gone, Running, RunState

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def batch(partitions: int, *, reporting: bool = True) -> OpenBatch:
    """An open batch of so many partitions."""
    return OpenBatch(7, "n/c/ns", "job-7", "uid", "digest", reporting, partitions, partitions, 0, NOW)


def row(partition: str, state: State = "running", *, attempts: int = 0, error: str | None = None) -> Row:
    """A row of the batch."""
    return Row(partition, ordinal=0, state=state, reason=None, attempts=attempts, error=error)


def rules(*, limit: int = 2, cancelled: bool = False) -> Rules:
    """Rules at noon, with the longest wait that jitter allows."""
    return Rules(RetryPolicy(limit, 10, 600), NOW, cancelled, jitter=lambda: 1.0)


def told(settlement: Settlement) -> list[tuple[str, str, str | None, int, bool]]:
    """What a settlement says of each row."""
    return [(c.partition, c.state, c.reason, c.attempts, c.charged) for c in settlement.changes]


def test_exit_code_zero_of_a_plain_image_is_success_of_the_whole_batch() -> None:
    """An image that knows nothing of FlowStone counts by its exit code."""
    found = settle(batch(2, reporting=False), [row("a"), row("b")], Ended(succeeded=True, exit_code=0), rules())
    assert told(found) == [("a", "succeeded", None, 0, False), ("b", "succeeded", None, 0, False)]
    assert found.close == "succeeded"


def test_exit_code_of_a_plain_image_charges_the_whole_batch() -> None:
    """Each partition of it uses up an attempt and waits for the back-off."""
    found = settle(
        batch(2, reporting=False), [row("a"), row("b", attempts=2)], Ended(succeeded=False, exit_code=3), rules()
    )
    assert told(found) == [("a", "queued", None, 1, True), ("b", "failed", "AttemptsUsedUp", 3, True)]
    assert found.changes[0].not_before == NOW + timedelta(seconds=10)
    assert found.changes[1].error == "exit code 3"


def test_a_reported_failure_is_charged_while_the_batch_goes_on() -> None:
    """Its batch stays open, its batch-mates are left alone."""
    found = settle(batch(2), [row("a", "failed", error="ValueError: x"), row("b")], Running(ready=True), rules())
    assert told(found) == [("a", "queued", None, 1, True)]
    assert (found.close, found.changes[0].error) == (None, "ValueError: x")


def test_a_crash_suspects_the_first_unreported_and_charges_nobody() -> None:
    """The worker goes in order, so the first one without a report is the one it died on."""
    rows = [row("a", "succeeded"), row("b"), row("c")]
    found = settle(batch(3), rows, Ended(succeeded=False, exit_code=137, reason="OOMKilled"), rules())
    assert told(found) == [("b", "queued", "Suspect", 0, False), ("c", "queued", None, 0, False)]


def test_a_suspect_that_dies_alone_is_charged_and_quarantined_at_last() -> None:
    """Alone in its batch it is to blame; the error tells how it ended."""
    ended = Ended(succeeded=False, exit_code=137, reason="OOMKilled", message="last words")
    again = settle(batch(1), [row("b")], ended, rules())
    assert told(again) == [("b", "queued", "Suspect", 1, True)]
    last = settle(batch(1), [row("b", attempts=2)], ended, rules())
    assert told(last) == [("b", "failed", "Quarantined", 3, True)]
    assert last.changes[0].error == "exit code 137 (OOMKilled): last words"


@pytest.mark.parametrize(
    "run",
    [Gone(), Ended(succeeded=False, disrupted=True, exit_code=137), Ended(succeeded=False, exit_code=75)],
    ids=["gone", "disrupted", "ledger lost"],
)
def test_what_came_from_outside_charges_nobody(run: RunState) -> None:
    """A lost run, an eviction and a ledger out of reach give the rows back as they were."""
    found = settle(batch(2), [row("a"), row("b", attempts=1)], run, rules())
    assert told(found) == [("a", "queued", None, 0, False), ("b", "queued", None, 1, False)]
    assert found.close is not None


def test_rows_of_a_lost_machine_go_back_at_once_and_the_slot_stays_taken() -> None:
    """The batch is closed only when its pod is really gone."""
    found = settle(batch(1), [row("a")], Running(lost=True), rules())
    assert (told(found), found.close) == ([("a", "queued", None, 0, False)], None)


def test_cancelling_gives_nothing_back_to_the_queue() -> None:
    """What was not finished is cancelled, a failure that would have been retried too."""
    rows = [row("a"), row("b", "failed", error="x")]
    found = settle(batch(2), rows, Gone(), rules(cancelled=True))
    assert {(c.partition, c.state) for c in found.changes} == {("a", "cancelled"), ("b", "cancelled")}


def test_outcomes_by_position() -> None:
    """A worker without a database names positions; what it does not name was not reached."""
    ended = Ended(succeeded=False, exit_code=1, positions=((0, ""), (1, "boom")))
    found = settle(batch(3, reporting=False), [row("a"), row("b"), row("c")], ended, rules())
    assert [(c.partition, c.state) for c in found.changes] == [("a", "succeeded"), ("b", "queued"), ("c", "queued")]


@given(st.integers(1, 40), st.floats(0, 1))
def test_back_off_doubles_within_its_bounds(attempts: int, jitter: float) -> None:
    """Wait n lies between half and all of 10 s * 2^(n-1), and never above 600 s."""
    wait = RetryPolicy(100, 10, 600).wait(attempts, jitter).total_seconds()
    full = min(600, 10 * 2 ** (attempts - 1))
    assert full / 2 <= wait <= full


runs: st.SearchStrategy[RunState] = st.one_of(
    st.builds(Running, st.booleans(), st.booleans(), st.booleans()),
    st.just(Gone()),
    st.builds(Ended, st.booleans(), st.none() | st.integers(0, 255), st.booleans()),
)
row_states: st.SearchStrategy[State] = st.sampled_from(["running", "succeeded", "failed"])


@given(st.lists(row_states, min_size=1, max_size=8), runs, st.booleans(), st.booleans())
def test_nothing_is_lost_and_only_a_run_that_is_over_is_closed(
    states: list[State], run: RunState, reporting: bool, cancelled: bool
) -> None:
    """After a closing settlement no row is running or unsettled; a success is never touched; at most one row is
    charged for a crash; an open run that is not lost keeps its running rows."""
    rows = [row(str(n), state, error="e" if state == "failed" else None) for n, state in enumerate(states)]
    found = settle(batch(len(rows), reporting=reporting), rows, run, rules(cancelled=cancelled))
    touched = {change.partition: change for change in found.changes}
    assert len(touched) == len(found.changes)
    assert not [r for r in rows if r.state == "succeeded" and r.partition in touched]
    assert all(r.partition in touched for r in rows if r.state == "failed")
    assert (found.close is None) == isinstance(run, Running)
    if found.close is not None:
        assert all(r.partition in touched for r in rows if r.state == "running")
    if isinstance(run, Running) and not run.lost:
        assert not [r for r in rows if r.state == "running" and r.partition in touched]
    if reporting:
        charged = [r for r in rows if r.state == "running" and r.partition in touched and touched[r.partition].charged]
        assert len(charged) <= 1


def test_a_batch_needs_settling_only_when_there_is_something_to_write() -> None:
    """A running batch without reported failures costs no read of its rows."""
    assert not needs_settling(batch(1), Running(ready=True))
    assert needs_settling(batch(1), Gone())
    assert needs_settling(batch(1), Running(lost=True))
