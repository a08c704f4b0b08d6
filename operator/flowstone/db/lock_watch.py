"""Ends sessions of scopes' logins that wait for a lock which makes everybody behind them wait.

Postgres takes a table's lock before it looks whether `CREATE RULE` is allowed. A login that may do nothing to a table
can so wait for its exclusive lock, behind another session of its own that reads the table and never ends; and whoever
comes after waits as well, the operator too. No right can be taken away against that, so it is watched for. Only the
catalogue is read here: the ledger's tables may be what is locked.
"""

from __future__ import annotations

from collections import defaultdict

from flowstone.db.connection import Database
from flowstone.db.logins import end
from flowstone.db.roles import SCOPE_GROUPS

PATIENCE_SECONDS = 3.0
"""A wait is left alone for so long: a tenant may change tables of its own while others read them."""

_WAITING = """
    SELECT DISTINCT l.pid, r.rolname::text
    FROM pg_catalog.pg_locks AS l
    JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
    JOIN pg_catalog.pg_roles AS r ON r.oid = a.usesysid
    JOIN pg_catalog.pg_auth_members AS m ON m.member = r.oid
    JOIN pg_catalog.pg_roles AS g ON g.oid = m.roleid AND g.rolname = ANY (%(groups)s)
    LEFT JOIN pg_catalog.pg_class AS c ON c.oid = l.relation
    WHERE l.locktype = 'relation' AND NOT l.granted
      AND l.mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')
      AND l.waitstart < clock_timestamp() - make_interval(secs => %(patience)s)
      AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database())
      AND c.relowner IS DISTINCT FROM r.oid
"""


def end_waiting(database: Database, *, patience: float = PATIENCE_SECONDS) -> int:
    """End the sessions that have waited too long for such a lock; returns how many.

    Args:
        database: The ledger's, as in `ledger.database`.
        patience: Seconds that a wait may take.
    """
    by_role: dict[str, list[int]] = defaultdict(list)
    with database.transaction() as tx:
        for pid, role_name in tx.rows(_WAITING, {"groups": list(SCOPE_GROUPS), "patience": patience}):
            by_role[role_name].append(pid)
        return sum(end(tx, role_name, pids) for role_name, pids in by_role.items())
