"""The invariants under replicas that race: caps, no loss, once, no overlap, one scope per batch.

Each thread has a ledger with connections of its own, as a replica has. What happened is judged afterwards from
the ledger's history, as the superuser sees it, and meanwhile by an observer that keeps reading.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg.rows import TupleRow

from flowstone.backfill.records import ClaimRequest, Counts, RowChange
from flowstone.db.ledger import Ledger
from flowstone.errors import LedgerBusy, LedgerUnavailable
from tests.postgres.conftest import CLUSTER, OTHER_SCOPE, SCOPE, Place, Queue, Register, request
from tests.postgres.test_ledger import done

REPLICAS = 4


def race(*steps: Callable[[], None]) -> None:
    """Run steps in threads at the same time; raise what the first failed one raised."""
    failures: list[BaseException] = []
    start = threading.Barrier(len(steps))

    def run(step: Callable[[], None]) -> None:
        start.wait()
        try:
            step()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.fixture
def replicas(place: Place) -> Iterator[list[Ledger]]:
    """Several ledgers on one database."""
    made = [Ledger.connect(place.operator, cluster=CLUSTER, size=2) for _ in range(REPLICAS)]
    yield made
    for ledger in made:
        ledger.close()


class Replica:
    """Claims and settles until the backfills are done, with outcomes from a seed."""

    def __init__(self, ledger: Ledger, uids: list[str], claim: ClaimRequest, seed: int) -> None:
        self._ledger = ledger
        self._uids = uids
        self._claim = claim
        self._random = random.Random(seed)  # noqa: S311  # which row fails, not a secret

    def __call__(self) -> None:
        """Work until nothing is open."""
        while any(self._ledger.counts(uid).open for uid in self._uids):
            uid = self._random.choice(self._uids)
            try:
                self._step(uid)
            except LedgerBusy:
                continue

    def _step(self, uid: str) -> None:
        for batch in self._ledger.claim(uid, self._claim):
            changes = [done(key, "queued" if self._random.random() < 0.2 else "succeeded") for key in batch.partitions]
            self._settle(batch.fence, changes)

    def _settle(self, fence: int, changes: list[RowChange]) -> None:
        while True:
            try:
                return self._ledger.settle(fence, changes, close="Complete")
            except LedgerBusy:
                continue


class Observer:
    """Keeps reading, in one snapshot each time, until the others are done."""

    def __init__(self, place: Place, uids: list[str]) -> None:
        self._place = place
        self._uids = uids
        self.done = threading.Event()
        self.open: Counter[str] = Counter()
        self.looks = 0

    def __call__(self) -> None:
        """Look until told to stop; raise when a total is wrong or a partition runs twice."""
        with self._place.connect() as connection:
            while not self.done.is_set():
                self._look(connection)

    def _look(self, connection: psycopg.Connection[TupleRow]) -> None:
        self.looks += 1
        wrong = connection.execute("""
            SELECT b.uid FROM flowstone.backfill AS b
            WHERE b.total <> (SELECT count(*) FROM flowstone.materialization AS m WHERE m.backfill = b.uid)
        """).fetchall()
        twice = connection.execute("""
            SELECT scope, asset, partition FROM flowstone.materialization WHERE state = 'running'
            GROUP BY 1, 2, 3 HAVING count(*) > 1
        """).fetchall()
        assert (wrong, twice) == ([], [])
        for uid, number in connection.execute(
            "SELECT backfill::text, count(*) FROM flowstone.batch WHERE state = 'open' GROUP BY 1"
        ).fetchall():
            self.open[uid] = max(self.open[uid], number)


MOST_OPEN = """
    WITH edges AS (
        SELECT {group} AS who, opened_at AS at, 1 AS step FROM flowstone.batch
        UNION ALL SELECT {group}, closed_at, -1 FROM flowstone.batch WHERE closed_at IS NOT NULL
    ), height AS (
        SELECT who, sum(step) OVER (PARTITION BY who ORDER BY at, step) AS open FROM edges
    )
    SELECT who, max(open)::int FROM height GROUP BY who ORDER BY who
