"""What goes wrong is named in the status within seconds, disturbs nobody else, and clears when it is repaired."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.conftest import Psql
from tests.e2e.kubectl import Json, Kubectl, asset, backfill, conditions, finished, wait_for
from tests.e2e.test_backfill import DAY, work

pytestmark = pytest.mark.cluster

ONE = ["2025-01-01"]


def standing(kubectl: Kubectl, name: str, kind: str, reason: str, *, seconds: float = 30) -> Json:
    """Wait until a condition is true for a reason; returns the condition."""
    status = wait_for(
        lambda: kubectl.status(name),
        lambda status: (
            conditions(status).get(kind, {}).get("reason") == reason and conditions(status)[kind]["status"] == "True"
        ),
        seconds=seconds,
        what=f"{kind} by {reason}",
    )
    return conditions(status)[kind]


def test_an_unknown_asset_is_waited_for(namespace: Kubectl, image: str) -> None:
    """Ready=False (AssetNotFound), and the work begins when the Asset appears."""
    namespace.apply(backfill("b", "later", keys=ONE))
    status = wait_for(
        lambda: namespace.status("b"),
        lambda status: conditions(status).get("Ready", {}).get("reason") == "AssetNotFound",
        seconds=10,
        what="AssetNotFound",
    )
    assert conditions(status)["Ready"]["status"] == "False"
    namespace.apply(asset("later", DAY, work(image, "nothing")))
    assert finished(namespace, "b", seconds=60)["phase"] == "Succeeded"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"keys": ["2013-02-30"]}, ["spec.keys", "2013-02-30"]),
        ({"keys": ["monday"]}, ["spec.keys", "monday"]),
        ({"partitions": {"day": {"values": ["2013-2-3"]}}}, ["spec.partitions.day", "2013-2-3"]),
        ({"partitions": {"dya": {"values": ["2013-02-03"]}}}, ["spec.partitions", "dya"]),
    ],
    ids=["no such day", "no date", "not canonical", "unknown dimension"],
)
def test_what_the_schema_cannot_know_stalls_at_once(
    namespace: Kubectl, image: str, spec: Json, words: list[str]
) -> None:
    """Stalled=True with the field, the value and the remedy; not one Job."""
    namespace.apply(asset("days", DAY, work(image, "nothing")), backfill("b", "days", **spec))
    condition = standing(namespace, "b", "Stalled", "InvalidSpec", seconds=10)
    for word in words:
        assert word in condition["message"]
    assert not namespace.list("jobs")


def test_a_misspelt_field_of_the_template_is_refused(namespace: Kubectl, image: str) -> None:
    """`comand` would be dropped by the API server, the image's own command would run, and its success would count."""
    container = work(image, "nothing")
    misspelt = {"image": image, "comand": container["command"]}
    namespace.apply(asset("days", DAY, misspelt), backfill("b", "days", keys=ONE))
    condition = standing(namespace, "b", "Stalled", "InvalidSpec", seconds=20)
    assert 'unknown field "spec.template.spec.containers[0].comand"' in condition["message"]
    assert not namespace.list("jobs")
    namespace.apply(asset("days", DAY, container))
    assert finished(namespace, "b", seconds=60)["phase"] == "Succeeded"


def test_a_missing_image_is_blocked_and_cured_by_an_edit_of_the_asset(namespace: Kubectl, image: str) -> None:
    """Blocked within 30 s with the kubelet's words; after the edit the Job is made anew, and nobody was charged."""
    namespace.apply(
        asset("days", DAY, work("localhost/none:there", "nothing") | {"imagePullPolicy": "Never"}),
        backfill("b", "days", keys=ONE, retry={"limit": 0}),
    )
    condition = standing(namespace, "b", "Blocked", "ImagePull")
    assert "localhost/none:there" in condition["message"]
    namespace.apply(asset("days", DAY, work(image, "nothing")))
    assert finished(namespace, "b", seconds=60)["phase"] == "Succeeded"


def test_a_quota_of_no_pods_is_blocked_and_clears_with_it(namespace: Kubectl, image: str) -> None:
    """The Job controller's words are in the status, and the work goes on when the quota is gone."""
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    namespace.apply(quota, asset("days", DAY, work(image, "nothing")), backfill("b", "days", keys=ONE))
    assert "exceeded quota" in standing(namespace, "b", "Blocked", "QuotaExceeded")["message"]
    namespace.out("delete", "resourcequota", "none")
    assert finished(namespace, "b", seconds=120)["phase"] == "Succeeded"


