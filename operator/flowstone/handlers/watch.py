"""Which events become which keys.

Not `kopf.index` (quadratic start-up, ghosts after a 410) and not change-detecting handlers (they write annotations):
an event only says *look there*, and the reconcile reads for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import kopf
from kopf._core.engines import peering

from flowstone.handlers.stateless import NoDifferences, NoProgress
from flowstone.kube.paths import GROUP, VERSION

Kind = Literal["Backfill", "Asset", "Tenant"]


@dataclass(frozen=True, slots=True)
class Key:
    """A resource that wants to be looked at."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


Enqueue = Callable[[Key, float], None]


def registry(enqueue: Enqueue, *, tenants: bool) -> kopf.OperatorRegistry:
    """The handlers, in a registry of their own; asynchronous, or Kopf would call them from threads.

    Args:
        enqueue: Puts a key into the work queue, to be looked at in so many seconds.
        tenants: Watch Tenants too.
    """
    handlers = kopf.OperatorRegistry()

    async def on_backfill(*, name: str, namespace: str | None, **_: Any) -> None:
        enqueue(Key("Backfill", namespace or "", name), 0)

    async def on_asset(*, name: str, namespace: str | None, **_: Any) -> None:
        enqueue(Key("Asset", namespace or "", name), 0)

    async def on_tenant(*, name: str, **_: Any) -> None:
        enqueue(Key("Tenant", "", name), 0)

    kopf.on.login(registry=handlers)(_login)  # a registry of one's own has no default login
    kopf.on.event(GROUP, VERSION, "backfills", registry=handlers)(on_backfill)
    kopf.on.event(GROUP, VERSION, "assets", registry=handlers)(on_asset)
    if tenants:
        kopf.on.event(GROUP, VERSION, "tenants", registry=handlers)(on_tenant)
    return handlers


async def _login(**keywords: Any) -> kopf.ConnectionInfo | None:
    """The pod's service account, or the kubeconfig of this machine; asked again when a token has run out."""
    return kopf.login_with_service_account(**keywords) or kopf.login_with_kubeconfig(**keywords)


def identity(name: str) -> peering.Identity:
    """Kopf's name for this replica; left to itself it asks for a user name, which a container has none of."""
    return peering.Identity(name)


def settings() -> kopf.OperatorSettings:
    """Kopf's settings for an operator that only watches."""
    wanted = kopf.OperatorSettings()
    wanted.persistence.diffbase_storage = NoDifferences()
    wanted.persistence.progress_storage = NoProgress()
    wanted.posting.enabled = False  # the reporter writes the few Events there are
    wanted.posting.loggers = False
    wanted.peering.standalone = True  # replicas are active-active
    wanted.scanning.disabled = True  # the kinds are known; CRDs need not be watched
    wanted.watching.server_timeout = 270
    wanted.watching.client_timeout = 330
    wanted.watching.inactivity_timeout = 70
    wanted.networking.request_timeout = 30
    wanted.networking.error_backoffs = (1, 1, 2, 3)  # then Kopf gives up, and /readyz says why
    return wanted
