"""A real cluster with FlowStone installed by its chart, and a namespace for each test."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.kubectl import ROOT, Kubectl, kubeconfig

SYSTEM = "flowstone-system"

Psql = Callable[[str], list[list[str]]]


@pytest.fixture(scope="session")
def cluster() -> Kubectl:
    """kubectl for the cluster of KUBECONFIG or of `make cluster`; none is an error where one is required."""
    found = kubeconfig()
    if found is not None:
        return Kubectl(found)
    if os.environ.get("FLOWSTONE_REQUIRE_CLUSTER"):
        pytest.fail("no cluster: run `make cluster`, or set KUBECONFIG")
    pytest.skip("no cluster: run `make cluster`, or set KUBECONFIG")


@pytest.fixture(scope="session")
def operator(cluster: Kubectl) -> Kubectl:
    """kubectl in the namespace of a FlowStone that `make install` made of this checkout."""
    if not os.environ.get("FLOWSTONE_INSTALLED"):  # set by who installs once for several processes of tests
        install(cluster)
    return cluster.within(SYSTEM)


def install(cluster: Kubectl, arguments: str = "") -> None:
    """Build the image, load it and install the chart, with further arguments of helm."""
    done = subprocess.run(
        ["make", "install"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, "KUBECONFIG": cluster.config, "HELM_ARGS": arguments},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.fixture
def namespace(operator: Kubectl) -> Iterator[Kubectl]:
    """kubectl in a new namespace that allows only restricted pods, with the test code as a ConfigMap."""
    name = f"test-{secrets.token_hex(4)}"
    operator.apply(
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        }
    )
    kubectl = operator.within(name)
    code = (Path(__file__).parent / "code.py").read_text()
    kubectl.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code"}, "data": {"work.py": code}})
    yield kubectl
    operator.run("delete", "namespace", name, "--wait=false")


_ASK = (
    'PGPASSWORD="$POSTGRES_PASSWORD" PGOPTIONS="-c lock_timeout=60s" '
    'exec psql -U postgres -d flowstone -AtX -F "$(printf "\t")" -c "$1"'
)


@pytest.fixture
def psql(operator: Kubectl) -> Psql:
    """Asks the ledger as its superuser; rows of fields as text."""

    def ask(query: str) -> list[list[str]]:
        command = ["sh", "-c", _ASK, "psql", query]
        out = operator.out("exec", "flowstone-postgres-0", "-c", "postgres", "--", *command)
        return [line.split("\t") for line in out.splitlines()]

    return ask


@pytest.fixture
def image() -> str:
    """The FlowStone image that the operator runs."""
    return os.environ.get("IMAGE", "localhost/flowstone:dev")
