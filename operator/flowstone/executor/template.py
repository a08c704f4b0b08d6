"""Which pod templates are refused before any Job is made of them.

The operator creates pods in the name of whoever wrote the Asset, so a template must not reach further than its scope:

1. Into the node: what Pod Security *baseline* forbids (hostPath, host namespaces and ports, privileged containers,
   added capabilities, unmasked /proc) is refused in every namespace, whatever its admission says.
2. Into the API: no service account outside the allow-list, no token and no certificate of one.
3. Into another scope: no Secret of a tenant, and none that FlowStone made.
4. Into the contract: no second start of the container, no FLOWSTONE_* or PG* variable, nothing mounted over the keys.

What *restricted* forbids beyond that, a template may ask for; the namespace's own admission then decides. Everything
else is left to the API server's dry run, which knows the schema better.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from flowstone.errors import InvalidSpec
from flowstone.executor.jobs import KEYS_FOLDER, KEYS_VOLUME, PG_VARIABLES

RESERVED_SECRETS = "flowstone-"
"""Start of the names of Secrets that FlowStone makes; workers get theirs without naming it."""

_ROOT = "spec.template"
_CAPABILITIES = (
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE"),
    *("SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
)
"""What Pod Security *baseline* allows to be added."""

_SECRET_FIELDS = frozenset({"secretRef", "secretKeyRef", "nodePublishSecretRef", "secret"})
"""Fields of a pod template whose object names a Secret."""

_PROJECTED = ("configMap", "downwardAPI", "secret", "clusterTrustBundle")
"""Sources of a projected volume that give no identity; what later versions of Kubernetes add is refused until known."""

_HOST_FIELDS = ("hostNetwork", "hostPID", "hostIPC")


def template_digest(template: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that change when the template says something else, not when it is re-ordered."""
    text = json.dumps(template, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def check_template(
    template: Mapping[str, Any], *, service_accounts: Collection[str], tenant_secrets: Collection[str]
) -> None:
    """Refuse a pod template that reaches further than its scope.

    Args:
        template: The Asset's pod template, of which only the schema's outermost shape is known.
        service_accounts: The service accounts that a template may name.
        tenant_secrets: Names of the Secrets of tenants in this namespace.

    Raises:
        InvalidSpec: with the field, its value and what to write instead.
    """
    _check_metadata(_mapping(template.get("metadata"), f"{_ROOT}.metadata"))
    spec = _mapping(template.get("spec"), f"{_ROOT}.spec")
    _check_pod(spec)
    _check_service_account(spec, service_accounts)
    _check_volumes(spec)
    containers = list(_containers(spec))
    if not any(field.startswith(f"{_ROOT}.spec.containers") for field, _ in containers):
        raise InvalidSpec(f"{_ROOT}.spec.containers", [], "name at least one container")
    for field, container in containers:
        _check_container(field, container)
    for field, name in _secrets(spec, f"{_ROOT}.spec"):
        if name in tenant_secrets or name.startswith(RESERVED_SECRETS):
            remedy = (
                "remove it: FlowStone gives each worker the login of its scope; keep your own Secret under another name"
            )
            raise InvalidSpec(field, name, remedy)


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    for name in ("labels", "annotations"):
        _mapping(metadata.get(name), f"{_ROOT}.metadata.{name}")


def _check_pod(spec: Mapping[str, Any]) -> None:
    field = f"{_ROOT}.spec"
    for name in _HOST_FIELDS:
        if spec.get(name):
            raise InvalidSpec(f"{field}.{name}", spec[name], "remove it; workers do not share the node's namespaces")
    if spec.get("restartPolicy") not in (None, "Never"):
        raise InvalidSpec(
            f"{field}.restartPolicy", spec["restartPolicy"], "write Never or leave it out; spec.retry starts again"
        )
    if spec.get("automountServiceAccountToken"):
        raise InvalidSpec(f"{field}.automountServiceAccountToken", True, "remove it; workers get no token")
    _check_security(f"{field}.securityContext", _mapping(spec.get("securityContext"), f"{field}.securityContext"))
    list(_items(spec, "tolerations", field))


def _check_service_account(spec: Mapping[str, Any], allowed: Collection[str]) -> None:
    given = {name: spec[name] for name in ("serviceAccountName", "serviceAccount") if spec.get(name)}
    for name, account in (given or {"serviceAccountName": "default"}).items():
        if str(account) not in allowed:
            choice = ", ".join(sorted(allowed)) or "none is allowed"
            raise InvalidSpec(f"{_ROOT}.spec.{name}", account, f"use one that the operator allows: {choice}")


def _check_volumes(spec: Mapping[str, Any]) -> None:
    for field, volume in _items(spec, "volumes", f"{_ROOT}.spec"):
        if volume.get("name") == KEYS_VOLUME:
            raise InvalidSpec(f"{field}.name", KEYS_VOLUME, "choose another name; this one is FlowStone's")
        if "hostPath" in volume:
            raise InvalidSpec(
                f"{field}.hostPath", volume["hostPath"], "use an emptyDir, a ConfigMap or a PersistentVolumeClaim"
            )
        projected = _mapping(volume.get("projected"), f"{field}.projected")
        for place, source in _items(projected, "sources", f"{field}.projected"):
            for kind in sorted(source.keys() - _PROJECTED):
                remedy = (
                    f"remove it: a worker gets no token and no certificate; {', '.join(_PROJECTED)} may be projected"
                )
                raise InvalidSpec(f"{place}.{kind}", volume.get("name"), remedy)


def _check_container(field: str, container: Mapping[str, Any]) -> None:
    _check_security(f"{field}.securityContext", _mapping(container.get("securityContext"), f"{field}.securityContext"))
    for place, port in _items(container, "ports", field):
        if port.get("hostPort"):
            raise InvalidSpec(f"{place}.hostPort", port["hostPort"], "remove it; use a Service")
    for place, variable in _items(container, "env", field):
        name = str(variable.get("name"))
        if name.startswith("FLOWSTONE_") or name in PG_VARIABLES:
            raise InvalidSpec(f"{place}.name", name, "choose another name; FlowStone sets this one in each worker")
    for place, mount in _items(container, "volumeMounts", field):
        path = "/" + posixpath.normpath(str(mount.get("mountPath"))).lstrip("/")
        if path == KEYS_FOLDER or path.startswith(f"{KEYS_FOLDER}/"):
            raise InvalidSpec(f"{place}.mountPath", path, f"mount it elsewhere; {KEYS_FOLDER} holds the batch's keys")


def _check_security(field: str, security: Mapping[str, Any]) -> None:
    if security.get("privileged"):
        raise InvalidSpec(f"{field}.privileged", True, "remove it; a privileged container owns its node")
    if security.get("procMount") not in (None, "Default"):
        raise InvalidSpec(f"{field}.procMount", security["procMount"], "write Default or leave it out")
    windows = _mapping(security.get("windowsOptions"), f"{field}.windowsOptions")
    if windows.get("hostProcess"):
        raise InvalidSpec(f"{field}.windowsOptions.hostProcess", True, "remove it; it runs on the node itself")
    capabilities = _mapping(security.get("capabilities"), f"{field}.capabilities")
    for capability in _list(capabilities.get("add"), f"{field}.capabilities.add"):
        if str(capability) not in _CAPABILITIES:
            raise InvalidSpec(f"{field}.capabilities.add", capability, "remove it; it reaches into the node")


def _containers(spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for kind in ("initContainers", "containers"):
        yield from _items(spec, kind, f"{_ROOT}.spec")
    if spec.get("ephemeralContainers"):
        raise InvalidSpec(f"{_ROOT}.spec.ephemeralContainers", "", "remove it; a template cannot have them")


def _secrets(value: Any, field: str) -> Iterator[tuple[str, str]]:
    """Yield each place that names a Secret, wherever a volume plug-in or an environment may hide it."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _secrets_of_field(name, inner, f"{field}.{name}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _secrets(inner, f"{field}[{index}]")


def _secrets_of_field(name: str, inner: Any, field: str) -> Iterator[tuple[str, str]]:
    if name == "secretName" and isinstance(inner, str):
        yield field, inner
    named = inner if isinstance(inner, list) and name == "imagePullSecrets" else [inner]
    for one in named if name in _SECRET_FIELDS or name == "imagePullSecrets" else []:
        if isinstance(one, Mapping) and isinstance(one.get("name"), str):
            yield f"{field}.name", one["name"]
    yield from _secrets(inner, field)


def _items(owner: Mapping[str, Any], name: str, field: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the objects of a list with the field under which each stands."""
    place = f"{field}.{name}"
    for index, item in enumerate(_list(owner.get(name), place)):
        if not isinstance(item, Mapping):
            raise InvalidSpec(f"{place}[{index}]", item, "write an object")
        yield f"{place}[{index}]", item


def _list(value: Any, field: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidSpec(field, value, "write a list")
    return value


def _mapping(value: Any, field: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidSpec(field, value, "write an object")
    return value