def test_a_template_that_pod_security_refuses_is_named(namespace: Kubectl, image: str) -> None:
    """A privileged container where only restricted ones may run: the words of whoever refused it."""
    container = work(image, "nothing") | {"securityContext": {"privileged": True, "allowPrivilegeEscalation": True}}
    namespace.apply(asset("days", DAY, container), backfill("b", "days", keys=ONE))
    status = wait_for(
        lambda: namespace.status("b"),
        lambda status: conditions(status).get("Ready", {}).get("status") == "False",
        seconds=30,
        what="refused",
    )
    assert "rivileged" in conditions(status)["Ready"]["message"]


def _split(rule: Json, resource: str, verb: str) -> list[Json]:
    """A rule without one verb on one of its resources."""
    if resource not in rule["resources"]:
        return [rule]
    others = [one for one in rule["resources"] if one != resource]
    verbs = [one for one in rule["verbs"] if one != verb]
    return [rule | {"resources": [resource], "verbs": verbs}] + ([rule | {"resources": others}] if others else [])


@contextmanager
def without(operator: Kubectl, resource: str, verb: str) -> Iterator[None]:
    """Take one verb away from the operator's ClusterRole while the block runs."""
    role = operator.get("clusterrole", "flowstone")
    original = json.dumps({"rules": role["rules"]})
    rules = [part for rule in role["rules"] for part in _split(rule, resource, verb)]
    operator.out("patch", "clusterrole", "flowstone", "--type=merge", "-p", json.dumps({"rules": rules}))
    try:
        yield
    finally:
        operator.out("patch", "clusterrole", "flowstone", "--type=merge", "-p", original)


@pytest.mark.alone
@pytest.mark.parametrize(
    ("resource", "verb"),
    [("jobs", "create"), ("jobs", "list"), ("assets", "get"), ("secrets", "get")],
)
def test_a_verb_taken_away_is_named_and_work_goes_on_when_it_is_back(
    namespace: Kubectl, operator: Kubectl, image: str, resource: str, verb: str
) -> None:
    """The status says RBAC with the API server's words; nothing is lost."""
    namespace.apply(asset("days", DAY, work(image, "nothing")))
    with without(operator, resource, verb):
        namespace.apply(backfill("b", "days", keys=ONE))
        condition = standing(namespace, "b", "Blocked", "RBAC")
        assert f'cannot {verb} resource "{resource}"' in condition["message"]
    assert finished(namespace, "b", seconds=90)["phase"] == "Succeeded"


@pytest.mark.alone
def test_without_the_right_to_read_backfills_events_and_readiness_tell(
    namespace: Kubectl, operator: Kubectl, image: str
) -> None:
    """Where no status can be written an Event and /readyz name the verb; work goes on when it is back."""
    namespace.apply(asset("days", DAY, work(image, "nothing")))
    with without(operator, "backfills", "get"):
        namespace.apply(backfill("b", "days", keys=ONE))
        wait_for(
            lambda: [
                str(event.get("note", event.get("message"))) for event in namespace.list("events.v1.events.k8s.io")
            ],
            lambda notes: any('cannot get resource "backfills"' in note for note in notes),
            seconds=30,
            what="an Event",
        )
        wait_for(
            lambda: operator.get("deployment", "flowstone")["status"].get("readyReplicas", 0),
            lambda ready: ready == 0,
            seconds=60,
            what="not ready",
        )
    assert finished(namespace, "b", seconds=90)["phase"] == "Succeeded"


@pytest.mark.alone
def test_a_job_name_that_is_taken_is_named(namespace: Kubectl, image: str, psql: Psql) -> None:
    """A template edit by somebody else cannot make us adopt a Job that is not ours."""
    namespace.apply(backfill("b", "days", keys=["2025-01-01", "2025-01-02"], batchSize=1, maxParallel=1))
    uid = wait_for(lambda: namespace.get("backfill", "b"), lambda b: bool(b.get("status")), seconds=20, what="seen")[
        "metadata"
    ]["uid"]
    taken = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "spec": {
            "suspend": True,
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [
                        {
                            "name": "x",
                            "image": image,
                            "securityContext": {
                                "allowPrivilegeEscalation": False,
                                "capabilities": {"drop": ["ALL"]},
                            },
                        }
                    ],
                }
            },
        },
    }
    ((last,),) = psql("SELECT last_value FROM flowstone.batch_fence_seq")
    names = [f"b-{uid[:8]}-{fence}" for fence in range(int(last) + 1, int(last) + 21)]
    for name in names:
        namespace.apply(taken | {"metadata": {"name": name}})
    namespace.apply(asset("days", DAY, work(image, "nothing")))
    condition = standing(namespace, "b", "Blocked", "NameConflict")
    assert "belongs to somebody else" in condition["message"]
    namespace.out("delete", "jobs", *names)
    assert finished(namespace, "b", seconds=90)["phase"] == "Succeeded"
