"""The schema from zero, the schema from migrations, and migrating at the same time, without rights, and twice."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import structlog
from alembic import command
from alembic.script import ScriptDirectory
from psycopg.conninfo import conninfo_to_dict
from structlog.testing import capture_logs

from flowstone.backfill.records import Counts, NewBackfill
from flowstone.db import schema
from flowstone.db.ledger import Ledger
from flowstone.db.logins import Logins
from flowstone.db.migrate import config, engine_for, migrate, unforced
from flowstone.errors import LedgerBusy, LedgerRefused, LedgerUnavailable, SchemaNotCompatible
from tests.postgres.conftest import CLUSTER, OPERATOR_PASSWORD, SCOPE, Place, login, request
from tests.postgres.servers import free_port, installed, local

LOG = structlog.get_logger()


def test_the_head_is_the_number_of_the_last_revision() -> None:
    """The code's version towards the ledger is the number of Alembic's only head."""
    assert ScriptDirectory.from_config(config()).get_heads() == [f"{schema.head():04d}"]


def test_models_and_migrations_agree(place: Place) -> None:
    """`alembic check` finds no difference between a migrated database and the models."""
    with engine_for(place.admin).connect() as connection:
        command.check(config(connection))


def test_alembic_by_hand_finds_nothing_to_do(place: Place) -> None:
    """In a checkout, `alembic upgrade head` and `alembic check` connect as the PG* variables say."""
    names = {"dbname": "PGDATABASE"}
    told = conninfo_to_dict(place.admin).items()
    environment = {names.get(name, f"PG{name.upper()}"): str(value) for name, value in told}
    alembic = [sys.executable, "-m", "alembic", "-c", schema.migrations() / "alembic.ini"]
    for words in (["upgrade", "head"], ["check"]):
        subprocess.run([*alembic, *words], env=os.environ | environment, check=True, capture_output=True)
    assert place.all("SELECT version_num FROM flowstone.alembic_version") == [(f"{schema.head():04d}",)]


def test_migrating_twice_changes_nothing(empty_database: Place) -> None:
    """A second run reports the same revision before and after, and the operator can log in after both."""
    migrate(empty_database.admin, operator_password=None, log=LOG)
    with capture_logs() as logs:
        migrate(empty_database.admin, operator_password=OPERATOR_PASSWORD, log=LOG)
    head = f"{schema.head():04d}"
    assert [(entry["before"], entry["now"]) for entry in logs if entry["event"] == "ledger-migrated"] == [(head, head)]
    psycopg.connect(empty_database.operator).close()


def test_an_older_release_leaves_a_newer_ledger_alone(empty_database: Place) -> None:
    """After a rollback the older init container finds a revision it does not know: it changes nothing and goes on;
    whether the older operator may work there is what `compatibility` says."""
    migrate(empty_database.admin, operator_password=OPERATOR_PASSWORD, log=LOG)
    newer = f"{schema.head() + 1:04}"
    with empty_database.connect() as admin:
        admin.execute("UPDATE flowstone.alembic_version SET version_num = %s", [newer])
    with capture_logs() as logs:
        migrate(empty_database.admin, operator_password=OPERATOR_PASSWORD, log=LOG)
    assert "ledger-newer" in [line["event"] for line in logs]
    assert empty_database.all("SELECT version_num FROM flowstone.alembic_version") == [(newer,)]


def test_replicas_migrate_at_the_same_time(empty_database: Place) -> None:
    """Four migrations of one empty database at once all succeed, and one of them did the work."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            migrate(empty_database.admin, operator_password=OPERATOR_PASSWORD, log=LOG)
        except BaseException as error:
            failures.append(error)

    with capture_logs() as logs:
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    before = [entry["before"] for entry in logs if entry["event"] == "ledger-migrated"]
    assert sorted(before, key=str) == [f"{schema.head():04d}"] * 3 + [None]


def test_a_password_set_at_the_same_time_is_set_again(place: Place) -> None:
    """Who meets another's ALTER ROLE half-way ("tuple concurrently updated") tries again, and the password holds."""
    pauses: list[float] = []

    def run() -> None:
        migrate(place.admin, operator_password=OPERATOR_PASSWORD, log=LOG, sleep=pauses.append)

    with psycopg.connect(place.admin) as other:
        other.execute("ALTER ROLE flowstone_operator CONNECTION LIMIT -1")
        with ThreadPoolExecutor(1) as pool:
            migrating = pool.submit(run)
            until_somebody_waits_for(place, other.info.backend_pid)
            other.commit()
            migrating.result()
    assert len(pauses) == 1
    psycopg.connect(place.operator).close()


