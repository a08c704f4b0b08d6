"""From what is asked for to the rows that the ledger gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from flowstone.api.asset import AssetSpec
from flowstone.api.backfill import BackfillSpec
from flowstone.api.parse import AssetResource, BackfillResource
from flowstone.api.partitions import partition_set
from flowstone.backfill.records import Select
from flowstone.errors import InvalidSpec, TenantUnknown
from flowstone.partition import PartitionSet
from flowstone.tenant.names import asset_identity as identity_of
from flowstone.tenant.names import namespace_scope, tenant_scope

MOST_PARTITIONS = 10_000_000
"""Partitions of one Backfill; each is a row of about 300 bytes in the ledger."""

SEPARATOR = "|"
"""Between the elements of a key; inside one it is percent-encoded, and a tenant's id needs no encoding."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The rows of a backfill, before they are written.

    Attributes:
        scope: Whose rows these are; "" when the rows carry several tenants' scopes.
        asset: The asset's identity in the ledger.
        partitions: The set, in the order of the ordinals.
        scope_of: Whose row a key is.
        skipped: Why a scope's rows are skipped.
    """

    scope: str
    asset: str
    partitions: PartitionSet
    select: Select
    scope_of: Callable[[str], str]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of rows."""
        return len(self.partitions)

    @property
    def set_hash(self) -> str:
        """Digest of the set."""
        return self.partitions.hash

    def rows(self) -> Iterator[tuple[str, str]]:
        """Scope and key of each row, by ordinal, without holding them."""
        if self.scope:
            return ((self.scope, text) for text in self.partitions.iter_text())
        return ((self.scope_of(text), text) for text in self.partitions.iter_text())


def make_plan(
    cluster: str,
    backfill: BackfillResource,
    asset: AssetResource,
    *,
    tenants: tuple[str, ...] = (),
    skipped: Mapping[str, str] | None = None,
) -> Plan:
    """The rows that a Backfill asks for.

    Args:
        tenants: Ids of the Tenants that the namespace may use: the values of a tenant dimension.
        skipped: Why a scope's rows are not to be worked on.

    Raises:
        InvalidSpec: The partitions do not fit the asset; names the field, the value and the remedy.
    """
    check_tenant(asset.spec, backfill.spec)
    spec = backfill.spec
    scope, scope_of = _scopes(cluster, backfill, asset.spec)
    partitions = partition_set(asset.spec, spec, tenants)
    check_size(partitions)
    return Plan(
        scope=scope,
        asset=asset_identity(cluster, asset),
        partitions=partitions,
        select=spec.select,
        scope_of=scope_of,
        skipped=skipped or {},
    )


def is_for_tenants(asset: AssetSpec, spec: BackfillSpec) -> bool:
    """Whether the rows belong to tenants rather than to the namespace."""
    return asset.tenant_dimension is not None or spec.tenant is not None


def check_size(partitions: PartitionSet) -> None:
    """Refuse a set that is a slip rather than a plan.

    Raises:
        InvalidSpec: It has more than `MOST_PARTITIONS`.
    """
    if len(partitions) > MOST_PARTITIONS:
        remedy = f"at most {MOST_PARTITIONS:,} in one Backfill: narrow the ranges, or write several Backfills"
        raise InvalidSpec("spec.partitions", f"{len(partitions):,} partitions", remedy)


def check_tenant(asset: AssetSpec, spec: BackfillSpec) -> None:
    """Refuse a Backfill whose tenant does not fit the asset.

    Raises:
        InvalidSpec: Two ways to name the tenant, none where one is required, or a place that tenants would share.
    """
    if asset.tenant_dimension is not None and spec.tenant is not None:
        raise InvalidSpec("spec.tenant", spec.tenant, "the Asset has a tenant dimension: name tenants in partitions")
    if asset.tenant_dimension is None and spec.tenant is None and asset.required_tier is not None:
        remedy = f"the Asset {spec.asset} is for tenants of tier {asset.required_tier}: name one in spec.tenant"
        raise InvalidSpec("spec.tenant", None, remedy)
    if spec.tenant is not None and asset.storage is not None and asset.storage.shared:
        raise InvalidSpec("spec.asset", spec.asset, f"its storage is shared by all tenants: {asset.storage.shared}")


def wanted_tenants(asset: AssetSpec, spec: BackfillSpec, usable: tuple[str, ...]) -> tuple[str, ...]:
    """Ids of the tenants that a Backfill names, each once.

    Args:
        usable: Ids of the Tenants that the namespace may use: all of them, where none is named.
    """
    place = asset.tenant_dimension
    if place is None:
        return () if spec.tenant is None else (spec.tenant,)
    if spec.keys is not None:
        return tuple(dict.fromkeys(tenant_of(key, place) for key in spec.keys))
    entry = (spec.partitions or {}).get(asset.partitioned_by[place].name)
    return entry.values if entry is not None and entry.values is not None else usable


def require_known(wanted: tuple[str, ...], known: Mapping[str, object]) -> None:
    """Return when every named tenant is there.

    Raises:
        TenantUnknown: One is not (yet); it is waited for.
    """
    missing = next((one for one in wanted if one not in known), None)
    if missing is not None:
        raise TenantUnknown(f"there is no Tenant of id {missing!r} (yet): create it, or correct the id")


def tenant_of(key: str, place: int) -> str:
    """The tenant that a key names."""
    parts = key.split(SEPARATOR)
    return parts[place] if place < len(parts) else ""


def _scopes(cluster: str, backfill: BackfillResource, asset: AssetSpec) -> tuple[str, Callable[[str], str]]:
    """The one scope of all rows, or "" and how a row's scope follows from its key."""
    place = asset.tenant_dimension
    if place is not None:
        return "", lambda key: tenant_scope(cluster, tenant_of(key, place))
    tenant = backfill.spec.tenant
    scope = scope_of(cluster, backfill.namespace) if tenant is None else tenant_scope(cluster, tenant)
    return scope, lambda _: scope


def scope_of(cluster: str, namespace: str) -> str:
    """Scope of work without a tenant."""
    return namespace_scope(cluster, namespace)


def asset_identity(cluster: str, asset: AssetResource) -> str:
    """The asset's identity in the ledger."""
    return identity_of(cluster, asset.id, asset.namespace)
