"""The manifest of a batch's Job."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone.backfill.records import ClaimedBatch
from flowstone.errors import InvalidSpec
from flowstone.executor.jobs import PG_VARIABLES, Work, job_manifest, job_prefix

UID = "0f8fad5b-d9cb-469f-a165-70867728950e"
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


def work(**changes: Any) -> Work:
    """Return what a backfill of one dimension of dates has in common, with changes."""
    values: dict[str, Any] = {
        "backfill": "delays-2013",
        "namespace": "analytics",
        "uid": UID,
        "asset_id": "daily-delays",
        "asset": "c1/analytics/daily-delays",
        "dimensions": [{"name": "day", "type": "date", "unit": None, "timezone": None}],
        "template": {"spec": {"containers": [{"name": "main", "image": "localhost/app:1"}]}},
    }
    return Work(**{**values, **changes})


def batch(*partitions: str, fence: int = 42) -> ClaimedBatch:
    """Return a claimed batch of the namespace's own scope."""
    return ClaimedBatch(
        fence=fence,
        scope="n/c1/analytics",
        job_name=f"{job_prefix('delays-2013', UID)}{fence}",
        partitions=partitions or ("2013-01-01", "2013-01-02"),
        template_digest="abc",
    )


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the pod template of a Job."""
    template: dict[str, Any] = manifest["spec"]["template"]
    return template


def variables(container: dict[str, Any]) -> dict[str, str]:
    """Return the plain variables of a container."""
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


def with_spec(**spec: Any) -> Work:
    """Return work whose pod spec says something more."""
    return work(template={"spec": {"containers": [{"name": "main", "image": "app"}], **spec}})


def test_name_has_backfill_uid_and_fence() -> None:
    """The name is made of the Backfill's name, its uid and the fence; dots are no part of it."""
    assert job_prefix("my.backfill", UID) == "my-backfill-0f8fad5b-"


def test_long_name_is_cut_without_a_trailing_hyphen() -> None:
    """A long name is cut to 30 characters, and a hyphen at the cut is dropped."""
    assert job_prefix("a" * 29 + ".bcd", UID) == "a" * 29 + "-0f8fad5b-"


@given(
    st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,15}[a-z0-9])?)?", fullmatch=True),
    st.uuids(),
    st.integers(1, 2**63 - 1),
)
def test_every_name_is_a_label(name: str, uid: Any, fence: int) -> None:
    """Whatever the Backfill is called, the Job's name is a DNS label, so that it fits the pod's labels too."""
    full = f"{job_prefix(name, str(uid))}{fence}"
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", full)
    assert len(full) <= 63


