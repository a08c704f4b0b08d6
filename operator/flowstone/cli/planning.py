"""What a Backfill would do, worked out from its manifest alone: nothing is asked of any cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from flowstone.api.asset import AssetSpec
from flowstone.api.backfill import BackfillSpec
from flowstone.api.parse import validated
from flowstone.api.partitions import partition_set
from flowstone.backfill.plan import check_size
from flowstone.backfill.sizing import batch_size
from flowstone.partition import compress

Json = Mapping[str, Any]

MOST_IN_WORDS = 100_000
"""Partitions up to which the whole set is written as intervals."""

WORDS = 2_000
"""Characters of the intervals, at most."""


SELECTED = {
    "Missing": "those without a success so far",
    "All": "all, also those that are done",
    "Failed": "those that failed before, without a success since",
}
"""What `select` means, for people."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a Backfill would do.

    Attributes:
        first: The key that comes first in the Backfill's order.
        intervals: The whole set in words; "" when it is too large for that.
        batch_size: Partitions in the first batches.
        batches: Jobs that it takes if none is sized anew.
        digest: The set's hash: equal for equal sets, however they are written.
    """

    asset: str
    total: int
    first: str
    last: str
    intervals: str
    max_parallel: int
    batch_size: int
    batches: int
    select: str
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self)


def outlook(backfill: Json, asset: Json, tenants: Sequence[Json] = ()) -> Outlook:
    """Work out what a Backfill over an Asset would do; all as manifests.

    Args:
        tenants: The Tenants that there are; those that name the Asset's namespace are the values of a tenant dimension.

    Raises:
        InvalidSpec: one of them makes no sense; names field, value and remedy.
    """
    spec = validated(BackfillSpec, backfill.get("spec"), "spec")
    usable = usable_tenants(tenants, (asset.get("metadata") or {}).get("namespace", "default"))
    ascending = partition_set(validated(AssetSpec, asset.get("spec"), "spec"), spec, usable)
    check_size(ascending)
    ordered, total = ascending.ordered(spec.order), len(ascending)
    size = batch_size(spec.batch_size, queued=total, slots=spec.max_parallel)
    return Outlook(
        asset=spec.asset,
        total=total,
        first=ordered.text(0),
        last=ordered.text(total - 1),
        intervals=compress(ascending, range(total), limit=WORDS) if total <= MOST_IN_WORDS else "",
        max_parallel=spec.max_parallel,
        batch_size=size,
        batches=-(-total // size),
        select=spec.select,
        digest=ascending.hash,
    )


def usable_tenants(tenants: Sequence[Json], namespace: str) -> list[str]:
    """Ids of the Tenants that a namespace may use."""
    specs = [((one.get("metadata") or {}).get("name", ""), one.get("spec") or {}) for one in tenants]
    return sorted(spec.get("id") or name for name, spec in specs if namespace in (spec.get("namespaces") or ()))


def needs_tenants(asset: Json) -> bool:
    """Whether an Asset has a tenant dimension."""
    return any(one.get("type") == "tenant" for one in (asset.get("spec") or {}).get("partitionedBy") or ())


def picture(plan: Outlook) -> RenderableType:
    """The outlook for people."""
    table = Table.grid(padding=(0, 2))
    rows = {
        "asset": plan.asset,
        "partitions": f"{plan.total:,}".replace(",", " "),
        "first, last": f"{plan.first}, {plan.last}",
        "set": plan.intervals,
        "select": SELECTED[plan.select],
        "Jobs": f"about {plan.batches}, of {plan.batch_size} partitions, {plan.max_parallel} at a time at most",
        "digest": plan.digest,
    }
    for name, value in rows.items():
        if value:
            table.add_row(Text(name, style="dim"), Text(value))
    return table
