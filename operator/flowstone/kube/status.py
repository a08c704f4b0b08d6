"""Writes a resource's status by server-side apply; the one place that does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from flowstone.errors import KubernetesRefused
from flowstone.kube.paths import API_VERSION, custom

CHANGED = (404, 409)
"""The resource is gone, or was changed since it was read; its event is already on its way."""


class Applier(Protocol):
    """Whoever can apply; `flowstone.kube.client.Kube` is one."""

    async def apply(self, path: str, body: Mapping[str, Any], *, manager: str = ...) -> dict[str, Any]:
        """Server-side apply."""
        ...


async def apply_status(kube: Applier, plural: str, resource: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
    """Write the status of a resource as it was read; returns False when it is to be read again.

    Args:
        kube: The Kubernetes API.
        plural: Its kind in paths, such as `backfills`.
        resource: What was read: kind, and metadata with its resourceVersion, so that a stale writer changes nothing.
        status: The whole status; what was there before and is not in it goes.

    Raises:
        KubernetesRefused: The server refused for another reason than that the resource changed.
        KubernetesUnavailable: The API server does not answer.
    """
    metadata = resource["metadata"]
    body = {
        "apiVersion": API_VERSION,
        "kind": resource["kind"],
        "metadata": {key: metadata[key] for key in ("name", "namespace", "resourceVersion") if key in metadata},
        "status": dict(status),
    }
    try:
        await kube.apply(custom(plural, metadata.get("namespace"), metadata["name"]) + "/status", body)
    except KubernetesRefused as refused:
        if refused.status in CHANGED:
            return False
        raise
    return True