"""
"""How many batches were open at the same time, at most, from their history."""


def most_open(place: Place, group: str) -> dict[object, int]:
    """The highest number of batches open at once, by backfill, scope or in all."""
    return dict(place.all(MOST_OPEN.format(group=group)))


def work(place: Place, replicas: list[Ledger], uids: list[str], claim: ClaimRequest) -> Observer:
    """Let all replicas work until the backfills are done, under an observer's eyes."""
    observer = Observer(place, uids)
    left = threading.Semaphore(0)

    def replica(number: int) -> Callable[[], None]:
        inner = Replica(replicas[number], uids, claim, seed=number)

        def run() -> None:
            try:
                inner()
            finally:
                left.release()

        return run

    def wait() -> None:
        for _ in replicas:
            left.acquire()
        observer.done.set()

    race(*(replica(number) for number in range(len(replicas))), observer, wait)
    return observer


def test_the_backfills_cap_holds_for_any_number_of_replicas(place: Place, replicas: list[Ledger], queue: Queue) -> None:
    """Four replicas race for one backfill with a cap of three: never more were open, and all of it was done once."""
    uid = queue([f"p{number:03d}" for number in range(200)])
    observer = work(place, replicas, [uid], request(max_parallel=3, batch_size=2))
    assert most_open(place, "backfill::text") == {uid: 3}
    assert observer.open[uid] <= 3
    assert observer.looks > 10
    assert replicas[0].counts(uid) == Counts(total=200, succeeded=200)


def test_the_operators_cap_holds_over_backfills(place: Place, replicas: list[Ledger], queue: Queue) -> None:
    """Four replicas over three backfills that together may have four batches: never five."""
    uids = [queue([f"p{number:02d}" for number in range(60)], asset=asset) for asset in ("a", "b", "c")]
    work(place, replicas, uids, request(max_parallel=3, operator_limit=4))
    assert most_open(place, "'all'") == {"all": 4}
    assert max(most_open(place, "backfill::text").values()) <= 3


def test_a_scopes_cap_holds_over_backfills(place: Place, replicas: list[Ledger], queue: Queue) -> None:
    """A scope with a limit of two has never three batches open, while another scope goes on without one."""
    uids = [
        queue([f"p{number:02d}" for number in range(60)], asset=asset, scope=scope)
        for asset, scope in (("a", SCOPE), ("b", SCOPE), ("c", OTHER_SCOPE))
    ]
    work(place, replicas, uids, request(max_parallel=5, tenant_limits={SCOPE: 2}))
    assert most_open(place, "scope") == {SCOPE: 2, OTHER_SCOPE: 5}


def test_overlapping_backfills_never_meet(place: Place, replicas: list[Ledger], queue: Queue) -> None:
    """Two backfills over the same partitions, both over All: each makes every one once, never at the same time."""
    keys = [f"p{number:02d}" for number in range(60)]
    uids = [queue(keys, select="All"), queue(list(reversed(keys)), select="All")]
    work(place, replicas, uids, request(max_parallel=10, batch_size=3, select="All"))
    assert [replicas[0].counts(uid) for uid in uids] == [Counts(total=60, succeeded=60)] * 2
    late = place.all("""
        SELECT a.partition FROM flowstone.materialization AS a JOIN flowstone.materialization AS b
        USING (scope, asset, partition)
        WHERE a.backfill = %s AND b.backfill = %s AND b.started_at < a.finished_at
    """, *uids)  # fmt: skip
    assert late == []


def test_overlapping_backfills_over_missing_share_the_work(place: Place, replicas: list[Ledger], queue: Queue) -> None:
    """With Missing, every partition is made by exactly one of two overlapping backfills."""
    keys = [f"p{number:02d}" for number in range(60)]
    uids = [queue(keys), queue(keys)]
    work(place, replicas, uids, request(max_parallel=10, batch_size=3))
    one, two = (replicas[0].counts(uid) for uid in uids)
    assert one == Counts(total=60, succeeded=60)
    assert two == Counts(total=60, skipped=60)


