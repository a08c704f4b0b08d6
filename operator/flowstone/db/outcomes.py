"""Outcomes of batches in tenants' own databases: the fence is raised there, and what is reported there is copied here.

The row in the tenant's database is the truth, and the ledger's is a copy. Three rules make the copy a safe one:

1. A fence is raised there before the run exists, so no worker ever finds a row that is not its own.
2. Once a run is over (or its machine is lost), what it has not reported is withdrawn there, and only then does the
   ledger learn that it is over: nothing can be reported afterwards that the ledger does not know of.
3. A success of the same backfill is never handed out again: should the ledger have missed it, raising the fence leaves
   it as it is, and it is copied under the new fence.

Each of them may break off and be done again. The operator waits for nobody: who holds a row that it needs is ended.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from flowstone.backfill.records import OpenBatch
from flowstone.db.connection import Database
from flowstone.db.ledger import Ledger
from flowstone.db.logins import end
from flowstone.db.own_databases import OwnDatabases
from flowstone.errors import DatabaseUnavailable, LedgerBusy

_OWN = """
    SELECT scope, role_base FROM flowstone.tenant
    WHERE scope = ANY(%(scopes)s) AND isolation = 'Database' AND role_base IS NOT NULL
"""

_HANDED_OUT = """
    SELECT scope, asset, partition, backfill, attempts FROM flowstone.materialization
    WHERE fence = %(fence)s AND state = 'running' ORDER BY ordinal
"""

_OPEN_FENCES = "SELECT fence FROM flowstone.batch WHERE scope = %(scope)s AND state = 'open'"

_LOCK = """
    SELECT 1 FROM flowstone.materialization AS m JOIN unnest(%(partitions)s::text[]) AS p (partition) USING (partition)
    WHERE m.scope = %(scope)s AND m.asset = %(asset)s ORDER BY m.partition FOR UPDATE OF m NOWAIT
"""

_FORGET = """
    DELETE FROM flowstone.batch WHERE fence IN (
        SELECT fence FROM flowstone.batch WHERE state = 'closed' AND fence < %(fence)s AND fence <> ALL(%(open)s)
        LIMIT 1000 FOR UPDATE SKIP LOCKED)
"""

_OPEN = "INSERT INTO flowstone.batch (fence, backfill) VALUES (%(fence)s, %(backfill)s) ON CONFLICT DO NOTHING"

_RAISE = """
    INSERT INTO flowstone.materialization AS m (scope, asset, partition, backfill, fence, attempts, state)
    SELECT %(scope)s, %(asset)s, p.partition, %(backfill)s, %(fence)s, p.attempts, 'running'
    FROM unnest(%(partitions)s::text[], %(attempts)s::int[]) AS p (partition, attempts)
    ON CONFLICT (scope, asset, partition) DO UPDATE
    SET fence = excluded.fence, backfill = excluded.backfill, attempts = excluded.attempts,
        state = CASE WHEN m.backfill = excluded.backfill AND m.state = 'succeeded' THEN m.state ELSE 'running' END,
        finished_at = CASE WHEN m.backfill = excluded.backfill AND m.state = 'succeeded' THEN m.finished_at END,
        error = NULL
    WHERE m.fence < excluded.fence
"""

_LOCK_BATCH = "SELECT 1 FROM flowstone.batch WHERE fence = %(fence)s FOR UPDATE NOWAIT"

_LOCK_RUNNING = """
    SELECT 1 FROM flowstone.materialization WHERE fence = %(fence)s AND state = 'running'
    ORDER BY partition FOR UPDATE NOWAIT
"""

_WITHDRAW = """
    UPDATE flowstone.materialization SET state = 'withdrawn', finished_at = clock_timestamp()
    WHERE fence = %(fence)s AND state = 'running'
"""

_CLOSE = "UPDATE flowstone.batch SET state = 'closed' WHERE fence = %(fence)s AND state = 'open'"

_STANDING = """
    SELECT b.fence, b.reporting, (
        SELECT count(*) FROM flowstone.materialization AS m WHERE m.fence = b.fence AND m.state = 'running')
    FROM flowstone.batch AS b WHERE b.fence = ANY(%(fences)s)
"""

# The tenant's login may write any time there, such as infinity, which no client can read.
_REPORTED = """
    SELECT partition, state, CASE WHEN finished_at BETWEEN '2000-01-01' AND clock_timestamp() THEN finished_at
        ELSE clock_timestamp() END, error FROM flowstone.materialization
    WHERE fence = %(fence)s AND state IN ('succeeded', 'failed')
"""

# As the worker itself would have written it, had it worked in the ledger's database.
_COPY = """
    UPDATE flowstone.materialization AS m SET state = c.state, finished_at = c.finished_at, error = c.error
    FROM unnest(%(partitions)s::text[], %(states)s::text[], %(times)s::timestamptz[], %(errors)s::text[])
        AS c (partition, state, finished_at, error)
    WHERE m.fence = %(fence)s AND m.partition = c.partition AND m.state = 'running'
"""

_MARK = "UPDATE flowstone.batch SET reporting = true WHERE fence = %(fence)s AND state = 'open' AND NOT reporting"

# As in `holders`: xmax of a locked row is its locker's transaction.
_HOLDERS = """
    WITH held AS (
        SELECT m.xmax AS xid FROM flowstone.materialization AS m WHERE m.scope = %(scope)s
            AND (m.fence = %(fence)s OR m.asset = %(asset)s AND m.partition = ANY(%(partitions)s))
        UNION ALL SELECT b.xmax FROM flowstone.batch AS b WHERE b.fence = %(fence)s
    )
    SELECT DISTINCT a.pid, a.usename FROM held AS h
    JOIN pg_catalog.pg_locks AS l ON l.locktype = 'transactionid' AND l.transactionid = h.xid AND l.granted
    JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
    WHERE a.usename IN (%(own)s || '_a', %(own)s || '_b')
