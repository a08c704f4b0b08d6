"""Which tenants may have which partitions: decided at planning, and again whenever a batch is handed out. Pure.

Invariants:

1. A row belongs to the scope of the tenant that its key (or the Backfill) names, and a batch to one scope.
2. A tenant that the namespace may not use, that a guard refuses, or whose place would not be its own gets no Job: its
   partitions are skipped, with the reason.
3. A tenant that is not ready (no login yet, isolation not proven) is waited for; nothing is handed out meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flowstone.api.asset import TENANT_MARK, AssetSpec, Storage
from flowstone.api.parse import AssetResource
from flowstone.guard import Asset, GuardContext, Guards
from flowstone.guard import Tenant as GuardedTenant

_BUCKET = re.compile(r"(?!.*\.[.-])(?!.*-\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_LONGEST_IDENTIFIER = 63


@dataclass(frozen=True, slots=True)
class KnownTenant:
    """A Tenant resource as a backfill sees it.

    Attributes:
        scope: Whose rows these are.
        secret: Name of its Secret in each of its namespaces.
        limit: Open batches of all its backfills at most; None = no limit of its own.
        unready: Why it cannot be worked for now; "" when it can.
    """

    id: str
    tier: str
    scope: str
    secret: str
    namespaces: tuple[str, ...]
    limit: int | None = None
    unready: str = ""


@dataclass(frozen=True, slots=True)
class Admission:
    """The verdict on the tenants of one backfill.

    Attributes:
        admitted: Tenants that may be worked for, by scope.
        refused: Why a scope's partitions are skipped.
        waiting: Why a scope is waited for.
    """

    admitted: Mapping[str, KnownTenant] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    waiting: Mapping[str, str] = field(default_factory=dict)

    @property
    def limits(self) -> dict[str, int]:
        """Open batches by scope; nothing for those that are refused or waited for."""
        held = dict.fromkeys((*self.refused, *self.waiting), 0)
        return {scope: one.limit for scope, one in self.admitted.items() if one.limit is not None} | held


def admit(asset: AssetResource, wanted: Iterable[str], known: Mapping[str, KnownTenant], guards: Guards) -> Admission:
    """Judge the tenants of a backfill.

    Args:
        asset: What is to be computed, and in which namespace.
        wanted: Ids of the tenants that the backfill names.
        known: All Tenants, by id.
    """
    admitted: dict[str, KnownTenant] = {}
    refused: dict[str, str] = {}
    waiting: dict[str, str] = {}
    for tenant in (known[one] for one in wanted if one in known):
        reason = refusal(asset, tenant, guards)
        if reason is not None:
            refused[tenant.scope] = reason
        elif tenant.unready:
            waiting[tenant.scope] = f"Tenant {tenant.id}: {tenant.unready}"
        elif twin := _twin(asset, tenant, known.values()):
            waiting[tenant.scope] = f"Tenant {tenant.id}: {twin}"
        else:
            admitted[tenant.scope] = tenant
    return Admission(admitted, refused, waiting)


def refusal(asset: AssetResource, tenant: KnownTenant, guards: Guards) -> str | None:
    """Why a tenant may not have the asset computed in its namespace; None when it may."""
    if asset.namespace not in tenant.namespaces:
        return f"tenant {tenant.id}: its namespaces do not include {asset.namespace}: add it to the Tenant"
    seen = Asset(asset.id, asset.spec.required_tier, asset.namespace)
    said = guards.refusal("materialize", seen, GuardContext(GuardedTenant(tenant.id, tenant.tier)))
    if said is not None:
        required = asset.spec.required_tier or "none"
        return f"tenant {tenant.id} (tier {tenant.tier}, required {required}): {said}"
    return misplaced(asset.spec, tenant.id)


def misplaced(asset: AssetSpec, tenant_id: str) -> str | None:
    """Why the asset's storage has no place for a tenant of this id; None when it has."""
    places = places_of(asset.storage, tenant_id)
    bucket = places.get("bucket", "")
    if bucket and bucket != (asset.storage and asset.storage.bucket) and not _BUCKET.fullmatch(bucket):
        return f"tenant {tenant_id}: storage.bucket would be {bucket!r}, which is no bucket's name: use prefix instead"
    for part in ("schema", "table"):
        if len(places.get(part, "").encode()) > _LONGEST_IDENTIFIER:
            return f"tenant {tenant_id}: storage.{part} would be longer than {_LONGEST_IDENTIFIER} bytes: shorten it"
    return None


def _twin(asset: AssetResource, tenant: KnownTenant, known: Iterable[KnownTenant]) -> str | None:
    """Why a tenant's schema or table could be another one's too: SQL that does not quote a name ignores its case."""
    storage = asset.spec.storage
    if storage is None or TENANT_MARK not in f"{storage.schema_name}{storage.table}":
        return None
    for other in known:
        near = other.id != tenant.id and other.id.lower() == tenant.id.lower() and asset.namespace in other.namespaces
        if near:
            return (
                f"Tenant {other.id} differs by case only, and unquoted names of storage would be the same: use prefix"
            )
    return None


def places_of(storage: Storage | None, tenant_id: str | None) -> dict[str, str]:
    """The parts of a storage location, with the tenant's id in place of `{tenant}`."""
    if storage is None:
        return {}
    parts = {
        "bucket": storage.bucket,
        "prefix": storage.prefix,
        "schema": storage.schema_name,
        "table": storage.table,
    }
    return {name: text.replace(TENANT_MARK, tenant_id or "") for name, text in parts.items() if text is not None}
