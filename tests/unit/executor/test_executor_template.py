"""Which pod templates are refused."""

from __future__ import annotations

from typing import Any

import pytest

from flowstone.errors import InvalidSpec
from flowstone.executor.template import check_template, template_digest

MAIN = {"name": "main", "image": "localhost/app:1"}


def check(spec: Any, metadata: Any = None) -> None:
    """Check a template where two accounts are allowed and one Secret is a tenant's."""
    check_template(
        {"metadata": metadata, "spec": spec}, service_accounts=("default", "reader"), tenant_secrets={"acme-login"}
    )


def with_container(**changes: Any) -> dict[str, Any]:
    """Return a spec whose only container says something more."""
    return {"containers": [{**MAIN, **changes}]}


def volume(**source: Any) -> dict[str, Any]:
    """Return a spec with one volume."""
    return {"containers": [MAIN], "volumes": [{"name": "data", **source}]}


ACCEPTED: list[dict[str, Any]] = [
    {"containers": [MAIN]},
    {"containers": [MAIN], "serviceAccountName": "reader", "restartPolicy": "Never", "hostNetwork": False},
    {"containers": [MAIN], "serviceAccount": "reader", "automountServiceAccountToken": False},
    {"containers": [MAIN], "securityContext": {"runAsNonRoot": False}, "imagePullSecrets": [{"name": "registry"}]},
    with_container(securityContext={"capabilities": {"add": ["CHOWN"], "drop": ["ALL"]}, "runAsUser": 0}),
    with_container(env=[{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "mine", "key": "t"}}}]),
    with_container(env=[{"name": "PGAPPNAME", "value": "x"}], volumeMounts=[{"name": "data", "mountPath": "/etc/x"}]),
    with_container(ports=[{"containerPort": 80}], command=["flowstone-acme-login"]),
    volume(secret={"secretName": "mine"}),
    volume(projected={"sources": [{"secret": {"name": "mine"}}, {"configMap": {"name": "flowstone-x"}}]}),
]

