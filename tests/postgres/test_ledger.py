"""Each method of the ledger, on a real server; on one that gives BYPASSRLS and on one that does not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import groupby

import pytest

from flowstone.backfill.records import (
    SUSPECT,
    ClaimRequest,
    Counts,
    Failure,
    Interval,
    OpenBatch,
    Retry,
    Row,
    RowChange,
    State,
)
from flowstone.db import settling
from flowstone.db.batching import KEY_BYTES, weight
from flowstone.db.connection import session_name
from flowstone.db.ledger import Ledger
from flowstone.db.planning import BLOCK_ROWS
from flowstone.errors import LedgerBusy, LedgerRefused
from tests.postgres.conftest import CLUSTER, OTHER_SCOPE, SCOPE, Place, Queue, Register, request

KEYS = [f"2026-01-{day:02d}" for day in range(1, 11)]
LATER = datetime.now(UTC) + timedelta(hours=1)
EVERYTHING = request()


@pytest.fixture(params=["bypassrls", "staged"], autouse=True)
def row_security(request: pytest.FixtureRequest, place: Place) -> Iterator[None]:
    """Run each test as an operator with BYPASSRLS, and as one that the server did not give it."""
    with place.connect() as admin:
        if request.param == "staged":
            admin.execute("ALTER ROLE flowstone_operator NOBYPASSRLS")
        yield
        admin.execute("ALTER ROLE flowstone_operator BYPASSRLS")


def done(
    partition: str,
    state: State = "succeeded",
    *,
    expected: State = "running",
    reason: str | None = None,
    attempts: int = 0,
    not_before: datetime | None = None,
    error: str | None = None,
    charged: bool = False,
) -> RowChange:
    """A change of a running row."""
    return RowChange(partition, expected, state, reason, attempts, not_before, error, charged)


def until_ended(place: Place, name: str) -> None:
    """Return once no session has this name."""
    deadline = time.monotonic() + 20
    while place.all("SELECT FROM pg_stat_activity WHERE application_name = %s", name):
        assert time.monotonic() < deadline, "the session goes on"
        time.sleep(0.01)


def succeed(ledger: Ledger, uid: str, claim: ClaimRequest = EVERYTHING) -> None:
    """Hand out what can be handed out and let all of it succeed."""
    for batch in ledger.claim(uid, claim):
        ledger.settle(batch.fence, [done(key) for key in batch.partitions], close="Complete")


class TestRegistry:
    def test_register_is_idempotent(self, ledger: Ledger, register: Register) -> None:
        """Registering a uid again returns the first record unchanged; an unknown uid is not found."""
        uid = register("daily")
        record = ledger.find(uid)
        assert record is not None
        assert (record.uid, record.cluster, record.asset, record.total) == (uid, CLUSTER, "c1/analytics/daily", None)
        assert ledger.find("00000000-0000-4000-8000-000000000000") is None

    def test_backfills_are_numbered_in_order(self, ledger: Ledger, register: Register) -> None:
        """`seq` grows with each registration, and live_uids lists this cluster's in that order until closed."""
        first, second = register("a"), register("b")
        register("c", cluster="another")
        one, two = ledger.find(first), ledger.find(second)
        assert one is not None
        assert two is not None
        assert one.seq < two.seq
        assert [uid for uid, _, _ in ledger.live_uids()] == [first, second]
        ledger.close_orphan(first)
        assert [uid for uid, _, _ in ledger.live_uids()] == [second]

    def test_finish_keeps_the_first_time(self, ledger: Ledger, register: Register) -> None:
        """A backfill finishes once, however often that is noted."""
        uid = register("daily")
        ledger.finish(uid)
        first = ledger.find(uid)
        ledger.finish(uid)
        assert first is not None
        assert first.finished_at is not None
        assert ledger.find(uid) == first


