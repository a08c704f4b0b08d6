"""Proof that the cluster works: a pod reaches the API, a name, a service and the host, and says so in its log."""

import time
from typing import Any

from tests.cluster.api import Api
from tests.cluster.errors import ClusterError
from tests.cluster.layout import API_PORT, BRIDGE_ADDRESS, NODE
from tests.cluster.processes import POLL_SECONDS
from tests.cluster.rootfs import BASE

NAMESPACE = "cluster-check"

PATIENCE_SECONDS = 60.0

SERVER = "import http.server as s; s.HTTPServer(('', 8080), s.SimpleHTTPRequestHandler).serve_forever()"

PROBE = f"""
import socket, ssl, time
from urllib.request import urlopen
trust = ssl.create_default_context(cafile='/var/run/secrets/kubernetes.io/serviceaccount/ca.crt')
steps = {{
    'host {BRIDGE_ADDRESS}': lambda: urlopen('https://{BRIDGE_ADDRESS}:{API_PORT}/version', context=trust),
    'dns': lambda: socket.getaddrinfo('kubernetes.default.svc.cluster.local', 443),
    'api': lambda: urlopen('https://kubernetes.default.svc/version', context=trust, timeout=5),
    'service of a pod': lambda: urlopen('http://server:8080/', timeout=5),
}}
for name, step in steps.items():
    for attempt in range(50):
        try:
            step()
            break
        except OSError as failure:
            reason = failure
            time.sleep(0.2)
    else:
        raise SystemExit(f'cannot reach {{name}}: {{reason}}')
"""


def node_ready(api: Api) -> bool:
    """Whether the node says that it takes pods."""
    node = api.get(f"/api/v1/nodes/{NODE}")
    conditions = node["status"].get("conditions", []) if node else []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def check_from_a_pod(api: Api) -> None:
    """Run the probe in a pod and wait for it to succeed.

    Raises:
        ClusterError: it failed or did not end; the message has its log or its state.
    """
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
    api.apply(f"/api/v1/namespaces/{NAMESPACE}", {"apiVersion": "v1", "kind": "Namespace"})
    _wait_for_service_account(api)
    api.apply(f"/api/v1/namespaces/{NAMESPACE}/services/server", _service())
    api.apply(f"{pods}/server", _pod("server", SERVER))
    api.apply(f"{pods}/probe", _pod("probe", PROBE))
    try:
        _wait_for_success(api, f"{pods}/probe")
    finally:
        for name in ("server", "probe"):
            api.delete(f"{pods}/{name}")
        api.delete(f"/api/v1/namespaces/{NAMESPACE}")


def _wait_for_service_account(api: Api) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while api.get(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default") is None:
        if time.monotonic() > deadline:
            raise ClusterError(
                "no default service account was made in a new namespace: see kube-controller-manager.log"
            )
        time.sleep(POLL_SECONDS)


def _wait_for_success(api: Api, path: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        pod = api.get(path) or {}
        status = pod.get("status", {})
        if status.get("phase") == "Succeeded":
            return
        if status.get("phase") == "Failed":
            raise ClusterError(f"a pod on the new cluster failed its check: {api.text(path + '/log').strip()}")
        if time.monotonic() > deadline:
            raise ClusterError(
                f"a pod on the new cluster did not finish its check in {PATIENCE_SECONDS:.0f} s: {status}"
            )
        time.sleep(POLL_SECONDS)


def _pod(name: str, program: str) -> dict[str, Any]:
    container = {
        "name": "main",
        "image": BASE.reference,
        "imagePullPolicy": "Never",
        "command": ["python3", "-c", program],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"labels": {"check": name}},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container]},
    }


def _service() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "spec": {"selector": {"check": "server"}, "ports": [{"port": 8080}]},
    }