def until_somebody_waits_for(place: Place, pid: int) -> None:
    """Return once a session is blocked by another one."""
    deadline = time.monotonic() + 20
    while not place.all("SELECT FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))", pid):
        assert time.monotonic() < deadline, "nobody waits"
        time.sleep(0.01)


def test_everything_belongs_to_the_owner_and_nothing_to_public(place: Place) -> None:
    """Each table, sequence and function is the owner's, and PUBLIC has no right to any, nor to the schema."""
    owners = place.all("""
        SELECT DISTINCT pg_get_userbyid(owner) FROM (
            SELECT relowner FROM pg_class WHERE relnamespace = 'flowstone'::regnamespace
            UNION ALL SELECT proowner FROM pg_proc WHERE pronamespace = 'flowstone'::regnamespace
            UNION ALL SELECT nspowner FROM pg_namespace WHERE nspname = 'flowstone'
        ) AS everything (owner)
    """)
    public = place.all("""
        SELECT name FROM (
            SELECT relname, relacl, 'r'::"char", relowner FROM pg_class
            WHERE relnamespace = 'flowstone'::regnamespace AND relkind IN ('r', 'S', 'v')
            UNION ALL SELECT attname, attacl, 'c', 10 FROM pg_attribute JOIN pg_class ON attrelid = pg_class.oid
            WHERE relnamespace = 'flowstone'::regnamespace AND attacl IS NOT NULL
            UNION ALL SELECT proname, proacl, 'f', proowner FROM pg_proc
            WHERE pronamespace = 'flowstone'::regnamespace
            UNION ALL SELECT nspname, nspacl, 'n', nspowner FROM pg_namespace WHERE nspname = 'flowstone'
        ) AS everything (name, acl, kind, owner)
        CROSS JOIN LATERAL aclexplode(coalesce(acl, acldefault(kind, owner))) AS granted
        WHERE granted.grantee = 0
    """)
    assert owners == [("flowstone_owner",)]
    assert public == []


def test_every_table_with_a_scope_is_under_forced_row_security(place: Place) -> None:
    """A table that has a column `scope` is under ENABLE and FORCE, and has a policy for the operator."""
    unprotected = place.all("""
        SELECT c.relname FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'scope'
        WHERE c.relnamespace = 'flowstone'::regnamespace AND c.relkind IN ('r', 'p')
          AND NOT (c.relrowsecurity AND c.relforcerowsecurity AND EXISTS (
              SELECT FROM pg_policies AS p WHERE p.schemaname = 'flowstone' AND p.tablename = c.relname
              AND p.roles = '{flowstone_operator}' AND p.qual = 'true' AND p.with_check = 'true'))
    """)
    assert unprotected == []


def test_neither_password_nor_verifier_is_logged(place: Place) -> None:
    """A server that logs every statement knows nothing of the operator's password or its verifier afterwards."""
    migrate(place.admin, operator_password=OPERATOR_PASSWORD, log=LOG)
    log = place.server.log()
    assert "flowstone_verifier" in log
    assert OPERATOR_PASSWORD not in log
    assert "SCRAM-SHA-256$" not in log


