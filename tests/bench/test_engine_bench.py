"""What the engine costs on a real cluster, against what the platform does by itself in the same run.

pytest -s tests/bench/test_engine_bench.py        about ten minutes; FLOWSTONE_BENCH_PARTITIONS sets the size (366)
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import pytest
from kubernetes import client, config

from tests.e2e.conftest import Psql, cluster, image, namespace, operator, psql
from tests.e2e.kubectl import ROOT, Json, Kubectl, asset, backfill, is_over, wait_for
from tests.e2e.test_backfill import DAY, work

__all__ = ["cluster", "image", "namespace", "operator", "psql"]

pytestmark = pytest.mark.cluster

PARTITIONS = int(os.environ.get("FLOWSTONE_BENCH_PARTITIONS", "366"))
SLOTS = 20
OPERATOR = "system:serviceaccount:flowstone-system:flowstone"
AUDIT = ROOT / ".cluster" / "logs" / "audit.log"


def days(number: int) -> Json:
    """So many days as a Backfill's partitions."""
    last = date(2000, 1, 1) + timedelta(days=number - 1)
    return {"day": {"from": "2000-01-01", "through": str(last)}}


def seconds_to_end(kubectl: Kubectl, manifest: Json, *, patience: float) -> float:
    """Seconds from `kubectl apply` of a Backfill to its success."""
    begin = time.perf_counter()
    kubectl.apply(manifest)
    name = manifest["metadata"]["name"]
    until(kubectl, f"backfill/{name}", "Finished", patience=patience)
    took = time.perf_counter() - begin
    status = kubectl.status(name)
    assert status["phase"] == "Succeeded", status
    return took


def until(kubectl: Kubectl, what: str, condition: str, *, patience: float) -> None:
    """Wait by one watch: to ask again and again takes a tenth of two processors away from what is measured."""
    kubectl.run("wait", what, f"--for=condition={condition}", "--timeout=-1s", patience=patience)


def pod(image: str) -> Json:
    """The pod of a Job that does nothing, as restricted namespaces want it."""
    security = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    narrow = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {"name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "command": ["true"]}
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": security,
        "containers": [container | {"securityContext": narrow}],
    }


def job(name: str, image: str, **spec: object) -> Json:
    """A Job whose pods do nothing."""
    template = {"spec": pod(image)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"template": template, "backoffLimit": 0, **spec},
    }


def native(kubectl: Kubectl, image: str) -> float:
    """Seconds that Kubernetes' own Indexed Job takes for as many pods."""
    indexed = job("native", image, completions=PARTITIONS, parallelism=SLOTS, completionMode="Indexed")
    begin = time.perf_counter()
    kubectl.apply(indexed)
    until(kubectl, "job/native", "Complete", patience=PARTITIONS * 2)
    took = time.perf_counter() - begin
    kubectl.run("delete", "job", "native", "--cascade=foreground")
    return took


class BareClient:
    """Keeps so many one-pod Jobs open, and does nothing else: one request for each Job, and one watch."""

    def __init__(self, kubectl: Kubectl, image: str) -> None:
        self._image = image
        self._namespace = kubectl.namespace
        self._batch: Any = client.BatchV1Api(config.new_client_from_config(kubectl.config))
        self._free = threading.Semaphore(SLOTS)
        self._over: set[str] = set()

    def run(self) -> float:
        """Seconds until all Jobs are over."""
        begin = time.perf_counter()
        watch = threading.Thread(target=self._watch, daemon=True)
        watch.start()
        with ThreadPoolExecutor(4) as pool:
            for number in range(PARTITIONS):
                self._free.acquire()
                pool.submit(self._create, f"bare-{number}")
        while len(self._over) < PARTITIONS:
            time.sleep(0.02)
        return time.perf_counter() - begin

    def _create(self, name: str) -> None:
        self._batch.create_namespaced_job(self._namespace, job(name, self._image))

    def _watch(self) -> None:
        answer: Any = self._batch.list_namespaced_job(self._namespace, watch=True, _preload_content=False)
        for line in answer:
            one = json.loads(line)["object"]
            name = one["metadata"]["name"]
            if name.startswith("bare-") and is_over(one) and name not in self._over:
                self._over.add(name)
                self._free.release()


@dataclass
class Writes:
    """The operator's writes to the API server, by verb and resource."""

    counted: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.counted.values())


@contextmanager
def writes(kubectl: Kubectl) -> Iterator[Writes]:
    """What the audit log says of the operator in a namespace while the block runs."""
    if not AUDIT.exists():
        pytest.skip("this cluster's audit log is not on this machine")
    found = Writes()
    with AUDIT.open() as log:
        log.seek(0, os.SEEK_END)
        yield found
        time.sleep(1)  # the log is written in the background
        for line in log:
            event: Json = json.loads(line) if line.endswith("\n") else {"verb": "get"}
            place = event.get("objectRef", {})
            if event["verb"] in ("get", "list", "watch") or event["user"]["username"] != OPERATOR:
                continue
            if place.get("namespace") == kubectl.namespace:
                what = f"{event['verb']} {place['resource']}"
                what += f"/{place['subresource']}" if place.get("subresource") else ""
                found.counted[what] = found.counted.get(what, 0) + 1


def test_no_ops_in_batches(namespace: Kubectl, image: str) -> None:
    """With `batchSize` unset: under 15 s, and at most 0.2 times a native Indexed Job of as many pods."""
    namespace.apply(asset("days", DAY, work(image, "nothing")))
    wanted = backfill("b", "days", partitions=days(PARTITIONS), maxParallel=SLOTS)
    ours = seconds_to_end(namespace, wanted, patience=120)
    theirs = native(namespace, image)
    print(
        f"\n{PARTITIONS} no-ops: {ours:.1f} s in batches, {theirs:.1f} s as a native Indexed Job: {ours / theirs:.2f}"
    )
    assert ours <= 15
    assert ours <= 0.2 * theirs