class TestLease:
    def test_one_owner_at_a_time(self, ledger: Ledger, register: Register) -> None:
        """The owner may renew; another gets it only after it was given back."""
        uid = register("daily")
        assert ledger.take_lease(uid, "one", 60) is True
        assert ledger.take_lease(uid, "two", 60) is False
        assert ledger.take_lease(uid, "one", 60) is True
        ledger.release_lease(uid, "two")
        assert ledger.take_lease(uid, "two", 60) is False
        ledger.release_lease(uid, "one")
        assert ledger.take_lease(uid, "two", 60) is True

    def test_a_lease_runs_out(self, ledger: Ledger, register: Register) -> None:
        """A lease whose time is over is free."""
        uid = register("daily")
        assert ledger.take_lease(uid, "one", -1) is True
        assert ledger.take_lease(uid, "two", 60) is True

    def test_a_lease_ends_with_its_owners_sessions(self, ledger: Ledger, register: Register, place: Place) -> None:
        """A replica called like its sessions holds a lease while it has one; then the lease is free before its time."""
        uid, owner = register("daily"), session_name("a-pod-with-a-long-name" * 4, "0a1b2c3d")
        with Ledger.connect(place.operator, cluster=CLUSTER, name=owner) as replica:
            assert replica.take_lease(uid, owner, 60) is True
            assert ledger.take_lease(uid, "two", 60) is False
        until_ended(place, owner)
        assert ledger.take_lease(uid, "two", 60) is True

    def test_all_leases_of_an_owner_are_given_back(self, ledger: Ledger, register: Register) -> None:
        """A replica that shuts down frees what it held, and nothing of others."""
        mine, theirs = register("a"), register("b")
        ledger.take_lease(mine, "one", 60)
        ledger.take_lease(theirs, "two", 60)
        ledger.release_leases("one")
        assert ledger.take_lease(mine, "three", 60) is True
        assert ledger.take_lease(theirs, "three", 60) is False

    def test_an_unregistered_backfill_has_no_lease(self, ledger: Ledger) -> None:
        """There is nothing to hold before the backfill is registered."""
        assert ledger.take_lease("00000000-0000-4000-8000-000000000000", "one", 60) is False

    def test_a_backfill_being_planned_is_not_waited_for(self, ledger: Ledger, register: Register, place: Place) -> None:
        """While another session holds the row, the answer is no, at once."""
        uid = register("daily")
        with place.connect() as other, other.transaction():
            other.execute("SELECT 1 FROM flowstone.backfill WHERE uid = %s FOR UPDATE", [uid])
            assert ledger.take_lease(uid, "one", 60) is False


