"""Materializations as a tenant sees them, through a pooled login."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime

from flowstone.db.connection import translated
from flowstone.db.tenant_session import TenantConnection
from flowstone.guard import Asset, GuardContext, Guards
from flowstone.partition import Key, serialize
from flowstone.tenant.capability import required
from flowstone.tenant.names import asset_identity

_INSERT = """
    INSERT INTO flowstone.materialization (scope, asset, partition, backfill, ordinal, state, fence, finished_at)
    VALUES ((SELECT flowstone.context_scope()), %(asset)s, %(partition)s, %(report)s, 0, 'succeeded', 0, now())
    RETURNING scope, asset, partition, finished_at
"""

_LIST = """
    SELECT scope, asset, partition, finished_at FROM flowstone.materialization
    WHERE state = 'succeeded' ORDER BY finished_at, asset, partition
"""


@dataclass(frozen=True, slots=True)
class Materialization:
    """One partition of an asset that is done.

    Attributes:
        asset: The asset's id.
        partition: The serialized key.
        materialized_at: When it succeeded, UTC.
        metadata: `tenant_id`, and `namespace` of the asset.
    """

    asset: str
    partition: str
    materialized_at: datetime
    metadata: Mapping[str, str] = field(default_factory=dict)


class Materializations:
    """Reports and lists what is done, for the tenant in force and nobody else.

    Every method raises `TenantRequired` outside `with_tenant`.

    Args:
        connect: Opens a transaction that works for the tenant in force.
        guards: Asked about each asset that is reported or listed.
        context: Returns what guards are told of the tenant in force.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractContextManager[TenantConnection]],
        cluster: str,
        guards: Guards,
        context: Callable[[], GuardContext],
    ) -> None:
        self._connect = connect
        self._cluster = cluster
        self._guards = guards
        self._context = context

    def insert(self, asset: str, partition: Key) -> Materialization:
        """Report that a partition of an asset was materialized just now; each report is kept.

        Args:
            asset: The asset's id.
            partition: A date, datetime, string, or tuple of them.

        Raises:
            InvalidSpec: This is no asset id.
            InvalidPartition: This is no key.
            TenantRefused: A guard does not let the tenant see or compute the asset.
        """
        required()
        values = {
            "asset": asset_identity(self._cluster, asset),
            "partition": serialize(partition),
            "report": report_uid(),
        }
        seen, context = Asset(asset), self._context()
        self._guards.require("access", seen, context)
        self._guards.require("materialize", seen, context)
        with translated(), self._connect() as connection:
            return next(_read(row) for row in connection.execute(_INSERT, values))

    def list_all(self) -> list[Materialization]:
        """Return all that was materialized for this tenant, oldest first; without assets that a guard hides from it."""
        required()
        with translated(), self._connect() as connection:
            rows = [_read(row) for row in connection.execute(_LIST).fetchall()]
        context = self._context()
        assets = {Asset(row.asset, namespace=row.metadata["namespace"]) for row in rows}
        open_ones = {one for one in assets if self._guards.refusal("access", one, context) is None}
        return [row for row in rows if Asset(row.asset, namespace=row.metadata["namespace"]) in open_ones]


def report_uid() -> str:
    """Return a random uid of version 0: no backfill has one, so a report never counts as a backfill's partition."""
    text = str(uuid.uuid4())
    return f"{text[:14]}0{text[15:]}"


def _read(row: tuple[str, str, str, datetime]) -> Materialization:
    scope, identity, partition, finished_at = row
    _, namespace, asset = identity.split("/", 2)
    metadata = {"tenant_id": scope.rsplit("/", 1)[1], "namespace": namespace}
    return Materialization(asset, partition, finished_at, metadata)
