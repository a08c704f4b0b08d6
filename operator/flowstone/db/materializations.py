"""Materializations as a tenant sees them, through a pooled login."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime

from flowstone.db.connection import translated
from flowstone.db.tenant_session import TenantConnection
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
    """

    def __init__(self, connect: Callable[[], AbstractContextManager[TenantConnection]], cluster: str) -> None:
        self._connect = connect
        self._cluster = cluster

    def insert(self, asset: str, partition: Key) -> Materialization:
        """Report that a partition of an asset was materialized just now; each report is kept.

        Args:
            asset: The asset's id.
            partition: A date, datetime, string, or tuple of them.

        Raises:
            InvalidSpec: This is no asset id.
            InvalidPartition: This is no key.
        """
        required()
        values = {
            "asset": asset_identity(self._cluster, asset),
            "partition": serialize(partition),
            "report": report_uid(),
        }
        with translated(), self._connect() as connection:
            return next(_read(row) for row in connection.execute(_INSERT, values))

    def list_all(self) -> list[Materialization]:
        """Return all that was materialized for this tenant, oldest first."""
        required()
        with translated(), self._connect() as connection:
            return [_read(row) for row in connection.execute(_LIST).fetchall()]


def report_uid() -> str:
    """Return a random uid of version 0: no backfill has one, so a report never counts as a backfill's partition."""
    text = str(uuid.uuid4())
    return f"{text[:14]}0{text[15:]}"


def _read(row: tuple[str, str, str, datetime]) -> Materialization:
    scope, identity, partition, finished_at = row
    _, namespace, asset = identity.split("/", 2)
    metadata = {"tenant_id": scope.rsplit("/", 1)[1], "namespace": namespace}
    return Materialization(asset, partition, finished_at, metadata)
