"""An API server of a few lines, for answers that a real one gives seldom."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

Json = dict[str, Any]

Answer = Callable[[str, str], tuple[int, list[Json]]]
"""From a verb and a path with its query to a status and what is sent: one object, or the events of a watch."""


def refusal(reason: str, message: str) -> Json:
    """What the API server sends when it says no."""
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message}


@contextmanager
def serving(answer: Answer, folder: Path) -> Iterator[str]:
    """Serve, and yield a kubeconfig in `folder`; its context names the namespace `team`."""
    with HTTPServer(("127.0.0.1", 0), _handler(answer)) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            file = folder / "kubeconfig"
            file.write_text(json.dumps(_kubeconfig(server.server_port)))
            yield str(file)
        finally:
            server.shutdown()
            thread.join()


def _handler(answer: Answer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._respond()

        def do_PATCH(self) -> None:
            self._respond()

        def _respond(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, sent = answer(self.command, self.path)
            body = b"".join(json.dumps(one).encode() + b"\n" for one in sent)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    return Handler


def _kubeconfig(port: int) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "users": [{"name": "u", "user": {}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
    }
