"""Steering a Backfill while it runs, on the real cluster: an edit is in effect within 5 s, and nothing is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.conftest import Psql
from tests.e2e.kubectl import Json, Kubectl, asset, backfill, conditions, finished, is_over, wait_for
from tests.e2e.test_backfill import DAY, TEN_DAYS, total_is_right, work

pytestmark = pytest.mark.cluster

SOON = 5
"""Seconds within which an edit is in effect."""

AT_ONCE = {"limit": 0, "backoffSeconds": 0}


def edit(kubectl: Kubectl, name: str, **fields: Any) -> None:
    """Edit the spec of a Backfill; None takes a field away."""
    kubectl.out("patch", "backfill", name, "--type=merge", "-p", json.dumps({"spec": fields}))


def running(kubectl: Kubectl) -> list[str]:
    """Names of the Jobs that are neither over nor asked to stop."""
    jobs = kubectl.list("jobs")
    return [j["metadata"]["name"] for j in jobs if not is_over(j) and not j["metadata"].get("deletionTimestamp")]


def until(kubectl: Kubectl, name: str, *, phase: str, seconds: float = SOON) -> Json:
    """Wait for a phase; returns the status."""
    return wait_for(lambda: kubectl.status(name), lambda s: s.get("phase") == phase, seconds=seconds, what=phase)


def until_open(kubectl: Kubectl, number: int, *, seconds: float = 60) -> list[str]:
    """Wait until so many Jobs run; returns their names."""
    return wait_for(
        lambda: running(kubectl), lambda jobs: len(jobs) == number, seconds=seconds, what=f"{number} running Jobs"
    )


def test_drain_lets_jobs_end_and_goes_on_after(namespace: Kubectl, image: str) -> None:
    """Open Jobs are left alone, none follows; without suspend the rest is done, each partition once."""
    namespace.apply(
        asset("slow", DAY, work(image, "slow", SECONDS_EACH="4")),
        backfill("b", "slow", partitions=TEN_DAYS, maxParallel=2, batchSize=1),
    )
    before = set(until_open(namespace, 2))
    edit(namespace, "b", suspend="Drain")
    status = until(namespace, "b", phase="Suspended")
    assert conditions(status)["Suspended"]["reason"] == "SuspendedBySpec"
    assert conditions(status)["Ready"]["status"] == "True"
    status = wait_for(
        lambda: namespace.status("b"), lambda s: s.get("activeBatches") == 0, seconds=60, what="no open batch"
    )
    done = status["counts"]["succeeded"]
    assert (status["phase"], status["counts"]["queued"]) == ("Suspended", 10 - done)
    assert done >= len(before)
    assert running(namespace) == []
    edit(namespace, "b", suspend=None, batchSize=5)
    assert finished(namespace, "b")["counts"]["succeeded"] == 10


def test_kill_stops_jobs_and_charges_nobody(namespace: Kubectl, image: str, psql: Psql) -> None:
    """Every Job has a deletionTimestamp within five seconds; all rows are queued again with no attempt used."""
    namespace.apply(
        asset("slow", DAY, work(image, "slow", SECONDS_EACH="600")),
        backfill("b", "slow", partitions=TEN_DAYS, maxParallel=2, batchSize=2),
    )
    until_open(namespace, 2)
    wait_for(
        lambda: namespace.list("pods"),
        lambda pods: [p["status"]["phase"] for p in pods] == ["Running"] * 2,
        seconds=60,
        what="two pods run",
    )
    edit(namespace, "b", suspend="Kill")
    until_open(namespace, 0, seconds=SOON)
    status = wait_for(
        lambda: namespace.status("b"),
        lambda s: (s["phase"], s["counts"]["queued"], s["activeBatches"]) == ("Suspended", 10, 0),
        seconds=60,
        what="all handed back",
    )
    assert total_is_right(status["counts"])
    uid = namespace.get("backfill", "b")["metadata"]["uid"]
    assert psql(f"SELECT max(attempts) FROM flowstone.materialization WHERE backfill = '{uid}'") == [["0"]]
    edit(namespace, "b", suspend=None)
    until_open(namespace, 2, seconds=SOON)


def test_a_passed_budget_stops_and_a_raised_one_goes_on(namespace: Kubectl, image: str) -> None:
    """Two failures are one too many: nothing more is handed out, spec is untouched; raising or resuming goes on."""
    bad = ",".join(f"2025-01-{day:02d}" for day in (1, 2, 4, 6))
    wanted = backfill(
        "b", "picky", partitions=TEN_DAYS, maxParallel=1, batchSize=1, retry=AT_ONCE, failureBudget={"count": 1}
    )
    namespace.apply(asset("picky", DAY, work(image, "picky", FAIL_ON=bad)), wanted)
    status = until(namespace, "b", phase="Suspended", seconds=90)
    assert (status["counts"]["failed"], status["counts"]["queued"]) == (2, 8)
    seen = conditions(status)
    assert {kind: seen[kind]["status"] for kind in ("Ready", "Stalled", "Suspended")} == {
        "Ready": "False",
        "Stalled": "True",
        "Suspended": "True",
    }
    assert seen["Ready"]["reason"] == "FailureBudgetPassed"
    assert "ValueError: no data for 2025-01-01" in seen["Ready"]["message"]
    assert "unchanged" in namespace.apply(wanted)
    edit(namespace, "b", failureBudget={"count": 2})
    until(namespace, "b", phase="Running")
    status = until(namespace, "b", phase="Suspended", seconds=90)
    assert (status["counts"]["failed"], status["counts"]["succeeded"]) == (3, 1)
    edit(namespace, "b", resume="I have looked")
    status = finished(namespace, "b")
    assert (status["phase"], status["counts"]["failed"], status["counts"]["succeeded"]) == ("PartlyFailed", 4, 6)


def test_retry_failed_opens_a_finished_backfill_once(namespace: Kubectl, image: str) -> None:
    """What failed runs again after the cause is repaired; the same token changes nothing any more."""
    namespace.apply(
        asset("picky", DAY, work(image, "picky", FAIL_ON="2025-01-02,2025-01-03")),
        backfill("b", "picky", partitions=TEN_DAYS, retry=AT_ONCE),
    )
    assert finished(namespace, "b")["counts"]["failed"] == 2
    edit(namespace, "b", retryFailed="1")
    wait_for(
        lambda: namespace.status("b"),
        lambda s: conditions(s)["Finished"]["status"] == "False",
        seconds=SOON,
        what="open again",
    )
    assert finished(namespace, "b")["counts"]["failed"] == 2
    namespace.apply(asset("picky", DAY, work(image, "picky", FAIL_ON="2025-01-03")))
    edit(namespace, "b", retryFailed="2")
    wait_for(
        lambda: namespace.status("b"), lambda s: s["counts"]["succeeded"] == 9, seconds=60, what="one of them repaired"
    )
    status = finished(namespace, "b")
    assert [one["partition"] for one in status["failures"]] == ["2025-01-03"]
    namespace.apply(backfill("again", "picky", partitions=TEN_DAYS, select="Failed", retry=AT_ONCE))
    status = finished(namespace, "again")
    assert (status["counts"]["skipped"], status["counts"]["failed"]) == (9, 1)


def test_the_cap_follows_edits_both_ways(namespace: Kubectl, image: str) -> None:
    """Raised, more Jobs start within seconds; lowered, open ones end and none follows until there is room."""
    namespace.apply(
        asset("slow", DAY, work(image, "slow", SECONDS_EACH="6")),
        backfill("b", "slow", partitions=TEN_DAYS, maxParallel=1, batchSize=1),
    )
    until_open(namespace, 1)
    edit(namespace, "b", maxParallel=4)
    until_open(namespace, 4, seconds=SOON)
    edit(namespace, "b", maxParallel=1)
    until_open(namespace, 1, seconds=60)
    assert finished(namespace, "b")["counts"]["succeeded"] == 10
