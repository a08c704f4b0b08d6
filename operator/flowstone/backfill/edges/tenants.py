"""Tenants as backfills need them: read from their resources, judged by guards, at planning and at each hand-out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from flowstone.api.parse import AssetResource, BackfillResource
from flowstone.backfill.plan import is_for_tenants, require_known, wanted_tenants
from flowstone.backfill.tenancy import Admission, KnownTenant, admit
from flowstone.db.ledger import Ledger
from flowstone.errors import InvalidSpec, KubernetesRefused
from flowstone.guard import Guards
from flowstone.kube.client import Kube
from flowstone.kube.paths import custom
from flowstone.tenant.desired import parse_tenant
from flowstone.tenant.names import tenant_of_scope

FRESH = 2.0
"""Seconds for which the list of Tenants is used again; an edit takes effect that much later."""

REMEMBERED = 1000
"""Backfills whose scopes are remembered."""


class Tenants:
    """The Tenants of the cluster.

    Args:
        clock: Seconds, monotonic.
        enabled: False where the installation has no Tenants; then none is known.
    """

    def __init__(
        self, kube: Kube, ledger: Ledger, guards: Guards, *, cluster: str, clock: Callable[[], float], enabled: bool
    ) -> None:
        self._kube = kube
        self._ledger = ledger
        self.guards = guards
        self._cluster = cluster
        self._clock = clock
        self._enabled = enabled
        self._read_at = -FRESH
        self._known: Mapping[str, KnownTenant] = {}
        self._scopes: dict[str, tuple[str, ...]] = {}

    async def known(self) -> Mapping[str, KnownTenant]:
        """All Tenants that are there, by id."""
        if self._clock() - self._read_at >= FRESH:
            ranked = sorted(await self._list(), key=claim, reverse=True)  # of one id, the best claim comes last
            self._known = {one.id: one for one in map(self._view, ranked) if one is not None}
            self._read_at = self._clock()
        return self._known

    async def usable(self, namespace: str) -> tuple[str, ...]:
        """Ids of the Tenants that a namespace may use."""
        return tuple(sorted(one.id for one in (await self.known()).values() if namespace in one.namespaces))

    async def at_planning(self, backfill: BackfillResource, asset: AssetResource) -> Admission:
        """Judge the tenants that a Backfill names.

        Raises:
            TenantUnknown: One of them is not there (yet).
        """
        if not is_for_tenants(asset.spec, backfill.spec):
            return Admission()
        wanted = wanted_tenants(asset.spec, backfill.spec, await self.usable(backfill.namespace))
        known = await self.known()
        require_known(wanted, known)
        return admit(asset, wanted, known, self.guards)

    async def at_hand_out(self, backfill: BackfillResource, asset: AssetResource) -> Admission:
        """Judge the tenants whose rows a planned backfill has."""
        if not is_for_tenants(asset.spec, backfill.spec):
            return Admission()
        known = await self.known()
        scopes = await self._scopes_of(backfill.uid)
        wanted = [tenant for tenant in map(tenant_of_scope, scopes) if tenant is not None]
        verdict = admit(asset, wanted, known, self.guards)
        gone = {scope: "its Tenant is not there" for scope in scopes if tenant_of_scope(scope) not in known}
        return Admission(verdict.admitted, verdict.refused, {**verdict.waiting, **gone})

    async def _scopes_of(self, uid: str) -> tuple[str, ...]:
        """Scopes of a backfill's rows, which never change."""
        if uid not in self._scopes:
            self._scopes[uid] = await asyncio.to_thread(self._ledger.scopes, uid)
            if len(self._scopes) > REMEMBERED:
                del self._scopes[next(iter(self._scopes))]
        return self._scopes[uid]

    async def _list(self) -> list[dict[str, Any]]:
        if not self._enabled:
            return []
        try:
            return await self._kube.list(custom("tenants"))
        except KubernetesRefused as refused:
            if refused.status == 404:  # the CRD is not installed: there are none
                return []
            raise

    def _view(self, resource: Mapping[str, Any]) -> KnownTenant | None:
        try:
            tenant = parse_tenant(resource, self._cluster)
        except InvalidSpec:
            return None  # its own status says so
        if tenant.existence != "present":
            return None
        return KnownTenant(
            id=tenant.tenant_id,
            tier=tenant.tier,
            scope=tenant.scope,
            secret=tenant.secret_name,
            namespaces=tenant.namespaces,
            limit=tenant.max_parallel,
            unready=unready(resource),
        )


def claim(resource: Mapping[str, Any]) -> tuple[bool, str, str]:
    """What decides which of several Tenants of one id is the tenant: the least one; the others say `IdTaken`."""
    metadata, conditions = resource["metadata"], (resource.get("status") or {}).get("conditions") or []
    refused = any(one.get("reason") == "IdTaken" for one in conditions)
    return refused, metadata.get("creationTimestamp", ""), metadata["name"]


def unready(resource: Mapping[str, Any]) -> str:
    """Why a Tenant cannot be worked for now; "" when its status calls it ready."""
    conditions = {one.get("type"): one for one in (resource.get("status") or {}).get("conditions") or []}
    ready, isolated = conditions.get("Ready"), conditions.get("IsolationVerified", {})
    if ready is None:
        return "it has not been provisioned yet"
    if ready.get("status") != "True":
        return f"not ready: {ready.get('message') or ready.get('reason')}"
    return f"isolation is not proven: {isolated.get('message')}" if isolated.get("status") == "False" else ""
