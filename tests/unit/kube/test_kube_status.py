"""Writing a status: the whole of it, for the resource as it was read, and never over somebody else's change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from flowstone.errors import KubernetesRefused
from flowstone.kube.status import apply_status
from tests.postgres.tenant.memory_kube import MemoryKube

BACKFILL: dict[str, Any] = {
    "apiVersion": "flowstone.dev/v1alpha1",
    "kind": "Backfill",
    "metadata": {"name": "b", "namespace": "n", "labels": {"a": "b"}},
    "spec": {"asset": "daily"},
}
PATH = "/apis/flowstone.dev/v1alpha1/namespaces/n/backfills/b"
TENANT = {"apiVersion": "flowstone.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": "acme"}, "spec": {}}
TENANT_PATH = "/apis/flowstone.dev/v1alpha1/tenants/acme"


class Recorder:
    """Notes what is applied, and answers as told."""

    def __init__(self, answer: int = 200) -> None:
        self.answer = answer
        self.applied: list[tuple[str, Mapping[str, Any]]] = []

    async def apply(self, path: str, body: Mapping[str, Any], *, manager: str = "flowstone") -> dict[str, Any]:
        """Server-side apply."""
        self.applied.append((path, body))
        if self.answer != 200:
            raise KubernetesRefused(self.answer, "Refused", "no")
        return {}


async def test_the_status_alone_is_sent_under_the_version_that_was_read() -> None:
    """The body has identity, resourceVersion and status, and nothing of spec or labels."""
    kube = Recorder()
    read = {**BACKFILL, "metadata": {**BACKFILL["metadata"], "resourceVersion": "7"}}
    assert await apply_status(kube, "backfills", read, {"phase": "Running"})
    body = {
        "apiVersion": "flowstone.dev/v1alpha1",
        "kind": "Backfill",
        "metadata": {"name": "b", "namespace": "n", "resourceVersion": "7"},
        "status": {"phase": "Running"},
    }
    assert kube.applied == [(f"{PATH}/status", body)]


@pytest.mark.parametrize(("plural", "path", "made"), [("backfills", PATH, BACKFILL), ("tenants", TENANT_PATH, TENANT)])
async def test_a_stale_writer_changes_nothing_and_reads_again(plural: str, path: str, made: dict[str, Any]) -> None:
    """Changed or gone since it was read: False, and what is there stays; read again, it is written."""
    kube = MemoryKube()
    read = kube.put(path, made)
    stale = dict(read)
    kube.put(path, {**made, "spec": {"changed": True}})
    assert not await apply_status(kube, plural, stale, {"phase": "stale"})
    assert "status" not in kube.objects[path]
    fresh = await kube.get(path)
    assert fresh is not None
    assert await apply_status(kube, plural, fresh, {"phase": "fresh"})
    assert kube.objects[path]["status"] == {"phase": "fresh"}
    kube.remove(path)
    assert not await apply_status(kube, plural, fresh, {"phase": "gone"})


@pytest.mark.parametrize("answer", [403, 422])
async def test_other_refusals_are_raised(answer: int) -> None:
    """A missing right or a status that does not fit its schema is somebody's to see."""
    read = {"kind": "Asset", "metadata": {"name": "a", "namespace": "n", "resourceVersion": "1"}}
    with pytest.raises(KubernetesRefused):
        await apply_status(Recorder(answer), "assets", read, {})
