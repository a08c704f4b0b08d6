"""What the executor reads from real Jobs and pods: the kubelet's and the controllers' own words, not ours."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from flowstone.backfill.records import ClaimedBatch
from flowstone.executor.blockage import blockage
from flowstone.executor.jobs import LABEL_FENCE, Work, job_manifest, job_prefix
from flowstone.executor.pods import run_state
from flowstone.executor.port import Blockage, Ended, Gone, Running, RunState
from tests.e2e.kubectl import Json, Kubectl, wait_for

pytestmark = pytest.mark.cluster

UID = "12345678-0000-0000-0000-000000000000"

_fences = itertools.count(1)

Container = dict[str, Any]


class Job:
    """A batch's Job on the cluster, made of the executor's own manifest."""

    def __init__(self, kubectl: Kubectl, spec: Json, secret: str | None = None) -> None:
        self.kubectl = kubectl
        self.fence = str(next(_fences))
        self.name = f"{job_prefix('states', UID)}{self.fence}"
        claimed = ClaimedBatch(int(self.fence), "n/c1/x", self.name, ("2013-01-01", "it's $(FLOWSTONE_FENCE)"), "d")
        work = Work("states", kubectl.namespace, UID, "a", "c1/x/a", [{"name": "day", "type": "date"}], {"spec": spec})
        manifest = job_manifest(claimed, work, secret=secret)
        # Its Backfill does not exist, so the garbage collector would take it away.
        del manifest["metadata"]["ownerReferences"]
        kubectl.apply(manifest)

    def pods(self) -> list[Json]:
        """The Job's pods."""
        return self.kubectl.list("pods", "-l", f"{LABEL_FENCE}={self.fence}")

    def state(self) -> RunState:
        """What the executor makes of it."""
        return run_state(self.kubectl.get("job", self.name) or None, self.pods(), datetime.now(UTC))

    def ended(self, seconds: float = 60) -> Ended:
        """Wait until it has ended."""
        state = wait_for(self.state, lambda one: isinstance(one, Ended), seconds=seconds, what=f"end of {self.name}")
        assert isinstance(state, Ended)
        return state

    def started(self) -> str:
        """Wait until its pod runs; return the pod's name."""
        wait_for(self.state, lambda one: one == Running(ready=True), seconds=60, what=f"start of {self.name}")
        return str(self.pods()[0]["metadata"]["name"])

    def blocked(self) -> Blockage:
        """Wait until something is known to keep it from starting."""

        def ask() -> Blockage | None:
            found, events = self.kubectl.get("job", self.name), self.kubectl.list("events")
            return blockage(found, self.pods(), events, datetime.now(UTC))

        blocked = wait_for(ask, lambda one: one is not None, seconds=30, what=f"blockage of {self.name}")
        assert blocked is not None
        return blocked


