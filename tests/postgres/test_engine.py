"""The engine on a real ledger, with runs that go as a test says: suspending, stopping, going on."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from flowstone.backfill.records import Counts
from flowstone.backfill.standing import Stand
from flowstone.db.ledger import Ledger
from tests.postgres.conftest import Place
from tests.postgres.scripted import DiedError, Story

KEYS = [f"k{number:02d}" for number in range(10)]

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
        assert not any(run.state.stopping for run in story.executor.going)
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
        assert [run.state.stopping for run in story.executor.going] == [True] * 3
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