class TestPlan:
    def test_every_partition_is_queued_in_order(self, ledger: Ledger, queue: Queue, place: Place) -> None:
        """Rows are queued, numbered as they came, with no fence and no attempts."""
        uid = queue(KEYS)
        assert ledger.counts(uid) == Counts(total=10, queued=10)
        rows = place.all("SELECT partition, ordinal, state, fence, attempts FROM flowstone.materialization ORDER BY 2")
        assert rows == [(key, number, "queued", None, 0) for number, key in enumerate(KEYS)]

    def test_planning_again_reads_and_writes_nothing(self, ledger: Ledger, queue: Queue) -> None:
        """A planned backfill answers with its counts and never touches the rows it is offered."""
        uid = queue(KEYS)
        untouched = iter([(SCOPE, "another")])
        counts = ledger.plan(uid, untouched, total=99, set_hash="other", select="All")
        assert list(untouched) == [(SCOPE, "another")]
        record = ledger.find(uid)
        assert counts == Counts(total=10, queued=10)
        assert record is not None
        assert (record.total, record.set_hash) == (10, "set-1")

    def test_an_empty_set_is_a_plan(self, ledger: Ledger, queue: Queue) -> None:
        """Zero partitions are planned, and then nothing is left to do."""
        uid = queue([])
        record = ledger.find(uid)
        assert record is not None
        assert record.total == 0
        assert record.planned_at is not None
        assert ledger.claim(uid, request()) == []

    @pytest.mark.parametrize("total", [9, 11])
    def test_another_number_of_rows_is_refused(self, ledger: Ledger, register: Register, total: int) -> None:
        """Rows that are not as many as the set says leave nothing behind."""
        uid = register("daily")
        with pytest.raises(LedgerRefused, match="10 rows"):
            ledger.plan(uid, [(SCOPE, key) for key in KEYS], total=total, set_hash="h", select="All")
        assert ledger.counts(uid) == Counts()

    def test_a_partition_listed_twice_is_refused(self, ledger: Ledger, register: Register) -> None:
        """One key twice leaves nothing behind."""
        uid = register("daily")
        with pytest.raises(LedgerRefused, match="twice"):
            ledger.plan(uid, [(SCOPE, "a"), (SCOPE, "a")], total=2, set_hash="h", select="All")
        assert ledger.counts(uid) == Counts()

    def test_an_unregistered_backfill_is_refused(self, ledger: Ledger) -> None:
        """Planning needs the backfill's row."""
        with pytest.raises(LedgerRefused, match="register"):
            ledger.plan("00000000-0000-4000-8000-000000000000", [], total=0, set_hash="h", select="All")

    def test_an_exception_in_the_rows_leaves_nothing(self, ledger: Ledger, register: Register) -> None:
        """Rows that break off half way are rolled back, and the backfill can be planned afterwards."""
        uid = register("daily")

        def broken() -> Iterator[tuple[str, str]]:
            yield from ((SCOPE, f"p{number}") for number in range(2000))
            raise RuntimeError("no more")

        with pytest.raises(RuntimeError, match="no more"):
            ledger.plan(uid, broken(), total=3000, set_hash="h", select="All")
        assert ledger.counts(uid) == Counts()
        assert ledger.plan(uid, [(SCOPE, "p")], total=1, set_hash="h", select="All") == Counts(total=1, queued=1)

    def test_keys_survive_whatever_they_contain(self, ledger: Ledger, queue: Queue, place: Place) -> None:
        """Backslashes, quotes, COPY's own marks and any script come out as they went in."""
        keys = ["\\N", "\\.", "a\\tb", "tab\there", "line\nend", "'quoted\"", "日本", "ß|é", "%7C", "{x}", "😀"]
        uid = queue(keys)
        rows = place.all("SELECT partition FROM flowstone.materialization WHERE backfill = %s ORDER BY ordinal", uid)
        assert [key for (key,) in rows] == keys

    def test_rows_of_many_blocks_are_numbered_through(self, ledger: Ledger, register: Register, place: Place) -> None:
        """More rows than go to the server at a time, of two scopes by turns, keep their order and their scope."""
        uid = register("daily", scope="")
        rows = [((SCOPE, OTHER_SCOPE)[number % 2], f"p{number:04d}") for number in range(2 * BLOCK_ROWS + 1)]
        assert ledger.plan(uid, rows, total=len(rows), set_hash="h", select="All") == Counts(total=1025, queued=1025)
        found = place.all("SELECT scope, partition, ordinal FROM flowstone.materialization ORDER BY ordinal")
        assert found == [(scope, partition, number) for number, (scope, partition) in enumerate(rows)]

    def test_a_skipped_scope_is_not_worked_on(self, ledger: Ledger, register: Register) -> None:
        """Rows of a scope that a guard refused are skipped with the reason; the others are queued."""
        uid = register("daily", scope="")
        rows = [(scope, key) for key in KEYS for scope in (SCOPE, OTHER_SCOPE)]
        counts = ledger.plan(uid, rows, total=20, set_hash="h", select="All", skipped={OTHER_SCOPE: "TierTooLow"})
        assert counts == ledger.counts(uid) == Counts(total=20, queued=10, skipped=10)
        assert {batch.scope for batch in ledger.claim(uid, request())} == {SCOPE}

    def test_missing_leaves_out_what_succeeded(self, ledger: Ledger, queue: Queue) -> None:
        """With Missing, partitions that an earlier backfill made are skipped; with All they are queued again."""
        succeed(ledger, queue(KEYS[:4]))
        missing, everything = queue(KEYS), queue(KEYS, select="All")
        assert ledger.counts(missing) == Counts(total=10, queued=6, skipped=4)
        assert ledger.counts(everything) == Counts(total=10, queued=10)

    def test_missing_looks_at_its_own_scope_and_asset(self, ledger: Ledger, queue: Queue) -> None:
        """A success of another scope or another asset is nobody else's."""
        succeed(ledger, queue(KEYS))
        other_asset, other_scope = queue(KEYS, asset="weekly"), queue(KEYS, scope=OTHER_SCOPE)
        assert ledger.counts(other_asset) == ledger.counts(other_scope) == Counts(total=10, queued=10)

    def test_missing_in_many_scopes(self, ledger: Ledger, register: Register, queue: Queue) -> None:
        """A backfill over several scopes skips what each of them has."""
        succeed(ledger, queue(KEYS[:3]))
        uid = register("daily", scope="")
        rows = [(scope, key) for key in KEYS for scope in (SCOPE, OTHER_SCOPE)]
        counts = ledger.plan(uid, rows, total=20, set_hash="h", select="Missing", skipped={})
        assert counts == Counts(total=20, queued=17, skipped=3)


