"""Events: what people see in `kubectl describe` and `kubectl events`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

from flowstone.errors import KubernetesRefused
from flowstone.kube.paths import API_VERSION, events
from flowstone.telemetry import Logger

Severity = Literal["Normal", "Warning"]

CLUSTER_WIDE = "default"
"""Namespace of Events about what is in none; the API server takes them in no other."""


@dataclass(frozen=True, slots=True)
class Told:
    """What an Event says.

    Attributes:
        reason: One word for programs.
        note: A sentence for people; the API server takes 1,024 bytes.
    """

    severity: Severity
    reason: str
    note: str


class Creator(Protocol):
    """Whoever can create; `flowstone.kube.client.Kube` is one."""

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object."""
        ...


async def post(kube: Creator, log: Logger, body: Mapping[str, Any]) -> None:
    """Create an Event; one that the server refuses is only logged, as it is a courtesy: the status says the same."""
    try:
        await kube.create(events(body["metadata"]["namespace"]), body)
    except KubernetesRefused as refused:
        log.warning("event_refused", status=refused.status, message=refused.message)


def event(kind: str, metadata: Mapping[str, Any], told: Told, *, instance: str, now: datetime) -> dict[str, Any]:
    """Return an Event about one of FlowStone's resources.

    Args:
        kind: Of the resource.
        metadata: The resource's; at least its name, and its namespace if it is in one.
        told: What it says.
        instance: The replica that says it.
        now: With a zone.
    """
    moment = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    digest = hashlib.sha256(f"{metadata}{told.reason}{moment}".encode()).hexdigest()[:12]
    namespace = metadata.get("namespace") or CLUSTER_WIDE
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name'][:200]}.{digest}", "namespace": namespace},
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": kind,
            **{key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion") if key in metadata},
        },
        "eventTime": moment,
        "type": told.severity,
        "reason": told.reason,
        "action": "Reconcile",
        "note": told.note[:1000],
        "reportingController": "flowstone.dev/operator",
        "reportingInstance": instance[:128],
    }
