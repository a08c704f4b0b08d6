"""What commands say when the API server does not know what they ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from flowstone.cli.app import main


class _Nowhere(BaseHTTPRequestHandler):
    """An API server that has nothing, and says so in its own form."""

    def do_GET(self) -> None:
        body = json.dumps({"kind": "Status", "reason": "NotFound", "message": 'backfills "b" not found [/x]'}).encode()
        self.send_response(404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[str]:
    """A kubeconfig of such a server; its context names the namespace `team`."""
    with HTTPServer(("127.0.0.1", 0), _Nowhere) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        file = tmp_path / "kubeconfig"
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "team"}}
        users = [{"name": "u", "user": {}}]
        whole = {"kind": "Config", "current-context": "c", "users": users, "clusters": [cluster], "contexts": [context]}
        file.write_text(json.dumps(whole))
        yield str(file)
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("options", "namespace"), [((), "team"), (("-n", "other"), "other")], ids=["the context's", "a named one"]
)
def test_it_says_where_it_looked(
    kubeconfig: str, options: tuple[str, ...], namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Most often the Backfill is in another namespace; the server's words are passed on as they are, brackets too."""
    assert main(["backfill", "explain", "b", "--kubeconfig", kubeconfig, *options]) == 4
    error = 'backfills "b" not found [/x]'
    assert f"{error}; looked in namespace {namespace}, -n (--namespace) names another" in capsys.readouterr().err


def test_what_has_no_namespace_is_looked_for_nowhere_else(kubeconfig: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Tenants belong to the whole cluster, so no namespace is to blame."""
    assert main(["tenant", "list", "--kubeconfig", kubeconfig]) == 4
    assert "looked in namespace" not in capsys.readouterr().err