def test_a_held_lock_is_waited_for_and_then_given_up(place: Place) -> None:
    """While a session holds a table that migrating needs, it tries again; in the end it says that it is busy."""
    waits: list[float] = []
    with place.connect() as holder, holder.transaction():
        holder.execute("LOCK TABLE flowstone.migration_lock IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(LedgerBusy):
            migrate(place.admin, operator_password=None, log=LOG, sleep=waits.append, tries=2, lock_timeout="100ms")
    assert len(waits) == 1


def test_an_operator_without_the_ledger_is_told_so(empty_database: Place) -> None:
    """Without a schema the check says revision 0, and names the command that helps."""
    with (
        Ledger.connect(empty_database.operator, cluster=CLUSTER) as ledger,
        pytest.raises(SchemaNotCompatible, match="flowstone migrate") as caught,
    ):
        ledger.check_schema()
    assert (caught.value.found, caught.value.needed) == (0, schema.head())


@pytest.mark.parametrize(
    ("revision", "min_operator", "code", "compatible"),
    [(3, 1, 3, True), (2, 1, 3, False), (4, 1, 3, True), (4, 3, 3, True), (4, 4, 3, False), (0, 0, 1, False)],
)
def test_compatibility(revision: int, min_operator: int, code: int, compatible: bool) -> None:
    """Code works on its own and newer schemas, unless they ask for newer code; never on older ones."""
    if compatible:
        schema.check(revision, min_operator, code)
    else:
        with pytest.raises(SchemaNotCompatible):
            schema.check(revision, min_operator, code)


def test_the_check_follows_the_database(place: Place, ledger: Ledger) -> None:
    """A newer schema that still takes this code passes; one that wants newer code does not; then it passes again."""
    head = schema.head()
    ledger.check_schema()
    with place.connect() as admin:
        admin.execute("UPDATE flowstone.alembic_version SET version_num = %s", [f"{head + 1:04d}"])
        ledger.check_schema()
        admin.execute("UPDATE flowstone.compatibility SET min_operator = %s", [head + 1])
        with pytest.raises(SchemaNotCompatible):
            ledger.check_schema()
        admin.execute("UPDATE flowstone.compatibility SET min_operator = 1")
        ledger.check_schema()
        admin.execute("UPDATE flowstone.alembic_version SET version_num = %s", [f"{head - 1:04d}"])
        with pytest.raises(SchemaNotCompatible):
            ledger.check_schema()


def test_an_absent_server_is_unavailable() -> None:
    """Migrating where nothing listens says that the ledger is unavailable."""
    with pytest.raises(LedgerUnavailable):
        migrate(f"host=127.0.0.1 port={free_port()} user=x dbname=x", operator_password=None, log=LOG)


@pytest.fixture(scope="module", params=sorted(installed()))
def managed(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A managed service: a fresh server on which the installer is no superuser but has a database of its own."""
    with local(request.param) as server:
        with server.connect() as admin:
            admin.execute("CREATE ROLE managed LOGIN CREATEROLE CREATEDB PASSWORD 'managed-secret'")
            admin.execute("CREATE DATABASE managed OWNER managed")
        yield Place(server, "managed")


def managed_installer(place: Place) -> str:
    """The connection string of that installer."""
    return place.server.conninfo(place.name, "managed", "managed-secret")


class TestInstallerWithoutSuperuser:
    """CREATEROLE, CREATEDB and a database of one's own must do."""

    def test_it_migrates_and_says_what_it_was_not_given(self, managed: Place) -> None:
        """The roles and the ledger are made; BYPASSRLS, which such a server cannot give, is named; twice is as once."""
        with capture_logs() as logs:
            migrate(managed_installer(managed), operator_password=OPERATOR_PASSWORD, log=LOG)
        missing = [entry["attribute"] for entry in logs if entry["event"] == "role-attribute-not-given"]
        migrate(managed_installer(managed), operator_password=OPERATOR_PASSWORD, log=LOG)
        assert missing == ["BYPASSRLS"]
        assert "SCRAM-SHA-256$" not in managed.server.log()

    def test_its_operator_does_the_work(self, managed: Place) -> None:
        """Such an operator plans, claims and makes a login, which reports, is sent away, and dropped."""
        migrate(managed_installer(managed), operator_password=OPERATOR_PASSWORD, log=LOG)
        uid = str(uuid.uuid4())
        with Ledger.connect(managed.operator, cluster=CLUSTER) as ledger:
            ledger.check_schema()
            ledger.register(NewBackfill(uid, CLUSTER, "analytics", "b", SCOPE, "c1/analytics/a", {}, "h"))
            ledger.plan(uid, [(SCOPE, "p")], total=1, set_hash="h", select="Missing")
            (batch,) = ledger.claim(uid, request())
            logins = Logins(ledger.database)
            name = login(logins, SCOPE)
            with psycopg.connect(managed.login(name), autocommit=True) as worker:
                report = "UPDATE flowstone.materialization SET state = 'succeeded' WHERE fence = %s"
                assert worker.execute(report, [batch.fence]).rowcount == 1
                assert logins.end_sessions(name) == 1
            logins.drop(name)
            assert ledger.counts(uid) == Counts(total=1, succeeded=1)

    def test_row_security_is_never_silent(self, managed: Place) -> None:
        """Under FORCE a change of rows by such an installer fails instead of touching nothing; `unforced` helps."""
        installer = managed_installer(managed)
        migrate(installer, operator_password=None, log=LOG)
        with managed.connect() as admin:
            admin.execute("INSERT INTO flowstone.latest VALUES ('s', 'a', 'p', now(), 'v1', gen_random_uuid(), 1)")
        change = "UPDATE flowstone.latest SET code_version = 'v2' WHERE scope = 's'"
        with psycopg.connect(installer, autocommit=True) as connection:
            connection.execute("SET row_security = off")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(change)
            with connection.transaction(), unforced(lambda text: connection.execute(text.encode()), "latest"):
                changed = connection.execute(change).rowcount
            forced = connection.execute(
                "SELECT relforcerowsecurity FROM pg_class WHERE oid = 'flowstone.latest'::regclass"
            ).fetchone()
        assert changed == 1
        assert forced == (True,)


def test_a_login_without_rights_is_refused_by_name(place: Place) -> None:
    """An installer that may not do a step is told which right it lacks."""
    with pytest.raises(LedgerRefused, match=r"permission denied|must be owner|may not"):
        migrate(place.operator, operator_password=None, log=LOG)
