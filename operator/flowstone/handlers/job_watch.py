"""Jobs wake their Backfill: they are followed by their metadata alone, outside of Kopf.

A pod's life is half a dozen events of its Job, and every replica hears all of them. Only a label is wanted of each;
Kopf would have the whole Job with its pod template sent, parsed, and handed to a task of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from flowstone.errors import KubernetesRefused, KubernetesUnavailable
from flowstone.executor.jobs import LABEL_BACKFILL, LABEL_MANAGED_BY
from flowstone.handlers.watch import Enqueue, Key
from flowstone.kube.paths import jobs

Json = dict[str, Any]

TOGETHER = 0.3
"""Seconds that a Job's event waits for others: one look sees all."""

PAUSE = 2.0
"""Seconds until a watch is begun again, whatever ended it; backfills at work are looked at every few seconds anyway."""


class Watching(Protocol):
    """Whoever can follow a collection; `flowstone.kube.client.Kube` is one."""

    def watch(
        self, path: str, *, labels: str = "", since: str = ""
    ) -> AbstractAsyncContextManager[AsyncIterator[Json]]:
        """Follow what happens to objects."""
        ...


async def follow_jobs(
    kube: Watching, namespace: str | None, enqueue: Enqueue, note: Callable[[str | None], None]
) -> None:
    """Wake the Backfill of each Job that something happens to, for ever.

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
                async for event in events:
                    since = _take(event["object"]["metadata"], enqueue)
        except (KubernetesRefused, KubernetesUnavailable) as error:
            note(None if _is_too_old(error) else f"cannot watch Jobs: {error}")
            since = ""
        await asyncio.sleep(PAUSE)


def _take(metadata: Json, enqueue: Enqueue) -> str:
    """Wake a Job's Backfill; returns how far the watch has come."""
    if backfill := (metadata.get("labels") or {}).get(LABEL_BACKFILL):
        enqueue(Key("Backfill", metadata["namespace"], backfill), TOGETHER)
    return str(metadata["resourceVersion"])


def _is_too_old(error: Exception) -> bool:
    """Whether the server has forgotten where a watch was to go on, which is everyday life."""
    return isinstance(error, KubernetesRefused) and error.status == 410
