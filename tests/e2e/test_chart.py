"""The Helm chart: what it renders, what it refuses, and that a real API server takes it.

Rendering needs helm alone; the tests marked `cluster` also need the Kubernetes of `make cluster` or of KUBECONFIG.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "flowstone"
EMBEDDED = {"postgres.embedded.enabled": "true"}
OWN = {"postgres.existingSecret": "theirs", "postgres.installerSecret": "installers"}

Json = dict[str, Any]
Rule = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]


def program(name: str) -> str:
    """The program of `make cluster`, or the one on PATH."""
    built = ROOT / ".cluster" / "bin" / name
    found = str(built) if built.exists() else shutil.which(name)
    assert found, f"{name} is neither in .cluster/bin nor on PATH: run `make cluster`"
    return found


def kubeconfig() -> str:
    """The cluster's kubeconfig."""
    return os.environ.get("KUBECONFIG") or str(ROOT / ".cluster" / "kubeconfig")


def call(*command: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program of the cluster; failing is an answer too."""
    environment = {**os.environ, "KUBECONFIG": kubeconfig()}
    whole = [program(command[0]), *command[1:]]
    return subprocess.run(whole, input=given, capture_output=True, text=True, env=environment, timeout=120, check=False)


def out(*command: str, given: str = "") -> str:
    """Run a program that must succeed; what it printed."""
    done = call(*command, given=given)
    assert done.returncode == 0, done.stderr
    return done.stdout


def flags(values: dict[str, str]) -> list[str]:
    """Values as helm's arguments."""
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def render(values: dict[str, str]) -> list[Json]:
    """The objects of a release named `flowstone` in namespace `flowstone-system`."""
    text = out("helm", "template", "flowstone", str(CHART), "--namespace", "flowstone-system", *flags(values))
    return [document for document in yaml.safe_load_all(text) if document]


def refused(values: dict[str, str]) -> str:
    """What helm says to values that the chart must refuse."""
    done = call("helm", "template", "flowstone", str(CHART), *flags(values))
    assert done.returncode != 0, "the chart took these values"
    return done.stderr


def one(objects: list[Json], kind: str, name: str = "flowstone") -> Json:
    """The one object of this kind and name."""
    (found,) = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    return found


def pod_of(objects: list[Json]) -> Json:
    """The spec of the operator's pods."""
    spec: Json = one(objects, "Deployment")["spec"]["template"]["spec"]
    return spec


def secrets_of(container: Json, pod: Json) -> set[str]:
    """Names of the Secrets that a container can see, by environment or by mount."""
    named = {source["secretRef"]["name"] for source in container.get("envFrom", []) if "secretRef" in source}
    named |= {
        entry["valueFrom"]["secretKeyRef"]["name"]
        for entry in container.get("env", [])
        if "secretKeyRef" in entry.get("valueFrom", {})
    }
    mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
    volumes = [volume for volume in pod["volumes"] if volume["name"] in mounted and "secret" in volume]
    return named | {volume["secret"]["secretName"] for volume in volumes}


def rules(objects: list[Json], kind: str, name: str = "flowstone") -> set[Rule]:
    """The rules of a role, comparable."""
    return {
        tuple(tuple(rule.get(key, ())) for key in ("apiGroups", "resources", "resourceNames", "verbs"))  # type: ignore[misc]  # four
        for rule in one(objects, kind, name)["rules"] or []
    }


WORK_RULES: set[Rule] = {
    (("flowstone.dev",), ("backfills", "assets"), (), ("get", "list", "watch")),
    (("flowstone.dev",), ("backfills/status", "assets/status"), (), ("patch",)),
    (("batch",), ("jobs",), (), ("get", "list", "watch", "create", "delete")),
    (("",), ("pods",), (), ("list", "delete")),
    (("",), ("events",), (), ("list",)),
    (("events.k8s.io",), ("events",), (), ("create",)),
    (("",), ("secrets",), ("flowstone-ledger",), ("get", "create", "patch")),
}
"""All that the operator may do where it works, written down a second time so that a wider right is noticed."""

TENANT_SECRETS: set[Rule] = {(("",), ("secrets",), (), ("get", "create", "patch", "delete"))}
"""What Tenants take in their namespaces, unless tenants.enabled is false."""

TENANT_RULES: set[Rule] = {
    (("flowstone.dev",), ("tenants",), (), ("get", "list", "watch", "patch")),
    (("flowstone.dev",), ("tenants/status", "tenants/finalizers"), (), ("patch", "update")),
    (("",), ("namespaces",), (), ("get",)),
}
"""What Tenants take in the cluster, unless tenants.enabled is false."""

NO_TENANTS = {"tenants.enabled": "false"}

CLUSTER_ID_RULE: Rule = (("",), ("namespaces",), ("kube-system",), ("get",))


def test_lint_finds_nothing() -> None:
    """`helm lint --strict` is content."""
    assert "0 chart(s) failed" in out("helm", "lint", "--strict", str(CHART), *flags(EMBEDDED))


def test_crds_of_the_chart_are_those_of_the_project() -> None:
    """The chart's copies equal crds/, file by file; `make crds` makes both."""
    ours = {path.name: path.read_text("utf-8") for path in (ROOT / "crds").glob("*.yaml")}
    assert {path.name: path.read_text("utf-8") for path in (CHART / "files" / "crds").glob("*.yaml")} == ours
    assert ours


def test_crds_are_rendered_whole_and_kept_on_uninstall() -> None:
    """The release upgrades the definitions, helm never deletes them, and nothing but labels is added."""
    rendered = [item for item in render(EMBEDDED) if item["kind"] == "CustomResourceDefinition"]
    assert {item["metadata"]["annotations"]["helm.sh/resource-policy"] for item in rendered} == {"keep"}
    sources = [yaml.safe_load(path.read_text("utf-8")) for path in (ROOT / "crds").glob("*.yaml")]
    assert {item["metadata"]["name"]: item["spec"] for item in rendered} == {
        item["metadata"]["name"]: item["spec"] for item in sources
    }


def test_crds_can_be_left_to_somebody_else() -> None:
    """With crds.install=false the release has none."""
    kinds = {item["kind"] for item in render(EMBEDDED | {"crds.install": "false"})}
    assert "CustomResourceDefinition" not in kinds


@pytest.mark.parametrize("values", [EMBEDDED, OWN], ids=["embedded", "own"])
def test_only_the_migration_sees_the_installers_secret(values: dict[str, str]) -> None:
    """The operator's container has its own login's Secret alone, and the migration no API token; an embedded
    Postgres is bootstrapped too, a Postgres of somebody's own is not."""
    pod = pod_of(render(values))
    (operator,) = pod["containers"]
    steps = {step["name"]: step for step in pod["initContainers"]}
    assert list(steps) == ["context-key", "migrate", *(["bootstrap"] if values is EMBEDDED else [])]
    migrate = steps["migrate"]
    names = {
        "embedded": ("flowstone-postgres-operator", "flowstone-postgres-installer"),
        "own": ("theirs", "installers"),
    }
    own, installer = names["embedded" if values is EMBEDDED else "own"]
    assert secrets_of(operator, pod) == {own}
    assert secrets_of(migrate, pod) == {own, installer}
    assert secrets_of(steps["context-key"], pod) == set()
    assert [secrets_of(step, pod) for name, step in steps.items() if name == "bootstrap"] in ([], [{installer}])
    assert pod["automountServiceAccountToken"] is False
    assert "api-access" in {mount["name"] for mount in operator["volumeMounts"]}
    assert "api-access" not in {mount["name"] for mount in migrate["volumeMounts"]}


def test_the_context_key_is_a_file_in_memory() -> None:
    """It is made by the pod, or comes from a Secret of one's own; either way the containers share it in memory, none
    has it in its environment, and the right to make a Secret is for that name alone. Without Tenants there is none."""
    rule = (("",), ("secrets",), ("flowstone-context-key",), ("get", "create", "patch"))
    objects = render(EMBEDDED)
    pod = pod_of(objects)
    assert rules(objects, "Role", "flowstone-context-key") == {rule}
    assert {"name": "context-key", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}} in pod["volumes"]
    for container in (pod["initContainers"][1], pod["containers"][0]):
        found = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert found["FLOWSTONE_CONTEXT_KEY_FILE"] == "/run/flowstone/context.key"
        assert {"name": "context-key", "mountPath": "/run/flowstone", "readOnly": True} in container["volumeMounts"]

    theirs = render(EMBEDDED | {"tenants.contextKey.existingSecret": "theirs"})
    step = pod_of(theirs)["initContainers"][0]
    assert secrets_of(step, pod_of(theirs)) == {"theirs"}
    assert "api-access" not in {mount["name"] for mount in step["volumeMounts"]}
    assert not [item for item in theirs if item["kind"] == "Role"]

    none = render(EMBEDDED | NO_TENANTS)
    assert "context" not in json.dumps(pod_of(none)).replace("securityContext", "")
    assert not [item for item in none if item["kind"] == "Role"]


