"""`select: Failed`: only what failed in an earlier backfill and has not succeeded since, on both ways of planning."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flowstone.backfill.records import Counts
from flowstone.db.ledger import Ledger
from tests.postgres.conftest import OTHER_SCOPE, SCOPE, Place, Queue, Register, request
from tests.postgres.test_ledger import done

KEYS = ["good", "bad", "repaired", "ruined", "unknown"]


@pytest.fixture(params=["bypassrls", "staged"], autouse=True)
def row_security(request: pytest.FixtureRequest, place: Place) -> Iterator[None]:
    """Run each test as an operator with BYPASSRLS, and as one that the server did not give it."""
    with place.connect() as admin:
        if request.param == "staged":
            admin.execute("ALTER ROLE flowstone_operator NOBYPASSRLS")
        yield
        admin.execute("ALTER ROLE flowstone_operator BYPASSRLS")


def run(ledger: Ledger, uid: str, failing: str) -> None:
    """Run a backfill to its end; some of its partitions fail for good."""
    for batch in ledger.claim(uid, request(select="All")):
        (key,) = batch.partitions
        failed = key in failing.split()
        change = done(key, "failed", reason="AttemptsUsedUp", error="x") if failed else done(key)
        ledger.settle(batch.fence, [change], close="done")
    ledger.finish(uid)


def reasons(place: Place, uid: str) -> dict[str, tuple[str, str | None]]:
    """State and reason of each partition."""
    query = "SELECT partition, state, reason FROM flowstone.materialization WHERE backfill = %s ORDER BY ordinal"
    return {key: (state, reason) for key, state, reason in place.all(query, uid)}


@pytest.fixture
def history(ledger: Ledger, queue: Queue) -> None:
    """Two backfills: one failed on two partitions, the next repaired one of them and ruined another."""
    run(ledger, queue(KEYS[:4], select="All"), "bad repaired")
    run(ledger, queue(["repaired", "ruined"], select="All"), "ruined")


def test_only_what_failed_last_runs(ledger: Ledger, queue: Queue, place: Place, history: None) -> None:
    """Of five partitions two failed last; the others are skipped, each with its reason."""
    uid = queue(KEYS, select="Failed")
    assert reasons(place, uid) == {
        "good": ("skipped", "AlreadyMaterialized"),
        "bad": ("queued", None),
        "repaired": ("skipped", "AlreadyMaterialized"),
        "ruined": ("queued", None),
        "unknown": ("skipped", "NotFailed"),
    }
    assert ledger.counts(uid) == Counts(total=5, queued=2, skipped=3)
    handed_out = [batch.partitions for batch in ledger.claim(uid, request(select="Failed"))]
    assert handed_out == [("bad",), ("ruined",)]


def test_another_scope_or_asset_is_another_history(ledger: Ledger, queue: Queue, history: None) -> None:
    """What failed elsewhere under the same key says nothing here."""
    assert ledger.counts(queue(KEYS, select="Failed", asset="hourly")) == Counts(total=5, skipped=5)
    assert ledger.counts(queue(KEYS, select="Failed", scope=OTHER_SCOPE)) == Counts(total=5, skipped=5)


def test_what_an_earlier_backfill_made_meanwhile_is_skipped(ledger: Ledger, queue: Queue, history: None) -> None:
    """Two backfills over what failed: the later one waits for the earlier and skips what that one made."""
    first, second = queue(KEYS, select="Failed"), queue(KEYS, select="Failed")
    claim = request(select="Failed")
    bad, ruined = ledger.claim(first, claim)
    assert ledger.claim(second, claim) == []
    ledger.settle(bad.fence, [done("bad")], close="done")
    ledger.settle(ruined.fence, [done("ruined", "failed", reason="AttemptsUsedUp", error="x")], close="done")
    (again,) = ledger.claim(second, claim)
    assert again.partitions == ("ruined",)
    assert ledger.counts(second) == Counts(total=5, running=1, skipped=4)


def test_a_failure_still_being_tried_is_none(ledger: Ledger, queue: Queue) -> None:
    """A partition that waits for its next attempt has not failed."""
    first = queue(["k"])
    (batch,) = ledger.claim(first, request())
    ledger.settle(batch.fence, [done("k", "queued", attempts=1, error="x", charged=True)], close="done")
    assert ledger.counts(queue(["k"], select="Failed")) == Counts(total=1, skipped=1)


def test_scopes_left_out_keep_their_reason(ledger: Ledger, register: Register, history: None) -> None:
    """A scope that is skipped altogether is skipped for that reason."""
    uid = register("daily", "")
    rows = [(SCOPE, "bad"), (OTHER_SCOPE, "bad")]
    counts = ledger.plan(uid, rows, total=2, set_hash="h", select="Failed", skipped={OTHER_SCOPE: "TenantGone"})
    assert counts == Counts(total=2, queued=1, skipped=1)
