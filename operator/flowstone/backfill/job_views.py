"""What is seen of open batches that run as Jobs: ledger, Jobs and pods side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flowstone.backfill.records import OpenBatch
from flowstone.executor.blockage import blockage
from flowstone.executor.jobs import LABEL_FENCE, LABEL_UID
from flowstone.executor.pods import has_ended, instant, run_state
from flowstone.executor.port import PATIENCE, Blockage, Running, View

Json = Mapping[str, Any]

MANY_FENCES = 200
"""Batches that are named in a request; an address has its limits."""


@dataclass(frozen=True, slots=True)
class Handle:
    """A batch's Job (None when there is none) and its pods."""

    job: Json | None
    pods: Sequence[Json]


def pair(batches: Sequence[OpenBatch], jobs: Sequence[Json]) -> list[tuple[OpenBatch, Json | None]]:
    """Each open batch with its Job."""
    by_name = {job["metadata"]["name"]: job for job in jobs}
    return [(batch, by_name.get(batch.job_name)) for batch in batches]


def needs_pods(batch: OpenBatch, job: Json | None, now: datetime) -> bool:
    """Whether the Job alone does not tell enough: it failed, it is stopping, it is gone, or takes long to start."""
    if job is None:
        return batch.job_uid is not None
    status = job.get("status") or {}
    if has_condition(job, "Failed", "FailureTarget"):
        return True
    if status.get("terminating") or is_deleted(job):
        return True
    return not status.get("ready") and not status.get("succeeded") and now - batch.opened_at >= PATIENCE


def has_condition(job: Json, *types: str) -> bool:
    """Whether one of these conditions of a Job is true."""
    conditions = (job.get("status") or {}).get("conditions") or []
    return any(one.get("type") in types and one.get("status") == "True" for one in conditions)


def view(batch: OpenBatch, job: Json | None, pods: Sequence[Json], now: datetime) -> View:
    """How a batch's run goes, as far as Job and pods tell."""
    own = [pod for pod in pods if (pod["metadata"].get("labels") or {}).get(LABEL_FENCE) == str(batch.fence)]
    handle = Handle(job, own)
    if batch.job_uid is None and job is None:
        return View(batch, Running(), launched=False, handle=handle)
    run = run_state(job, own, now)
    if isinstance(run, Running) and job is not None and (job.get("status") or {}).get("ready"):
        run = Running(ready=True, stopping=run.stopping, lost=run.lost)  # the Job knows, no pod was read
    return View(batch, run, launched=True, uid=job["metadata"]["uid"] if job else None, handle=handle)


def why_not_started(seen: View, events: Sequence[Json], now: datetime) -> Blockage | None:
    """Why the Job of a batch does not start, in the platform's words; None when nothing speaks of it."""
    handle: Handle = seen.handle
    return blockage(handle.job, handle.pods, events, now) if handle.job is not None else None


def overdue(seen: View, now: datetime, patience: timedelta) -> list[Json]:
    """Pods of a batch that should have ended more than `patience` ago: nobody on their node does as it is told."""
    handle: Handle = seen.handle
    return [
        pod
        for pod in handle.pods
        if is_deleted(pod) and not has_ended(pod) and now > instant(pod["metadata"]["deletionTimestamp"]) + patience
    ]


def concerned(seen: View) -> list[str]:
    """Names of the objects whose Events tell why a batch does not start: its Job and its pods."""
    handle: Handle = seen.handle
    return [one["metadata"]["name"] for one in (handle.job, *handle.pods) if one is not None]


def is_deleted(thing: Json) -> bool:
    """Whether somebody asked for its deletion."""
    return bool(thing["metadata"].get("deletionTimestamp"))


def is_owned(thing: Json, uid: str) -> bool:
    """Whether it belongs to the resource of this uid."""
    return any(owner.get("uid") == uid for owner in thing["metadata"].get("ownerReferences") or [])


def selector(uid: str) -> str:
    """Label selector of everything that belongs to a backfill."""
    return f"{LABEL_UID}={uid}"


def pods_selector(uid: str, fences: Sequence[int]) -> str:
    """Label selector of the pods of some batches, and of no others while that can be said in one request."""
    if len(fences) > MANY_FENCES:
        return selector(uid)
    return f"{selector(uid)},{LABEL_FENCE} in ({','.join(map(str, fences))})"