def test_job_starts_one_pod_once() -> None:
    """Neither the kubelet nor the Job controller ever starts a second pod under the same fence."""
    spec = job_manifest(batch(), work(), secret="flowstone-ledger")["spec"]
    assert (spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (1, 1, 0)
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["podFailurePolicy"]["rules"] == [
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    ]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert "ttlSecondsAfterFinished" not in spec


def test_job_belongs_to_its_backfill() -> None:
    """The Backfill owns the Job, and labels on Job and pod say whose batch it is."""
    manifest = job_manifest(batch(), work(), secret="flowstone-ledger")
    owner = manifest["metadata"]["ownerReferences"]
    labels = {
        "app.kubernetes.io/managed-by": "flowstone",
        "flowstone.dev/backfill-uid": UID,
        "flowstone.dev/backfill": "delays-2013",
        "flowstone.dev/fence": "42",
        "flowstone.dev/asset": "daily-delays",
    }
    assert [(one["kind"], one["name"], one["uid"], one["controller"]) for one in owner] == [
        ("Backfill", "delays-2013", UID, True)
    ]
    assert manifest["metadata"]["name"] == "delays-2013-0f8fad5b-42"
    assert manifest["metadata"]["namespace"] == "analytics"
    assert manifest["metadata"]["labels"] == labels
    assert pod(manifest)["metadata"]["labels"] == labels
    assert manifest["metadata"]["annotations"] == {"flowstone.dev/template-digest": "abc"}


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", fullmatch=True))
def test_every_asset_id_makes_a_valid_label(asset_id: str) -> None:
    """An id may end in a character that a label's value may not; the label drops it, the variable keeps it."""
    manifest = job_manifest(batch(), work(asset_id=asset_id), secret=None)
    assert LABEL_VALUE.fullmatch(manifest["metadata"]["labels"]["flowstone.dev/asset"])
    assert variables(pod(manifest)["spec"]["containers"][0])["FLOWSTONE_ASSET_ID"] == asset_id


def test_keys_reach_every_container_as_a_file() -> None:
    """The keys stand one a line in an annotation, which each container finds as a file."""
    spec = with_spec(initContainers=[{"name": "first", "image": "app"}])
    manifest = job_manifest(batch("a%7Cb|2013-01-01", "ü|2013-01-02"), spec, secret=None)
    mounts = [one["volumeMounts"] for kind in ("initContainers", "containers") for one in pod(manifest)["spec"][kind]]
    field = pod(manifest)["spec"]["volumes"][0]["downwardAPI"]["items"][0]
    assert pod(manifest)["metadata"]["annotations"] == {"flowstone.dev/partitions": "a%7Cb|2013-01-01\nü|2013-01-02\n"}
    assert field == {
        "path": "partitions",
        "fieldRef": {"fieldPath": "metadata.annotations['flowstone.dev/partitions']"},
    }
    assert mounts == [[{"name": "flowstone-partitions", "mountPath": "/etc/flowstone", "readOnly": True}]] * 2


def test_environment_is_the_contract() -> None:
    """Each container finds version 1 of the contract; the tenant and the one key only where there is one."""
    manifest = job_manifest(batch(), work(), secret="flowstone-ledger")
    found = variables(pod(manifest)["spec"]["containers"][0])
    dimensions = json.loads(found.pop("FLOWSTONE_DIMENSIONS"))
    assert found == {
        "FLOWSTONE_CONTRACT": "1",
        "FLOWSTONE_BACKFILL": UID,
        "FLOWSTONE_BACKFILL_NAME": "delays-2013",
        "FLOWSTONE_NAMESPACE": "analytics",
        "FLOWSTONE_SCOPE": "n/c1/analytics",
        "FLOWSTONE_ASSET": "c1/analytics/daily-delays",
        "FLOWSTONE_ASSET_ID": "daily-delays",
        "FLOWSTONE_FENCE": "42",
        "FLOWSTONE_PARTITIONS_FILE": "/etc/flowstone/partitions",
    }
    assert dimensions == [{"name": "day", "type": "date", "unit": None, "timezone": None}]


def test_single_partition_and_tenant_are_in_the_environment() -> None:
    """A batch of one names its key; a tenant's batch names the tenant. Kubernetes must not expand a `$(...)`."""
    manifest = job_manifest(batch("$(FLOWSTONE_SCOPE)"), work(), secret=None, tenant="acme")
    found = variables(pod(manifest)["spec"]["containers"][0])
    assert (found["FLOWSTONE_PARTITION"], found["FLOWSTONE_TENANT"]) == ("$$(FLOWSTONE_SCOPE)", "acme")


def test_login_comes_from_the_secret() -> None:
    """libpq's variables are read from the scope's Secret under their own names; only PGSSLMODE may be absent."""
    container = pod(job_manifest(batch(), work(), secret="acme-login"))["spec"]["containers"][0]
    found = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in container["env"] if "valueFrom" in one}
    assert tuple(found) == PG_VARIABLES
    assert all((one["name"], one["key"]) == ("acme-login", name) for name, one in found.items())
    assert [name for name, one in found.items() if one.get("optional")] == ["PGSSLMODE"]


