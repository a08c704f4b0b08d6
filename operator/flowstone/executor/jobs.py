"""A batch as a `batch/v1` Job: one pod, started once.

The manifest is a pure function of the batch and of what the backfill's batches have in common. The pod template is
the user's; what it says wins, except where it would loosen the contract (`template.check_template` refuses that
beforehand). These hold for every manifest:

1. The name is `<backfill>-<8 of uid>-<fence>`, so that creating the same batch twice meets
   a 409 and never a second pod.
2. At most one pod ever runs under a fence: no retry by the kubelet (`restartPolicy: Never`) nor by the Job controller
   (`backoffLimit: 0`, and FailJob on disruption; Ignore would start a second pod).
3. Each container finds the contract: `FLOWSTONE_*`, libpq's `PG*` from the scope's Secret, and the keys in a file.
4. What the template leaves open is as Pod Security *restricted* wants it, and no service account token is mounted.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowstone.backfill.records import ClaimedBatch
from flowstone.errors import InvalidSpec

CONTRACT = "1"
"""Version of the contract between operator and worker, raised when a worker could misread what it finds."""

MAX_PARTITIONS = 10_000
"""Partitions in one batch, at most."""

MAX_KEY_BYTES = 128 * 1024
"""Bytes of a batch's keys with their line ends, at most; all annotations of an object share 256 KiB."""

KEYS_FOLDER = "/etc/flowstone"
"""Where each container finds the file of keys."""

KEYS_VOLUME = "flowstone-partitions"
"""Name of the volume that holds the file of keys."""

PG_VARIABLES = ("PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGSSLMODE")
"""libpq's variables that come from the scope's Secret, whose keys have the same names."""

LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_UID = "flowstone.dev/backfill-uid"
LABEL_BACKFILL = "flowstone.dev/backfill"
LABEL_FENCE = "flowstone.dev/fence"
LABEL_ASSET = "flowstone.dev/asset"
ANNOTATION_KEYS = "flowstone.dev/partitions"
ANNOTATION_DIGEST = "flowstone.dev/template-digest"

_NAME_LENGTH = 30
_TOLERATED_SECONDS = 30
_NODE_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


@dataclass(frozen=True, slots=True)
class Work:
    """What all batches of one backfill have in common.

    Attributes:
        backfill: The Backfill's name.
        uid: The Backfill's uid.
        asset_id: The asset's id, as people know it.
        asset: The asset's identity in the ledger, `<cluster>/<namespace>/<asset id>`.
        dimensions: The asset's dimensions in their order, each with name, type, unit and timezone.
        template: The asset's pod template (`metadata` and `spec`).
    """

    backfill: str
    namespace: str
    uid: str
    asset_id: str
    asset: str
    dimensions: Sequence[Mapping[str, Any]]
    template: Mapping[str, Any]


def job_prefix(name: str, uid: str) -> str:
    """Return the start of the names of a backfill's Jobs; the fence is appended.

    Args:
        name: The Backfill's name, a DNS subdomain.
        uid: The Backfill's uid; its first 8 characters keep two generations of the same name apart.
    """
    return f"{name.replace('.', '-')[:_NAME_LENGTH].rstrip('-')}-{uid[:8]}-"


