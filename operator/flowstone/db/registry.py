"""The row of each backfill: made once, leased by one replica at a time, finished, closed."""

from __future__ import annotations

from psycopg.types.json import Jsonb

from flowstone.backfill.records import BackfillRecord, NewBackfill
from flowstone.db.connection import APPLICATION_NAME, Transaction
from flowstone.errors import LedgerRefused

_FIND = """
    SELECT uid::text, seq, cluster, namespace, name, scope, asset, spec_hash, set_hash, total,
           created_at, planned_at, finished_at, closed_at, resumed, retried, forgiven, stopped,
           pruned_counts IS NOT NULL
    FROM flowstone.backfill WHERE uid = %(uid)s
"""

_INSERT = """
    INSERT INTO flowstone.backfill (uid, cluster, namespace, name, scope, asset, spec, spec_hash)
    VALUES (%(uid)s, %(cluster)s, %(namespace)s, %(name)s, %(scope)s, %(asset)s, %(spec)s, %(spec_hash)s)
    ON CONFLICT (uid) DO NOTHING
"""

# SKIP LOCKED: while another replica plans the backfill it holds the row for seconds, and that is an answer too.
# A replica without a session was killed, or is cut off and will be refused when it comes back: fences see to the rest.
_TAKE_LEASE = """
    UPDATE flowstone.backfill AS b
    SET lease_owner = %(owner)s, lease_until = clock_timestamp() + make_interval(secs => %(seconds)s)
    FROM (
        SELECT uid FROM flowstone.backfill
        WHERE uid = %(uid)s
          AND (lease_owner IS NULL OR lease_owner = %(owner)s OR lease_until < clock_timestamp()
               OR (lease_owner ^@ %(named)s AND NOT EXISTS (
                   SELECT FROM pg_catalog.pg_stat_activity AS a WHERE a.application_name = lease_owner)))
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS free
    WHERE b.uid = free.uid
"""

_RELEASE = """
    UPDATE flowstone.backfill SET lease_owner = NULL, lease_until = NULL
    WHERE lease_owner = %(owner)s AND (uid = %(uid)s OR %(uid)s::uuid IS NULL)
"""


def find(tx: Transaction, uid: str) -> BackfillRecord | None:
    """The backfill's record, or None."""
    row = tx.row(_FIND, {"uid": uid})
    return BackfillRecord(*row) if row else None


def lock(tx: Transaction, uid: str) -> BackfillRecord:
    """The backfill's record, locked until the transaction ends.

    Raises:
        LedgerRefused: No backfill of that uid is registered.
        LedgerBusy: Another replica has held its row for longer than `lock_timeout`.
    """
    row = tx.row(_FIND + " FOR UPDATE", {"uid": uid})
    if row is None:
        raise LedgerRefused(f"backfill: {uid}: not registered in the ledger: register it first")
    return BackfillRecord(*row)


def register(tx: Transaction, new: NewBackfill) -> BackfillRecord:
    """Insert the backfill, unless it is there; either way return what is there."""
    tx.run(
        "INSERT INTO flowstone.cluster_limit (cluster) VALUES (%(cluster)s) ON CONFLICT DO NOTHING",
        {"cluster": new.cluster},
    )
    tx.run(
        _INSERT,
        {
            "uid": new.uid,
            "cluster": new.cluster,
            "namespace": new.namespace,
            "name": new.name,
            "scope": new.scope,
            "asset": new.asset,
            "spec": Jsonb(dict(new.spec)),
            "spec_hash": new.spec_hash,
        },
    )
    record = find(tx, new.uid)
    if record is None:
        raise LedgerRefused(f"backfill: {new.uid}: vanished while it was registered: register it again")
    return record


def take_lease(tx: Transaction, uid: str, owner: str, seconds: float) -> bool:
    """Whether `owner` holds the backfill for the next `seconds`."""
    names = {"uid": uid, "owner": owner, "seconds": seconds, "named": f"{APPLICATION_NAME} "}
    return tx.run(_TAKE_LEASE, names) == 1


def release(tx: Transaction, owner: str, uid: str | None) -> None:
    """Give back the lease on one backfill, or on all that `owner` holds."""
    tx.run(_RELEASE, {"owner": owner, "uid": uid})


def live(tx: Transaction, cluster: str) -> list[tuple[str, str, str]]:
    """(uid, namespace, name) of every backfill of the cluster that is not closed."""
    query = """
        SELECT uid::text, namespace, name FROM flowstone.backfill
        WHERE cluster = %(cluster)s AND closed_at IS NULL ORDER BY seq
    """
    return [(uid, namespace, name) for uid, namespace, name in tx.rows(query, {"cluster": cluster})]


def finish(tx: Transaction, uid: str) -> None:
    """Note when the last partition came to its end; the first note stands."""
    tx.run(
        "UPDATE flowstone.backfill SET finished_at = coalesce(finished_at, now()) WHERE uid = %(uid)s",
        {"uid": uid},
    )