REFUSED: list[tuple[str, Any]] = [
    ("spec.containers", {}),
    ("spec.containers", {"containers": []}),
    ("spec.containers", {"initContainers": [MAIN]}),
    ("spec", []),
    ("spec.containers", {"containers": MAIN}),
    ("spec.containers[0]", {"containers": ["main"]}),
    ("spec.containers[0].env", with_container(env={"A": "b"})),
    ("spec.tolerations", {"containers": [MAIN], "tolerations": {}}),
    ("spec.hostNetwork", {"containers": [MAIN], "hostNetwork": True}),
    ("spec.hostPID", {"containers": [MAIN], "hostPID": True}),
    ("spec.hostIPC", {"containers": [MAIN], "hostIPC": True}),
    ("spec.restartPolicy", {"containers": [MAIN], "restartPolicy": "OnFailure"}),
    ("spec.automountServiceAccountToken", {"containers": [MAIN], "automountServiceAccountToken": True}),
    ("spec.serviceAccountName", {"containers": [MAIN], "serviceAccountName": "admin"}),
    ("spec.serviceAccount", {"containers": [MAIN], "serviceAccount": "admin"}),
    ("spec.serviceAccount", {"containers": [MAIN], "serviceAccountName": "reader", "serviceAccount": "admin"}),
    ("spec.serviceAccountName", {"containers": [MAIN], "serviceAccountName": ["default"]}),
    ("spec.volumes[0].hostPath", volume(hostPath={"path": "/"})),
    ("spec.volumes[0].hostPath", volume(hostPath=None)),
    ("spec.volumes[0].name", volume(name="flowstone-partitions")),
    (
        "spec.volumes[0].projected.sources[0].serviceAccountToken",
        volume(projected={"sources": [{"serviceAccountToken": {"path": "token"}}]}),
    ),
    (
        "spec.volumes[0].projected.sources[1].podCertificate",
        volume(projected={"sources": [{"configMap": {"name": "a"}}, {"podCertificate": {"signerName": "x/y"}}]}),
    ),
    ("spec.volumes[0].secret.secretName", volume(secret={"secretName": "acme-login"})),
    ("spec.volumes[0].secret.secretName", volume(secret={"secretName": "flowstone-ledger"})),
    (
        "spec.volumes[0].projected.sources[1].secret.name",
        volume(projected={"sources": [{"secret": {"name": "mine"}}, {"secret": {"name": "acme-login"}}]}),
    ),
    ("spec.volumes[0].csi.nodePublishSecretRef.name", volume(csi={"nodePublishSecretRef": {"name": "acme-login"}})),
    ("spec.volumes[0].azureFile.secretName", volume(azureFile={"secretName": "acme-login"})),
    ("spec.imagePullSecrets.name", {"containers": [MAIN], "imagePullSecrets": [{"name": "acme-login"}]}),
    ("spec.containers[0].envFrom[0].secretRef.name", with_container(envFrom=[{"secretRef": {"name": "acme-login"}}])),
    (
        "spec.initContainers[0].env[0].valueFrom.secretKeyRef.name",
        {
            "containers": [MAIN],
            "initContainers": [
                {**MAIN, "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "flowstone-ledger"}}}]}
            ],
        },
    ),
    ("spec.containers[0].env[0].name", with_container(env=[{"name": "FLOWSTONE_FENCE", "value": "1"}])),
    ("spec.containers[0].env[0].name", with_container(env=[{"name": "PGHOST", "value": "elsewhere"}])),
    ("spec.containers[0].volumeMounts[0].mountPath", with_container(volumeMounts=[{"mountPath": "//etc/flowstone/"}])),
    (
        "spec.containers[0].volumeMounts[0].mountPath",
        with_container(volumeMounts=[{"mountPath": "/etc/flowstone/partitions"}]),
    ),
    ("spec.containers[0].ports[0].hostPort", with_container(ports=[{"containerPort": 80, "hostPort": 80}])),
    ("spec.containers[0].securityContext.privileged", with_container(securityContext={"privileged": True})),
    ("spec.containers[0].securityContext.procMount", with_container(securityContext={"procMount": "Unmasked"})),
    (
        "spec.containers[0].securityContext.capabilities.add",
        with_container(securityContext={"capabilities": {"add": ["SYS_ADMIN"]}}),
    ),
    (
        "spec.securityContext.windowsOptions.hostProcess",
        {"containers": [MAIN], "securityContext": {"windowsOptions": {"hostProcess": True}}},
    ),
    ("spec.ephemeralContainers", {"containers": [MAIN], "ephemeralContainers": [MAIN]}),
]


@pytest.mark.parametrize("spec", ACCEPTED)
def test_template_within_its_scope_is_accepted(spec: dict[str, Any]) -> None:
    """What stays inside the scope is accepted, also what only the namespace's own admission may judge."""
    check(spec)


@pytest.mark.parametrize(
    ("field", "spec"), REFUSED, ids=[f"{index}-{field}" for index, (field, _) in enumerate(REFUSED)]
)
def test_template_beyond_its_scope_is_refused(field: str, spec: Any) -> None:
    """What reaches into the node, the API or another scope is refused with its field and a remedy."""
    with pytest.raises(InvalidSpec) as refused:
        check(spec)
    assert refused.value.field == f"spec.template.{field}"
    assert refused.value.remedy


def test_metadata_must_be_maps() -> None:
    """Labels that are no map are named, instead of failing when the manifest is made."""
    with pytest.raises(InvalidSpec) as refused:
        check({"containers": [MAIN]}, {"labels": ["a"]})
    assert refused.value.field == "spec.template.metadata.labels"


def test_default_account_must_be_allowed_too() -> None:
    """A template that names no account uses `default`, which the allow-list may leave out."""
    with pytest.raises(InvalidSpec, match="reader"):
        check_template({"spec": {"containers": [MAIN]}}, service_accounts=("reader",), tenant_secrets=())


def test_digest_follows_the_content() -> None:
    """The digest does not depend on the order of keys, and changes with any value."""
    one = {"spec": {"containers": [MAIN], "nodeName": "a"}}
    other = {"spec": {"nodeName": "a", "containers": [dict(reversed(MAIN.items()))]}}
    assert template_digest(one) == template_digest(other)
    assert template_digest(one) != template_digest({"spec": {"containers": [MAIN], "nodeName": "b"}})
    assert len(template_digest(one)) == 16
