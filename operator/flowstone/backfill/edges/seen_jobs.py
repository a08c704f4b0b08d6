"""What a watch has told of Jobs, so that most looks need no request.

What it tells may lag behind, never lead: a Job that is shown to be over is over. So the engine at worst waits; and
because a connection may fall silent without breaking, a look asks the server itself every few seconds all the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from flowstone.executor.jobs import LABEL_UID

Json = dict[str, Any]

BELIEVED = 5.0
"""Seconds for which a watch is believed without asking the server."""


class SeenJobs:
    """Jobs as the watches of this replica last told of them.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._following: set[str | None] = set()
        self._jobs: dict[tuple[str, str], dict[str, Json]] = defaultdict(dict)
        self._compared: dict[tuple[str, str], float] = {}

    def follow(self, namespace: str | None, *, anew: bool) -> None:
        """A watch has begun, of one namespace or (None) of all.

        Args:
            anew: It will tell of all Jobs that there are; otherwise it goes on where the last one ended.
        """
        self._following.add(namespace)
        if anew:
            for key in [key for key in self._jobs if namespace in (None, key[0])]:
                self._forget(key)

    def lose(self, namespace: str | None) -> None:
        """A watch has ended; until the next one nothing that was seen is believed."""
        self._following.discard(namespace)

    def take(self, kind: str, job: Json) -> None:
        """Remember what an event says of a Job."""
        metadata = job["metadata"]
        uid = (metadata.get("labels") or {}).get(LABEL_UID)
        if uid is None:
            return
        key = (metadata["namespace"], uid)
        if kind != "DELETED":
            self._jobs[key][metadata["name"]] = _essence(job)
            return
        self._jobs[key].pop(metadata["name"], None)
        if not self._jobs[key]:
            self._forget(key)

    def of(self, namespace: str, uid: str) -> list[Json] | None:
        """Names, uids and statuses of a Backfill's Jobs; None when the server is to be asked."""
        key = (namespace, uid)
        followed = bool(self._following & {None, namespace})
        if not followed or self._clock() - self._compared.get(key, -BELIEVED) >= BELIEVED:
            return None
        return list(self._jobs[key].values()) if key in self._jobs else None

    def compared(self, namespace: str, uid: str) -> None:
        """The server itself was asked for a Backfill's Jobs."""
        key = (namespace, uid)
        if key in self._jobs:
            self._compared[key] = self._clock()

    def _forget(self, key: tuple[str, str]) -> None:
        del self._jobs[key]
        self._compared.pop(key, None)


def _essence(job: Json) -> Json:
    """The part of a Job that tells how its run goes: a tenth of it, and there may be many thousands."""
    metadata = {name: job["metadata"].get(name) for name in ("name", "uid", "deletionTimestamp")}
    return {"metadata": metadata, "status": job.get("status") or {}}
