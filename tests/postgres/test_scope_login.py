"""What a scope's login may do, and what it tries: attacks from a real login, as data.

Each attack is run by the login of SCOPE, which has a running batch, a queued row and a settled one of its own, while
another scope has the same. It is beaten when the statement is refused or touches no row; either way, nothing
that the operator sees may have changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
import pytest
from psycopg.rows import TupleRow

from flowstone.db.ledger import Ledger
from tests.postgres.conftest import OTHER_SCOPE, SCOPE, Place, Queue, Register, request
from tests.postgres.test_ledger import done

Worker = psycopg.Connection[TupleRow]

KEYS = ["a", "b", "c"]
M = "flowstone.materialization"


@dataclass(frozen=True)
class Setting:
    """Two scopes in the same position: "a" succeeded, "b" running, "c" queued."""

    mine: str
    fence: int
    other_fence: int


@pytest.fixture
def setting(ledger: Ledger, queue: Queue) -> Setting:
    """A backfill of each scope, half way."""
    fences = []
    for scope in (SCOPE, OTHER_SCOPE):
        uid = queue(KEYS, scope=scope, asset=f"daily-{scope[-1]}")
        first, second = ledger.claim(uid, request(max_parallel=2))
        ledger.settle(first.fence, [done("a")], close="Complete")
        fences.append((uid, second.fence))
    return Setting(fences[0][0], fences[0][1], fences[1][1])


ATTACKS = {
    "another scope's row": f"UPDATE {M} SET state = 'succeeded' WHERE scope = '{OTHER_SCOPE}'",
    "every scope's rows, by a careless statement": f"UPDATE {M} SET state = 'failed' WHERE state = 'queued'",
    "success of a queued row": f"UPDATE {M} SET state = 'succeeded' WHERE state = 'queued'",
    "failure of a success": f"UPDATE {M} SET state = 'failed' WHERE state = 'succeeded'",
    "back to the queue": f"UPDATE {M} SET state = 'queued' WHERE state = 'running'",
    "skipping": f"UPDATE {M} SET state = 'skipped' WHERE state = 'running'",
    "cancelling": f"UPDATE {M} SET state = 'cancelled' WHERE state = 'running'",
    "an error on a row that runs on": f"UPDATE {M} SET error = 'x' WHERE state = 'running'",
    "moving to another scope": f"UPDATE {M} SET state = 'succeeded', scope = '{OTHER_SCOPE}' WHERE state = 'running'",
    "raising the fence": f"UPDATE {M} SET state = 'succeeded', fence = 999 WHERE state = 'running'",
    "attempts for free": f"UPDATE {M} SET state = 'failed', attempts = 0 WHERE state = 'running'",
    "settling its own failure": f"UPDATE {M} SET state = 'failed', reason = 'Mine' WHERE state = 'running'",
    "another partition": f"UPDATE {M} SET state = 'succeeded', partition = 'z' WHERE state = 'running'",
    "an endless error": f"UPDATE {M} SET state = 'failed', error = repeat('x', 8193) WHERE state = 'running'",
    "a row of its own": f"INSERT INTO {M} (scope, asset, partition, backfill, ordinal) "
    f"VALUES ('{SCOPE}', 'x', 'x', gen_random_uuid(), 0)",
    "a row by COPY": f"COPY {M} (scope, asset, partition, backfill, ordinal) FROM STDIN",
    "deleting history": f"DELETE FROM {M}",
    "emptying the table": f"TRUNCATE {M}",
    "a conflicting upsert": f"INSERT INTO {M} (scope, asset, partition, backfill, ordinal) SELECT scope, asset, "
    f"partition, backfill, 0 FROM {M} ON CONFLICT (scope, asset, partition, backfill) DO UPDATE SET state = 'failed'",
    "locking the table": f"LOCK TABLE {M} IN ROW EXCLUSIVE MODE",
    "locking the table for itself": f"LOCK TABLE {M} IN ACCESS EXCLUSIVE MODE",
    "locking the batches": "LOCK TABLE flowstone.batch IN SHARE MODE",
    "another batch's reporting": f"UPDATE flowstone.batch SET reporting = true WHERE scope = '{OTHER_SCOPE}'",
    "a closed batch's reporting": "UPDATE flowstone.batch SET reporting = true WHERE state = 'closed'",
    "reporting taken back": "UPDATE flowstone.batch SET reporting = false",
    "closing its batch": "UPDATE flowstone.batch SET state = 'closed', closed_at = now()",
    "another Job's batch": "UPDATE flowstone.batch SET reporting = true, job_uid = 'x'",
    "a batch of its own": f"INSERT INTO flowstone.batch (backfill, scope, job_name, template_digest, partitions) "
    f"VALUES (gen_random_uuid(), '{SCOPE}', 'j', 'd', 1)",
    "reading backfills": "SELECT * FROM flowstone.backfill",
    "locking a backfill": "SELECT 1 FROM flowstone.backfill FOR UPDATE",
    "locking the cluster": "SELECT 1 FROM flowstone.cluster_limit FOR UPDATE",
    "reading attempts": "SELECT * FROM flowstone.attempt",
    "writing attempts": "INSERT INTO flowstone.attempt VALUES ('s', 'a', 'p', gen_random_uuid(), 1, 1, now(), 'x')",
    "reading the latest": "SELECT * FROM flowstone.latest",
    "making a latest": "INSERT INTO flowstone.latest VALUES ('s', 'a', 'p', now(), 'v', gen_random_uuid(), 1)",
    "another login's scope": "SELECT role_oid FROM flowstone.login_scope",
    "its own scope changed": f"UPDATE flowstone.login_scope SET scope = '{OTHER_SCOPE}'",
    "a second scope": f"INSERT INTO flowstone.login_scope VALUES (session_user, 1, '{OTHER_SCOPE}', 'b')",
    "the operator's role": "SET ROLE flowstone_operator",
    "the owner's role": "SET ROLE flowstone_owner",
    "the operator's session": "SET SESSION AUTHORIZATION flowstone_operator",
    "row security off": f"SET row_security = off; SELECT * FROM {M}",
    "a policy dropped": f"DROP POLICY scope_floor ON {M}",
    "row security disabled": f"ALTER TABLE {M} DISABLE ROW LEVEL SECURITY",
    "triggers disabled": "SET session_replication_role = replica",
    "a trigger of its own": f"CREATE TRIGGER mine AFTER UPDATE ON {M} EXECUTE FUNCTION flowstone.record_latest()",
    "an object in the schema": "CREATE TABLE flowstone.mine (x int)",
    "the trigger's function": "SELECT flowstone.record_latest()",
    "a new role": "CREATE ROLE mine",
    "the group for itself": "GRANT flowstone_namespace TO flowstone_pool",
    "the next fence": "SELECT nextval('flowstone.batch_fence_seq')",
    "the last fence": "SELECT last_value FROM flowstone.batch_fence_seq",
    "the schema's revision": "UPDATE flowstone.alembic_version SET version_num = '0000'",
    "the migration's lock": "LOCK TABLE flowstone.migration_lock",
    "the operator's password": "ALTER ROLE flowstone_operator PASSWORD 'mine'",
    "the operator's sessions": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE usename = 'flowstone_operator' LIMIT 1",
}

BEATEN = (0, psycopg.errors.InsufficientPrivilege, psycopg.errors.CheckViolation)
"""Nothing touched, not allowed, or a value that the ledger does not take."""

TABLES = ("backfill", "materialization", "batch", "attempt", "latest", "login_scope", "cluster_limit", "compatibility")


def everything(place: Place) -> list[list[TupleRow]]:
    """All rows of the ledger, as the superuser sees them."""
    return [place.all(f"SELECT * FROM flowstone.{table} AS t ORDER BY t::text") for table in TABLES]


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack(worker: Worker, setting: Setting, place: Place, attack: str) -> None:
    """The attack is refused or touches nothing, and the ledger is what it was."""
    before = everything(place)
    assert outcome(worker, ATTACKS[attack]) in BEATEN
    assert everything(place) == before


def outcome(worker: Worker, attack: str) -> object:
    """The class of the refusal, or the number of rows touched, in a transaction that is committed if it can be."""
    try:
        with worker.transaction():
            return worker.execute(attack.encode()).rowcount
    except psycopg.Error as error:
        return type(error)


def test_the_attackers_position_is_real(worker: Worker, setting: Setting) -> None:
    """What the attacks aim at is there: the login sees its own running, queued and done row, and no others."""
    seen = worker.execute("SELECT scope, partition, state FROM flowstone.materialization ORDER BY 2").fetchall()
    assert seen == [(SCOPE, "a", "succeeded"), (SCOPE, "b", "running"), (SCOPE, "c", "queued")]
    batches = worker.execute("SELECT scope, state FROM flowstone.batch ORDER BY fence").fetchall()
    assert batches == [(SCOPE, "closed"), (SCOPE, "open")]


def test_a_success_is_reported(worker: Worker, setting: Setting, ledger: Ledger, place: Place) -> None:
    """A worker reports its success, once, and it becomes the latest though the login may not touch that table."""
    report = f"""
        UPDATE {M} SET state = 'succeeded', finished_at = now(), error = NULL
        WHERE partition = 'b' AND fence = %s AND state = 'running'
    """
    assert worker.execute(report.encode(), [setting.fence]).rowcount == 1
    assert worker.execute(report.encode(), [setting.fence]).rowcount == 0
    latest = place.all("SELECT partition, fence, code_version FROM flowstone.latest WHERE scope = %s ORDER BY 1", SCOPE)
    assert latest[1:] == [("b", setting.fence, "digest-1")]
    assert ledger.counts(setting.mine).succeeded == 2


def test_a_failure_waits_to_be_settled(worker: Worker, setting: Setting, ledger: Ledger) -> None:
    """A worker's failure counts as running until the operator settles it, and cannot be changed any more."""
    report = f"UPDATE {M} SET state = 'failed', finished_at = now(), error = 'boom' WHERE fence = %s"
    assert worker.execute(report.encode(), [setting.fence]).rowcount == 1
    (batch,) = ledger.open_batches(setting.mine)
    assert (batch.running, batch.unsettled) == (0, 1)
    again = f"UPDATE {M} SET state = 'succeeded' WHERE fence = %s"
    assert worker.execute(again.encode(), [setting.fence]).rowcount == 0
    ledger.settle(batch.fence, [done("b", "queued", expected="failed", attempts=1, charged=True)], close="Failed")
    assert ledger.counts(setting.mine).queued == 2


