"""Which partitions a Backfill asks for, and which other Backfills have them first: as far as manifests tell. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowstone.api.asset import AssetSpec
from flowstone.api.backfill import BackfillSpec
from flowstone.api.parse import validated
from flowstone.api.partitions import partition_set
from flowstone.cli.exits import condition
from flowstone.cli.planning import usable_tenants
from flowstone.errors import InvalidSpec, PartitionError
from flowstone.partition import PartitionSet, union

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ahead:
    """A Backfill that goes on, made before another one, over some of the same partitions, which it has first.

    Attributes:
        shared: How many partitions both ask for.
    """

    name: str
    phase: str
    shared: int


def wanted(backfill: Json, asset: Json, tenants: Sequence[Json] = ()) -> PartitionSet | None:
    """The partitions that a Backfill asks for with an Asset as it is now; None where they make no set."""
    try:
        spec = validated(BackfillSpec, backfill.get("spec"), "spec")
        usable = usable_tenants(tenants, backfill["metadata"]["namespace"])
        return partition_set(validated(AssetSpec, asset.get("spec"), "spec"), spec, usable)
    except InvalidSpec:
        return None


def ahead(backfill: Json, others: Sequence[Json], asset: Json, tenants: Sequence[Json] = ()) -> list[Ahead]:
    """Older Backfills of the same Asset that are not over and share partitions with this one, which has no batch open.

    Args:
        others: Backfills of the namespace; itself may be among them.
    """
    mine = wanted(backfill, asset, tenants)
    return [] if mine is None else list(_sharing(mine, _older(backfill, others), asset, tenants))


def _older(backfill: Json, others: Sequence[Json]) -> list[Json]:
    asset = backfill["spec"].get("asset")
    going_on = [one for one in others if one["spec"].get("asset") == asset and condition(one, "Finished") != "True"]
    return [
        one for one in going_on if one["metadata"]["name"] != backfill["metadata"]["name"] and _first(one, backfill)
    ]


def _first(one: Json, backfill: Json) -> bool:
    made, mine = (each["metadata"]["creationTimestamp"] for each in (one, backfill))
    # Of two of the same second only the ledger knows the order, but one that has batches open is not behind.
    return bool(made < mine or (made == mine and (one.get("status") or {}).get("activeBatches")))


def _sharing(mine: PartitionSet, older: Sequence[Json], asset: Json, tenants: Sequence[Json]) -> Iterator[Ahead]:
    for one in older:
        theirs = wanted(one, asset, tenants)
        shared = 0 if theirs is None else len(mine) + len(theirs) - len(union(mine, theirs))
        if shared:
            yield Ahead(one["metadata"]["name"], (one.get("status") or {}).get("phase") or "not yet seen", shared)


def stranger(backfill: Json, partition: str, asset: Json, tenants: Sequence[Json] = ()) -> str:
    """Why a text is no partition of a Backfill; "" when it is one, or when that cannot be known."""
    asked = wanted(backfill, asset, tenants)
    if asked is None:
        return ""
    words = f"no such partition: the Backfill asks for {asked.text(0)} to {asked.text(len(asked) - 1)} ({len(asked)})"
    try:
        return "" if asked.parse(partition) in asked else words
    except PartitionError as error:
        return f"{words}; {error}"