def test_own_variables_may_refer_to_the_contract() -> None:
    """The contract's variables come first, since Kubernetes expands `$(NAME)` only when NAME stands before."""
    own = {"name": "WHAT", "value": "$(FLOWSTONE_ASSET_ID)"}
    spec = work(template={"spec": {"containers": [{"name": "main", "image": "app", "env": [own]}]}})
    environment = pod(job_manifest(batch(), spec, secret="s"))["spec"]["containers"][0]["env"]
    assert environment[-1] == own
    assert "FLOWSTONE_ASSET_ID" in [one["name"] for one in environment[:-1]]


def test_defaults_are_restricted() -> None:
    """A template that says nothing gets what Pod Security restricted asks for, and no token."""
    spec = pod(job_manifest(batch(), work(), secret=None))["spec"]
    assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert spec["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False
    assert spec["containers"][0]["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_template_wins_over_defaults() -> None:
    """What the template says stays, and the rest is completed level by level."""
    security = {"runAsUser": 1000, "capabilities": {"add": ["CHOWN"]}}
    template = {
        "metadata": {"labels": {"team": "x", "flowstone.dev/fence": "1"}, "finalizers": ["a/b"]},
        "spec": {
            "securityContext": {"runAsNonRoot": False},
            "containers": [{"name": "main", "terminationMessagePolicy": "File", "securityContext": security}],
        },
    }
    result = pod(job_manifest(batch(), work(template=template), secret=None))
    container = result["spec"]["containers"][0]
    assert result["metadata"]["labels"]["team"] == "x"
    assert result["metadata"]["labels"]["flowstone.dev/fence"] == "42"
    assert "finalizers" not in result["metadata"]
    assert result["spec"]["securityContext"]["runAsNonRoot"] is False
    assert result["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["terminationMessagePolicy"] == "File"
    assert container["securityContext"]["capabilities"] == {"add": ["CHOWN"], "drop": ["ALL"]}
    assert template["spec"]["containers"] == [  # type: ignore[index]  # the caller's template is left as it was
        {"name": "main", "terminationMessagePolicy": "File", "securityContext": security}
    ]


@pytest.mark.parametrize(
    ("given_tolerations", "added"),
    [
        (None, ["not-ready", "unreachable"]),
        ([{"key": "gpu", "operator": "Exists"}], ["not-ready", "unreachable"]),
        ([{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}], ["unreachable"]),
        ([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}], ["not-ready", "unreachable"]),
        ([{"operator": "Exists"}], []),
    ],
)
def test_dead_nodes_are_tolerated_for_30_seconds(given_tolerations: Any, added: list[str]) -> None:
    """Pods leave a dead node after 30 s, unless the template itself says how long it waits."""
    spec = pod(job_manifest(batch(), with_spec(tolerations=given_tolerations), secret=None))["spec"]
    new = spec["tolerations"][len(given_tolerations or []) :]
    assert [one["key"].removeprefix("node.kubernetes.io/") for one in new] == added
    assert all((one["tolerationSeconds"], one["effect"]) == (30, "NoExecute") for one in new)


@pytest.mark.parametrize(
    "partitions",
    [(), tuple(f"{number}" for number in range(10_001)), ("ü" * 256,) * 256],
    ids=["none", "10,001 keys", "131,328 bytes"],
)
def test_batch_beyond_the_limits_is_refused(partitions: tuple[str, ...]) -> None:
    """A batch without keys, with more than 10,000 or with more than 128 KiB of them makes no Job."""
    claimed = ClaimedBatch(1, "n/c1/a", "x", partitions, "d")
    with pytest.raises(InvalidSpec, match=r"batch\.partitions"):
        job_manifest(claimed, work(), secret=None)


def test_batch_at_the_limits_is_made() -> None:
    """10,000 keys of 12 bytes and their line ends stay below 128 KiB and make a Job."""
    keys = tuple(f"{number:012}" for number in range(10_000))
    manifest = job_manifest(ClaimedBatch(1, "n/c1/a", "x", keys, "d"), work(), secret=None)
    assert len(pod(manifest)["metadata"]["annotations"]["flowstone.dev/partitions"]) == 130_000
