"""The Jobs of one backfill: seen, created under their deterministic names, deleted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from flowstone.backfill import views
from flowstone.backfill.records import OpenBatch
from flowstone.backfill.views import View
from flowstone.controller.gather import each
from flowstone.errors import KubernetesRefused
from flowstone.executor.port import Blockage
from flowstone.kube.client import Json, Kube
from flowstone.kube.paths import core, jobs

EVENTS_READ = 3
"""Batches that do not start whose Events are read in one look; the others suffer from the same cause."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What one look showed.

    Attributes:
        jobs: All Jobs of the backfill, also those whose batch is closed.
        blockage: Why a batch does not start, if one does not and somebody says why.
    """

    seen: Sequence[View]
    jobs: Sequence[Json]
    blockage: Blockage | None = None


class BatchJobs:
    """The Jobs that carry a backfill's label."""

    def __init__(self, kube: Kube, namespace: str, uid: str, now: Callable[[], datetime]) -> None:
        self._kube = kube
        self._namespace = namespace
        self._uid = uid
        self._now = now

    async def look(self, batches: Sequence[OpenBatch]) -> Sight:
        """Read the Jobs, and pods and Events where the Jobs alone do not tell enough."""
        now = self._now()
        found = await self._kube.list(jobs(self._namespace), labels=views.selector(self._uid))
        pairs = views.pair(batches, found)
        pods: list[Json] = []
        if any(views.needs_pods(batch, job, now) for batch, job in pairs):
            pods = await self._kube.list(core("pods", self._namespace), labels=views.selector(self._uid))
        seen = [views.view(batch, job, pods, now) for batch, job in pairs]
        return Sight(seen, found, await self._blockage([one for one in seen if one.slow(now)], now))

    async def _blockage(self, slow: Sequence[View], now: datetime) -> Blockage | None:
        for one in slow[:EVENTS_READ]:
            why = views.why_not_started(one, await self._events(one), now)
            if why is not None:
                return why
        return None

    async def _events(self, one: View) -> list[Json]:
        found: list[Json] = []
        for name in views.concerned(one):
            fields = f"involvedObject.name={name}"
            found += await self._kube.list(core("events", self._namespace), fields=fields)
        return found

    async def create(self, manifest: Json) -> Json | Blockage:
        """Create a Job, or adopt the one of this name that is ours; a Blockage says why neither was possible."""
        try:
            return await self._kube.create(jobs(self._namespace), manifest)
        except KubernetesRefused as refused:
            if refused.reason != "AlreadyExists":
                return refusal(refused)
        name = manifest["metadata"]["name"]
        job = await self._kube.get(jobs(self._namespace, name))
        if job is not None and views.is_owned(job, self._uid):
            return job
        return Blockage("NameConflict", f"a Job named {name!r} belongs to somebody else: delete or rename it")

    async def delete(self, unwanted: Sequence[views.Json]) -> None:
        """Ask for the deletion of Jobs and their pods."""
        await each(self._delete, [job for job in unwanted if not views.is_deleted(job)])

    async def _delete(self, job: views.Json) -> None:
        metadata = job["metadata"]
        await self._kube.delete(jobs(self._namespace, metadata["name"]), uid=metadata["uid"])


def refusal(refused: KubernetesRefused) -> Blockage:
    """What the refusal of a Job means to people."""
    if refused.status == 403:
        return Blockage("QuotaExceeded" if "exceeded quota" in refused.message else "RBAC", refused.message)
    return Blockage("CreateFailed", refused.message)