def test_a_superseded_worker_changes_nothing(worker: Worker, setting: Setting, ledger: Ledger) -> None:
    """Once its row was handed out again, a report under the old fence touches no row."""
    ledger.settle(setting.fence, [done("b", "queued")], close="Lost")
    ledger.claim(setting.mine, request())
    report = f"UPDATE {M} SET state = 'succeeded' WHERE partition = 'b' AND fence = %s AND state = 'running'"
    assert worker.execute(report.encode(), [setting.fence]).rowcount == 0


def test_reporting_is_marked(worker: Worker, setting: Setting, ledger: Ledger) -> None:
    """A worker marks its own open batch as reporting."""
    mark = "UPDATE flowstone.batch SET reporting = true WHERE fence = %s"
    assert worker.execute(mark, [setting.fence]).rowcount == 1
    assert worker.execute(mark, [setting.other_fence]).rowcount == 0
    assert [batch.reporting for batch in ledger.open_batches(setting.mine)] == [True]


def test_an_unmapped_login_sees_nothing(place: Place, setting: Setting) -> None:
    """A member of the group without a row in login_scope sees no row at all."""
    with place.connect() as admin:
        admin.execute("CREATE ROLE stranger LOGIN PASSWORD 'worker-secret-2342' IN ROLE flowstone_namespace")
        try:
            with psycopg.connect(place.login("stranger")) as stranger:
                rows = stranger.execute(f"SELECT * FROM {M}".encode()).fetchall()
        finally:
            admin.execute("DROP ROLE stranger")
    assert rows == []