class TestClaim:
    def test_batches_come_in_queue_order(self, ledger: Ledger, queue: Queue) -> None:
        """Batches take consecutive partitions, under growing fences and the names of their Jobs."""
        uid = queue(KEYS)
        batches = ledger.claim(uid, request(batch_size=4))
        assert [batch.partitions for batch in batches] == [tuple(KEYS[:4]), tuple(KEYS[4:8]), tuple(KEYS[8:])]
        assert [batch.job_name for batch in batches] == [f"bf-01234567-{batch.fence}" for batch in batches]
        assert [batch.fence for batch in batches] == sorted(batch.fence for batch in batches)
        assert {(batch.scope, batch.template_digest) for batch in batches} == {(SCOPE, "digest-1")}
        assert ledger.counts(uid) == Counts(total=10, running=10)

    def test_descending(self, ledger: Ledger, queue: Queue) -> None:
        """With Descending the last batch comes first; within a batch the order is that of `rows_of`."""
        batches = ledger.claim(queue(KEYS), request(batch_size=4, order="Descending", max_parallel=2))
        assert [batch.partitions for batch in batches] == [tuple(KEYS[6:]), tuple(KEYS[2:6])]
        assert [row.partition for row in ledger.rows_of(batches[0].fence)] == KEYS[6:]

    def test_the_backfills_cap(self, ledger: Ledger, queue: Queue) -> None:
        """No more than max_parallel are open; a closed batch frees one place; a lowered cap drains."""
        uid = queue(KEYS)
        first = ledger.claim(uid, request(max_parallel=3))
        assert len(first) == 3
        assert ledger.claim(uid, request(max_parallel=3)) == []
        ledger.settle(first[0].fence, [done(first[0].partitions[0])], close="Complete")
        assert len(ledger.claim(uid, request(max_parallel=3))) == 1
        assert ledger.claim(uid, request(max_parallel=2)) == []
        assert len(ledger.claim(uid, request(max_parallel=5))) == 2

    def test_the_operators_cap(self, ledger: Ledger, queue: Queue) -> None:
        """The batches of all backfills of the cluster count together."""
        one, two = queue(KEYS), queue(KEYS, asset="weekly")
        assert len(ledger.claim(one, request(operator_limit=4, max_parallel=3))) == 3
        assert len(ledger.claim(two, request(operator_limit=4, max_parallel=3))) == 1
        assert ledger.claim(two, request(operator_limit=4, max_parallel=3)) == []

    def test_the_cap_of_a_scope(self, ledger: Ledger, register: Register) -> None:
        """A scope at its limit gets nothing, and does not keep others from working."""
        uid = register("daily", scope="")
        rows = [(scope, key) for scope in (SCOPE, OTHER_SCOPE) for key in KEYS]
        ledger.plan(uid, rows, total=20, set_hash="h", select="All")
        limited = request(tenant_limits={SCOPE: 2}, max_parallel=5)
        scopes = [batch.scope for _ in range(3) for batch in ledger.claim(uid, limited)]
        assert scopes == [SCOPE] * 2 + [OTHER_SCOPE] * 3

    def test_one_scope_per_batch(self, ledger: Ledger, register: Register) -> None:
        """Rows of two scopes that take turns in the queue never share a batch."""
        uid = register("daily", scope="")
        rows = [(scope, key) for key in KEYS for scope in (SCOPE, OTHER_SCOPE)]
        ledger.plan(uid, rows, total=20, set_hash="h", select="All")
        batches = ledger.claim(uid, request(batch_size=10, logins={SCOPE: "ns_x_a"}))
        assert [(batch.scope, batch.partitions) for batch in batches] == [
            (SCOPE, tuple(KEYS)),
            (OTHER_SCOPE, tuple(KEYS)),
        ]

    def test_the_batch_records_its_login(self, ledger: Ledger, queue: Queue, place: Place) -> None:
        """Whose credentials a batch uses is written down with it."""
        ledger.claim(queue(KEYS), request(batch_size=10, logins={SCOPE: "ns_x_a"}))
        assert place.all("SELECT login, partitions, state FROM flowstone.batch") == [("ns_x_a", 10, "open")]

    def test_a_batch_has_at_most_128_kib_of_keys(self, ledger: Ledger, queue: Queue) -> None:
        """Long keys make short batches: what a pod's annotation can carry."""
        keys = [f"{number:05d}{'ü' * 240}" for number in range(400)]
        batches = ledger.claim(queue(keys), request(batch_size=400))
        sizes = [sum(weight(key) for key in batch.partitions) for batch in batches]
        assert [key for batch in batches for key in batch.partitions] == keys
        assert len(batches) > 1
        assert max(sizes) <= KEY_BYTES < sizes[0] + weight(keys[0])

    def test_a_suspect_travels_alone(self, ledger: Ledger, queue: Queue) -> None:
        """A row whose last batch died is handed out in a batch of one, its neighbours together."""
        uid = queue(KEYS[:4])
        (batch,) = ledger.claim(uid, request(batch_size=4))
        changes = [done(key, "queued", reason=SUSPECT if key == KEYS[1] else None) for key in batch.partitions]
        ledger.settle(batch.fence, changes, close="Failed")
        again = ledger.claim(uid, request(batch_size=4))
        assert [made.partitions for made in again] == [(KEYS[0], KEYS[2], KEYS[3]), (KEYS[1],)]
        assert min(made.fence for made in again) > batch.fence

    def test_rows_in_back_off_wait_and_block_nobody(self, ledger: Ledger, queue: Queue, place: Place) -> None:
        """A row that is not due yet is passed over; when it is due it is handed out."""
        uid = queue(KEYS[:3])
        (batch,) = ledger.claim(uid, request(max_parallel=1))
        change = done(KEYS[0], "queued", not_before=LATER, attempts=1, error="boom", charged=True)
        ledger.settle(batch.fence, [change], close="Failed")
        assert ledger.next_retry(uid) == Retry(LATER, "boom")
        assert [made.partitions for made in ledger.claim(uid, request())] == [(KEYS[1],), (KEYS[2],)]
        assert ledger.claim(uid, request()) == []
        with place.connect() as admin:
            admin.execute("UPDATE flowstone.materialization SET not_before = now() WHERE not_before IS NOT NULL")
        assert [made.partitions for made in ledger.claim(uid, request())] == [(KEYS[0],)]
        assert ledger.next_retry(uid) is None

    def test_a_later_backfill_waits_and_then_skips(self, ledger: Ledger, queue: Queue) -> None:
        """What an earlier backfill has queued or running is waited for; what it made is skipped by Missing."""
        first, second = queue(KEYS[:4]), queue(KEYS[2:6])
        assert [batch.partitions for batch in ledger.claim(second, request())] == [(KEYS[4],), (KEYS[5],)]
        (batch,) = ledger.claim(first, request(batch_size=4))
        assert ledger.claim(second, request()) == []
        ledger.settle(batch.fence, [done(key) for key in KEYS[:4]], close="Complete")
        assert ledger.claim(second, request()) == []
        assert ledger.counts(second) == Counts(total=4, running=2, skipped=2)

    def test_a_later_backfill_over_all_makes_it_again(self, ledger: Ledger, queue: Queue) -> None:
        """With All the later backfill waits too, and then runs what the earlier one made."""
        first, second = queue(KEYS[:2]), queue(KEYS[:2], select="All")
        assert ledger.claim(second, request(select="All")) == []
        succeed(ledger, first)
        assert len(ledger.claim(second, request(select="All"))) == 2

    def test_an_earlier_backfill_waits_for_what_runs(self, ledger: Ledger, register: Register, queue: Queue) -> None:
        """Registered first but planned later, it leaves alone what the later one is already working on."""
        first = register("daily")
        second = queue(KEYS[:2])
        (running, _) = ledger.claim(second, request())
        ledger.plan(first, [(SCOPE, key) for key in KEYS[:2]], total=2, set_hash="h", select="All")
        assert ledger.claim(first, request(select="All")) == []
        ledger.settle(running.fence, [done(KEYS[0])], close="Complete")
        assert [batch.partitions for batch in ledger.claim(first, request(select="All"))] == [(KEYS[0],)]

    def test_a_reported_failure_is_still_its_batchs(self, ledger: Ledger, queue: Queue, place: Place) -> None:
        """Between a worker's report and the operator's decision, no other backfill takes the partition."""
        first, second = queue(KEYS[:1]), queue(KEYS[:1], select="All")
        ledger.claim(first, request())
        with place.connect() as admin:
            admin.execute("UPDATE flowstone.materialization SET state = 'failed' WHERE backfill = %s", [first])
        assert ledger.claim(second, request(select="All")) == []

    def test_what_is_not_planned_or_closed_hands_out_nothing(
        self, ledger: Ledger, register: Register, queue: Queue
    ) -> None:
        """Before planning and after closing there is no work."""
        unplanned, closed = register("a"), queue(KEYS, asset="b")
        ledger.close_orphan(closed)
        assert ledger.claim(unplanned, request()) == []
        assert ledger.claim(closed, request()) == []


