"""The operator dies, is replaced, or has nothing to do."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest

from tests.e2e.conftest import Psql
from tests.e2e.kubectl import ROOT, Json, Kubectl, asset, backfill, finished, wait_for, watch_jobs
from tests.e2e.test_backfill import DAY, work

pytestmark = pytest.mark.cluster

SIXTY = {"day": {"from": "2025-01-01", "through": "2025-03-01"}}
PODS = ("-l", "app.kubernetes.io/name=flowstone,app.kubernetes.io/component=operator")


@contextmanager
def killing(operator: Kubectl, seed: int) -> Iterator[list[str]]:
    """Kill operator pods without notice, one or both at a time, at random moments, while the block runs."""
    dice, stop, killed = random.Random(seed), threading.Event(), list[str]()  # noqa: S311 - a reproducible storm

    def storm() -> None:
        while not stop.wait(dice.uniform(1, 6)):
            names = [pod["metadata"]["name"] for pod in operator.list("pods", *PODS)]
            victims = dice.sample(names, min(len(names), dice.choice([1, 2])))
            operator.run("delete", "pods", *victims, "--grace-period=0", "--force", "--wait=false")
            killed.extend(victims)

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join(60)


def test_operators_killed_at_random(namespace: Kubectl, operator: Kubectl, image: str, psql: Psql) -> None:
    """Never more open Jobs than maxParallel, no partition lost, each with exactly one success, nobody charged."""
    namespace.apply(asset("slow", DAY, work(image, "slow", SECONDS_EACH="0.3")))
    with watch_jobs(namespace) as seen, killing(operator, seed=7) as killed:
        namespace.apply(backfill("b", "slow", partitions=SIXTY, maxParallel=4, batchSize=3))
        wait_for(
            lambda: (len(killed), namespace.status("b").get("counts", {}).get("succeeded", 0)),
            lambda now: now[0] >= 5 and now[1] >= 10,
            seconds=240,
            what="five kills in the middle of the work",
        )
    status = finished(namespace, "b", seconds=240)
    assert (status["phase"], status["counts"]["succeeded"]) == ("Succeeded", 60)
    assert seen.most <= 4
    uid = namespace.get("backfill", "b")["metadata"]["uid"]
    once = psql(
        "SELECT count(*), count(DISTINCT partition), sum(attempts) FROM flowstone.materialization "
        f"WHERE backfill = '{uid}' AND state = 'succeeded'"
    )
    left = psql(f"SELECT count(*) FROM flowstone.batch WHERE backfill = '{uid}' AND state = 'open'")
    assert (once, left) == ([["60", "60", "0"]], [["0"]])


def test_an_upgrade_in_the_middle(namespace: Kubectl, operator: Kubectl, image: str, psql: Psql) -> None:
    """`helm upgrade` to other pods while batches are open: no batch lost, none run twice."""
    namespace.apply(
        asset("slow", DAY, work(image, "slow", SECONDS_EACH="0.5")),
        backfill("b", "slow", partitions=SIXTY, maxParallel=4, batchSize=4),
    )
    with watch_jobs(namespace) as seen:
        wait_for(lambda: namespace.status("b"), lambda s: s.get("activeBatches", 0) > 0, seconds=60, what="batches")
        patch = {"spec": {"template": {"metadata": {"annotations": {"test/upgrade": namespace.namespace}}}}}
        operator.out("patch", "deployment", "flowstone", "--type=merge", "-p", json.dumps(patch))
        status = finished(namespace, "b", seconds=240)
    operator.out("rollout", "status", "deployment/flowstone", "--timeout=120s")
    assert (status["phase"], status["counts"]["succeeded"]) == ("Succeeded", 60)
    assert (seen.most, len(seen.all)) == (4, 15)
    uid = namespace.get("backfill", "b")["metadata"]["uid"]
    batches = psql(f"SELECT count(*), sum(partitions) FROM flowstone.batch WHERE backfill = '{uid}'")
    assert batches == [["15", "60"]]


def test_a_schema_that_is_too_new_stops_work_visibly(
    namespace: Kubectl, operator: Kubectl, image: str, psql: Psql
) -> None:
    """When the ledger wants a newer operator, work is refused with a reason, and taken up when it is allowed again."""
    namespace.apply(asset("days", DAY, work(image, "nothing")))
    ((before,),) = psql("SELECT min_operator FROM flowstone.compatibility")
    psql("UPDATE flowstone.compatibility SET min_operator = 9999")
    try:
        namespace.apply(backfill("b", "days", keys=["2025-01-01"]))
        wait_for(
            lambda: namespace.status("b").get("conditions", []),
            lambda found: any(c["type"] == "Blocked" and c["reason"] == "SchemaNotCompatible" for c in found),
            seconds=30,
            what="SchemaNotCompatible",
        )
        assert not namespace.list("jobs")
    finally:
        psql(f"UPDATE flowstone.compatibility SET min_operator = {before}")
    assert finished(namespace, "b", seconds=60)["phase"] == "Succeeded"


def test_an_idle_operator_writes_nothing(operator: Kubectl) -> None:
    """Once what it did earlier has settled, longer than a resync goes by without a write in the audit log."""
    audit = ROOT / ".cluster" / "logs" / "audit.log"
    if not audit.exists():
        pytest.skip("this cluster's audit log is not on this machine")
    operator.out("rollout", "status", "deployment/flowstone", "--timeout=120s")
    with audit.open() as log:
        log.seek(0, 2)
        # A resync is 60 s. What the tests before have disturbed is told of for up to 60 s more.
        wait_for(
            lambda: _writes(log, seconds=65), lambda found: not found, seconds=200, what="a resync without a write"
        )


def _writes(log: TextIO, *, seconds: float) -> list[str]:
    """What the operator writes to the API server within the next seconds, for people."""
    threading.Event().wait(seconds)
    events = [json.loads(line) for line in log if line.endswith("\n")]
    return [_in_words(event) for event in events if _is_write_of_operator(event)]


def _in_words(event: Json) -> str:
    told = (event["requestReceivedTimestamp"], event["verb"], event["requestURI"], event.get("responseStatus", {}))
    return " ".join(map(str, told))


def _is_write_of_operator(event: Json) -> bool:
    reading = event["verb"] in ("get", "list", "watch")
    return event["user"].get("username") == "system:serviceaccount:flowstone-system:flowstone" and not reading
