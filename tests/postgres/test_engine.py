"""The engine on a real ledger, with runs that go as a test says: suspending, stopping, going on."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

from flowstone.backfill.records import Counts
from flowstone.backfill.standing import Stand
from flowstone.backfill.tenancy import Admission
from flowstone.db.ledger import Ledger
from flowstone.executor.port import Blockage, Ended, Gone, Running
from tests.postgres.conftest import Place
from tests.postgres.scripted import TENANTS_ASSET, DiedError, Run, Story

KEYS = [f"k{number:02d}" for number in range(10)]

SLOW, NOT_LATELY = 9, 21
"""Seconds after which a run is slow to start, and after which the end of a batch was not a moment ago."""

Tell = Callable[..., Story]


@pytest.fixture
def tell(ledger: Ledger, place: Place) -> Tell:
    """Begins a story over ten keys, in batches of two, three at a time, without waits between attempts."""

    def begin(keys: list[str] = KEYS, **spec: Any) -> Story:
        base = {"maxParallel": 3, "batchSize": 2, "retry": {"limit": 0, "backoffSeconds": 0}}
        return Story(ledger, place, str(uuid.uuid4()), keys, base | spec)

    return begin


class TestSuspend:
    def test_drain_hands_nothing_out_and_lets_runs_end(self, tell: Tell) -> None:
        """Open runs are left alone and count; nothing follows them until suspend is unset."""
        story = tell()
        story.step()
        story.edit(suspend="Drain")
        standing = story.step()
        assert (standing.stand, standing.reason) == (Stand.SUSPENDED, "SuspendedBySpec")
        assert "3 batches run to their end" in standing.message
        assert not any(run.stopping for run in story.executor.going)
        for run in story.executor.going:
            story.succeed(run)
        assert story.step().stand is Stand.SUSPENDED
        assert story.progress.counts == Counts(total=10, succeeded=6, queued=4)
        assert (len(story.executor.launched), story.progress.again) == (3, 60)
        story.edit(suspend=None)
        story.step()
        assert len(story.executor.launched) == 5

    def test_kill_stops_runs_and_charges_nobody(self, tell: Tell, place: Place) -> None:
        """Runs are asked to stop; what they had not reported goes back to the queue without an attempt."""
        story = tell()
        story.step()
        first = story.executor.going[0]
        story.worker.report(first.batch, "k00")
        story.edit(suspend="Kill")
        assert "3 batches are being stopped" in story.step().message
        assert [run.stopping for run in story.executor.going] == [True] * 3
        story.stopped()
        assert story.step().stand is Stand.SUSPENDED
        assert story.progress.counts == Counts(total=10, succeeded=1, queued=9)
        assert place.all("SELECT max(attempts) FROM flowstone.materialization") == [(0,)]
        assert place.all("SELECT count(*) FROM flowstone.attempt") == [(0,)]

    @pytest.mark.parametrize("suspend", ["Drain", "Kill"])
    def test_what_was_never_launched_goes_back(self, tell: Tell, suspend: str) -> None:
        """A replica died between claim and launch; the suspended backfill does not launch what it left."""
        story = tell()
        story.executor.dies = "before"
        with pytest.raises(DiedError):
            story.step()
        assert len(story.ledger.open_batches(story.uid)) == 3
        story.executor.dies = ""
        story.edit(suspend=suspend)
        story.step()
        assert story.progress.counts == Counts(total=10, queued=10)
        assert (story.ledger.open_batches(story.uid), story.executor.launched) == ([], [])

    def test_a_backfill_suspended_from_the_start_is_planned(self, tell: Tell) -> None:
        """Its partitions are counted and none is handed out."""
        story = tell(suspend="Drain")
        assert story.step().stand is Stand.SUSPENDED
        assert story.progress.counts == Counts(total=10, queued=10)
        assert story.executor.launched == []

    def test_cancel_comes_before_suspend(self, tell: Tell) -> None:
        """A suspended backfill that is cancelled ends."""
        story = tell(suspend="Drain")
        story.step()
        story.edit(cancel=True)
        assert story.step().stand is Stand.CANCELLED


class TestFailureBudget:
    def test_passing_it_stops_handing_out(self, tell: Tell) -> None:
        """Two failures are allowed: after the third nothing is handed out; the message says why and what to do."""
        story = tell(failureBudget={"count": 2})
        story.step()
        for run in story.executor.going[:2]:
            story.fail(run, "KeyError: 2013")
        standing = story.step()
        assert (standing.stand, standing.reason) == (Stand.BUDGET_PASSED, "FailureBudgetPassed")
        assert "(4 times): KeyError: 2013" in standing.message
        assert story.progress.counts == Counts(total=10, failed=4, running=2, queued=4)
        story.succeed(story.executor.going[0])
        assert story.step().stand is Stand.BUDGET_PASSED
        assert (len(story.executor.launched), story.progress.again) == (3, 60)

    def test_raising_it_goes_on(self, tell: Tell) -> None:
        """Work goes on where it stood, and a second stop comes with the raised budget."""
        story = tell(failureBudget={"count": 1}, maxParallel=1)
        story.step()
        story.fail(story.executor.going[0])
        assert story.step().stand is Stand.BUDGET_PASSED
        story.edit(failureBudget={"count": 2})
        assert story.step().stand is Stand.RUNNING
        story.fail(story.executor.going[0])
        assert story.step().stand is Stand.BUDGET_PASSED
        story.edit(failureBudget=None)
        assert story.step().stand is Stand.RUNNING

    def test_resume_forgives_what_failed_so_far(self, tell: Tell) -> None:
        """A new token goes on once; as many failures as before stop it again, and the old token does not help."""
        story = tell(failureBudget={"count": 1}, maxParallel=1)
        story.step()
        story.fail(story.executor.going[0])
        assert story.step().stand is Stand.BUDGET_PASSED
        story.edit(resume="a")
        assert story.step().stand is Stand.RUNNING
        story.fail(story.executor.going[0])
        assert story.step().stand is Stand.BUDGET_PASSED
        assert story.step().stand is Stand.BUDGET_PASSED
        story.edit(resume="b")
        assert story.step().stand is Stand.RUNNING

    def test_a_token_there_from_the_start_forgives_nothing(self, tell: Tell) -> None:
        """What a manifest says when it is created was honoured before anything failed."""
        story = tell(failureBudget={"count": 1}, maxParallel=1, resume="a")
        story.step()
        story.fail(story.executor.going[0])
        assert story.step().stand is Stand.BUDGET_PASSED

    def test_a_window_looks_at_the_last_ones(self, tell: Tell) -> None:
        """Two failures with two successes between them are one of any three; two in a row are too many."""
        story = tell(failureBudget={"count": 1, "window": 3}, maxParallel=1, batchSize=1)
        for outcome in (story.fail, story.succeed, story.succeed, story.fail):
            assert story.step().stand is Stand.RUNNING
            outcome(story.executor.going[0])
        assert story.step().stand is Stand.RUNNING
        story.fail(story.executor.going[0])
        assert story.step().stand is Stand.BUDGET_PASSED

    def test_what_is_left_of_it_ends_as_failed(self, tell: Tell) -> None:
        """When everything has finished there is nothing to stop."""
        story = tell(failureBudget={"count": 0}, maxParallel=5)
        story.step()
        for run in story.executor.going:
            story.fail(run)
        assert story.step().stand is Stand.FAILED


class TestRetryFailed:
    def test_a_token_queues_what_failed_once(self, tell: Tell, place: Place) -> None:
        """A finished backfill is open again, its failures have all their attempts, and the token is used up."""
        story = tell(maxParallel=5)
        story.step()
        bad, *good = story.executor.going
        story.fail(bad)
        for run in good:
            story.succeed(run)
        assert story.step().stand is Stand.PARTLY_FAILED
        story.edit(retryFailed="a")
        assert story.step().stand is Stand.RUNNING
        assert [batch.partitions for batch in story.executor.launched[5:]] == [("k00", "k01")]
        assert place.all("SELECT DISTINCT attempts FROM flowstone.materialization") == [(0,)]
        story.fail(story.executor.going[0])
        assert [story.step().stand for _ in range(2)] == [Stand.PARTLY_FAILED] * 2
        assert len(story.executor.launched) == 6
        story.edit(retryFailed="b")
        story.step()
        story.succeed(story.executor.going[0])
        assert story.step().stand is Stand.SUCCEEDED
        assert story.progress.counts == Counts(total=10, succeeded=10)
        assert place.all("SELECT count(*) FROM flowstone.attempt") == [(4,)]

    def test_it_lifts_a_stop(self, tell: Tell) -> None:
        """What the failure budget counted is tried again, so it counts from nothing."""
        story = tell(failureBudget={"count": 1}, maxParallel=1)
        story.step()
        story.fail(story.executor.going[0])
        assert story.step().stand is Stand.BUDGET_PASSED
        story.edit(retryFailed="a")
        assert story.step().stand is Stand.RUNNING
        assert story.executor.launched[-1].partitions == ("k00", "k01")

    def test_a_cancelled_backfill_stays_cancelled(self, tell: Tell) -> None:
        """cancel is for good, whatever tokens follow."""
        story = tell(maxParallel=1)
        story.step()
        story.fail(story.executor.going[0])
        story.step()
        story.edit(cancel=True)
        story.step()
        story.stopped()
        assert story.step().stand is Stand.CANCELLED
        story.edit(retryFailed="a")
        assert story.step().stand is Stand.CANCELLED
        assert story.progress.counts == Counts(total=10, failed=2, cancelled=8)

    def test_with_nothing_failed_it_stays_finished(self, tell: Tell) -> None:
        """A token over no failure is used up and changes nothing."""
        story = tell(maxParallel=5)
        story.step()
        for run in story.executor.going:
            story.succeed(run)
        assert story.step().stand is Stand.SUCCEEDED
        story.edit(retryFailed="a", resume="b")
        assert story.step().stand is Stand.SUCCEEDED
        record = story.ledger.find(story.uid)
        assert record is not None
        assert (record.retried, record.resumed, record.finished_at is None) == ("a", "b", False)


class TestLostAndHeld:
    def test_a_lost_run_keeps_its_slot_and_not_its_rows(self, tell: Tell) -> None:
        """Its rows go to somebody else at once, as far as the cap has room; it counts until it is gone."""
        story = tell(maxParallel=2)
        story.step()
        lost = story.executor.going[0]
        lost.state = Running(ready=True, stopping=True, lost=True)
        story.step()
        assert story.progress.counts == Counts(total=10, running=2, queued=8)
        assert len(story.ledger.open_batches(story.uid)) == 2
        assert story.executor.stops == [lost.batch.job_name]
        del story.executor.runs[lost.batch.job_name]
        story.step()
        assert story.executor.launched[-1].partitions == ("k00", "k01")
        assert len(story.ledger.open_batches(story.uid)) == 2

    def test_a_session_that_outlives_its_run_is_ended(self, tell: Tell, worker: psycopg.Connection[TupleRow]) -> None:
        """Its transaction holds a row of a run that is over: the session is ended, nothing of it is written."""
        story = tell()
        story.step()
        dead, *others = story.executor.going
        worker.execute("BEGIN")
        worker.execute(
            "UPDATE flowstone.materialization SET state = 'succeeded', finished_at = now() WHERE fence = %s",
            [dead.batch.fence],
        )
        dead.state = Ended(succeeded=False, exit_code=137, disrupted=True)
        story.succeed(others[0])
        story.step()
        assert story.states()["k00"] == "running"
        assert story.states()["k02"] == "succeeded"
        assert dead.batch.job_name in story.executor.runs
        with pytest.raises(psycopg.errors.AdminShutdown):
            worker.execute("COMMIT")
        story.step()
        assert story.executor.launched[-1].partitions == ("k00", "k01")

    def test_a_session_of_a_run_under_way_is_left_alone(self, tell: Tell, worker: psycopg.Connection[TupleRow]) -> None:
        """A worker in the middle of its transaction is not disturbed by a pass."""
        story = tell(batchSize=1)
        story.step()
        run = story.executor.going[0]
        with worker.transaction():
            worker.execute(
                "UPDATE flowstone.materialization SET state = 'succeeded', finished_at = now() WHERE fence = %s",
                [run.batch.fence],
            )
            story.step()
        assert story.states()["k00"] == "succeeded"


def crowded(story: Story) -> tuple[Story, Run, Run]:
    """A quota has room for the first of three batches; the story, that one's run, and the next one's."""
    story.executor.blockage = Blockage("QuotaExceeded", "exceeded quota: q")
    story.step()
    first, second, third = story.executor.going
    second.state = third.state = Running()
    return story, first, second


class TestRoom:
    def test_a_quota_that_lets_one_batch_through_after_the_other_blocks_nothing(self, tell: Tell) -> None:
        """It says what holds others back; when nothing ran for a while it is blocked, until something does again."""
        story, first, second = crowded(tell())
        standing = story.step()
        assert standing.stand is Stand.RUNNING
        assert standing.message.endswith("3 batches are out, 2 of them wait to start: exceeded quota: q")
        story.later(SLOW)
        story.succeed(first)
        standing = story.step()
        assert standing.stand is Stand.RUNNING
        assert standing.message.endswith("2 batches are out, 2 of them wait to start: exceeded quota: q")
        story.later(NOT_LATELY)
        standing = story.step()
        assert (standing.stand, standing.reason) == (Stand.BLOCKED, "QuotaExceeded")
        second.state = Running(ready=True)
        assert story.step().stand is Stand.RUNNING
        assert len(story.executor.launched) == 3

    def test_failures_under_a_quota_are_movement_too(self, tell: Tell) -> None:
        """A batch that ran and failed shows that there is room, though its partitions wait for their next attempt."""
        story, first, _ = crowded(tell(retry={"limit": 2, "backoffSeconds": 3600, "maxBackoffSeconds": 3600}))
        story.later(SLOW)
        story.fail(first)
        assert [story.step().stand for _ in range(2)] == [Stand.RUNNING] * 2
        assert story.states()["k00"] == "queued"
        story.later(NOT_LATELY)
        standing = story.step()
        assert (standing.stand, standing.reason) == (Stand.BLOCKED, "QuotaExceeded")

    def test_batches_that_ended_in_vain_are_no_movement(self, tell: Tell) -> None:
        """Nobody knows whether a run that was gone ever had room."""
        story, first, _ = crowded(tell())
        story.later(SLOW)
        first.state = Gone()
        assert story.step().stand is Stand.BLOCKED

    def test_a_tenant_that_is_not_ready_blocks_no_other(self, ledger: Ledger, place: Place) -> None:
        """While another's batches run, or did a moment ago, it goes on and the message names the tenant."""
        keys = ["acme|a", "zeta|a", "zeta|b"]
        story = Story(ledger, place, str(uuid.uuid4()), keys, {"batchSize": 1}, asset=TENANTS_ASSET)
        why = "Tenant acme: it has not been provisioned yet"
        story.admission = Admission(waiting={"t/c1/acme": why})
        standing = story.step()
        assert [run.batch.partitions for run in story.executor.going] == [("zeta|a",), ("zeta|b",)]
        assert standing.stand is Stand.RUNNING
        assert standing.message == f"0 of 3 partitions finished, 2 batches are out, some are held up: {why}"
        for run in story.executor.going:
            story.later(SLOW)
            story.succeed(run)
            assert story.step().stand is Stand.RUNNING
        story.later(NOT_LATELY)
        standing = story.step()
        assert (standing.stand, standing.reason, standing.message) == (Stand.BLOCKED, "TenantNotReady", why)
        story.admission = Admission()
        assert story.step().stand is Stand.RUNNING
        assert [run.batch.partitions for run in story.executor.going] == [("acme|a",)]

    def test_batches_that_wait_for_room_are_told_at_once(self, tell: Tell) -> None:
        """In the scheduler's words; others are handed out meanwhile."""
        story = tell()
        story.executor.blockage = Blockage("Unschedulable", "0/1 nodes are available", waiting=True)
        story.step()
        story.executor.going[0].state = Running()
        standing = story.step()
        assert standing.stand is Stand.RUNNING
        assert standing.message.endswith("3 batches are out, 1 of them wait to start: 0/1 nodes are available")


