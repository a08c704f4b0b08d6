"""From what is asked for to the rows that the ledger gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flowstone.api.parse import AssetResource, BackfillResource
from flowstone.api.partitions import partition_set
from flowstone.backfill.records import Select
from flowstone.partition import PartitionSet


@dataclass(frozen=True, slots=True)
class Plan:
    """The rows of a backfill, before they are written.

    Attributes:
        scope: Whose rows these are.
        asset: The asset's identity in the ledger.
        partitions: The set, in the order of the ordinals.
    """

    scope: str
    asset: str
    partitions: PartitionSet
    select: Select

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
        return ((self.scope, text) for text in self.partitions.iter_text())


def make_plan(cluster: str, backfill: BackfillResource, asset: AssetResource) -> Plan:
    """The rows that a Backfill asks for.

    Raises:
        InvalidSpec: The partitions do not fit the asset; names the field, the value and the remedy.
    """
    return Plan(
        scope=scope_of(cluster, backfill.namespace),
        asset=asset_identity(cluster, asset),
        partitions=partition_set(asset.spec, backfill.spec),
        select=backfill.spec.select,
    )


def scope_of(cluster: str, namespace: str) -> str:
    """Scope of work without a tenant."""
    return f"n/{cluster}/{namespace}"


def asset_identity(cluster: str, asset: AssetResource) -> str:
    """The asset's identity in the ledger."""
    return f"{cluster}/{asset.namespace}/{asset.id}"
