"""Backfills of a Python function whose program is gone: nobody else can work them off."""

from __future__ import annotations

from flowstone.db.connection import Database

_FIND = """
    SELECT uid::text FROM flowstone.backfill
    WHERE cluster = %(cluster)s AND scope = %(scope)s AND asset = %(asset)s
      AND finished_at IS NULL AND closed_at IS NULL AND spec ->> 'machine' = %(machine)s
    ORDER BY seq
"""


def unfinished(database: Database, *, cluster: str, scope: str, asset: str, machine: str) -> list[str]:
    """Return the uids of unfinished backfills of an asset that were run with a function on this machine, in order."""
    with database.transaction() as tx:
        named = {"cluster": cluster, "scope": scope, "asset": asset, "machine": machine}
        return [uid for (uid,) in tx.rows(_FIND, named)]