def test_a_later_hand_out_has_a_greater_fence(place: Place, replicas: list[Ledger], queue: Queue) -> None:
    """Batches of one partition that were opened later carry greater fences, though replicas race for it."""
    uid = queue(["only"])
    for round_ in range(20):
        batches: list[int] = []

        def claim(ledger: Ledger, batches: list[int] = batches) -> Callable[[], None]:
            def run() -> None:
                batches.extend(batch.fence for batch in ledger.claim(uid, request()))

            return run

        race(*(claim(ledger) for ledger in replicas))
        assert len(batches) == 1, round_
        replicas[0].settle(batches[0], [done("only", "queued")], close="Lost")
    fences = [fence for (fence,) in place.all("SELECT fence FROM flowstone.batch ORDER BY opened_at")]
    assert fences == sorted(fences)
    assert len(fences) == 20


def test_a_batch_is_settled_once(replicas: list[Ledger], queue: Queue, place: Place) -> None:
    """Four replicas that settle the same outcome at once charge it once."""
    uid = queue(["only"])
    (batch,) = replicas[0].claim(uid, request())
    change = done("only", "queued", attempts=1, error="boom", charged=True)

    def settle(ledger: Ledger) -> Callable[[], None]:
        def run() -> None:
            while True:
                try:
                    return ledger.settle(batch.fence, [change], close="Failed")
                except LedgerBusy:
                    continue

        return run

    race(*(settle(ledger) for ledger in replicas))
    assert place.all("SELECT attempt FROM flowstone.attempt") == [(1,)]
    assert replicas[0].counts(uid) == Counts(total=1, queued=1)


def test_planning_at_the_same_time_queues_once(replicas: list[Ledger], register: Register) -> None:
    """Replicas that plan one backfill at once end with one plan."""
    uid = register("daily")
    rows = [(SCOPE, f"p{number:05d}") for number in range(5000)]

    def plan(ledger: Ledger) -> Callable[[], None]:
        def run() -> None:
            while True:
                try:
                    counts = ledger.plan(uid, rows, total=5000, set_hash="h", select="Missing")
                except LedgerBusy:
                    continue
                assert counts == Counts(total=5000, queued=5000)
                return

        return run

    race(*(plan(ledger) for ledger in replicas))
    assert replicas[0].counts(uid) == Counts(total=5000, queued=5000)


def test_a_plan_that_is_cut_off_leaves_nothing(place: Place, ledger: Ledger, register: Register) -> None:
    """When the connection dies in the middle of the stream nothing is queued; the next try plans all of it."""
    uid = register("daily")

    def rows(cut: bool) -> Iterator[tuple[str, str]]:
        for number in range(50_000):
            if cut and number == 25_000:
                end_planning(place)
            yield SCOPE, f"p{number:05d}"

    with pytest.raises(LedgerUnavailable):
        ledger.plan(uid, rows(cut=True), total=50_000, set_hash="h", select="Missing")
    assert ledger_after_break(ledger, uid) == Counts()
    counts = ledger.plan(uid, rows(cut=False), total=50_000, set_hash="h", select="Missing")
    assert counts == ledger.counts(uid) == Counts(total=50_000, queued=50_000)


def end_planning(place: Place) -> None:
    """End the session that is copying."""
    ended = place.all("""
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND query ILIKE '%%copy flowstone.materialization%%'
          AND pid <> pg_backend_pid()
    """)
    assert ended == [(True,)]


def ledger_after_break(ledger: Ledger, uid: str) -> Counts:
    """The counts, as soon as the pool has renewed its connections."""
    while True:
        try:
            return ledger.counts(uid)
        except LedgerUnavailable:
            continue


def test_the_database_itself_refuses_a_partition_running_twice(place: Place, ledger: Ledger, queue: Queue) -> None:
    """Should every rule of the claim fail, the unique index on running rows does not."""
    first, second = queue(["a"]), queue(["a"], select="All")
    ledger.claim(first, request())
    with place.connect() as admin, pytest.raises(psycopg.errors.UniqueViolation):
        admin.execute(
            "UPDATE flowstone.materialization SET state = 'running', fence = 99 WHERE backfill = %s", [second]
        )
