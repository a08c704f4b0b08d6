"""The reconcile of one Asset: say whether it can be used, and wake the backfills that wait for it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from flowstone.backfill import status
from flowstone.backfill.edges.assets import Assets
from flowstone.errors import InvalidSpec
from flowstone.kube.client import Json, Kube
from flowstone.kube.paths import custom
from flowstone.kube.status import apply_status


class AssetReconciler:
    """Checks an Asset, writes its two conditions, and passes its edits on to its Backfills."""

    def __init__(
        self, kube: Kube, assets: Assets, wake: Callable[[str, str], None], now: Callable[[], datetime]
    ) -> None:
        self._kube = kube
        self._assets = assets
        self._wake = wake
        self._now = now

    async def __call__(self, namespace: str, name: str) -> float | None:
        """Reconcile; an asset is looked at again only when it changes."""
        resource = await self._kube.get(custom("assets", namespace, name))
        if resource is None:
            self._assets.forget(namespace, name)
        else:
            await self._report(resource, await self._verdict(resource))
        for backfill in await self._kube.list(custom("backfills", namespace)):
            if backfill["spec"].get("asset") == name and not is_finished(backfill):
                self._wake(namespace, backfill["metadata"]["name"])
        return None

    async def _verdict(self, resource: Json) -> InvalidSpec | None:
        try:
            await self._assets.check(self._assets.read(resource))
        except InvalidSpec as error:
            return error
        return None

    async def _report(self, resource: Json, error: InvalidSpec | None) -> None:
        old = resource.get("status") or {}
        new = verdict_status(resource["metadata"]["generation"], error, old, self._now())
        if status.differs(old, new) == "no":
            return
        await apply_status(self._kube, "assets", resource, new)  # changed meanwhile: its event is already on its way


def verdict_status(generation: int, error: InvalidSpec | None, old: Json, now: datetime) -> Json:
    """The status of an asset that can be used, or of one that cannot, with the reason."""
    truths: dict[str, status.Truth] = {"Ready": "False", "Stalled": "True"} if error else {"Ready": "True"}
    reason, message = ("InvalidSpec", str(error)) if error else ("Valid", "the asset can be used")
    found = status.transitions(truths, reason, message, generation, old.get("conditions") or [], now)
    return {"observedGeneration": generation, "conditions": found}


def is_finished(backfill: dict[str, Any]) -> bool:
    """Whether a Backfill's status says that it is over."""
    conditions = (backfill.get("status") or {}).get("conditions") or []
    return any(one.get("type") == "Finished" and one.get("status") == "True" for one in conditions)