def test_rights_are_the_least() -> None:
    """Everywhere: the work rules, and the uid of kube-system as the cluster's id; Tenants take more, and only they."""
    assert rules(render(EMBEDDED | NO_TENANTS), "ClusterRole") == WORK_RULES | {CLUSTER_ID_RULE}
    more = TENANT_SECRETS | TENANT_RULES
    assert rules(render(EMBEDDED), "ClusterRole") == WORK_RULES | {CLUSTER_ID_RULE} | more


def test_rights_in_named_namespaces() -> None:
    """With watchNamespaces there are Roles there, and in the cluster the uid of kube-system and what Tenants take."""
    objects = render(EMBEDDED | {"watchNamespaces": "{red,blue}"})
    roles = [item for item in objects if item["kind"] == "Role" and item["metadata"]["name"] == "flowstone"]
    bindings = [item for item in objects if item["kind"] == "RoleBinding" and item["metadata"]["name"] == "flowstone"]
    assert {item["metadata"]["namespace"] for item in roles} == {"red", "blue"}
    assert {item["metadata"]["namespace"] for item in bindings} == {"red", "blue"}
    assert all(rules([item], "Role") == WORK_RULES | TENANT_SECRETS for item in roles)
    assert rules(objects, "ClusterRole") == {CLUSTER_ID_RULE} | TENANT_RULES


