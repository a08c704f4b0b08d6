"""A minimal client of the API server: the standard library is enough to wait and to apply a few objects."""

import http.client
import json
import socket
import ssl
from pathlib import Path
from typing import Any

from tests.cluster.errors import ClusterError
from tests.cluster.layout import API_PORT, BRIDGE_ADDRESS

TIMEOUT_SECONDS = 10.0

FIELD_MANAGER = "flowstone-cluster"

UNREACHABLE = (OSError, http.client.HTTPException)


class Api:
    """Requests to the API server as its administrator."""

    def __init__(self, secrets: Path) -> None:
        self._context = ssl.create_default_context(cafile=str(secrets / "ca.crt"))
        self._context.load_cert_chain(secrets / "admin.crt", secrets / "admin.key")

    def ready(self) -> bool:
        """Whether the API server says that it is ready."""
        try:
            return self._send("GET", "/readyz")[0] == http.HTTPStatus.OK
        except UNREACHABLE:
            return False

    def get(self, path: str) -> dict[str, Any] | None:
        """Read an object; None when there is none."""
        return self._object("GET", path)

    def apply(self, path: str, manifest: dict[str, Any]) -> None:
        """Create an object or bring it to what is wanted (server-side apply); the path's end is its name."""
        metadata = {**manifest.get("metadata", {}), "name": path.rpartition("/")[2]}
        query = f"?fieldManager={FIELD_MANAGER}&force=true"
        self._object("PATCH", path + query, {**manifest, "metadata": metadata}, "application/apply-patch+yaml")

    def delete(self, path: str) -> None:
        """Delete an object without waiting; an absent one is fine."""
        self._object("DELETE", path + "?gracePeriodSeconds=0")

    def text(self, path: str) -> str:
        """Read something that is not an object, such as a log."""
        return self._send("GET", path)[1].decode(errors="replace")

    def _object(
        self, method: str, path: str, body: dict[str, Any] | None = None, kind: str = "application/json"
    ) -> dict[str, Any] | None:
        try:
            status, answer = self._send(method, path, body, kind)
        except UNREACHABLE as failure:
            raise ClusterError(f"the API server does not answer {method} {path}: {failure}") from failure
        if status == http.HTTPStatus.NOT_FOUND and body is None:
            return None
        if status >= http.HTTPStatus.BAD_REQUEST:
            raise ClusterError(f"the API server refused {method} {path}: {answer.decode(errors='replace')}")
        value: dict[str, Any] = json.loads(answer)
        return value

    def _send(
        self, method: str, path: str, body: dict[str, Any] | None = None, kind: str = "application/json"
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection(
            BRIDGE_ADDRESS, API_PORT, context=self._context, timeout=TIMEOUT_SECONDS
        )
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, body=data, headers={"Content-Type": kind})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def answers(host: str, port: int, path: str, *, encrypted: bool = False) -> bool:
    """Whether a component's health endpoint on this machine says that it is well."""
    # These endpoints use throw-away certificates of their own making; nothing secret is sent.
    context = ssl._create_unverified_context() if encrypted else None  # noqa: S323
    connection = (
        http.client.HTTPSConnection(host, port, context=context, timeout=TIMEOUT_SECONDS)
        if encrypted
        else http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    )
    return _is_ok(connection, path)


def socket_answers(path: Path, request: str) -> bool:
    """Whether a server on a Unix socket answers a request with 200."""
    connection = http.client.HTTPConnection("localhost", timeout=TIMEOUT_SECONDS)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(TIMEOUT_SECONDS)
    try:
        connection.sock.connect(str(path))
    except OSError:
        connection.sock.close()
        return False
    return _is_ok(connection, request)


def _is_ok(connection: http.client.HTTPConnection, path: str) -> bool:
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except UNREACHABLE:
        return False
    finally:
        connection.close()
