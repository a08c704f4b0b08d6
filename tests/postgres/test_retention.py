"""History is pruned in chunks: never `latest`, never what is not finished, and what is known of it stays true."""

from __future__ import annotations

from flowstone.backfill.records import Counts, Orders
from flowstone.db.ledger import Ledger
from tests.postgres.conftest import Place, Queue, request
from tests.postgres.test_ledger import done

KEYS = [f"k{number}" for number in range(10)]
TABLES = ("attempt", "materialization", "batch")


def run(ledger: Ledger, uid: str) -> None:
    """Run a backfill to its end; its first partition fails."""
    for batch in ledger.claim(uid, request(select="All")):
        (key,) = batch.partitions
        failed = done(key, "failed", reason="AttemptsUsedUp", attempts=1, error="x", charged=True)
        ledger.settle(batch.fence, [failed if key == "k0" else done(key)], close="done")
    ledger.finish(uid)


def age(place: Place, uid: str, days: int) -> None:
    """Let the end of a backfill lie so many days back."""
    with place.connect() as admin:
        admin.execute(
            "UPDATE flowstone.backfill SET finished_at = now() - make_interval(days => %s) WHERE uid = %s", [days, uid]
        )


def rows(place: Place, uid: str) -> list[int]:
    """Rows of a backfill in each table of history."""
    found = [place.all(f"SELECT count(*) FROM flowstone.{table} WHERE backfill = %s", uid) for table in TABLES]
    return [number for ((number,),) in found]


def pruned(ledger: Ledger, rows: int = 5_000) -> int:
    """Prune until nothing is left; returns the number of chunks."""
    chunks = 0
    while ledger.prune(90, rows):
        chunks += 1
    return chunks


def test_old_history_goes_in_chunks_and_the_counts_stay(ledger: Ledger, queue: Queue, place: Place) -> None:
    """Of a finished backfill with its resource, 21 rows go 4 at a time; its counts are what they were throughout."""
    uid = queue(KEYS)
    run(ledger, uid)
    age(place, uid, 91)
    assert rows(place, uid) == [1, 10, 10]
    before = ledger.counts(uid)
    for left in (17, 13, 9, 5, 1, 0):
        assert ledger.prune(90, 4) is True
        assert sum(rows(place, uid)) == left
        assert ledger.counts(uid) == before == Counts(total=10, succeeded=9, failed=1)
    assert ledger.prune(90, 4) is False
    record = ledger.find(uid)
    assert record is not None
    assert (record.pruned, record.finished_at is None, record.total) == (True, False, 10)


def test_what_was_made_stays_made(ledger: Ledger, queue: Queue, place: Place) -> None:
    """A new backfill over the same set runs only what is Missing, though the history of the first one is gone."""
    uid = queue(KEYS)
    run(ledger, uid)
    age(place, uid, 91)
    pruned(ledger)
    assert place.all("SELECT count(*) FROM flowstone.latest") == [(9,)]
    assert ledger.counts(queue(KEYS)) == Counts(total=10, queued=1, skipped=9)


def test_young_and_unfinished_backfills_are_left_alone(ledger: Ledger, queue: Queue, place: Place) -> None:
    """Neither 89 days nor any time without an end is old enough; another cluster's history is its own."""
    young, open_ = queue(KEYS), queue(KEYS, asset="other")
    run(ledger, young)
    age(place, young, 89)
    with place.connect() as admin:
        admin.execute("UPDATE flowstone.backfill SET created_at = now() - interval '900 days'")
    assert pruned(ledger) == 0
    age(place, young, 91)
    with Ledger.connect(place.operator, cluster="another") as other:
        assert pruned(other) == 0
    assert rows(place, young) == [1, 10, 10]
    assert ledger.counts(open_) == Counts(total=10, queued=10)


def test_without_its_resource_the_backfill_goes_too(ledger: Ledger, queue: Queue, place: Place) -> None:
    """A closed backfill leaves nothing but `latest`, also when it was closed after it was pruned."""
    first, second = queue(KEYS), queue(KEYS, select="All", asset="other")
    for uid in (first, second):
        run(ledger, uid)
        age(place, uid, 91)
    ledger.close_orphan(first)
    pruned(ledger)
    assert (ledger.find(first), ledger.find(second) is None) == (None, False)
    ledger.close_orphan(second)
    assert pruned(ledger) == 1
    assert ledger.find(second) is None


def test_what_is_pruned_cannot_be_tried_again(ledger: Ledger, queue: Queue, place: Place) -> None:
    """retryFailed finds no rows any more, so the backfill stays finished and its counts stay true."""
    uid = queue(KEYS)
    run(ledger, uid)
    age(place, uid, 91)
    ledger.prune(90, 2)
    record = ledger.obey(uid, Orders(retry_failed="a"))
    assert (record.retried, record.finished_at is None) == ("a", False)
    assert ledger.counts(uid) == Counts(total=10, succeeded=9, failed=1)


def test_two_replicas_do_not_wait_for_each_other(ledger: Ledger, queue: Queue, place: Place) -> None:
    """While another session holds the only old backfill there is nothing to prune."""
    uid = queue(KEYS)
    run(ledger, uid)
    age(place, uid, 91)
    with place.connect() as other, other.transaction():
        other.execute("SELECT 1 FROM flowstone.backfill WHERE uid = %s FOR UPDATE", [uid])
        assert ledger.prune(90) is False
    assert ledger.prune(90) is True