@pytest.fixture
def container(image: str) -> Callable[..., Container]:
    """Makes a container that runs a shell script."""

    def make(script: str, **more: Any) -> Container:
        command = ["sh", "-c", script]
        return {"name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "command": command, **more}

    return make


def test_success_and_the_contract(namespace: Kubectl, container: Callable[..., Container]) -> None:
    """In a namespace for restricted pods the Job runs, finds its keys as they are, and ends well."""
    # `$$` stands for one `$` to Kubernetes, which would expand `$(FLOWSTONE_FENCE)` in a command.
    keys = "2013-01-01\nit's \\$$(FLOWSTONE_FENCE)"
    script = f'test "$(cat $FLOWSTONE_PARTITIONS_FILE)" = "{keys}" && test ! -e /var/run/secrets/kubernetes.io'
    assert Job(namespace, {"containers": [container(script)]}).ended() == Ended(
        succeeded=True, exit_code=0, reason="Completed"
    )


def test_failures_come_with_code_and_last_words(namespace: Kubectl, container: Callable[..., Container]) -> None:
    """Exit code, reason and the end of the log arrive in the Job's pod, also of an init container."""
    crash = Job(namespace, {"containers": [container("echo the end; exit 3")]})
    first = {**container("echo not yet; exit 5"), "name": "first"}
    init = Job(namespace, {"initContainers": [first], "containers": [container("true")]})
    missing = Job(namespace, {"containers": [container("", command=["/no/such"])]})
    assert crash.ended() == Ended(False, 3, reason="Error", message="container main: the end")
    assert init.ended() == Ended(False, 5, reason="Error", message="container first: not yet")
    assert (missing.ended().reason, missing.ended().disrupted, missing.ended().unstarted) == ("StartError", False, True)


def test_outcomes_without_a_database(namespace: Kubectl, container: Callable[..., Container], image: str) -> None:
    """A worker without a database leaves its outcomes in the pod's status, in the order of the keys."""
    worker = container("", command=["flowstone", "exec", "sh", "-c", 'test "$FLOWSTONE_PARTITION" != 2013-01-01'])
    assert Job(namespace, {"containers": [worker]}).ended().positions == (
        (0, "exit code 1: nothing on standard error"),
        (1, 'InvalidPartition: "it\'s $(FLOWSTONE_FENCE)" is no date; write YYYY-MM-DD, such as 2025-01-15.'),
    )


def test_disruptions_charge_nobody(namespace: Kubectl, container: Callable[..., Container]) -> None:
    """Deletion, eviction and a refusal by the kubelet are told apart from the program's own failure."""
    sleeping = {"containers": [container("exec sleep 300")], "terminationGracePeriodSeconds": 1}
    deleted, evicted = Job(namespace, sleeping), Job(namespace, sleeping)
    namespace.out("delete", "pod", deleted.started(), "--wait=false")
    pod = evicted.started()
    eviction = f'{{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {{"name": "{pod}"}}}}'
    where = f"/api/v1/namespaces/{namespace.namespace}/pods/{pod}/eviction"
    namespace.out("create", "--raw", where, "-f", "-", given=eviction)
    node = any_node(namespace)
    huge = container("true", resources={"requests": {"cpu": "1000"}})
    refused = Job(namespace, {"nodeName": node, "containers": [huge]})
    assert deleted.ended().disrupted
    assert evicted.ended().disrupted
    assert (refused.ended().disrupted, refused.ended().reason) == (True, "OutOfcpu")


def any_node(kubectl: Kubectl) -> str:
    """Name of a node."""
    return str(kubectl.list("nodes")[0]["metadata"]["name"])


def test_job_that_is_deleted_is_open_until_its_pod_is_gone(
    namespace: Kubectl, container: Callable[..., Container]
) -> None:
    """A deleted Job keeps its slot as long as its pod still ends, and then there is no trace of it."""
    script = "trap 'sleep 3; exit 0' TERM; sleep 300 & wait"
    job = Job(namespace, {"containers": [container(script)], "terminationGracePeriodSeconds": 10})
    job.started()
    namespace.out("delete", "job", job.name, "--wait=false", "--cascade=background")
    assert job.state() == Running(ready=True, stopping=True)
    wait_for(job.state, lambda one: one == Gone(), seconds=60, what="end of the deleted Job")


def test_what_does_not_start_is_named(namespace: Kubectl, container: Callable[..., Container]) -> None:
    """Image, Secret, service account, volumes, pod security and room are each named within 30 s."""
    plain = {"containers": [container("true")]}
    volume = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    mounted = {"containers": [container("true", **volume)]}
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": "gone"}}
    root = container("true", securityContext={"runAsNonRoot": False})
    huge = container("true", resources={"requests": {"cpu": "1000"}})
    cases = {
        "ImagePull": Job(namespace, {"containers": [container("true", image="localhost/no-such:1")]}),
        "Config": Job(namespace, plain, secret="no-such-secret"),
        "ServiceAccount": Job(namespace, {**plain, "serviceAccountName": "gone"}),
        "Volume": Job(namespace, {**mounted, "volumes": [{"name": "data", "configMap": {"name": "gone"}}]}),
        "PodSecurity": Job(namespace, {"containers": [root]}),
        "Unschedulable": Job(namespace, {"containers": [huge]}),
    }
    missing_claim = Job(namespace, {**mounted, "volumes": [claim]})
    assert {reason: job.blocked().reason for reason, job in cases.items()} == {reason: reason for reason in cases}
    assert missing_claim.blocked().reason == "Volume"
    assert cases["Unschedulable"].blocked().waiting


def test_quota_is_named_until_it_is_raised(namespace: Kubectl, container: Callable[..., Container]) -> None:
    """Under a quota of no pods there are only the Job's Events; with room again the Job starts."""
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"pods": "0"}}}
    namespace.apply(quota)
    job = Job(namespace, {"containers": [container("true")]})
    assert job.blocked().reason == "QuotaExceeded"
    assert "exceeded quota: q" in job.blocked().message
    namespace.out("delete", "resourcequota", "q")
    assert job.ended(seconds=120).succeeded