"""


class Outcomes:
    """What is reported in tenants' own databases.

    Args:
        database: The ledger's, as in `ledger.database`.
        databases: Those of the tenants.
    """

    def __init__(self, database: Database, databases: OwnDatabases) -> None:
        self._database = database
        self._databases = databases

    def own(self, scopes: Iterable[str]) -> Mapping[str, str]:
        """Return the databases of those scopes that have one of their own."""
        wanted = sorted({scope for scope in scopes if scope.startswith("t/")})
        if not wanted:
            return {}
        with self._database.transaction() as tx:
            return dict(tx.rows(_OWN, {"scopes": wanted}))

    def raise_fence(self, own: str, fence: int) -> None:
        """Hand a claimed batch's partitions to its fence, in the tenant's database; the run may start afterwards.

        Raises:
            DatabaseUnavailable: It does not answer.
            LedgerBusy: A session held one of the rows; it was ended, so that the next try finds them free.
        """
        values = self._handed_out(fence)
        if values is None:
            return
        try:
            with self._databases.inside(own) as tx:
                tx.rows(_LOCK, values)
                tx.run(_OPEN, values)
                tx.run(_RAISE, values)
                tx.run(_FORGET, values)
        except LedgerBusy:
            self._end_holders(own, values)
            raise

    def collect(self, own: str, batches: Sequence[OpenBatch]) -> bool:
        """Copy what was reported so far by runs that go on; returns whether the ledger changed.

        Raises:
            DatabaseUnavailable: The tenant's database does not answer.
        """
        with self._databases.inside(own) as tx:
            standing = tx.rows(_STANDING, {"fences": [one.fence for one in batches]})
            known = {one.fence: (one.reporting, one.running) for one in batches}
            news = [
                (fence, reporting) for fence, reporting, running in standing if known[fence] != (reporting, running)
            ]
            reported = [(fence, reporting, tx.rows(_REPORTED, {"fence": fence})) for fence, reporting in news]
        for one in reported:
            self._copy(*one)
        return bool(reported)

    def conclude(self, own: str, batch: OpenBatch) -> None:
        """Withdraw what a run that is over has not reported, and copy all that it has.

        Raises:
            DatabaseUnavailable: The tenant's database does not answer.
            LedgerBusy: A session held one of the rows; it was ended, so that the next try finds them free.
        """
        values = {"fence": batch.fence}
        try:
            with self._databases.inside(own) as tx:
                tx.rows(_LOCK_BATCH, values)
                tx.rows(_LOCK_RUNNING, values)
                tx.run(_WITHDRAW, values)
                tx.run(_CLOSE, values)
        except LedgerBusy:
            self._end_holders(own, {**values, "scope": batch.scope, "asset": "", "partitions": []})
            raise
        with self._databases.inside(own) as tx:
            reporting = tx.row("SELECT reporting FROM flowstone.batch WHERE fence = %(fence)s", values) == (True,)
            reported = tx.rows(_REPORTED, values)
        self._copy(batch.fence, reporting, reported)

    def close_orphan(self, ledger: Ledger, uid: str) -> None:
        """End a backfill whose resource is gone, with all that its workers have reported until now.

        A database that does not answer holds nothing up: what is recorded there is then not known of here.
        """
        batches = ledger.open_batches(uid)
        own = self.own(one.scope for one in batches)
        for one in batches:
            if one.scope in own:
                with suppress(DatabaseUnavailable):
                    self._conclude_anyhow(own[one.scope], one)
        ledger.close_orphan(uid)

    def _conclude_anyhow(self, own: str, batch: OpenBatch) -> None:
        """Conclude a batch whose worker may be at work; the first try ends its session."""
        try:
            self.conclude(own, batch)
        except LedgerBusy:
            self.conclude(own, batch)

    def _handed_out(self, fence: int) -> dict[str, Any] | None:
        with self._database.transaction() as tx:
            rows = tx.rows(_HANDED_OUT, {"fence": fence})
            if not rows:
                return None
            scope, asset, _, backfill, _ = rows[0]
            opened = [number for (number,) in tx.rows(_OPEN_FENCES, {"scope": scope})]
        return {
            "fence": fence,
            "scope": scope,
            "asset": asset,
            "backfill": backfill,
            "partitions": [row[2] for row in rows],
            "attempts": [row[4] for row in rows],
            "open": opened,
        }

    def _copy(self, fence: int, reporting: bool, rows: Sequence[tuple[Any, ...]]) -> None:
        columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
        names = ("partitions", "states", "times", "errors")
        values = {name: list(column) for name, column in zip(names, columns, strict=True)}
        with self._database.transaction() as tx:
            if reporting:
                tx.run(_MARK, {"fence": fence})
            tx.run(_COPY, {"fence": fence, **values})

    def _end_holders(self, own: str, values: Mapping[str, Any]) -> None:
        by_role: dict[str, list[int]] = defaultdict(list)
        with self._databases.inside(own) as tx:
            for pid, role_name in tx.rows(_HOLDERS, {**values, "own": own}):
                by_role[role_name].append(pid)
            for role_name, pids in by_role.items():
                end(tx, role_name, pids)