class TestSettle:
    def test_outcomes(self, ledger: Ledger, queue: Queue, place: Place) -> None:
        """Each row takes its own way; charged ones are in the history; the batch is closed with its outcome."""
        uid = queue(KEYS[:4])
        (batch,) = ledger.claim(uid, request(batch_size=4))
        ledger.settle(
            batch.fence,
            [
                done(KEYS[0]),
                done(KEYS[1], "failed", reason="AttemptsUsedUp", attempts=3, error="boom", charged=True),
                done(KEYS[2], "queued", attempts=1, error="once", not_before=LATER, charged=True),
                done(KEYS[3], "queued"),
            ],
            close="Failed",
        )
        rows = place.all("""
            SELECT partition, state, reason, attempts, error, fence IS NOT NULL, not_before, finished_at IS NOT NULL
            FROM flowstone.materialization ORDER BY ordinal
        """)
        assert rows == [
            (KEYS[0], "succeeded", None, 0, None, True, None, True),
            (KEYS[1], "failed", "AttemptsUsedUp", 3, "boom", True, None, True),
            (KEYS[2], "queued", None, 1, "once", False, LATER, False),
            (KEYS[3], "queued", None, 0, None, False, None, False),
        ]
        attempts = place.all("SELECT partition, attempt, fence, error FROM flowstone.attempt ORDER BY partition")
        assert attempts == [(KEYS[1], 3, batch.fence, "boom"), (KEYS[2], 1, batch.fence, "once")]
        assert place.all("SELECT state, outcome FROM flowstone.batch") == [("closed", "Failed")]
        assert ledger.open_batches(uid) == []

    def test_a_change_decided_on_another_state_is_void(self, ledger: Ledger, queue: Queue, place: Place) -> None:
        """A row that the worker reported meanwhile keeps the report."""
        uid = queue(KEYS[:1])
        (batch,) = ledger.claim(uid, request())
        with place.connect() as admin:
            admin.execute("UPDATE flowstone.materialization SET state = 'succeeded'")
        ledger.settle(batch.fence, [done(KEYS[0], "queued", attempts=1, charged=True)], close="Failed")
        assert ledger.counts(uid) == Counts(total=1, succeeded=1)
        assert place.all("SELECT 1 FROM flowstone.attempt") == []

    def test_another_fence_changes_nothing(self, ledger: Ledger, queue: Queue) -> None:
        """A late outcome of a superseded batch does not touch the row's new batch."""
        uid = queue(KEYS[:1])
        (old,) = ledger.claim(uid, request())
        ledger.settle(old.fence, [done(KEYS[0], "queued")], close="Lost")
        (new,) = ledger.claim(uid, request())
        ledger.settle(old.fence, [done(KEYS[0])], close="Complete")
        assert [row.state for row in ledger.rows_of(new.fence)] == ["running"]
        assert ledger.rows_of(old.fence) == []

    def test_a_failure_is_settled_once(self, ledger: Ledger, queue: Queue, place: Place) -> None:
        """Two replicas that settle the same report charge it once."""
        uid = queue(KEYS[:1])
        (batch,) = ledger.claim(uid, request())
        with place.connect() as admin:
            admin.execute("UPDATE flowstone.materialization SET state = 'failed', error = 'boom'")
        change = done(
            KEYS[0], "failed", expected="failed", reason="AttemptsUsedUp", attempts=1, error="boom", charged=True
        )
        ledger.settle(batch.fence, [change], close=None)
        ledger.settle(batch.fence, [change], close="Failed")
        assert place.all("SELECT attempt FROM flowstone.attempt") == [(1,)]
        assert ledger.counts(uid) == Counts(total=1, failed=1)

    def test_a_batch_with_open_rows_is_not_closed(self, ledger: Ledger, queue: Queue) -> None:
        """Closing would lose the rows that nobody settled, so nothing is changed at all."""
        uid = queue(KEYS[:2])
        (batch,) = ledger.claim(uid, request(batch_size=2))
        with pytest.raises(LedgerBusy, match="not settled"):
            ledger.settle(batch.fence, [done(KEYS[0])], close="Complete")
        assert ledger.counts(uid) == Counts(total=2, running=2)

    def test_a_long_error_is_cut(self, ledger: Ledger, queue: Queue) -> None:
        """An error of any length and content is taken, and read back short."""
        uid = queue(KEYS[:1])
        (batch,) = ledger.claim(uid, request())
        change = done(KEYS[0], "failed", reason="AttemptsUsedUp", attempts=1, error="ä\0" * 9000, charged=True)
        ledger.settle(batch.fence, [change], close="Failed")
        assert [failure.error for failure in ledger.failures(uid)] == ["ä" * 2000]

    def test_a_success_is_the_latest(self, ledger: Ledger, queue: Queue, place: Place) -> None:
        """A success is written to `latest` with its batch's template; a later one replaces it."""
        first, second = queue(KEYS[:1]), queue(KEYS[:1], select="All")
        succeed(ledger, first)
        query = "SELECT scope, asset, partition, code_version, backfill::text FROM flowstone.latest"
        key = (SCOPE, "c1/analytics/daily", KEYS[0])
        assert place.all(query) == [(*key, "digest-1", first)]
        succeed(ledger, second, request(select="All", template_digest="digest-2"))
        assert place.all(query) == [(*key, "digest-2", second)]