def job_manifest(
    batch: ClaimedBatch,
    work: Work,
    *,
    secret: str | None,
    tenant: str | None = None,
    storage: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the Job that works off a batch, as a plain manifest.

    Args:
        batch: A claimed batch; its `job_name` is the Job's name.
        work: What the backfill's batches have in common.
        secret: Secret of the batch's scope, with libpq's variables; None where workers have no database.
        tenant: The tenant's id, or None for work without a tenant.
        storage: Parts of the location where the result lives, by name; workers find them in FLOWSTONE_STORAGE_<NAME>.

    Raises:
        InvalidSpec: the batch is larger than a manifest may carry.
    """
    keys = keys_text(batch.partitions)
    labels = _labels(batch, work)
    environment = _environment(batch, work, secret, tenant, storage or {})
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": batch.job_name,
            "namespace": work.namespace,
            "labels": labels,
            "annotations": {ANNOTATION_DIGEST: batch.template_digest},
            "ownerReferences": [_owner(work)],
        },
        "spec": {
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [{"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
            },
            "template": _pod_template(work.template, labels, keys, environment),
        },
    }


def keys_text(partitions: Sequence[str]) -> str:
    """Return the content of the file of keys; control characters are percent-encoded in keys, so lines are safe."""
    text = "\n".join(partitions) + "\n"
    if not 0 < len(partitions) <= MAX_PARTITIONS:
        raise InvalidSpec("batch.partitions", len(partitions), f"a batch has 1 to {MAX_PARTITIONS} partitions")
    if len(text.encode()) > MAX_KEY_BYTES:
        raise InvalidSpec(
            "batch.partitions", f"{len(text.encode())} bytes", f"a batch's keys have at most {MAX_KEY_BYTES} bytes"
        )
    return text


def _labels(batch: ClaimedBatch, work: Work) -> dict[str, str]:
    return {
        LABEL_MANAGED_BY: "flowstone",
        LABEL_UID: work.uid,
        LABEL_BACKFILL: work.backfill,
        LABEL_FENCE: str(batch.fence),
        # An id may end in a character that a label's value may not; the environment has the whole id.
        LABEL_ASSET: work.asset_id.rstrip("._-"),
    }


def _owner(work: Work) -> dict[str, Any]:
    return {
        "apiVersion": "flowstone.dev/v1alpha1",
        "kind": "Backfill",
        "name": work.backfill,
        "uid": work.uid,
        "controller": True,
        # True would need the verb `update` on backfills/finalizers, and gain nothing: fences keep the once.
        "blockOwnerDeletion": False,
    }


def contract_values(
    batch: ClaimedBatch,
    work: Work,
    *,
    partitions_file: str,
    tenant: str | None = None,
    storage: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the variables of the contract as a worker finds them, without libpq's."""
    values = {
        "FLOWSTONE_CONTRACT": CONTRACT,
        "FLOWSTONE_BACKFILL": work.uid,
        "FLOWSTONE_BACKFILL_NAME": work.backfill,
        "FLOWSTONE_NAMESPACE": work.namespace,
        "FLOWSTONE_SCOPE": batch.scope,
        "FLOWSTONE_ASSET": work.asset,
        "FLOWSTONE_ASSET_ID": work.asset_id,
        "FLOWSTONE_FENCE": str(batch.fence),
        "FLOWSTONE_DIMENSIONS": json.dumps([dict(one) for one in work.dimensions], ensure_ascii=False),
        "FLOWSTONE_PARTITIONS_FILE": partitions_file,
    }
    if len(batch.partitions) == 1:
        values["FLOWSTONE_PARTITION"] = batch.partitions[0]
    if tenant is not None:
        values["FLOWSTONE_TENANT"] = tenant
    return values | {f"FLOWSTONE_STORAGE_{name.upper()}": text for name, text in (storage or {}).items()}


def _environment(
    batch: ClaimedBatch, work: Work, secret: str | None, tenant: str | None, storage: Mapping[str, str]
) -> list[dict[str, Any]]:
    values = contract_values(batch, work, partitions_file=f"{KEYS_FOLDER}/partitions", tenant=tenant, storage=storage)
    # Kubernetes would expand `$(NAME)` in a value; `$$` stands for one `$`.
    plain = [{"name": name, "value": value.replace("$", "$$")} for name, value in values.items()]
    return plain + ([_from_secret(name, secret) for name in PG_VARIABLES] if secret else [])


def _from_secret(name: str, secret: str) -> dict[str, Any]:
    reference: dict[str, Any] = {"name": secret, "key": name}
    if name == "PGSSLMODE":
        reference["optional"] = True
    return {"name": name, "valueFrom": {"secretKeyRef": reference}}


def _pod_template(
    template: Mapping[str, Any], labels: Mapping[str, str], keys: str, environment: list[dict[str, Any]]
) -> dict[str, Any]:
    metadata = template.get("metadata") or {}
    spec: dict[str, Any] = copy.deepcopy(dict(template["spec"]))
    spec["restartPolicy"] = "Never"
    spec["automountServiceAccountToken"] = False
    # A Service named `flowstone` would add FLOWSTONE_PORT and its kin to the environment.
    spec.setdefault("enableServiceLinks", False)
    spec["securityContext"] = _under(spec.get("securityContext"), _POD_SECURITY)
    spec["tolerations"] = _tolerations(spec.get("tolerations") or [])
    spec["volumes"] = [*(spec.get("volumes") or []), _keys_volume()]
    for kind in ("initContainers", "containers"):
        if spec.get(kind):
            spec[kind] = [_container(one, environment) for one in spec[kind]]
    return {
        # Nothing else of the metadata is taken: a finalizer, for one, would keep the pod for ever.
        "metadata": {
            "labels": {**(metadata.get("labels") or {}), **labels},
            "annotations": {**(metadata.get("annotations") or {}), ANNOTATION_KEYS: keys},
        },
        "spec": spec,
    }


def _container(container: Mapping[str, Any], environment: list[dict[str, Any]]) -> dict[str, Any]:
    mount = {"name": KEYS_VOLUME, "mountPath": KEYS_FOLDER, "readOnly": True}
    own = list(container.get("env") or [])
    if container.get("terminationMessagePath"):
        # A worker without a database tells its outcomes there.
        own = [{"name": "FLOWSTONE_TERMINATION_LOG", "value": container["terminationMessagePath"]}, *own]
    return {
        # The last lines of the log then arrive in the pod's status, and reading logs needs no right.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **container,
        # Ours come first: a value may refer to `$(NAME)` only when it stands earlier in the list.
        "env": [*environment, *own],
        "volumeMounts": [*(container.get("volumeMounts") or []), mount],
        "securityContext": _under(container.get("securityContext"), _CONTAINER_SECURITY),
    }


def _keys_volume() -> dict[str, Any]:
    field = {"fieldPath": f"metadata.annotations['{ANNOTATION_KEYS}']"}
    return {"name": KEYS_VOLUME, "downwardAPI": {"items": [{"path": "partitions", "fieldRef": field}]}}


def _tolerations(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the tolerations with 30 s for a dead node, where the template does not say otherwise."""
    keys = {one.get("key") or None for one in given if one.get("effect") in (None, "", "NoExecute")}
    added = [
        {"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": _TOLERATED_SECONDS}
        for taint in _NODE_TAINTS
        if taint not in keys and None not in keys  # a toleration without a key tolerates every taint
    ]
    return [*(dict(one) for one in given), *added]


def _under(given: Mapping[str, Any] | None, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given, completed by defaults at every level."""
    result = dict(given or {})
    for name, default in defaults.items():
        if name not in result:
            result[name] = copy.deepcopy(default)
        elif isinstance(default, Mapping) and isinstance(result[name], Mapping):
            result[name] = _under(result[name], default)
    return result


_POD_SECURITY: Mapping[str, Any] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
_CONTAINER_SECURITY: Mapping[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}
