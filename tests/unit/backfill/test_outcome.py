"""What becomes of a batch's rows, for every way its run can go."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone.backfill.outcome import HOPELESS, RetryPolicy, Rules, Settlement, needs_settling, settle
from flowstone.backfill.records import OpenBatch, Row, State
from flowstone.db.batching import Candidate, group
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
    """Each partition of it uses up an attempt, and they wait together."""
    dice = iter([0.0, 1.0])
    found = settle(
        batch(2, reporting=False),
        [row("a"), row("b", attempts=1)],
        Ended(succeeded=False, exit_code=3),
        replace(rules(), jitter=lambda: next(dice)),
    )
    assert told(found) == [("a", "queued", None, 1, True), ("b", "queued", None, 2, True)]
    assert [c.not_before for c in found.changes] == [NOW + timedelta(seconds=5), NOW + timedelta(seconds=10)]
    assert found.changes[1].error == "exit code 3"


def test_a_deadline_says_what_to_do() -> None:
    """The remedy stands before the log, whose end may be cut."""
    late = Ended(succeeded=False, exit_code=143, reason="DeadlineExceeded", message="container main: row 7")
    found = settle(batch(1, reporting=False), [row("a")], late, rules())
    assert told(found) == [("a", "queued", None, 1, True)]
    assert found.changes[0].error == (
        "exit code 143 (DeadlineExceeded: its pod ran longer than the template's activeDeadlineSeconds: raise that, or "
        "make batches smaller with spec.batchSize or spec.targetBatchSeconds): container main: row 7"
    )


def test_a_batch_without_attempts_left_is_split() -> None:
    """Each half travels by itself from then on; one that is alone has nobody else to blame."""
    run = Ended(succeeded=False, exit_code=137, message="killed")
    rows = [row(name, attempts=2) for name in "abcde"]
    found = settle(batch(5, reporting=False), rows, run, rules())
    assert [c.reason for c in found.changes] == ["Suspect 7/0"] * 3 + ["Suspect 7/1"] * 2
    assert {(c.state, c.attempts, c.charged, c.not_before) for c in found.changes} == {("queued", 3, True, None)}
    alone = settle(batch(1, reporting=False), [row("a", attempts=5)], run, rules())
    assert told(alone) == [("a", "failed", "Quarantined", 6, True)]


def work_off(killers: set[int], size: int, *, limit: int = 2, together: int = 1) -> tuple[dict[int, str], int]:
    """Let a plain image work off a batch that dies of any killer in it; the end of each row, and how many Jobs."""
    waiting = dict.fromkeys(range(size), (0, ""))
    ended: dict[int, str] = {}
    jobs = failed_parts = 0
    while waiting:
        queue = [Candidate("s", str(number), str(number), mark) for number, (_, mark) in sorted(waiting.items())]
        for made in group(queue, batches=together, size=size, slots={}):
            numbers = [int(one.partition) for one in made.rows]
            run = Ended(succeeded=not killers & set(numbers), exit_code=0 if not killers & set(numbers) else 137)
            rows = [row(str(number), attempts=waiting[number][0]) for number in numbers]
            jobs += 1
            one = replace(batch(len(rows), reporting=False), fence=jobs)
            found = settle(one, rows, run, replace(rules(limit=limit), failed_parts=failed_parts))
            part = any(each.attempts > limit for each in rows)
            failed_parts = 0 if run.succeeded else failed_parts + part
            for number, change in zip(numbers, found.changes, strict=True):
                del waiting[number]
                if change.state == "queued":
                    waiting[number] = (change.attempts, change.reason or "")
                else:
                    ended[number] = change.state
    return ended, jobs


@given(st.integers(1, 1500), st.integers(0, 2000), st.integers(0, 3), st.sampled_from([1, 4]))
def test_one_poison_partition_of_a_plain_image_is_found(size: int, killer: int, limit: int, together: int) -> None:
    """All others succeed; beyond one Job it takes 2 * log2(batch) and the attempts of the batch."""
    killer %= size
    ended, jobs = work_off({killer}, size, limit=limit, together=together)
    assert ended == {number: "failed" if number == killer else "succeeded" for number in range(size)}
    assert jobs - 1 <= 2 * math.ceil(math.log2(size)) + limit + 1


@given(st.sets(st.integers(0, 255), min_size=2, max_size=5))
def test_several_poison_partitions_are_found(killers: set[int]) -> None:
    """Each is alone at last, and all others succeed."""
    ended, _ = work_off(killers, 256, together=4)
    assert {number for number, state in ended.items() if state == "failed"} == killers


@pytest.mark.parametrize("together", [1, 20])
def test_what_fails_altogether_is_not_split_to_the_end(together: int) -> None:
    """When part after part fails and none succeeds, all fail, with a bounded number of Jobs and the reason."""
    ended, jobs = work_off(set(range(1000)), 1000, together=together)
    assert set(ended.values()) == {"failed"}
    assert len(ended) == 1000
    assert jobs <= 3 + 2 * HOPELESS + together
    found = settle(
        batch(2, reporting=False),
        [row("a", attempts=9), row("b", attempts=9)],
        Ended(succeeded=False, exit_code=9),
        replace(rules(), failed_parts=HOPELESS),
    )
    assert found.changes[0].error == "exit code 9; the last 30 batches failed too, however small, and none succeeded"


def report_until_death(killers: set[int], size: int, limit: int = 2) -> tuple[dict[int, str], int]:
    """Let a worker that reports work off a batch and die of each killer; the end of each row, and how many Jobs."""
    waiting = dict.fromkeys(range(size), (0, ""))
    ended: dict[int, str] = {}
    jobs = 0
    while waiting:
        queue = [Candidate("s", str(number), str(number), mark) for number, (_, mark) in sorted(waiting.items())]
        numbers = [int(one.partition) for one in group(queue, batches=1, size=size, slots={})[0].rows]
        jobs += 1
        dead = next((number for number in numbers if number in killers), None)
        done = [number for number in numbers if dead is None or number < dead]
        left = [row(str(number), attempts=waiting[number][0]) for number in numbers if number not in done]
        ended |= dict.fromkeys(done, "succeeded")
        run = Ended(succeeded=not left, exit_code=137 if left else 0)
        for change in settle(batch(len(numbers)), left, run, rules(limit=limit)).changes:
            if change.state == "queued":
                waiting[int(change.partition)] = (change.attempts, change.reason or "")
            else:
                ended[int(change.partition)] = change.state
        waiting = {number: value for number, value in waiting.items() if number not in ended}
    return ended, jobs


@pytest.mark.parametrize("killers", [{0}, {999}, {500}, {0, 1}, {0, 999}, {499, 500}, {998, 999}, {7, 300, 999}])
def test_a_worker_that_reports_finds_its_killers(killers: set[int]) -> None:
    """First, last or beside each other: all others succeed; each killer costs its attempts and one Job for the rest."""
    ended, jobs = report_until_death(killers, 1000)
    assert {number for number, state in ended.items() if state == "failed"} == killers
    assert len(ended) == 1000
    assert jobs - 1 <= len(killers) * (3 + 1)


def test_a_worker_that_never_reached_the_ledger_charges_nobody() -> None:
    """It leaves an empty message and exit code 75; one that died over a partition is suspected as ever."""
    lost = Ended(succeeded=False, exit_code=75, positions=())
    found = settle(batch(2, reporting=False), [row("a"), row("b")], lost, rules())
    assert told(found) == [("a", "queued", None, 0, False), ("b", "queued", None, 0, False)]
    assert found.outcome == "returned: exit code 75"
    died = Ended(succeeded=False, exit_code=137, positions=((0, ""),))
    found = settle(batch(3, reporting=False), [row("a"), row("b"), row("c")], died, rules())
    assert [c.reason for c in found.changes] == [None, "Suspect", None]


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
    [
        Gone(),
        Ended(succeeded=False, disrupted=True, exit_code=137),
        Ended(succeeded=False, exit_code=75, positions=()),
    ],
    ids=["gone", "disrupted", "ledger lost"],
)
def test_what_came_from_outside_charges_nobody(run: RunState) -> None:
    """A lost run, an eviction and a ledger out of reach give the rows back."""
    found = settle(batch(2), [row("a"), row("b", attempts=1)], run, rules())
    assert told(found) == [("a", "queued", None, 0, False), ("b", "queued", None, 1, False)]
    assert found.close is not None


@pytest.mark.parametrize("reporting", [False, True])
def test_a_command_that_cannot_be_started_charges_nobody(reporting: bool) -> None:
    """Nothing of the partitions has run, so they go back as they were, and why stands in the batch's outcome."""
    ended = Ended(succeeded=False, exit_code=128, reason="StartError", message="exec: nope: not found", unstarted=True)
    found = settle(batch(2, reporting=reporting), [row("a"), row("b", attempts=2)], ended, rules())
    assert told(found) == [("a", "queued", None, 0, False), ("b", "queued", None, 2, False)]
    assert found.outcome == "unstarted: exit code 128 (StartError): exec: nope: not found"


def test_a_program_that_ends_with_the_code_of_a_lost_ledger_is_a_crash() -> None:
    """os._exit(75) in a function leaves no message: suspected first, then alone and charged, at last quarantined."""
    ended = Ended(succeeded=False, exit_code=75)
    found = settle(batch(2), [row("a"), row("b")], ended, rules())
    assert told(found) == [("a", "queued", "Suspect", 0, False), ("b", "queued", None, 0, False)]
    alone = settle(batch(1), [row("a", attempts=2)], ended, rules())
    assert told(alone) == [("a", "failed", "Quarantined", 3, True)]
    assert alone.close == "failed"


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