class TestEnding:
    def test_cancel_takes_what_is_queued(self, ledger: Ledger, queue: Queue) -> None:
        """Queued rows are cancelled, running ones come to their own end."""
        uid = queue(KEYS)
        ledger.claim(uid, request(max_parallel=3))
        assert ledger.cancel(uid) == 7
        assert ledger.cancel(uid) == 0
        assert ledger.counts(uid) == Counts(total=10, running=3, cancelled=7)

    def test_many_rows_are_ended_a_chunk_at_a_time(self, ledger: Ledger, queue: Queue) -> None:
        """A chunk ends no more rows than it may, the six counts add up after each, and the last one ends nothing."""
        uid = queue(KEYS)
        ended: list[int] = []
        while not ended or ended[-1]:
            with ledger.database.transaction() as tx:
                ended.append(settling.cancel(tx, uid, 4))
            assert ledger.counts(uid) == Counts(total=10, queued=10 - sum(ended), cancelled=sum(ended))
        assert ended == [4, 4, 2, 0]

    def test_waiting_rows_are_counted_as_far_as_it_matters(self, ledger: Ledger, queue: Queue) -> None:
        """The count of what waits stops at the number that is asked for; what failed for good is counted apart."""
        uid = queue(KEYS)
        assert [ledger.queued(uid, most) for most in (1, 9, 10, 11)] == [1, 9, 10, 10]
        for batch in ledger.claim(uid, request(max_parallel=2)):
            change = done(batch.partitions[0], "failed", reason="AttemptsUsedUp", attempts=1, error="no", charged=True)
            ledger.settle(batch.fence, [change], close="failed")
        assert (ledger.queued(uid, 100), ledger.failed(uid), ledger.counts(uid).failed) == (8, 2, 2)

    def test_an_orphan_is_closed_as_a_whole(self, ledger: Ledger, queue: Queue, place: Place) -> None:
        """Everything open is cancelled, batches are closed, what was done stays; and it may be said twice."""
        uid = queue(KEYS)
        one, *_ = ledger.claim(uid, request(max_parallel=3))
        ledger.settle(one.fence, [done(KEYS[0])], close="Complete")
        with place.connect() as admin:
            admin.execute("UPDATE flowstone.materialization SET state = 'failed' WHERE partition = %s", [KEYS[1]])
        ledger.close_orphan(uid)
        ledger.close_orphan(uid)
        assert ledger.counts(uid) == Counts(total=10, succeeded=1, cancelled=9)
        outcomes = place.all("SELECT outcome, state FROM flowstone.batch ORDER BY fence")
        assert outcomes == [("Complete", "closed"), ("Orphaned", "closed"), ("Orphaned", "closed")]
        record = ledger.find(uid)
        assert record is not None
        assert record.closed_at is not None


