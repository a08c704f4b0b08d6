"""Writes a backfill's status and Events: at once when something happened, now and then when it only moved on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from flowstone.backfill.standing import Stand, Standing
from flowstone.backfill.status import Report, compose, differs
from flowstone.kube.client import Kube
from flowstone.kube.event import Severity, Told, event, post
from flowstone.kube.status import apply_status
from flowstone.telemetry import Logger

_TOLD: dict[Stand, Severity] = {
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
        severity = _TOLD.get(standing.stand)
        known = {(c.get("reason"), c.get("status")) for c in old.get("conditions") or [] if c.get("type") == "Ready"}
        if severity is None or any(reason == standing.reason for reason, _ in known):
            return
        await self._post(resource["metadata"], standing, severity)

    async def complain(self, namespace: str, name: str, standing: Standing) -> None:
        """Tell by an Event what cannot be told by a status, at most once in `COMPLAINT_PAUSE` seconds."""
        told = self._complained.get((namespace, name, standing.message))
        if told is not None and self._clock() - told < COMPLAINT_PAUSE:
            return
        self._complained[namespace, name, standing.message] = self._clock()
        await self._post({"namespace": namespace, "name": name}, standing, "Warning")

    async def _post(self, metadata: Mapping[str, Any], standing: Standing, severity: Severity) -> None:
        told = Told(severity, standing.reason, standing.message)
        body = event("Backfill", metadata, told, instance=self._instance, now=self._now())
        await post(self._kube, self._log, body)
