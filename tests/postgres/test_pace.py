"""How long a partition takes, as the ledger's batches tell it."""

from __future__ import annotations

import pytest

from flowstone.db.ledger import Ledger
from tests.postgres.conftest import Place, Queue, request
from tests.postgres.test_ledger import done

KEYS = [f"k{number}" for number in range(6)]


def settle_all(ledger: Ledger, uid: str, size: int) -> None:
    """Hand everything out in batches of `size` and let it succeed."""
    for batch in ledger.claim(uid, request(batch_size=size)):
        ledger.settle(batch.fence, [done(key) for key in batch.partitions], close="succeeded")


def test_nothing_finished_tells_no_pace(ledger: Ledger, queue: Queue) -> None:
    """Neither queued nor running partitions say how long one takes."""
    uid = queue(KEYS)
    assert ledger.pace(uid) is None
    ledger.claim(uid, request(batch_size=3))
    assert ledger.pace(uid) is None


def test_reports_tell_the_pace_without_the_start(ledger: Ledger, queue: Queue, place: Place) -> None:
    """In a batch that reports, the pace is the distance of its reports: the pod took 30 s to start, a partition 2 s."""
    uid = queue(KEYS)
    settle_all(ledger, uid, 6)
    with place.connect() as admin:
        admin.execute("UPDATE flowstone.batch SET reporting = true, opened_at = now() - interval '40 s'")
        admin.execute(
            "UPDATE flowstone.materialization SET finished_at = now() - interval '10 s' + ordinal * interval '2 s'"
        )
        admin.execute("UPDATE flowstone.batch SET closed_at = now() + interval '1 s'")
    assert ledger.pace(uid) == pytest.approx(2.0)


def test_an_exit_code_tells_the_pace_with_the_start(ledger: Ledger, queue: Queue, place: Place) -> None:
    """A batch of three that does not report and was open for 30 s took 10 s for each."""
    uid = queue(KEYS)
    settle_all(ledger, uid, 3)
    with place.connect() as admin:
        admin.execute("UPDATE flowstone.batch SET opened_at = closed_at - interval '30 s'")
        admin.execute(
            "UPDATE flowstone.materialization AS m SET finished_at = b.closed_at FROM flowstone.batch AS b"
            " WHERE b.fence = m.fence"
        )
    assert ledger.pace(uid) == pytest.approx(10.0)


def test_a_clock_that_lies_changes_nothing(ledger: Ledger, queue: Queue, place: Place) -> None:
    """Times outside a batch's life are cut to it, and the median passes over a single odd batch."""
    uid = queue(KEYS)
    settle_all(ledger, uid, 2)
    with place.connect() as admin:
        admin.execute("UPDATE flowstone.batch SET reporting = true, opened_at = closed_at - interval '5 s'")
        admin.execute(
            "UPDATE flowstone.materialization AS m SET finished_at = b.closed_at - (1 - ordinal % 2) * interval '3 s'"
            " FROM flowstone.batch AS b WHERE b.fence = m.fence"
        )
        assert ledger.pace(uid) == pytest.approx(3.0)
        admin.execute("UPDATE flowstone.materialization SET finished_at = '-infinity' WHERE ordinal = 0")
        admin.execute("UPDATE flowstone.materialization SET finished_at = 'infinity' WHERE ordinal = 1")
    assert ledger.pace(uid) == pytest.approx(3.0)


def test_an_open_batch_tells_from_its_second_report_on(ledger: Ledger, queue: Queue, place: Place) -> None:
    """Its first report comes after the start of a pod, which is no partition's fault."""
    uid = queue(KEYS)
    ledger.claim(uid, request(batch_size=6))
    report = (
        "UPDATE flowstone.materialization SET state = 'succeeded', finished_at = now() - interval '9 s'"
        " + ordinal * interval '3 s' WHERE ordinal < %s"
    )
    with place.connect() as admin:
        admin.execute("UPDATE flowstone.batch SET reporting = true, opened_at = now() - interval '60 s'")
        admin.execute(report, [1])
        assert ledger.pace(uid) is None
        admin.execute(report, [3])
    assert ledger.pace(uid) == pytest.approx(3.0)
