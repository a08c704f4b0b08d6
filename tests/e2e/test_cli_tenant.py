"""`flowstone tenant list|rotate` against a real cluster."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e.kubectl import Kubectl, conditions, wait_for
from tests.e2e.test_tenants import as_tenant, credentials, ready, tenant

pytestmark = pytest.mark.cluster


def flowstone(kubectl: Kubectl, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `flowstone tenant` as a process of its own."""
    command = [str(Path(sys.executable).with_name("flowstone")), "tenant", *arguments, "--kubeconfig", kubectl.config]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def name(namespace: Kubectl, operator: Kubectl) -> Iterator[str]:
    """A Tenant of the namespace that is ready."""
    made = f"acme-{secrets.token_hex(3)}"
    operator.apply(tenant(made, namespace.namespace, tier="premium"))
    ready(operator, made)
    yield made
    operator.run("delete", "tenant", made, "--ignore-not-found", "--wait=false")


def test_list_shows_what_is_known(namespace: Kubectl, name: str) -> None:
    """A line with tier and conditions; as JSON and YAML the resources, as names what kubectl takes."""
    wait_for(
        lambda: conditions(namespace.get("tenant", name).get("status") or {}),
        lambda found: found.get("IsolationVerified", {}).get("status") == "True",
        seconds=60,
        what="IsolationVerified",
    )
    [line] = [line.split() for line in flowstone(namespace, "list").stdout.splitlines() if line.startswith(name)]
    assert line[:5] == [name, name, "premium", "Shared", "True"]
    assert line[6:] == ["True", namespace.namespace]
    items = json.loads(flowstone(namespace, "list", "-o", "json").stdout)["items"]
    assert [one["spec"]["tier"] for one in items if one["metadata"]["name"] == name] == ["premium"]
    assert yaml.safe_load(flowstone(namespace, "list", "-o", "yaml").stdout)["kind"] == "List"
    assert f"tenant.flowstone.dev/{name}\n" in flowstone(namespace, "list", "-o", "name").stdout


def test_the_embedded_postgres_is_hardened_and_all_attacks_are_tried(operator: Kubectl, name: str) -> None:
    """The chart bootstraps its own Postgres, and the operator has the key that contexts are signed with."""
    found = wait_for(
        lambda: conditions(operator.get("tenant", name).get("status") or {}),
        lambda found: "attacks" in found.get("IsolationVerified", {}).get("message", ""),
        seconds=60,
        what="a proof",
    )
    assert found["Hardened"]["status"] == "True", found["Hardened"]["message"]
    assert found["IsolationVerified"]["status"] == "True", found["IsolationVerified"]["message"]
    assert "not tried" not in found["IsolationVerified"]["message"]


def test_rotate_changes_the_login(namespace: Kubectl, operator: Kubectl, name: str) -> None:
    """The Secret holds the other login with a password that works, and asking again changes it once more."""
    seen = [credentials(namespace, name)]
    for _ in range(2):
        done = flowstone(namespace, "rotate", name)
        assert (done.returncode, name in done.stdout) == (0, True), done.stderr
        seen.append(
            wait_for(
                lambda: credentials(namespace, name),
                lambda now: now.get("PGUSER") not in (None, seen[-1]["PGUSER"]),
                seconds=30,
                what="fresh credentials",
            )
        )
        assert as_tenant(operator, seen[-1], "SELECT session_user") == seen[-1]["PGUSER"]
    assert seen[2]["PGUSER"] == seen[0]["PGUSER"]
    assert len({one["PGPASSWORD"] for one in seen}) == 3


def test_who_is_not_there_is_refused(namespace: Kubectl, operator: Kubectl) -> None:
    """Exit code 4 in the API server's words; no Tenant comes into being."""
    done = flowstone(namespace, "rotate", "nobody-of-that-name")
    assert (done.returncode, "not found" in done.stderr) == (4, True)
    assert operator.run("get", "tenant", "nobody-of-that-name").returncode != 0
