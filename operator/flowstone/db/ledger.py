"""The ledger in Postgres: what is done, and who may work on what is not.

    queued -> running -> succeeded
                 |  \\-> queued   charged: next attempt after back-off; uncharged: eviction, lost batch-mate
                 |  \\-> failed   attempts used up
    queued -> skipped            queued | running -> cancelled

A row that is `failed` without a reason was reported by the worker and is not settled: it counts as running.
A row in running, succeeded or failed carries the fence of its batch, a queued one carries none.

Invariants, each with a test that tries to break it (tests/postgres):

1. *Cap*: no batch is handed out while the open batches of its backfill, tenant or cluster are at their limit;
   a claim is one transaction under the locks of the cluster's and the backfill's row.
2. *No loss*: `total` is written once, by planning, and the six counts add up to it at every commit.
3. *Once*: at most one success per (backfill, scope, asset, partition); a report under another fence changes nothing.
4. *No overlap*: two backfills never work on the same partition at the same time; the later one waits.
5. *One scope per batch.*

The operator waits at most two seconds, and never for a row that a scope's login can lock. Every method is one
transaction, may be called from any thread, and may be repeated after `LedgerUnavailable` or `LedgerBusy`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Self

from flowstone.backfill.records import (
    BackfillRecord,
    ClaimedBatch,
    ClaimRequest,
    CommonError,
    Counts,
    Failure,
    Interval,
    NewBackfill,
    OpenBatch,
    Orders,
    Retry,
    Row,
    RowChange,
    Select,
    Skipped,
    State,
    Vain,
)
from flowstone.db import claiming, holders, planning, reading, registry, retention, schema, settling, steering
from flowstone.db.connection import APPLICATION_NAME, POOL_SIZE, Database, Pool, open_pool

NOBODY: Mapping[str, str] = MappingProxyType({})
"""No scope is skipped."""


class Ledger:
    """The ledger of one cluster, over a pool of connections as `flowstone_operator`.

    Args:
        pool: Open pool, as `open_pool` makes it; the ledger closes it in `close`.
        cluster: The cluster's id; the operator's cap counts the batches of this cluster.

    Every method raises `LedgerUnavailable` (Postgres is away; whether a commit happened is unknown), `LedgerBusy`
    (locked by somebody else: read again and retry) or `LedgerRefused` (the request cannot be right).
    """

    def __init__(self, pool: Pool, *, cluster: str) -> None:
        self.cluster = cluster
        self.pool = pool
        self.database = Database(pool)
        self._head = schema.head()

    @classmethod
    def connect(cls, conninfo: str, *, cluster: str, size: int = POOL_SIZE, name: str = APPLICATION_NAME) -> Self:
        """A ledger over a pool of its own, whose sessions have a name; does not wait for Postgres to be there."""
        return cls(open_pool(conninfo, size=size, name=name), cluster=cluster)

    def close(self) -> None:
        """Close the pool's connections."""
        self.pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_schema(self) -> None:
        """Return when this code may work on the ledger.

        Raises:
            SchemaNotCompatible: The ledger is older than this code, or wants newer code, or is not there.
            LedgerRefused: It is there, and this login may not read it.
            LedgerUnavailable: Postgres does not answer.
        """
        with self.database.autocommit() as tx:
            revision, min_operator = schema.found(tx.connection)
            if not revision:
                schema.require_readable(tx.connection)
        schema.check(revision, min_operator, self._head)

    # --- the backfill's row

    def find(self, uid: str) -> BackfillRecord | None:
        """The backfill's record, or None when it is not registered."""
        with self.database.autocommit() as tx:
            return registry.find(tx, uid)

    def register(self, new: NewBackfill) -> BackfillRecord:
        """Make the backfill's row, not planned yet; where it exists, return it unchanged."""
        with self.database.transaction() as tx:
            return registry.register(tx, new)

    def take_lease(self, uid: str, owner: str, seconds: float) -> bool:
        """Take or renew the lease on a backfill for `seconds`.

        An owner that is called like its sessions (`session_name`) keeps the lease only as long as it has one, so that
        a replica that was killed is waited for by nobody.

        Returns:
            False when another owner holds it, when it is not registered, or while any replica plans it.
        """
        with self.database.autocommit() as tx:
            return registry.take_lease(tx, uid, owner, seconds)

    def release_lease(self, uid: str, owner: str) -> None:
        """Give the lease back, if `owner` holds it."""
        with self.database.autocommit() as tx:
            registry.release(tx, owner, uid)

    def release_leases(self, owner: str) -> None:
        """Give back every lease that `owner` holds, when it shuts down."""
        with self.database.autocommit() as tx:
            registry.release(tx, owner, None)

    def live_uids(self) -> list[tuple[str, str, str]]:
        """(uid, namespace, name) of this cluster's backfills that are not closed, in order of registration."""
        with self.database.autocommit() as tx:
            return registry.live(tx, self.cluster)

    def finish(self, uid: str) -> None:
        """Note that the backfill came to its end; the first time stands."""
        with self.database.autocommit() as tx:
            registry.finish(tx, uid)

    # --- steering

    def obey(self, uid: str, orders: Orders) -> BackfillRecord:
        """Honour tokens, each exactly once for each new value, and return the record as it is then.

        A new `retry_failed` queues the settled failures again with no attempt used, and opens a finished backfill
        again; a new `resume` makes the failure budget overlook all failures so far. Both lift a stop.
        """
        with self.database.transaction() as tx:
            return steering.obey(tx, uid, orders)

    def hasten(self, uid: str, first: float, longest: float) -> int:
        """Shorten waits that an edited back-off would not make any more; returns how many, a chunk at a time.

        Args:
            uid: The backfill.
            first: Seconds of the first wait; it doubles with each attempt.
            longest: Seconds of the longest wait.
        """
        with self.database.autocommit() as tx:
            return steering.hasten(tx, uid, first, longest, settling.CHUNK_ROWS)

    def stop(self, uid: str, budget: str | None) -> None:
        """Write down that this failure budget stopped the backfill; None lifts the stop."""
        with self.database.autocommit() as tx:
            steering.stop(tx, uid, budget)

    def spread(self, uid: str, nth: int) -> int | None:
        """How many partitions finished since the `nth` last failure, itself included.

        Returns:
            None when there are fewer settled failures.
        """
        with self.database.autocommit() as tx:
            return steering.spread(tx, uid, nth)

    def common_error(self, uid: str) -> CommonError | None:
        """The most frequent error among the latest failures; numbers in it make no difference."""
        with self.database.autocommit() as tx:
            return steering.common_error(tx, uid)

    # --- the queue

    def plan(
        self,
        uid: str,
        rows: Iterable[tuple[str, str]],
        *,
        total: int,
        set_hash: str,
        select: Select,
        skipped: Mapping[str, str] = NOBODY,
    ) -> Counts:
        """Queue all partitions of a registered backfill, once.

        Args:
            uid: The backfill.
            rows: (scope, partition) in the order of the set; read once, never held.
            total: How many rows there are.
            set_hash: Digest of the set.
            select: With Missing, partitions that succeeded in any earlier backfill are skipped; with Failed, all but
                those that failed in an earlier backfill and have not succeeded since.
            skipped: Reason by scope, for scopes whose partitions are skipped altogether.

        Returns:
            The counts; those of the first time when it was planned before, and `rows` is not read then.

        Raises:
            LedgerRefused: `rows` has more or fewer than `total`, or one partition twice; nothing was written.
        """
        with self.database.transaction() as tx:
            return planning.plan(tx, uid, rows, total=total, set_hash=set_hash, select=select, skipped=skipped)

    def claim(self, uid: str, request: ClaimRequest) -> list[ClaimedBatch]:
        """Hand out batches as far as every cap allows, in queue order.

        One call hands out at most `claiming.CLAIM_ROWS` rows, so call it again until it returns none. Unless
        `select` is All, rows that another backfill made meanwhile are skipped on the way.

        Returns:
            The batches, open in the ledger under their deterministic Job names; empty when a cap is reached,
            nothing is due, or all that is due waits for another backfill.
        """
        while True:
            with self.database.transaction() as tx:
                claim = claiming.claim(tx, self.cluster, uid, request)
            if claim.batches or not claim.skipped:
                return claim.batches

    def record_job(self, fence: int, job_name: str, job_uid: str) -> None:
        """Note the Job of an open batch."""
        with self.database.autocommit() as tx:
            settling.record_job(tx, fence, job_name, job_uid)

    def settle(self, fence: int, changes: Sequence[RowChange], *, close: str | None) -> None:
        """Apply what was decided about a batch's rows, and close it.

        A change whose row left the fence or the expected state meanwhile is void, as is one to a failure that is
        settled. Charged changes are appended to the history of attempts.

        Args:
            fence: The batch.
            changes: What becomes of its rows.
            close: The batch's outcome, to close it and free its slot; None leaves it open.

        Raises:
            LedgerBusy: A row is locked, or rows would be left unsettled in a closed batch; nothing was changed.
        """
        with self.database.transaction() as tx:
            settling.settle(tx, fence, changes, close)

    def end_holders(self, fence: int) -> int:
        """End the workers' sessions that hold locks on a batch's rows; returns how many.

        For a batch whose Job is over, when `settle` says `LedgerBusy`: a worker on a lost node keeps its
        transaction, and with it its row, until the server notices.
        """
        with self.database.transaction() as tx:
            return holders.end_holders(tx, fence)

    def cancel(self, uid: str) -> int:
        """Cancel queued rows; returns how many.

        A call takes about a second at most, so that nobody who needs the backfill's row waits in vain: call it
        until it returns 0.
        """
        with self.database.transaction() as tx:
            return settling.cancel(tx, uid, settling.CHUNK_ROWS)

    def skip(self, uid: str, scope: str, reason: str) -> int:
        """Skip queued rows of one scope, with the reason; returns how many. Call it until it returns 0, as `cancel`."""
        with self.database.transaction() as tx:
            return settling.skip(tx, uid, scope, reason, settling.CHUNK_ROWS)

    def close_orphan(self, uid: str) -> None:
        """End a backfill whose resource is gone: rows cancelled, batches closed, history kept."""
        while True:
            with self.database.transaction() as tx:
                if not settling.cancel(tx, uid, settling.CHUNK_ROWS, settling.ORPHANED):
                    break
        with self.database.transaction() as tx:
            settling.close_orphan(tx, uid)

    def prune(self, days: int, rows: int = retention.CHUNK_ROWS) -> bool:
        """Take away a chunk of the history of this cluster's backfills that finished more than `days` days ago.

        Returns:
            False when there was nothing to take, so that a caller goes on until then.
        """
        with self.database.transaction() as tx:
            return retention.prune(tx, self.cluster, days, rows)

    # --- reading

    def counts(self, uid: str) -> Counts:
        """How many rows are in which state; half a second for a million rows."""
        with self.database.autocommit() as tx:
            return reading.counts(tx, uid)

    def queued(self, uid: str, most: int) -> int:
        """How many rows wait, counted up to `most`."""
        with self.database.autocommit() as tx:
            return reading.queued(tx, uid, most)

    def failed(self, uid: str) -> int:
        """How many partitions failed for good."""
        with self.database.autocommit() as tx:
            return reading.failed(tx, uid)

    def next_retry(self, uid: str) -> Retry | None:
        """The row whose back-off is over next; None when none waits."""
        with self.database.autocommit() as tx:
            return reading.next_retry(tx, uid)

    def open_batches(self, uid: str) -> list[OpenBatch]:
        """The open batches, oldest first."""
        with self.database.autocommit() as tx:
            return reading.open_batches(tx, uid)

    def vain(self, uid: str, digest: str, limit: int = 200) -> list[Vain]:
        """The latest closed batches of one template that finished nothing and charged nobody, the newest first."""
        with self.database.autocommit() as tx:
            return reading.vain(tx, uid, digest, limit)

    def failed_parts(self, uid: str, attempts: int) -> int:
        """Batches that failed since anything last succeeded, of partitions that have failed more than `attempts`."""
        with self.database.autocommit() as tx:
            return reading.failed_parts(tx, uid, attempts)

    def rows_of(self, fence: int) -> list[Row]:
        """The rows that carry a fence, by ordinal."""
        with self.database.autocommit() as tx:
            return reading.rows_of(tx, fence)

    def scopes(self, uid: str) -> tuple[str, ...]:
        """Whose rows a backfill has; this never changes once it is planned."""
        with self.database.autocommit() as tx:
            return reading.scopes(tx, uid)

    def skipped(self, uid: str, limit: int = 10) -> list[Skipped]:
        """Why rows were skipped, the most frequent reasons first."""
        with self.database.autocommit() as tx:
            return reading.skipped(tx, uid, limit)

    def failures(self, uid: str, limit: int = 10) -> list[Failure]:
        """The first partitions that failed for good."""
        with self.database.autocommit() as tx:
            return reading.failures(tx, uid, limit)

    def intervals(self, uid: str, state: State, limit: int = 50) -> list[Interval]:
        """The first runs of consecutive partitions in a state."""
        with self.database.autocommit() as tx:
            return reading.intervals(tx, uid, state, limit)

    def throughput(self, uid: str, window_seconds: float) -> float:
        """Partitions per minute that ended within the last `window_seconds`."""
        with self.database.autocommit() as tx:
            return reading.throughput(tx, uid, window_seconds)

    def moved(self, uid: str, window_seconds: float) -> bool:
        """Whether a batch that ran, whatever came of it, has ended within the last `window_seconds`."""
        with self.database.autocommit() as tx:
            return reading.moved(tx, uid, window_seconds)

    def pace(self, uid: str) -> float | None:
        """Seconds that one partition takes of late; None while nothing has finished."""
        with self.database.autocommit() as tx:
            return reading.pace(tx, uid)
