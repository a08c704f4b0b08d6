"""A Kubernetes API in memory, as far as a Tenant's reconcile speaks to it; counts what is written."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flowstone.errors import KubernetesRefused

Json = dict[str, Any]


class MemoryKube:
    """Objects by path; an apply with an old resourceVersion is refused, a status is a subresource, finalizers hold."""

    def __init__(self) -> None:
        self.objects: dict[str, Json] = {}
        self.writes: list[str] = []
        self.events: list[Json] = []
        self._versions = itertools.count(1)

    def put(self, path: str, body: Mapping[str, Any]) -> Json:
        """Write an object as a user would."""
        old = self.objects.get(path)
        made = copy.deepcopy(dict(body))
        metadata = made.setdefault("metadata", {})
        before = old["metadata"] if old else {}
        metadata.setdefault("uid", before.get("uid") or f"uid-{next(self._versions)}")
        for name in ("finalizers", "deletionTimestamp"):
            if name in before:
                metadata.setdefault(name, before[name])
        changed = old is None or old.get("spec") != made.get("spec")
        metadata["generation"] = before.get("generation", 0) + changed
        metadata["resourceVersion"] = str(next(self._versions))
        if old and "status" in old:
            made.setdefault("status", old["status"])
        self.objects[path] = made
        return made

    def remove(self, path: str) -> None:
        """Delete an object as a user would; finalizers keep it."""
        found = self.objects[path]
        if found["metadata"].get("finalizers"):
            found["metadata"]["deletionTimestamp"] = "2026-11-24T00:00:00Z"
            found["metadata"]["resourceVersion"] = str(next(self._versions))
        else:
            del self.objects[path]

    async def get(self, path: str) -> Json | None:
        """Read one object."""
        return copy.deepcopy(self.objects.get(path))

    async def list(self, path: str, *, labels: str = "", fields: str = "") -> list[Json]:
        """Read the objects directly below a path."""
        found = (body for name, body in self.objects.items() if name.rsplit("/", 1)[0] == path)
        return [copy.deepcopy(body) for body in found]

    async def apply(self, path: str, body: Mapping[str, Any], *, manager: str = "flowstone") -> Json:
        """Server-side apply, as one field manager sees it."""
        self.writes.append(path)
        status, path = path.endswith("/status"), path.removesuffix("/status")
        if "/secrets/" in path and f"/api/v1/namespaces/{path.split('/')[4]}" not in self.objects:
            raise KubernetesRefused(404, "NotFound", "namespace not found")
        found = self.objects.get(path)
        asked = body["metadata"].get("resourceVersion")
        if asked is not None and (found is None or found["metadata"]["resourceVersion"] != asked):
            raise KubernetesRefused(409, "Conflict", "the object has been modified")
        if found is None:
            return copy.deepcopy(self.put(path, body))
        if status:
            found["status"] = copy.deepcopy(body["status"])
            time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            field = {"manager": manager, "operation": "Apply", "subresource": "status", "time": time}
            found["metadata"]["managedFields"] = [field]
        else:
            found["metadata"] |= copy.deepcopy(dict(body["metadata"]))
            found |= {key: copy.deepcopy(value) for key, value in body.items() if key not in ("metadata", "status")}
        found["metadata"]["resourceVersion"] = str(next(self._versions))
        if found["metadata"].get("deletionTimestamp") and not found["metadata"].get("finalizers"):
            del self.objects[path]
        return copy.deepcopy(found)

    async def create(self, path: str, body: Mapping[str, Any]) -> Json:
        """Create an object; only Events are."""
        self.events.append(copy.deepcopy(dict(body)))
        return dict(body)

    async def delete(self, path: str, *, uid: str | None = None) -> None:
        """Delete one object."""
        self.writes.append(path)
        self.objects.pop(path, None)
