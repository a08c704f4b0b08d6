"""Backfills from Python: queued in the ledger, looked at, cancelled."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from flowstone.backfill.records import BackfillRecord, Counts, NewBackfill, Select
from flowstone.db.ledger import Ledger
from flowstone.db.tenants import TenantRow
from flowstone.errors import InvalidSet, InvalidSpec, LedgerRefused
from flowstone.guard import TIERS, Asset, GuardContext, Guards, Tenant
from flowstone.partition import Key, PartitionSet, serialize
from flowstone.tenant.capability import current
from flowstone.tenant.names import NAMESPACE, asset_identity, namespace_scope, tenant_scope

Phase = Literal["Planning", "Running", "Succeeded", "PartlyFailed", "Failed", "Cancelled"]

HIGHEST = 10_000
"""Upper bound of `max_parallel` and `batch_size`, as in the Backfill resource."""


@dataclass(frozen=True, slots=True)
class BackfillStatus:
    """Where a backfill stands; the six counts add up to `total`."""

    id: str
    phase: Phase
    total: int
    queued: int
    running: int
    succeeded: int
    failed: int
    skipped: int
    cancelled: int


class Backfills:
    """Runs backfills for the tenant in force, or without one for scope `n/<cluster>/default`.

    A backfill is known in the scope that it was run in, and in no other.

    Args:
        ledger: Opens the ledger under the operator's login, once.
        tenant: Returns the registry's row of an active tenant.
        guards: Asked before anything is queued.
    """

    def __init__(
        self, ledger: Callable[[], Ledger], tenant: Callable[[str], TenantRow], guards: Guards, cluster: str
    ) -> None:
        self._ledger = ledger
        self._tenant = tenant
        self._guards = guards
        self._cluster = cluster

    def run(
        self,
        asset: str,
        *,
        partitions: Iterable[Key] | PartitionSet,
        max_parallel: int = 10,
        batch_size: int = 1,
        select: Select = "Missing",
        required_tier: str | None = None,
    ) -> str:
        """Queue all partitions of a backfill.

        Args:
            asset: The asset's id.
            partitions: Keys, each once; a lazy sequence is read once and not held.
            max_parallel: Batches that may be open at a time, 1 to 10,000.
            batch_size: Partitions in a batch, 1 to 10,000.
            select: `Missing` skips what succeeded before; `All` does not.
            required_tier: The lowest tier that may have this asset; None means any.

        Returns:
            The backfill's id.

        Raises:
            InvalidSpec, InvalidPartition, InvalidSet: The request names something that is not possible.
            TenantRefused: A guard said no.
            TenantUnknown: No active tenant of that id is registered.
        """
        spec = {
            "asset": asset,
            "maxParallel": _bounded("max_parallel", max_parallel),
            "batchSize": _bounded("batch_size", batch_size),
            "select": _one_of("select", select, ("Missing", "All")),
        }
        identity = asset_identity(self._cluster, asset)
        if required_tier is not None:
            _one_of("required_tier", required_tier, TIERS)
        scope = self._admitted(Asset(asset, required_tier, NAMESPACE))
        keys = partitions if isinstance(partitions, Sequence | PartitionSet) else list(partitions)
        uid = str(uuid.uuid4())
        set_hash = _digest(keys)
        new = NewBackfill(
            uid=uid,
            cluster=self._cluster,
            namespace=NAMESPACE,
            name=f"{asset[:40]}-{uid[:8]}",
            scope=scope,
            asset=identity,
            spec=spec,
            spec_hash=set_hash,
        )
        ledger = self._ledger()
        ledger.register(new)
        rows = ((scope, text) for text in _texts(keys))
        try:
            ledger.plan(uid, rows, total=len(keys), set_hash=set_hash, select=select)
        except LedgerRefused as error:
            ledger.close_orphan(uid)
            raise InvalidSet("partitions: a key occurs twice: name each partition once") from error
        return uid

    def status(self, id: str) -> BackfillStatus:
        """Return where a backfill stands.

        Raises:
            LedgerRefused: No backfill of that id was run in this scope.
        """
        return _status(self._mine(id), self._ledger().counts(id))

    def cancel(self, id: str) -> BackfillStatus:
        """Cancel all that is queued; what runs is let end. Returns where the backfill stands then.

        Raises:
            LedgerRefused: No backfill of that id was run in this scope.
        """
        self._mine(id)
        ledger = self._ledger()
        ledger.cancel(id)
        if not ledger.counts(id).open:
            ledger.finish(id)
        return self.status(id)

    def _admitted(self, asset: Asset) -> str:
        """Return the scope to work in, if every guard lets its tenant have the asset."""
        capability = current()
        if capability is None:
            self._guards.require("materialize", asset, GuardContext())
            return namespace_scope(self._cluster)
        row = self._tenant(capability.tenant_id)
        self._guards.require("materialize", asset, GuardContext(Tenant(row.tenant_id, row.tier)))
        return row.scope

    def _mine(self, uid: str) -> BackfillRecord:
        capability = current()
        scope = (
            namespace_scope(self._cluster) if capability is None else tenant_scope(self._cluster, capability.tenant_id)
        )
        record = self._ledger().find(_checked_uid(uid))
        if record is None or record.scope != scope:
            raise LedgerRefused("backfill: no backfill of that id was run here: ask in the with_tenant it was run in")
        return record


def _status(record: BackfillRecord, counts: Counts) -> BackfillStatus:
    return BackfillStatus(
        record.uid,
        _phase(record, counts),
        counts.total,
        counts.queued,
        counts.running,
        counts.succeeded,
        counts.failed,
        counts.skipped,
        counts.cancelled,
    )


def _phase(record: BackfillRecord, counts: Counts) -> Phase:
    if record.total is None:
        return "Planning"
    if counts.open:
        return "Running"
    if counts.cancelled:
        return "Cancelled"
    if not counts.failed:
        return "Succeeded"
    return "PartlyFailed" if counts.succeeded + counts.skipped else "Failed"


def _texts(keys: Iterable[Key] | PartitionSet) -> Iterable[str]:
    return keys.iter_text() if isinstance(keys, PartitionSet) else map(serialize, keys)


def _digest(keys: Iterable[Key] | PartitionSet) -> str:
    """Digest the set, reading each key once; a key that is none is found here, before anything is written."""
    if isinstance(keys, PartitionSet):
        return keys.hash
    digest = hashlib.sha256()
    for text in _texts(keys):
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


def _bounded(field: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= HIGHEST:
        raise InvalidSpec(field, value, f"write a whole number from 1 to {HIGHEST:,}")
    return value


def _one_of(field: str, value: str, words: Sequence[str]) -> str:
    if value not in words:
        raise InvalidSpec(field, value, f"write one of {', '.join(words)}")
    return value


def _checked_uid(uid: str) -> str:
    try:
        return str(uuid.UUID(uid))
    except (ValueError, AttributeError, TypeError) as error:
        raise LedgerRefused("backfill: this is no id that `run` returned") from error
