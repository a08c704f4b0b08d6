"""The Secret with which a namespace's Jobs reach the ledger."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SECRET_NAME = "flowstone-ledger"  # noqa: S105 - a Secret's name, not its content
"""Secret of work without a tenant; each namespace has its own, with a login of its own."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where pods reach Postgres; empty values are left out."""

    host: str
    port: str
    database: str
    sslmode: str = ""


def secret_manifest(namespace: str, role: str, password: str, endpoint: Endpoint) -> dict[str, Any]:
    """The Secret with libpq's variables."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": SECRET_NAME,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": "flowstone"},
        },
        "type": "Opaque",
        "stringData": variables(role, password, endpoint),
    }


def variables(role: str, password: str, endpoint: Endpoint) -> dict[str, str]:
    """libpq's environment variables for a login."""
    found = {
        "PGHOST": endpoint.host,
        "PGPORT": endpoint.port,
        "PGDATABASE": endpoint.database,
        "PGSSLMODE": endpoint.sslmode,
        "PGUSER": role,
        "PGPASSWORD": password,
    }
    return {key: value for key, value in found.items() if value}


def decoded(secret: Mapping[str, Any]) -> dict[str, str]:
    """The Secret's data as text."""
    return {key: base64.b64decode(value).decode() for key, value in (secret.get("data") or {}).items()}


def is_current(secret: Mapping[str, Any], role: str, endpoint: Endpoint) -> bool:
    """Whether a Secret names this login at this place and holds some password."""
    data = decoded(secret)
    password = data.get("PGPASSWORD", "")
    return bool(password) and data == variables(role, password, endpoint)
