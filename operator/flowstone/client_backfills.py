"""Backfills from Python: queued in the ledger, worked off by a function, looked at, cancelled."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from flowstone.backfill.records import BackfillRecord, Counts, NewBackfill, Select
from flowstone.backfill.tenancy import KnownTenant
from flowstone.client_function import Function, described, job_of, listed, target_of, work_off
from flowstone.db.abandoned import unfinished
from flowstone.db.ledger import Ledger
from flowstone.db.tenants import TenantRow
from flowstone.errors import InvalidSet, InvalidSpec, LedgerError, LedgerRefused
from flowstone.guard import TIERS, Asset, GuardContext, Guards, Tenant
from flowstone.local import LocalJob, LocalMachine, known_tenant
from flowstone.partition import Key, PartitionSet, serialize
from flowstone.tenant.capability import current
from flowstone.tenant.names import NAMESPACE, asset_identity, namespace_scope, tenant_scope

Phase = Literal["Planning", "Running", "Succeeded", "PartlyFailed", "Failed", "Cancelled"]

Keys = Sequence[Key] | PartitionSet

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
        machine: Returns what runs functions in processes of this machine.
    """

    def __init__(
        self,
        ledger: Callable[[], Ledger],
        tenant: Callable[[str], TenantRow],
        guards: Guards,
        cluster: str,
        machine: Callable[[Ledger], LocalMachine],
    ) -> None:
        self._ledger = ledger
        self._tenant = tenant
        self._guards = guards
        self._cluster = cluster
        self._machine = machine

    def run(
        self,
        asset: str,
        *,
        partitions: Iterable[Key] | PartitionSet,
        max_parallel: int = 10,
        batch_size: int = 1,
        select: Select = "Missing",
        required_tier: str | None = None,
        function: Function | None = None,
        progress: Callable[[BackfillStatus], None] | None = None,
    ) -> str:
        """Queue all partitions of a backfill and, with a function, work them off before returning.

        The function is called for each partition with a `flowstone.Partition`, as `flowstone work` does in a cluster,
        in child processes of this one: each imports the function's module anew. Failures do not raise; `status`
        counts them. Ctrl-C stops the processes and cancels what is not done. Run the same again and only what is
        missing runs, also after this program was killed.

        Args:
            asset: The asset's id.
            partitions: Keys, each once; a lazy sequence is read once and not held.
            max_parallel: Batches that may be open at a time, 1 to 10,000: with a function, child processes.
            batch_size: Partitions in a batch, 1 to 10,000.
            select: `Missing` skips what succeeded before; `All` does not.
            required_tier: The lowest tier that may have this asset; None means any.
            function: A function at the top level of a module; without one, nothing is run.
            progress: Called with the status, in this thread, while the function runs.

        Returns:
            The backfill's id.

        Raises:
            InvalidSpec, InvalidPartition, InvalidSet: The request names something that is not possible.
            TenantRefused: A guard said no.
            TenantUnknown: No active tenant of that id is registered.
            LedgerBusy: Partitions of a function's run are queued in an earlier backfill that nobody works on.
        """
        spec: dict[str, Any] = {
            "asset": asset,
            "maxParallel": _bounded("max_parallel", max_parallel),
            "batchSize": _bounded("batch_size", batch_size),
            "select": _one_of("select", select, ("Missing", "All")),
        }
        asset_identity(self._cluster, asset)
        if required_tier is not None:
            _one_of("required_tier", required_tier, TIERS)
        scope = self._admitted(Asset(asset, required_tier, NAMESPACE))
        keys = listed(partitions)
        if function is None:
            return self._queue(self._new(asset, scope, spec, keys), keys, select).uid
        target, dimensions = target_of(function), described(keys)
        machine = self._machine(self._ledger())
        new = self._new(asset, scope, {**spec, "function": target, "machine": machine.name}, keys)
        abandoned = self._unfinished(new, machine)
        job = job_of(self._queue(new, keys, select), asset, target, dimensions, self._known())
        self._work_off(machine, job, abandoned, progress)
        return new.uid

    def _new(self, asset: str, scope: str, spec: dict[str, Any], keys: Keys) -> NewBackfill:
        uid = str(uuid.uuid4())
        return NewBackfill(
            uid=uid,
            cluster=self._cluster,
            namespace=NAMESPACE,
            name=f"{asset[:40]}-{uid[:8]}",
            scope=scope,
            asset=asset_identity(self._cluster, asset),
            spec=spec,
            spec_hash=_digest(keys),
        )

    def _queue(self, new: NewBackfill, keys: Keys, select: Select) -> NewBackfill:
        ledger = self._ledger()
        ledger.register(new)
        rows = ((new.scope, text) for text in _texts(keys))
        try:
            ledger.plan(new.uid, rows, total=len(keys), set_hash=new.spec_hash, select=select)
        except LedgerRefused as error:
            ledger.close_orphan(new.uid)
            raise InvalidSet("partitions: a key occurs twice: name each partition once") from error
        return new

    def _unfinished(self, new: NewBackfill, machine: LocalMachine) -> list[str]:
        """What a program of this machine left behind of the same asset, if it is dead: it would be waited for."""
        database = self._ledger().database
        return unfinished(database, cluster=self._cluster, scope=new.scope, asset=new.asset, machine=machine.name)

    def _work_off(
        self,
        machine: LocalMachine,
        job: LocalJob,
        abandoned: Sequence[str],
        progress: Callable[[BackfillStatus], None] | None,
    ) -> None:
        uid = job.request.uid

        def tell() -> None:
            if progress is not None:
                progress(self.status(uid))

        try:
            work_off(machine, job, abandoned, tell)
        except BaseException:
            with suppress(LedgerError):  # should this fail too, the next run closes it
                self.cancel(uid)
            raise

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
        while ledger.cancel(id):
            pass  # a chunk of the rows at a time
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

    def _known(self) -> KnownTenant | None:
        """The tenant in force, with its limit."""
        capability = current()
        return None if capability is None else known_tenant(self._tenant(capability.tenant_id), NAMESPACE)

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


def _texts(keys: Keys) -> Iterable[str]:
    return keys.iter_text() if isinstance(keys, PartitionSet) else map(serialize, keys)


def _digest(keys: Keys) -> str:
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
