"""A Backfill from `kubectl apply` to its end, on the real cluster, under the chart's own rights."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.conftest import Psql
from tests.e2e.kubectl import Json, Kubectl, asset, backfill, conditions, finished, wait_for, watch_jobs

pytestmark = pytest.mark.cluster

DAY: list[Json] = [{"name": "day", "type": "date"}]
TEN_DAYS = {"day": {"from": "2025-01-01", "through": "2025-01-10"}}


def work(image: str, function: str, **environment: str) -> Json:
    """A container that runs a function of the test code."""
    env = [{"name": "PYTHONPATH", "value": "/code"}]
    env += [{"name": name, "value": value} for name, value in environment.items()]
    return {"image": image, "command": ["flowstone", "work", f"work:{function}"], "env": env}


def total_is_right(counts: Json) -> bool:
    """The six counts add up to the total."""
    six = ("queued", "running", "succeeded", "failed", "skipped", "cancelled")
    return bool(counts["total"] == sum(counts[name] for name in six))


def test_ten_days_at_most_two_jobs_at_a_time(namespace: Kubectl, image: str, psql: Psql) -> None:
    """Ten partitions in batches of two, never more than two open Jobs, each with exactly one recorded success; and
    the same file applied again changes nothing and starts nothing."""
    wanted = backfill("ten", "days", partitions=TEN_DAYS, maxParallel=2, batchSize=2)
    with watch_jobs(namespace) as seen:
        namespace.apply(asset("days", DAY, work(image, "nothing")), wanted)
        status = finished(namespace, "ten")
        assert (status["phase"], status["progress"]) == ("Succeeded", 100)
        assert status["counts"] == {
            "total": 10,
            "queued": 0,
            "running": 0,
            "succeeded": 10,
            "failed": 0,
            "skipped": 0,
            "cancelled": 0,
        }
        assert status["summary"]["succeeded"] == "2025-01-01..2025-01-10 (10)"
        assert status["delivery"] == "ExactlyOnce"
        before = namespace.get("backfill", "ten")
        assert "unchanged" in namespace.apply(wanted)
        assert namespace.get("backfill", "ten") == before
    assert (seen.most, len(seen.all)) == (2, 5)
    uid = before["metadata"]["uid"]
    rows = psql(f"SELECT state, count(*) FROM flowstone.materialization WHERE backfill = '{uid}' GROUP BY state")
    latest = psql(f"SELECT count(*) FROM flowstone.latest WHERE scope LIKE '%/{namespace.namespace}'")
    assert (rows, latest) == ([["succeeded", "10"]], [["10"]])


def test_three_bad_days_are_named_and_the_others_done(namespace: Kubectl, image: str) -> None:
    """A function that fails on three keys: failed in part, those three in the status with their last error."""
    bad = ["2025-01-02", "2025-01-05", "2025-01-09"]
    namespace.apply(
        asset("picky", DAY, work(image, "picky", FAIL_ON=",".join(bad))),
        backfill("b", "picky", partitions=TEN_DAYS, retry={"limit": 1, "backoffSeconds": 0}, batchSize=5),
    )
    status = finished(namespace, "b")
    found = {one["partition"]: (one["attempts"], one["error"]) for one in status["failures"]}
    assert status["phase"] == "PartlyFailed"
    assert (status["counts"]["succeeded"], status["counts"]["failed"]) == (7, 3)
    assert sorted(found) == bad
    for day, (attempts, error) in found.items():
        assert attempts == 2
        assert f"ValueError: no data for {day}" in error
    assert conditions(status)["Stalled"]["status"] == "True"
    jobs = {job["metadata"]["name"] for job in namespace.list("jobs")}
    assert {one["job"] for one in status["failures"]} <= jobs


def test_a_new_backfill_runs_only_what_is_missing(namespace: Kubectl, image: str) -> None:
    """What one Backfill has made, the next one over the same asset skips."""
    namespace.apply(
        asset("days", DAY, work(image, "nothing")),
        backfill("first", "days", partitions={"day": {"from": "2025-01-01", "through": "2025-01-03"}}),
    )
    finished(namespace, "first")
    namespace.apply(backfill("second", "days", partitions=TEN_DAYS))
    counts = finished(namespace, "second")["counts"]
    assert (counts["succeeded"], counts["skipped"]) == (7, 3)


def test_a_key_that_kills_its_process_is_alone_to_blame(namespace: Kubectl, image: str) -> None:
    """`os._exit(137)` on one of ten: nine done, one quarantined after its attempts, nobody else charged."""
    namespace.apply(
        asset("deadly", DAY, work(image, "deadly", DIE_ON="2025-01-04")),
        backfill("b", "deadly", partitions=TEN_DAYS, batchSize=10, retry={"limit": 1, "backoffSeconds": 0}),
    )
    with watch_jobs(namespace) as seen:
        status = finished(namespace, "b")
    (failure,) = status["failures"]
    assert (status["counts"]["succeeded"], status["counts"]["failed"]) == (9, 1)
    assert (failure["partition"], failure["attempts"]) == ("2025-01-04", 2)
    assert "exit code 137" in failure["error"]
    assert (
        len(seen.all) <= 2 + 2 + 2
    )  # the first, the rest, two attempts of the poison one, and no more than two besides


def test_any_image_counts_by_its_exit_code(namespace: Kubectl, image: str) -> None:
    """A program that knows nothing of FlowStone succeeds and fails by its exit code, key in FLOWSTONE_PARTITION."""
    script = 'test "$FLOWSTONE_PARTITION" != b'
    container = {"image": image, "command": ["sh", "-c", script]}
    namespace.apply(
        asset("plain", [{"name": "letter", "type": "string"}], container),
        backfill("b", "plain", keys=["a", "b", "c"], batchSize=1, retry={"limit": 0}),
    )
    status = finished(namespace, "b")
    assert [(one["partition"], one["error"][:11]) for one in status["failures"]] == [("b", "exit code 1")]
    assert (status["counts"]["succeeded"], status["delivery"]) == (2, "AtLeastOnce")


def test_exec_reports_each_partition_of_a_batch(namespace: Kubectl, image: str) -> None:
    """`flowstone exec` runs a program once per key; one that fails does not fail its batch-mates."""
    script = 'echo "window $FLOWSTONE_WINDOW_START"; test "$FLOWSTONE_PARTITION" != 2025-01-02T01:00:00Z'
    container = {"image": image, "command": ["flowstone", "exec", "--", "sh", "-c", script]}
    hours = {"hour": {"from": "2025-01-02T00:00:00Z", "before": "2025-01-02T04:00:00Z"}}
    namespace.apply(
        asset("hours", [{"name": "hour", "type": "datetime"}], container),
        backfill("b", "hours", partitions=hours, batchSize=4, retry={"limit": 0}),
    )
    status = finished(namespace, "b")
    assert (status["counts"]["succeeded"], status["counts"]["failed"]) == (3, 1)
    assert status["failures"][0]["partition"] == "2025-01-02T01:00:00Z"


def test_a_job_sees_the_rows_of_its_own_namespace_only(namespace: Kubectl, operator: Kubectl, image: str) -> None:
    """The login of a namespace sees its own scope, though the ledger holds those of others."""
    namespace.apply(
        asset("foreign", DAY, work(image, "foreign")), backfill("b", "foreign", keys=["2025-01-01"], retry={"limit": 0})
    )
    status = finished(namespace, "b")
    assert status["phase"] == "Succeeded", status["failures"]


def test_cancel_stops_jobs_within_seconds_and_for_good(namespace: Kubectl, image: str) -> None:
    """Open Jobs get a deletionTimestamp, nothing more is handed out, and the counts still add up."""
    namespace.apply(
        asset("slow", DAY, work(image, "slow", SECONDS_EACH="30")),
        backfill("b", "slow", partitions=TEN_DAYS, maxParallel=2, batchSize=2),
    )
    wait_for(lambda: namespace.status("b"), lambda s: s.get("activeBatches") == 2, seconds=60, what="two batches")
    namespace.out("patch", "backfill", "b", "--type=merge", "-p", '{"spec": {"cancel": true}}')
    wait_for(
        lambda: namespace.list("jobs"),
        lambda jobs: all(job["metadata"].get("deletionTimestamp") for job in jobs),
        seconds=5,
        what="every Job is being deleted",
    )
    status = finished(namespace, "b")
    assert (status["phase"], status["counts"]["cancelled"]) == ("Cancelled", 10)
    assert total_is_right(status["counts"])
    assert conditions(status)["Succeeded"]["reason"] == "Cancelled"


def test_three_dimensions_by_partitions_and_by_keys_are_the_same_rows(
    namespace: Kubectl, image: str, psql: Psql
) -> None:
    """Region x carrier x day with exclusions, and the same set listed key by key: the same rows in the same order."""
    dimensions: list[Json] = [
        {"name": "region", "type": "string", "values": ["eu", "us"]},
        {"name": "carrier", "type": "string"},
        {"name": "day", "type": "date"},
    ]
    product: dict[str, Any] = {
        "partitions": {
            "carrier": {"values": ["UA", "DL"]},
            "day": {"from": "2025-01-01", "through": "2025-01-03", "exclude": {"values": ["2025-01-02"]}},
        },
        "excludeCombinations": [{"carrier": "UA", "day": "2025-01-03"}],
    }
    expected = [
        f"{region}|{carrier}|2025-01-0{day}"
        for region in ("eu", "us")
        for carrier, days in (("DL", "13"), ("UA", "1"))
        for day in days
    ]
    namespace.apply(asset("cube", dimensions, work(image, "nothing")), backfill("p", "cube", select="All", **product))
    finished(namespace, "p")
    namespace.apply(backfill("k", "cube", select="All", keys=list(reversed(expected))))
    finished(namespace, "k")

    def rows(name: str) -> list[list[str]]:
        uid = namespace.get("backfill", name)["metadata"]["uid"]
        return psql(
            "SELECT ordinal, partition, state, scope, asset FROM flowstone.materialization "
            f"WHERE backfill = '{uid}' ORDER BY ordinal"
        )

    assert [row[1] for row in rows("p")] == expected
    assert rows("p") == rows("k")


@pytest.mark.parametrize("cascade", ["background", "orphan"])
def test_deleting_the_resource_stops_its_jobs_and_keeps_the_history(
    namespace: Kubectl, image: str, psql: Psql, cascade: str
) -> None:
    """The Jobs go, also those that lost their owner with it; the ledger closes its rows and keeps them."""
    namespace.apply(
        asset("slow", DAY, work(image, "slow", SECONDS_EACH="30")),
        backfill("b", "slow", partitions=TEN_DAYS, maxParallel=1, batchSize=1),
    )
    wait_for(lambda: namespace.status("b"), lambda s: s.get("activeBatches") == 1, seconds=60, what="a batch")
    uid = namespace.get("backfill", "b")["metadata"]["uid"]
    namespace.out("delete", "backfill", "b", f"--cascade={cascade}")
    wait_for(lambda: namespace.list("jobs"), lambda jobs: not jobs, seconds=60, what="no Jobs")
    query = f"SELECT state, count(*) FROM flowstone.materialization WHERE backfill = '{uid}' GROUP BY state"
    wait_for(lambda: psql(query), lambda rows: rows == [["cancelled", "10"]], seconds=30, what="rows closed")
