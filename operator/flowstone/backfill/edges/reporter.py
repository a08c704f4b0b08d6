"""Writes a backfill's status and Events: at once when something happened, now and then when it only moved on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from flowstone.backfill.standing import Stand, Standing
from flowstone.backfill.status import Report, compose, differs
from flowstone.errors import KubernetesRefused
from flowstone.kube.client import Json, Kube
from flowstone.kube.paths import API_VERSION, events
from flowstone.kube.status import apply_status
from flowstone.telemetry import Logger

_TOLD = {
    Stand.SUCCEEDED: "Normal",
    Stand.CANCELLED: "Normal",
    Stand.PARTLY_FAILED: "Warning",
    Stand.FAILED: "Warning",
    Stand.BLOCKED: "Warning",
    Stand.INVALID: "Warning",
    Stand.ASSET_MISSING: "Warning",
    Stand.BUDGET_PASSED: "Warning",
}
"""Standings that are worth an Event when they begin."""

COMPLAINT_PAUSE = 600.0
"""Seconds until the same complaint is made again."""

_NEWEST, _OLDEST = 2.0, 15.0


class Reporter:
    """Tells people how a backfill is.

    Args:
        clock: Seconds, monotonic.
        instance: The replica that Events name.
    """

    def __init__(
        self, kube: Kube, log: Logger, *, now: Callable[[], datetime], clock: Callable[[], float], instance: str
    ) -> None:
        self._kube = kube
        self._log = log
        self._now = now
        self._clock = clock
        self._instance = instance
        self._written: dict[str, float] = {}
        self._complained: dict[tuple[str, str, str], float] = {}

    def due(self, resource: Mapping[str, Any]) -> bool:
        """Whether mere progress may be written now: often while a backfill is young, every 15 s later."""
        uid = resource["metadata"]["uid"]
        born = datetime.fromisoformat(resource["metadata"]["creationTimestamp"])
        age = (self._now() - born).total_seconds()
        pause = min(max(_NEWEST, age / 30), _OLDEST)
        return self._clock() - self._written.get(uid, -_OLDEST) >= pause

    async def report(self, resource: Mapping[str, Any], report: Report) -> bool:
        """Write the status if it must be; False when the resource changed meanwhile and is to be read again."""
        old = resource.get("status") or {}
        new = compose(report, old, self._now())
        difference = differs(old, new)
        if difference == "no" or (difference == "progress" and not self.due(resource)):
            return True
        if not await apply_status(self._kube, "backfills", resource, new):
            return False
        self._written[resource["metadata"]["uid"]] = self._clock()
        if difference == "yes":
            await self._tell(resource, old, report.standing)
        return True

    async def _tell(self, resource: Mapping[str, Any], old: Mapping[str, Any], standing: Standing) -> None:
        kind = _TOLD.get(standing.stand)
        known = {(c.get("reason"), c.get("status")) for c in old.get("conditions") or [] if c.get("type") == "Ready"}
        if kind is None or any(reason == standing.reason for reason, _ in known):
            return
        await self._post(resource["metadata"], standing, kind)

    async def complain(self, namespace: str, name: str, standing: Standing) -> None:
        """Tell by an Event what cannot be told by a status, at most once in `COMPLAINT_PAUSE` seconds."""
        told = self._complained.get((namespace, name, standing.message))
        if told is not None and self._clock() - told < COMPLAINT_PAUSE:
            return
        self._complained[namespace, name, standing.message] = self._clock()
        await self._post({"namespace": namespace, "name": name}, standing, "Warning")

    async def _post(self, metadata: Mapping[str, Any], standing: Standing, kind: str) -> None:
        body = event(metadata, standing, kind, self._instance, self._now())
        try:
            await self._kube.create(events(metadata["namespace"]), body)
        except KubernetesRefused as refused:  # an Event is a courtesy; the status says the same
            self._log.warning("event_refused", status=refused.status, message=refused.message)


def event(
    metadata: Mapping[str, Any],
    standing: Standing,
    kind: str,
    instance: str,
    now: datetime,
) -> Json:
    """An Event about a backfill's standing."""
    moment = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    digest = hashlib.sha256(f"{metadata}{standing.reason}{moment}".encode()).hexdigest()[:12]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name'][:200]}.{digest}", "namespace": metadata["namespace"]},
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": "Backfill",
            **{key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion") if key in metadata},
        },
        "eventTime": moment,
        "type": kind,
        "reason": standing.reason,
        "action": "Reconcile",
        "note": standing.message[:1000],
        "reportingController": "flowstone.dev/operator",
        "reportingInstance": instance[:128],
    }
