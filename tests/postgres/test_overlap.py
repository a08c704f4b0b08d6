"""A backfill that an older one over the same partitions keeps waiting."""

from __future__ import annotations

import asyncio
import uuid

from flowstone.backfill.overlap import with_older
from flowstone.backfill.standing import Stand, Standing
from flowstone.db.ledger import Ledger
from tests.postgres.conftest import Place
from tests.postgres.scripted import Story


def step(story: Story) -> Standing:
    """One pass, and what is said of it."""
    return asyncio.run(with_older(story.ledger, story.uid, story.step(), story.progress.counts))


def test_who_waits_for_an_older_one_says_so(ledger: Ledger, place: Place) -> None:
    """By name, until its own partitions are handed out; the older one, and who has work of its own, say nothing."""
    older = Story(ledger, place, str(uuid.uuid4()), ["a", "b"], {"maxParallel": 1, "batchSize": 1})
    later = Story(ledger, place, str(uuid.uuid4()), ["a", "b"], {"maxParallel": 1, "batchSize": 1, "select": "All"})
    assert step(older).reason == "Running"
    behind = step(later)
    assert (behind.stand, behind.reason) == (Stand.RUNNING, "WaitsForBackfill")
    assert behind.message.endswith(
        "0 batches are out; Backfill b has the same partitions and was asked for earlier: this goes on when that is "
        "done"
    )
    for _ in range(2):
        older.succeed(older.executor.going[0])
        step(older)
    assert step(later).reason == "Running"
    assert later.executor.going
