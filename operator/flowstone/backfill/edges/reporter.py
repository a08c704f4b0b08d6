"""Writes a backfill's status and Events: at once when something happened, now and then when it only moved on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Protocol

from flowstone.backfill.standing import WAITS_FOR_BACKFILL, Stand, Standing
from flowstone.backfill.status import Report, compose, differs
from flowstone.kube.event import Creator, Severity, Told, event, post
from flowstone.kube.status import Applier, apply_status
from flowstone.telemetry import Logger

_TOLD: dict[Stand, Severity] = {
    Stand.SUCCEEDED: "Normal",
    Stand.CANCELLED: "Normal",
    Stand.SUSPENDED: "Normal",
    Stand.WAITING: "Normal",
    Stand.PARTLY_FAILED: "Warning",
    Stand.FAILED: "Warning",
    Stand.BLOCKED: "Warning",
    Stand.INVALID: "Warning",
    Stand.ASSET_MISSING: "Warning",
    Stand.BUDGET_PASSED: "Warning",
}
"""Standings that are worth an Event when they begin."""

_COME_AND_GO = frozenset({Stand.BLOCKED, Stand.WAITING, Stand.RUNNING})
"""Standings that begin again and again by themselves, as in a cluster that is full; people ask for the others."""

COMPLAINT_PAUSE = 600.0
"""Seconds until the same complaint is made again."""

_NEWEST, _OLDEST = 2.0, 15.0


class Writer(Applier, Creator, Protocol):
    """Whoever can write statuses and Events; `flowstone.kube.client.Kube` is one."""


class Reporter:
    """Tells people how a backfill is.

    Args:
        clock: Seconds, monotonic.
        instance: The replica that Events name.
    """

    def __init__(
        self, kube: Writer, log: Logger, *, now: Callable[[], datetime], clock: Callable[[], float], instance: str
    ) -> None:
        self._kube = kube
        self._log = log
        self._now = now
        self._clock = clock
        self._instance = instance
        self._written: dict[str, float] = {}
        self._complained: dict[tuple[str, ...], float] = {}

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
        severity, metadata = _severity(standing), resource["metadata"]
        known = {(c.get("reason"), c.get("status")) for c in old.get("conditions") or [] if c.get("type") == "Ready"}
        if severity is None or any(reason == standing.reason for reason, _ in known):
            return
        words = standing.message if standing.stand is Stand.BLOCKED else ""  # counts and nodes come and go
        lasting = standing.stand not in _COME_AND_GO
        if lasting or self._is_new(metadata["uid"], standing.reason, words):
            await self._post(metadata, standing, severity)

    async def complain(self, namespace: str, name: str, standing: Standing) -> None:
        """Tell by an Event what cannot be told by a status, at most once in `COMPLAINT_PAUSE` seconds."""
        if self._is_new(namespace, name, standing.message):
            await self._post({"namespace": namespace, "name": name}, standing, "Warning")

    def _is_new(self, *complaint: str) -> bool:
        """Whether it was not made within `COMPLAINT_PAUSE` seconds; it is noted as made."""
        now = self._clock()
        self._complained = {one: at for one, at in self._complained.items() if now - at < COMPLAINT_PAUSE}
        if complaint in self._complained:
            return False
        self._complained[complaint] = now
        return True

    async def _post(self, metadata: Mapping[str, Any], standing: Standing, severity: Severity) -> None:
        told = Told(severity, standing.reason, standing.message)
        body = event("Backfill", metadata, told, instance=self._instance, now=self._now())
        await post(self._kube, self._log, body)


def _severity(standing: Standing) -> Severity | None:
    """How loud a standing is told of; None when it is not."""
    return "Normal" if standing.reason == WAITS_FOR_BACKFILL else _TOLD.get(standing.stand)
