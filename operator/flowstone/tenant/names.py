"""How tenants and assets are named in the ledger. Pure."""

from __future__ import annotations

from flowstone.errors import InvalidSpec
from flowstone.tenant.capability import CANARY_PREFIX as CANARY_PREFIX
from flowstone.tenant.capability import TENANT_ID

NAMESPACE = "default"
"""Namespace of work that a Python program does itself."""


def tenant_scope(cluster: str, tenant_id: str) -> str:
    """Return the scope of a tenant."""
    return f"t/{cluster}/{tenant_id}"


def tenant_of_scope(scope: str) -> str | None:
    """Return the id of the tenant whose rows a scope means; None for work without a tenant."""
    kind, _, rest = scope.partition("/")
    return rest.rpartition("/")[2] if kind == "t" else None


def namespace_scope(cluster: str, namespace: str = NAMESPACE) -> str:
    """Return the scope of a namespace's work without a tenant."""
    return f"n/{cluster}/{namespace}"


def asset_identity(cluster: str, asset: str, namespace: str = NAMESPACE) -> str:
    """Return an asset's identity in the ledger.

    Raises:
        InvalidSpec: This is no asset id.
    """
    if not isinstance(asset, str) or not TENANT_ID.fullmatch(asset):
        raise InvalidSpec("asset", asset, "write 1 to 63 ASCII letters, digits, '_', '.' or '-', as in daily_report")
    return f"{cluster}/{namespace}/{asset}"