class TestEdits:
    def test_a_shorter_back_off_counts_for_those_who_wait(self, tell: Tell) -> None:
        """Partitions that wait for an hour are tried again at once when the back-off is edited; nothing else is."""
        story = tell(maxParallel=5, retry={"limit": 3, "backoffSeconds": 3600, "maxBackoffSeconds": 3600})
        story.step()
        for run in list(story.executor.going):
            story.fail(run)
        story.step()
        assert (story.executor.going, story.progress.counts) == ([], Counts(total=10, queued=10))
        due = story.ledger.next_retry(story.uid)
        story.step()
        assert due is not None
        assert story.ledger.next_retry(story.uid) == due
        story.edit(retry={"limit": 3, "backoffSeconds": 0, "maxBackoffSeconds": 3600})
        story.step()
        assert len(story.executor.going) == 5


class TestInVain:
    def test_rounds_in_vain_wait_longer_and_are_told(self, tell: Tell, place: Place) -> None:
        """Nobody is charged, nothing is handed out meanwhile, and any success or another template ends the waiting."""
        story = tell(maxParallel=1, batchSize=10)
        for _ in range(3):
            assert story.step().stand is Stand.RUNNING
            story.executor.going[0].state = Ended(False, disrupted=True, reason="OutOfcpu", message="no room")
        standing = story.step()
        assert (standing.stand, standing.reason) == (Stand.BLOCKED, "NoProgress")
        assert "3 times in a row" in standing.message
        assert "OutOfcpu" in standing.message
        assert len(story.executor.launched) == 3
        assert story.progress.counts == Counts(total=10, queued=10)
        with place.connect() as admin:  # as if ten seconds had gone by
            admin.execute("UPDATE flowstone.batch SET opened_at = opened_at - interval '11 s'")
            admin.execute("UPDATE flowstone.batch SET closed_at = closed_at - interval '11 s'")
        story.step()
        story.succeed(story.executor.going[0])
        assert story.step().stand is Stand.SUCCEEDED
        assert len(story.executor.launched) == 4

    def test_stopping_on_demand_is_not_in_vain(self, tell: Tell) -> None:
        """However often somebody kills the runs, going on is at once."""
        story = tell()
        for _ in range(4):
            story.edit(suspend=None)
            story.step()
            assert len(story.executor.going) == 3
            story.edit(suspend="Kill")
            story.step()
            story.stopped()
            story.step()

    def test_a_plain_image_is_split_down_to_its_poison_partition(self, tell: Tell) -> None:
        """A batch that fails as a whole, again and again, is halved: nine succeed, one is left with its last words."""
        story = tell(maxParallel=2, batchSize=10)
        jobs = 0
        while not story.step().finished:
            for run in story.executor.going:
                jobs += 1
                poisoned = "k03" in run.batch.partitions
                run.state = Ended(not poisoned, exit_code=137 if poisoned else 0, message="Killed")
        assert {key for key, state in story.states().items() if state != "succeeded"} == {"k03"}
        assert story.ledger.failures(story.uid)[0].error == "exit code 137: Killed"
        assert jobs == 7  # ten, then 5 + 5, 3 + 2, 1 + 1

    def test_what_fails_altogether_ends(self, tell: Tell) -> None:
        """A program that always fails does not get one Job for each key of a large backfill."""
        story = tell([f"k{number:03d}" for number in range(400)], maxParallel=4, batchSize=100)
        jobs = 0
        while not story.step().finished:
            for run in story.executor.going:
                jobs += 1
                run.state = Ended(False, exit_code=3)
        assert story.progress.counts == Counts(total=400, failed=400)
        assert jobs < 100
        assert any("none succeeded" in failure.error for failure in story.ledger.failures(story.uid, limit=400))
