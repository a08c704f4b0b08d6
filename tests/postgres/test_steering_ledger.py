"""What the ledger keeps and tells about steering."""

from __future__ import annotations

import threading

import pytest

from flowstone.backfill.records import CommonError, Counts, Orders
from flowstone.db.ledger import Ledger
from flowstone.errors import LedgerRefused
from tests.postgres.conftest import CLUSTER, Place, Queue, request
from tests.postgres.test_ledger import done

KEYS = [f"k{number}" for number in range(6)]
NOBODY = "00000000-0000-4000-8000-000000000000"


def finish_in_order(ledger: Ledger, uid: str, outcomes: str) -> None:
    """Finish one partition after the other: F fails for good, S succeeds."""
    for outcome in outcomes:
        (batch,) = ledger.claim(uid, request(max_parallel=1))
        (key,) = batch.partitions
        change = (
            done(key, "failed", reason="AttemptsUsedUp", attempts=1, error=f"Error {key}", charged=True)
            if outcome == "F"
            else done(key)
        )
        ledger.settle(batch.fence, [change], close="done")


@pytest.mark.parametrize(("nth", "expected"), [(1, 2), (2, 3), (3, 5), (4, None)])
def test_spread(ledger: Ledger, queue: Queue, nth: int, expected: int | None) -> None:
    """Of F S F F S, the last failure is two from the end, the one before it three, the first one five."""
    uid = queue(KEYS)
    finish_in_order(ledger, uid, "FSFFS")
    assert ledger.spread(uid, nth) == expected


def test_spread_is_not_fooled_by_a_clock(ledger: Ledger, queue: Queue, place: Place) -> None:
    """A worker that dates its failures far away moves them no further than its batch lasted."""
    uid = queue(KEYS)
    finish_in_order(ledger, uid, "FSFFS")
    with place.connect() as admin:
        admin.execute("UPDATE flowstone.materialization SET finished_at = '-infinity' WHERE ordinal IN (2, 3)")
        admin.execute("UPDATE flowstone.materialization SET finished_at = 'infinity' WHERE ordinal = 0")
    assert [ledger.spread(uid, nth) for nth in (1, 2, 3)] == [2, 3, 5]


def test_common_error(ledger: Ledger, queue: Queue) -> None:
    """Errors that differ in numbers only are one; without failures there is none."""
    uid = queue(KEYS)
    assert ledger.common_error(uid) is None
    for key, error in zip(KEYS[:4], ("KeyError: 1", "OOM", "KeyError: 22", "KeyError: 3\nline 2"), strict=True):
        (batch,) = ledger.claim(uid, request(max_parallel=1))
        ledger.settle(batch.fence, [done(key, "failed", reason="AttemptsUsedUp", error=error)], close="done")
    assert ledger.common_error(uid) == CommonError("KeyError: 1", 3)


def test_a_token_is_honoured_once_by_racing_replicas(ledger: Ledger, queue: Queue, place: Place) -> None:
    """Four replicas that see the same new token queue the failures once; what failed again since stays failed."""
    uid = queue(KEYS)
    finish_in_order(ledger, uid, "FFSSSS")
    ledger.finish(uid)
    replicas = [Ledger.connect(place.operator, cluster=CLUSTER, size=1) for _ in range(4)]
    threads = [threading.Thread(target=one.obey, args=(uid, Orders(retry_failed="a"))) for one in replicas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in replicas:
        one.close()
    record = ledger.find(uid)
    assert record is not None
    assert (record.retried, record.finished_at) == ("a", None)
    assert ledger.counts(uid) == Counts(total=6, queued=2, succeeded=4)
    finish_in_order(ledger, uid, "FS")
    ledger.obey(uid, Orders(retry_failed="a"))
    assert ledger.counts(uid) == Counts(total=6, failed=1, succeeded=5)


def test_what_a_worker_reported_is_settled_first(ledger: Ledger, queue: Queue, place: Place) -> None:
    """A failure that nobody settled is not queued: its batch still has it."""
    uid = queue(KEYS)
    ledger.claim(uid, request(batch_size=6))
    with place.connect() as admin:
        admin.execute("UPDATE flowstone.materialization SET state = 'failed', error = 'x'")
    ledger.obey(uid, Orders(retry_failed="a"))
    assert ledger.counts(uid) == Counts(total=6, running=6)


def test_resume_counts_what_is_forgiven(ledger: Ledger, queue: Queue) -> None:
    """A stop is lifted and the failures so far are written down; the same token again changes nothing."""
    uid = queue(KEYS)
    finish_in_order(ledger, uid, "FFS")
    ledger.stop(uid, "budget-1")
    record = ledger.obey(uid, Orders(resume="a"))
    assert (record.forgiven, record.stopped, record.resumed) == (2, None, "a")
    finish_in_order(ledger, uid, "F")
    ledger.stop(uid, "budget-1")
    record = ledger.obey(uid, Orders(resume="a"))
    assert (record.forgiven, record.stopped) == (2, "budget-1")


def test_an_unregistered_backfill_obeys_nothing(ledger: Ledger) -> None:
    """There is no row to write a token into."""
    with pytest.raises(LedgerRefused):
        ledger.obey(NOBODY, Orders(resume="a"))