def test_no_right_in_the_cluster_with_namespaces_and_an_id() -> None:
    """A team without any cluster-wide right can run the operator: no ClusterRole is left but those for people."""
    values = {
        "watchNamespaces": "{red}",
        "clusterId": "eu-1",
        "rbac.aggregateToUserRoles": "false",
        "crds.install": "false",
    }
    assert not {item["kind"] for item in render(EMBEDDED | NO_TENANTS | values)} & {"ClusterRole", "ClusterRoleBinding"}


def test_values_reach_the_operator() -> None:
    """Each value that the operator honours arrives under the name of its setting."""
    values = {
        "clusterId": "eu-1",
        "maxParallel": "7",
        "resyncSeconds": "30",
        "nodeLostSeconds": "90",
        "serviceAccounts": "{default,etl}",
        "watchNamespaces": "{red,blue}",
        "historyDays": "5",
        "tenants.deletion.retentionDays": "30",
        "tenants.deletion.exportClaim": "exports",
        "postgres.workerHost": "pooler",
        "postgres.workerPort": "6432",
        "postgres.workerDatabase": "flow",
        "postgres.workerSSLMode": "verify-full",
    }
    (operator,) = pod_of(render(OWN | values))["containers"]
    found = {entry["name"]: entry.get("value") for entry in operator["env"]}
    assert {name: found[name] for name in found if not name.startswith("FLOWSTONE_POD_")} == {
        "FLOWSTONE_CLUSTER_ID": "eu-1",
        "FLOWSTONE_MAX_PARALLEL": "7",
        "FLOWSTONE_RESYNC_SECONDS": "30",
        "FLOWSTONE_NODE_LOST_SECONDS": "90",
        "FLOWSTONE_SERVICE_ACCOUNTS": "default,etl",
        "FLOWSTONE_TENANTS": "true",
        "FLOWSTONE_WATCH_NAMESPACES": "red,blue",
        "FLOWSTONE_HISTORY_DAYS": "5",
        "FLOWSTONE_CONTEXT_KEY_FILE": "/run/flowstone/context.key",
        "FLOWSTONE_TENANT_RETENTION_DAYS": "30",
        "FLOWSTONE_TENANT_EXPORT_FOLDER": "/var/lib/flowstone/exports",
        "FLOWSTONE_HEALTH_PORT": "8080",
        "FLOWSTONE_WORKER_PGHOST": "pooler",
        "FLOWSTONE_WORKER_PGPORT": "6432",
        "FLOWSTONE_WORKER_PGDATABASE": "flow",
        "FLOWSTONE_WORKER_PGSSLMODE": "verify-full",
    }


def test_exports_lie_in_a_claim() -> None:
    """The claim is mounted where the operator writes, for the image's user; without one there is neither."""
    pod = pod_of(render(EMBEDDED | {"tenants.deletion.exportClaim": "files"}))
    assert {"name": "exports", "persistentVolumeClaim": {"claimName": "files"}} in pod["volumes"]
    assert {"name": "exports", "mountPath": "/var/lib/flowstone/exports"} in pod["containers"][0]["volumeMounts"]
    assert pod["securityContext"]["fsGroup"] == 65532
    bare = pod_of(render(EMBEDDED))
    assert "exports" not in json.dumps(bare).lower()
    assert "fsGroup" not in bare["securityContext"]


