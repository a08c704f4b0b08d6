"""Who holds a batch's rows: sessions of scopes' logins whose open transactions keep the operator from settling.

A worker that lost its node holds its locks until the server notices; one that means harm holds them on purpose. The
operator never waits for them: it ends their sessions, once the batch's Job is over.
"""

from __future__ import annotations

from collections import defaultdict

from flowstone.db.connection import Transaction
from flowstone.db.logins import end

# xmax of a locked row is its locker's transaction, or a multixact that pg_locks does not show; the latter needs two
# lockers, and the second of them is then waited for by nobody but itself.
_HOLDERS = """
    WITH held AS (
        SELECT xmax AS xid FROM flowstone.materialization WHERE fence = %(fence)s
        UNION ALL SELECT xmax FROM flowstone.batch WHERE fence = %(fence)s
    )
    SELECT DISTINCT a.pid, s.role_name
    FROM held AS h
    JOIN pg_catalog.pg_locks AS l ON l.locktype = 'transactionid' AND l.transactionid = h.xid AND l.granted
    JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
    JOIN flowstone.login_scope AS s ON s.role_name = a.usename
"""


def end_holders(tx: Transaction, fence: int) -> int:
    """End the sessions of scopes' logins that hold a row of the batch; returns how many."""
    by_role: dict[str, list[int]] = defaultdict(list)
    for pid, role_name in tx.rows(_HOLDERS, {"fence": fence}):
        by_role[role_name].append(pid)
    return sum(end(tx, role_name, pids) for role_name, pids in by_role.items())
