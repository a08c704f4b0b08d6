"""Ends sessions of scopes' logins that wait for a lock which makes everybody behind them wait.

Postgres takes a table's lock before it looks whether `CREATE RULE` is allowed. A login that may do nothing to a table
can so wait for its exclusive lock, behind another session of its own that reads the table and never ends; and whoever
comes after waits as well, the operator too. No right can be taken away against that, so it is watched for. Only the
catalogue is read for that: the ledger's tables may be what is locked. Who fills the server's table of locks is ended
as well.

A tenant may also lock what it may delete from. Of tables with its own rows that is its right; the canaries' table is
nobody's, and while a proof runs it is kept free.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from flowstone.db.connection import Database
from flowstone.db.logins import end
from flowstone.db.roles import SCOPE_GROUPS
from flowstone.errors import LedgerBusy, LedgerError, LedgerUnavailable
from flowstone.tenant.names import CANARY_PREFIX

PATIENCE_SECONDS = 3.0
"""A wait is left alone for so long: a tenant may lock what it may delete from. Not so for the ledger's tables."""

# Waits with a lock_timeout of their own, one after the other, would never get old; and who waits for what another
# session of the same login holds would begin again at once, so that one is ended as well.
_WAITING = """
    SELECT DISTINCT p.pid, r.rolname::text
    FROM pg_catalog.pg_locks AS l
    JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
    JOIN pg_catalog.pg_roles AS r ON r.oid = a.usesysid
    JOIN pg_catalog.pg_auth_members AS m ON m.member = r.oid
    JOIN pg_catalog.pg_roles AS g ON g.oid = m.roleid AND g.rolname = ANY (%(groups)s)
    LEFT JOIN pg_catalog.pg_class AS c ON c.oid = l.relation
    LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    CROSS JOIN LATERAL (
        SELECT l.pid UNION SELECT o.pid FROM pg_catalog.pg_stat_activity AS o
        WHERE o.usesysid = a.usesysid AND o.pid = ANY (pg_catalog.pg_blocking_pids(l.pid))
    ) AS p
    WHERE l.locktype = 'relation' AND NOT l.granted
      AND l.mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')
      AND (l.waitstart < clock_timestamp() - make_interval(secs => %(patience)s)
           OR n.nspname = 'flowstone' AND c.relname <> 'canary')
      AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database())
      AND c.relowner IS DISTINCT FROM r.oid
"""

# The server's table of locks is for all databases; when it is full, nobody gets any (53200).
_HOARDING = """
    WITH held AS (
        SELECT a.usesysid, l.pid, count(*) AS locks FROM pg_catalog.pg_locks AS l
        JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid WHERE NOT l.fastpath GROUP BY a.usesysid, l.pid
    )
    SELECT h.pid, r.rolname::text FROM held AS h JOIN pg_catalog.pg_roles AS r ON r.oid = h.usesysid
    WHERE h.locks > 100
      AND (SELECT sum(o.locks) FROM held AS o WHERE o.usesysid = h.usesysid)
          > current_setting('max_locks_per_transaction')::int * current_setting('max_connections')::int / 2
      AND EXISTS (SELECT FROM pg_catalog.pg_auth_members AS m JOIN pg_catalog.pg_roles AS g ON g.oid = m.roleid
                  WHERE m.member = r.oid AND g.rolname = ANY (%(groups)s))
"""
"""Sessions of a login that has more than half of it."""


def end_waiting(database: Database, *, patience: float = PATIENCE_SECONDS) -> int:
    """End the sessions that have waited too long for such a lock, or have too many locks; returns how many.

    Args:
        database: The ledger's, as in `ledger.database`.
        patience: Seconds that a wait for a table may take that is not the ledger's.
    """
    by_role: dict[str, list[int]] = defaultdict(list)
    values = {"groups": list(SCOPE_GROUPS), "patience": patience}
    with database.transaction() as tx:
        for pid, role_name in {*tx.rows(_WAITING, values), *tx.rows(_HOARDING, values)}:
            by_role[role_name].append(pid)
        return sum(end(tx, role_name, pids) for role_name, pids in by_role.items())


# The canaries lock their own table while they attack it, and so do other clusters' canaries.
_LOCKING = """
    SELECT DISTINCT c.oid::regclass::text, a.pid, r.rolname::text, s.role_oid IS NOT NULL
    FROM pg_catalog.pg_locks AS l
    JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
    JOIN pg_catalog.pg_roles AS r ON r.oid = a.usesysid
    JOIN pg_catalog.pg_class AS c ON c.oid = l.relation AND c.relrowsecurity
    LEFT JOIN flowstone.login_scope AS s ON s.role_name = r.rolname AND s.role_oid = r.oid
    WHERE l.locktype = 'relation'
      AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
      AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database())
      AND NOT EXISTS (SELECT FROM flowstone.tenant AS t WHERE t.tenant_id ^@ %(canaries)s
                      AND r.rolname IN (t.role_base || '_a', t.role_base || '_b', t.role_base || '_p'))
    ORDER BY 1, 2
"""

WATCH_SECONDS = 0.25
"""Between two looks at the canaries' table while a proof runs, whose statements wait two seconds for a lock."""


@dataclass(frozen=True, slots=True)
class Locker:
    """A session that keeps others from a table with tenants' rows.

    Attributes:
        scoped: It is a scope's, so the operator may end it.
    """

    table: str
    pid: int
    role_name: str
    scoped: bool

    def __str__(self) -> str:
        return (
            f"{self.table} is locked by session {self.pid} of login {self.role_name}: end it with "
            f"`SELECT pg_terminate_backend({self.pid})` as a superuser, or wait for it, and try again"
        )


def lockers(database: Database) -> list[Locker]:
    """Return who holds, or waits for, a lock that keeps others from writing to a table with row security."""
    with database.transaction() as tx:
        return [Locker(*row) for row in tx.rows(_LOCKING, {"canaries": CANARY_PREFIX})]


@contextmanager
def naming_lockers(database: Database) -> Iterator[None]:
    """Say who stands in the way when what is done inside fails for want of a lock.

    Raises:
        LedgerBusy: With table, session and remedy.
    """
    try:
        yield
    except (LedgerBusy, LedgerUnavailable) as error:
        found: list[Locker] = []
        with suppress(LedgerError):
            found = lockers(database)
        if found:
            raise LedgerBusy("; ".join(map(str, found))) from error
        raise


@contextmanager
def kept_free(database: Database, table: str) -> Iterator[list[Locker]]:
    """End, as long as the block lasts, the sessions of scopes' logins that lock a table which is nobody's to lock.

    Yields:
        Who was seen doing so, ended or not; it grows.
    """
    seen: list[Locker] = []
    over = threading.Event()

    def watch() -> None:
        while True:
            with suppress(LedgerError):  # whoever needs the table is told
                seen.extend(_end_lockers(database, table))
            if over.wait(WATCH_SECONDS):
                return

    thread = threading.Thread(target=watch, name="canary-watch", daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def _end_lockers(database: Database, table: str) -> list[Locker]:
    found = [one for one in lockers(database) if one.table == table]
    for one in found:
        if one.scoped:
            with database.transaction() as tx:
                end(tx, one.role_name, [one.pid])
    return found