def test_selecting_flowstone_does_not_hit_postgres() -> None:
    """Whoever restarts or shoots `app.kubernetes.io/name=flowstone` leaves the ledger alone."""
    objects = render(EMBEDDED)
    labels = {
        item["kind"]: item["spec"]["template"]["metadata"]["labels"]
        for item in objects
        if item["kind"] in ("Deployment", "StatefulSet")
    }
    assert labels["Deployment"]["app.kubernetes.io/name"] == "flowstone"
    assert labels["StatefulSet"]["app.kubernetes.io/name"] == "postgres"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "postgres.existingSecret is not set"),
        ({"postgres.existingSecret": "theirs"}, "postgres.installerSecret is not set"),
        (OWN | EMBEDDED, "exclude each other"),
        ({"postgres.existingSecret": "x", "postgres.installerSecret": "x"}, "are the same Secret"),
        (EMBEDDED | {"maxParallel": "0"}, "at '/maxParallel': minimum: got 0, want 1"),
        (EMBEDDED | {"watchNamespaces": "{Red}"}, "at '/watchNamespaces/0'"),
        (EMBEDDED | {"maxParalell": "5"}, "'maxParalell' not allowed"),
        (EMBEDDED | {"postgres.workerSSLMode": "maybe"}, "at '/postgres/workerSSLMode'"),
    ],
)
def test_values_that_cannot_work_are_refused(values: dict[str, str], words: str) -> None:
    """The message names the value; a misspelt one is not silently ignored."""
    assert words in refused(values)


@pytest.fixture
def namespace() -> Iterator[str]:
    """A namespace that allows only restricted pods."""
    name = f"chart-{secrets.token_hex(3)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    out("kubectl", "apply", "-f", "-", given=json.dumps(manifest))
    yield name
    out("kubectl", "delete", "namespace", name, "--wait=false")


@pytest.mark.cluster
@pytest.mark.parametrize(("kind", "name"), [("Deployment", "flowstone"), ("StatefulSet", "flowstone-postgres")])
def test_pods_are_admitted_where_only_restricted_ones_are(namespace: str, kind: str, name: str) -> None:
    """Pod Security `restricted` takes the operator's pods and those of the embedded Postgres."""
    spec = one(render(EMBEDDED), kind, name)["spec"]["template"]["spec"]
    spec.pop("serviceAccountName", None)
    claims = [{"name": "data", "emptyDir": {}}] if kind == "StatefulSet" else []
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "try"}, "spec": spec}
    pod["spec"]["volumes"] = [*spec["volumes"], *claims]
    out("kubectl", "-n", namespace, "create", "--dry-run=server", "-f", "-", given=json.dumps(pod))


@pytest.mark.cluster
def test_an_upgrade_keeps_the_generated_passwords(namespace: str) -> None:
    """The embedded Postgres has its passwords on disk; a release that drew new ones would lock itself out."""
    values = EMBEDDED | {
        "replicaCount": "0",
        "crds.install": "false",
        "postgres.embedded.storage.ephemeral": "true",
        "fullnameOverride": namespace,
        "rbac.aggregateToUserRoles": "false",
    }
    command = ("helm", "upgrade", "--install", "try", str(CHART), "--namespace", namespace, *flags(values))
    out(*command)
    try:
        before = passwords(namespace)
        out(*command, "--set", "maxParallel=9")
        assert passwords(namespace) == before
        assert len(set(before.values())) == 2
    finally:
        out("helm", "uninstall", "try", "--namespace", namespace)


@pytest.mark.cluster
def test_the_context_key_is_made_once(namespace: str, tmp_path: Path) -> None:
    """Pods that start at the same time all end up with the one key that is in the Secret, and later ones with it too;
    of a rotated one with both keys. Two init containers as the chart runs them, against the real API server."""
    flowstone = [sys.executable, "-m", "flowstone.cli.app", "context-key", "--secret", "release-context-key"]
    environment = {**os.environ, "KUBECONFIG": kubeconfig(), "FLOWSTONE_POD_NAMESPACE": namespace}

    def start(name: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*flowstone, "--to", tmp_path / name], env=environment, text=True)

    assert [asker.wait(60) for asker in [start(name) for name in "abcd"]] == [0, 0, 0, 0]
    (key,) = {(tmp_path / name).read_text() for name in "abcd"}
    path = ("-n", namespace, "get", "secret", "release-context-key", "-o", "jsonpath={.data.context\\.key}")
    assert base64.b64decode(out("kubectl", *path)).decode() == key

    two = json.dumps({"stringData": {"context.key": f"{'ab' * 32}\n{key}"}})
    out("kubectl", "-n", namespace, "patch", "secret", "release-context-key", "-p", two)
    assert start("e").wait(60) == 0
    assert (tmp_path / "e").read_text() == f"{'ab' * 32}\n{key}"


def passwords(namespace: str) -> dict[str, str]:
    """The generated passwords by Secret."""
    items = json.loads(out("kubectl", "-n", namespace, "get", "secrets", "-o", "json"))["items"]
    return {
        item["metadata"]["name"]: item["data"]["PGPASSWORD"] for item in items if "PGPASSWORD" in item.get("data", {})
    }