def test_one_partition_in_a_job(namespace: Kubectl, image: str, psql: Psql) -> None:
    """With `batchSize: 1`: at most 1.15 times a bare client with as many open Jobs; at most 2.2 writes for a Job."""
    theirs = BareClient(namespace, image).run()
    namespace.run("delete", "jobs", "--all", "--cascade=foreground")
    plain = asset("days", DAY, {"image": image, "command": ["true"]})
    plain["spec"]["template"]["spec"]["volumes"] = []
    plain["spec"]["template"]["spec"]["containers"][0].update(volumeMounts=[], env=[])
    namespace.apply(plain)
    wanted = backfill("b", "days", partitions=days(PARTITIONS), maxParallel=SLOTS, batchSize=1)
    with writes(namespace) as found:
        ours = seconds_to_end(namespace, wanted, patience=PARTITIONS * 2)
        wait_for(lambda: namespace.list("jobs"), lambda left: not left, seconds=60, what="Jobs tidied")
    print(f"\n{PARTITIONS} Jobs: {ours:.1f} s, a bare client {theirs:.1f} s: {ours / theirs:.2f}")
    print(f"writes for a Job: {found.total / PARTITIONS:.2f} {found.counted}")
    assert ours <= 1.15 * theirs
    assert found.total <= 2.2 * PARTITIONS


def test_slots_are_in_use(namespace: Kubectl, image: str, psql: Psql) -> None:
    """With batches of 60 s, containers run in the slots for at least 95 % of the time until the queue is empty."""
    seconds = float(os.environ.get("FLOWSTONE_BENCH_BATCH_SECONDS", "60"))
    slots, rounds = 8, 3
    container = work(image, "slow", SECONDS_EACH=str(seconds))
    namespace.apply(asset("slow", DAY, container))
    wanted = backfill("b", "slow", partitions=days(slots * rounds), maxParallel=slots, batchSize=1)
    spans: dict[str, tuple[float, float]] = {}
    thread = threading.Thread(target=_watch_pods, args=(namespace, spans), daemon=True)
    thread.start()
    took = seconds_to_end(namespace, wanted, patience=seconds * rounds * 2)
    uid = namespace.get("backfill", "b")["metadata"]["uid"]
    query = "SELECT extract(epoch FROM opened_at), extract(epoch FROM closed_at) FROM flowstone.batch WHERE backfill = "
    opened = [(float(begin), float(end)) for begin, end in psql(f"{query}'{uid}'")]
    ledger = share(opened, slots)
    running = share([span for span in spans.values() if span[1]], slots)
    print(f"\n{slots} slots, batches of {seconds:.0f} s, {took:.0f} s: {ledger:.1%} handed out, {running:.1%} running")
    assert running >= 0.95


def share(spans: list[tuple[float, float]], slots: int) -> float:
    """The part of the time in which slots were taken, from the first begin to the last one."""
    begin, end = min(start for start, _ in spans), max(start for start, _ in spans)
    taken = sum(min(stop, end) - start for start, stop in spans)
    return taken / (slots * (end - begin))


def _watch_pods(kubectl: Kubectl, spans: dict[str, tuple[float, float]]) -> None:
    core = client.CoreV1Api(config.new_client_from_config(kubectl.config))
    answer: Any = core.list_namespaced_pod(kubectl.namespace, watch=True, _preload_content=False)
    for line in answer:
        found = json.loads(line)["object"]
        name, now = found["metadata"]["name"], time.time()
        phase = found.get("status", {}).get("phase")
        if phase == "Running" and name not in spans:
            spans[name] = (now, 0.0)
        elif phase == "Succeeded" and name in spans and not spans[name][1]:
            spans[name] = (spans[name][0], now)


@pytest.fixture
def tenants(namespace: Kubectl) -> Iterator[None]:
    """Twelve Tenants, more than there are workers, each ready."""
    names = [f"{namespace.namespace}-{number}" for number in range(12)]
    base = {"apiVersion": "flowstone.dev/v1alpha1", "kind": "Tenant"}
    spec = {"namespaces": [namespace.namespace]}
    namespace.apply(*[{**base, "metadata": {"name": name}, "spec": spec} for name in names])
    namespace.out("wait", "tenant", *names, "--for=condition=Ready", "--timeout=110s")
    yield
    namespace.run("delete", "tenant", *names, "--wait=false")


@pytest.mark.usefixtures("tenants")
@pytest.mark.parametrize("when", ["idle", "restarted", "while it restarts"])
def test_from_apply_to_the_first_job(namespace: Kubectl, operator: Kubectl, image: str, when: str) -> None:
    """A Backfill that is applied has its first Job within 10 s, also right after all operators were killed, whatever
    Tenants wait for their proof meanwhile."""
    select = ("-l", "app.kubernetes.io/name=flowstone,app.kubernetes.io/component=operator")
    namespace.apply(asset("days", DAY, work(image, "nothing")))
    if when != "idle":
        operator.out("delete", "pods", *select, "--grace-period=0", "--force", "--wait=false")
    if when == "restarted":
        operator.out("rollout", "status", "deployment/flowstone", "--timeout=120s")
    begin = time.perf_counter()
    namespace.apply(backfill("b", "days", partitions=days(10)))
    wait_for(lambda: namespace.list("jobs"), bool, seconds=200, what="the first Job")
    took = time.perf_counter() - begin
    print(f"\nfirst Job, {when}: {took:.1f} s")
    assert took <= (10 if when != "while it restarts" else 30)
