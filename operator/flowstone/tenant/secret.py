"""The Secret with a tenant's credentials: what stands in it, and what is found there. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from flowstone.backfill.secret import Endpoint, decoded, variables
from flowstone.tenant.desired import Desired
from flowstone.tenant.observed import Secret

Json = Mapping[str, Any]

MANAGED_BY = "app.kubernetes.io/managed-by"
TENANT = "flowstone.dev/tenant"
"""Label: which Tenant's credentials these are."""


def content(role_name: str, password: str, endpoint: Endpoint) -> dict[str, str]:
    """Return all that the Secret holds: libpq's variables, one address, and a line for a password file."""
    return {
        **variables(role_name, password, endpoint),
        "uri": _uri(role_name, password, endpoint),
        "pgpass": _pgpass(endpoint.host, endpoint.port, endpoint.database, role_name, password),
    }


def manifest(desired: Desired, namespace: str, role_name: str, password: str, endpoint: Endpoint) -> dict[str, Any]:
    """Return the Secret of one namespace."""
    data = content(role_name, password, endpoint)
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": desired.secret_name,
            "namespace": namespace,
            "labels": {MANAGED_BY: "flowstone", TENANT: desired.name},
        },
        "type": "Opaque",
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    }


def read(desired: Desired, namespace: str, found: Json | None, endpoint: Endpoint) -> Secret:
    """Return what was found in one namespace.

    Args:
        desired: Whose Secret it should be.
        namespace: The namespace, which is there.
        found: The Secret as the API server hands it out; None when there is none.
        endpoint: Where the credentials should lead.
    """
    if found is None:
        return Secret(namespace, "absent")
    labels = (found.get("metadata") or {}).get("labels") or {}
    if (labels.get(MANAGED_BY), labels.get(TENANT)) != ("flowstone", desired.name):
        return Secret(namespace, "foreign")
    data = _decoded(found)
    role_name, password = data.get("PGUSER", ""), data.get("PGPASSWORD", "")
    wanted = content(role_name, password, endpoint)
    return Secret(namespace, "ours", role_name, password, current=all(data.get(k) == v for k, v in wanted.items()))


def _decoded(found: Json) -> dict[str, str]:
    """Return the Secret's texts; what is no text is no content of ours."""
    try:
        return decoded(found)
    except (ValueError, TypeError):
        return {}


def _uri(role_name: str, password: str, endpoint: Endpoint) -> str:
    place = f"{quote(endpoint.host, safe='')}:{endpoint.port}/{quote(endpoint.database, safe='')}"
    query = f"?{urlencode({'sslmode': endpoint.sslmode})}" if endpoint.sslmode else ""
    return f"postgresql://{quote(role_name, safe='')}:{quote(password, safe='')}@{place}{query}"


def _pgpass(*fields: str) -> str:
    """Return a line of a password file, with what has a meaning there escaped."""
    return ":".join(map(_escaped, fields)) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(":", "\\:")