def test_a_careless_policy_opens_nothing(worker: Worker, setting: Setting, place: Place) -> None:
    """The restrictive floor holds when somebody adds a policy that lets everything through."""
    with place.connect() as admin:
        admin.execute(f"CREATE POLICY careless ON {M} USING (true) WITH CHECK (true)".encode())
    scopes = worker.execute(f"SELECT DISTINCT scope FROM {M}".encode()).fetchall()
    assert scopes == [(SCOPE,)]


def test_locks_of_a_worker_stop_nobody(
    worker: Worker, setting: Setting, ledger: Ledger, register: Register, place: Place
) -> None:
    """A worker that locks all it can does not keep the operator from planning, claiming, reading or leasing."""
    with worker.transaction():
        locked = worker.execute(f"SELECT partition FROM {M} FOR UPDATE".encode()).fetchall()
        worker.execute("SELECT 1 FROM flowstone.batch FOR UPDATE")
        uid = register("monthly")
        ledger.plan(uid, [(SCOPE, "m")], total=1, set_hash="h", select="Missing")
        assert len(ledger.claim(uid, request())) == 1
        assert len(ledger.claim(setting.mine, request())) == 1
        assert ledger.take_lease(setting.mine, "one", 60) is True
        assert ledger.counts(setting.mine).total == 3
    assert locked == [("b",)]