class TestReading:
    def test_open_batches(self, ledger: Ledger, queue: Queue, place: Place) -> None:
        """An open batch tells its Job, and how many of its rows run and how many are reported as failed."""
        uid = queue(KEYS[:4])
        (batch,) = ledger.claim(uid, request(batch_size=4))
        ledger.record_job(batch.fence, "job-1", "job-uid-1")
        with place.connect() as admin:
            admin.execute("UPDATE flowstone.batch SET reporting = true")
            admin.execute("UPDATE flowstone.materialization SET state = 'failed' WHERE ordinal = 0")
            admin.execute("UPDATE flowstone.materialization SET state = 'succeeded' WHERE ordinal = 1")
        (seen,) = ledger.open_batches(uid)
        assert seen == OpenBatch(
            fence=batch.fence,
            scope=SCOPE,
            job_name="job-1",
            job_uid="job-uid-1",
            template_digest="digest-1",
            reporting=True,
            partitions=4,
            running=2,
            unsettled=1,
            opened_at=seen.opened_at,
        )
        assert abs(seen.opened_at - datetime.now(UTC)) < timedelta(minutes=1)
        assert ledger.counts(uid) == Counts(total=4, running=3, succeeded=1)

    def test_rows_of_a_fence(self, ledger: Ledger, queue: Queue) -> None:
        """The rows of a batch, by ordinal."""
        (batch,) = ledger.claim(queue(KEYS[:2]), request(batch_size=2))
        assert ledger.rows_of(batch.fence) == [Row(KEYS[n], n, "running", None, 0, None) for n in (0, 1)]

    def test_failures(self, ledger: Ledger, queue: Queue) -> None:
        """Failures for good, first partitions first, with error, Job and attempts."""
        uid = queue(KEYS)
        batches = ledger.claim(uid, request())
        for number, batch in enumerate(batches[:3]):
            change = done(KEYS[number], "failed", reason="AttemptsUsedUp", attempts=3, error=f"e{number}")
            ledger.settle(batch.fence, [change], close="Failed")
        assert ledger.failures(uid, 2) == [
            Failure(KEYS[n], f"e{n}", f"bf-01234567-{batches[n].fence}", 3) for n in (0, 1)
        ]

    def test_intervals(self, ledger: Ledger, queue: Queue) -> None:
        """Runs of consecutive partitions in one state, by their first and last key."""
        uid = queue(KEYS)
        for number, batch in enumerate(ledger.claim(uid, request())):
            key = KEYS[number]
            change = done(key, "failed", reason="AttemptsUsedUp") if number in (3, 4, 8) else done(key)
            ledger.settle(batch.fence, [change], close="Complete")
        assert ledger.intervals(uid, "failed") == [Interval(KEYS[3], KEYS[4], 2), Interval(KEYS[8], KEYS[8], 1)]
        assert ledger.intervals(uid, "succeeded", 2) == [Interval(KEYS[0], KEYS[2], 3), Interval(KEYS[5], KEYS[7], 3)]
        assert ledger.intervals(uid, "queued") == []

    def test_intervals_of_any_pattern(self, ledger: Ledger, queue: Queue, place: Place) -> None:
        """In a backfill with every state in it, the intervals of each are the runs one would count by hand."""
        states: list[State] = ["queued", "running", "succeeded", "failed", "skipped", "cancelled"]
        pattern = [states[digit] for digit in (0, 0, 2, 2, 2, 1, 3, 3, 2, 4, 5, 5, 0, 2, 2, 4, 3, 1, 1, 0)]
        uid = queue([f"k{number:02d}" for number in range(len(pattern))])
        with place.connect() as admin, admin.cursor() as cursor:
            cursor.executemany(
                "UPDATE flowstone.materialization SET state = %(s)s, "
                "fence = CASE %(s)s WHEN 'queued' THEN NULL ELSE 1 END WHERE ordinal = %(n)s",
                [{"s": state, "n": number} for number, state in enumerate(pattern)],
            )
        runs = [(state, [n for n, _ in run]) for state, run in groupby(enumerate(pattern), key=lambda pair: pair[1])]
        for wanted in states:
            by_hand = [Interval(f"k{r[0]:02d}", f"k{r[-1]:02d}", len(r)) for state, r in runs if state == wanted]
            assert ledger.intervals(uid, wanted) == by_hand

    def test_throughput(self, ledger: Ledger, queue: Queue, place: Place) -> None:
        """What ended within the window, or since the first hand-out, per minute; a made-up time counts for nothing."""
        uid = queue(KEYS)
        succeed(ledger, uid, request(max_parallel=6))
        with place.connect() as admin:
            admin.execute("UPDATE flowstone.batch SET opened_at = now() - interval '60 s'")
            assert ledger.throughput(uid, 120) == pytest.approx(6.0, rel=0.05)
            admin.execute("UPDATE flowstone.batch SET opened_at = now() - interval '10 min'")
            assert ledger.throughput(uid, 120) == 3.0
            admin.execute("UPDATE flowstone.materialization SET finished_at = 'infinity' WHERE ordinal < 2")
            admin.execute("UPDATE flowstone.materialization SET finished_at = '-infinity' WHERE ordinal = 2")
        assert ledger.throughput(uid, 30) == 6.0
