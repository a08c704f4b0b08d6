"""Jobs wake their Backfill, and what was seen of them is remembered; they are followed outside of Kopf.

A pod's life is half a dozen events of its Job, and every replica hears all of them; Kopf would hand each to a task of
its own. Most tell nothing that calls for a deed: a backfill is woken when a Job is over, begins to stop, or is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from flowstone.backfill import job_views
from flowstone.backfill.edges.seen_jobs import SeenJobs
from flowstone.errors import KubernetesRefused, KubernetesUnavailable
from flowstone.executor.jobs import LABEL_BACKFILL, LABEL_MANAGED_BY
from flowstone.handlers.watch import Enqueue, Key
from flowstone.kube.paths import jobs

Json = dict[str, Any]

TOGETHER = 0.1
"""Seconds that a Job's event waits for others: one look sees all."""

PAUSE = 2.0
"""Seconds until a watch is begun again, whatever ended it; backfills at work are looked at every few seconds anyway."""

_DECIDED = ("Complete", "Failed", "FailureTarget")
"""Conditions of a Job after which its slot is, or will soon be, free."""


class Watching(Protocol):
    """Whoever can follow a collection; `flowstone.kube.client.Kube` is one."""

    def watch(
        self, path: str, *, labels: str = "", since: str = ""
    ) -> AbstractAsyncContextManager[AsyncIterator[Json]]:
        """Follow what happens to objects."""
        ...


async def follow_jobs(
    kube: Watching, namespace: str | None, seen: SeenJobs, enqueue: Enqueue, note: Callable[[str | None], None]
) -> None:
    """Remember what happens to Jobs, and wake the Backfill of each that has news, for ever.

    Args:
        namespace: Whose Jobs; None for all.
        enqueue: Puts a key into the work queue, to be looked at in so many seconds.
        note: Told what stands in the way; None when nothing does.
    """
    since = ""
    while True:
        try:
            async with kube.watch(jobs(namespace), labels=f"{LABEL_MANAGED_BY}=flowstone", since=since) as events:
                note(None)
                seen.follow(namespace, anew=not since)
                async for event in events:
                    since = _take(event["type"], event["object"], seen, enqueue)
        except (KubernetesRefused, KubernetesUnavailable) as error:
            note(None if _is_too_old(error) else f"cannot watch Jobs: {error}")
            since = ""
        finally:
            seen.lose(namespace)
        await asyncio.sleep(PAUSE)


def _take(kind: str, job: Json, seen: SeenJobs, enqueue: Enqueue) -> str:
    """Remember a Job, and wake its Backfill if it has news; returns how far the watch has come."""
    metadata = job["metadata"]
    if kind != "BOOKMARK":
        seen.take(kind, job)
        backfill = (metadata.get("labels") or {}).get(LABEL_BACKFILL)
        if backfill and (kind == "DELETED" or _has_news(job)):
            enqueue(Key("Backfill", metadata["namespace"], backfill), TOGETHER)
    return str(metadata["resourceVersion"])


def _has_news(job: Json) -> bool:
    """Whether somebody has to do something: that it was created or has started, the next look finds early enough."""
    return job_views.has_condition(job, *_DECIDED) or job_views.is_deleted(job)


def _is_too_old(error: Exception) -> bool:
    """Whether the server has forgotten where a watch was to go on, which is everyday life."""
    return isinstance(error, KubernetesRefused) and error.status == 410
