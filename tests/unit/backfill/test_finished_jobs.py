"""When Jobs that ended well are looked for, to be taken away together."""

from __future__ import annotations

from flowstone.backfill.edges.finished_jobs import MANY, FinishedJobs


def test_a_replica_that_knows_nothing_wants_to_see_them() -> None:
    """After a start, Jobs of an earlier process may be there."""
    assert FinishedJobs().are_wanted("u", resting=False)


def test_few_stay_while_the_backfill_works() -> None:
    """Seen once, they are left alone until so many partitions more have got a Job; then counting begins anew."""
    finished = FinishedJobs()
    finished.were_seen("u", resting=False)
    wanted = []
    for _ in range(MANY):
        wanted.append(finished.are_wanted("u", resting=False))
        finished.created("u", 1)
    assert wanted == [False] * MANY
    assert finished.are_wanted("u", resting=False)
    finished.were_seen("u", resting=False)
    assert not finished.are_wanted("u", resting=False)


def test_a_large_batch_is_seen_at_once() -> None:
    """A Job carries its keys, so what may stay is counted in partitions."""
    finished = FinishedJobs()
    finished.were_seen("u", resting=False)
    finished.created("u", 10_000)
    assert finished.are_wanted("u", resting=False)


def test_a_full_quota_wants_them_gone() -> None:
    """Jobs that are over count against a quota; the next look finds them, also if other Jobs were created meanwhile."""
    finished = FinishedJobs()
    finished.were_seen("u", resting=False)
    finished.stand_in_the_way("u")
    finished.created("u", 1)
    assert finished.are_wanted("u", resting=False)


def test_at_rest_all_are_wanted() -> None:
    """With no batch open, whatever is left is to go."""
    finished = FinishedJobs()
    finished.were_seen("u", resting=False)
    assert finished.are_wanted("u", resting=True)
