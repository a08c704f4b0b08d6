"""What a tenant does to the operator: to be overlooked, to act with its rights, or to stand in its way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog

from flowstone.db.bootstrap import bootstrap
from flowstone.db.catalogue_linter import lint
from flowstone.db.lock_watch import end_waiting
from flowstone.db.tenant_catalogue import TenantCatalogue
from flowstone.kube.paths import custom
from tests.postgres.conftest import Place
from tests.postgres.servers import Server, installed
from tests.postgres.tenant.tenant_world import ACME, World, homes, inhabited, plain_server

pytestmark = pytest.mark.postgres

Session = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def newest_server() -> Iterator[Server]:
    """The newest server of this machine."""
    with plain_server(max(installed())) as server:
        yield server


@pytest.fixture
def home(newest_server: Server) -> Iterator[Place]:
    """A fresh, migrated database."""
    yield from homes(newest_server)


@pytest.fixture
async def world(home: Place) -> AsyncIterator[World]:
    """A Tenant `acme` that is provisioned."""
    async with inhabited(home) as world:
        yield world


@pytest.fixture
async def schema_world(home: Place) -> AsyncIterator[World]:
    """The same with a schema of its own."""
    async with inhabited(home, isolation="Schema") as world:
        yield world


async def _deletion_ends(session: psycopg.Connection[Any], world: World) -> None:
    """Delete the Tenant: it goes, and so does the session."""
    world.kube.remove(ACME)
    await world.settle()
    assert ACME not in world.kube.objects
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")


async def test_a_session_that_hides_is_ended_all_the_same(world: World) -> None:
    """A tenant names its session like the operator's login check; deletion ends it like any other."""
    session = world.login()
    session.execute("SET application_name = 'flowstone-login-check'")
    await _deletion_ends(session, world)


@pytest.mark.parametrize("isolation", ["Shared", "Database"])
async def test_a_session_that_changes_its_own_role_does_not_keep_it(home: Place, isolation: str) -> None:
    """An open ALTER ROLE holds the role's row in the catalogue, under any name; deletion goes on all the same."""
    async with inhabited(home, isolation=isolation) as world:
        session = world.login()
        session.execute("SET application_name = 'flowstone-login-check'; BEGIN; ALTER ROLE CURRENT_USER PASSWORD 'x'")
        await _deletion_ends(session, world)


@pytest.mark.parametrize("isolation", ["Shared", "Schema", "Database"])
async def test_where_bootstrap_took_the_functions_away_sessions_are_ended_too(home: Place, isolation: str) -> None:
    """A login that has left its group may call nothing; the operator ends its sessions and long statements still."""
    bootstrap(home.admin, keys=None, log=structlog.get_logger())
    async with inhabited(home, isolation=isolation, limits={"statementTimeoutSeconds": 1}) as world:
        late, idle = world.login(), world.login()
        late.execute("SET statement_timeout = 0")
        late.pgconn.send_query(b"SELECT pg_sleep(60)")
        await _until_late(world)
        await world.settle()
        assert world.admin("SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'") == [(0,)]
        await _deletion_ends(idle, world)
        late.close()
        groups = (
            "SELECT count(*) FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member "
            "WHERE r.rolname ~ '^tn_.*_[ab]$'"
        )
        assert world.admin(groups) == [(0,)]


async def test_a_statement_that_hides_is_ended_all_the_same(world: World) -> None:
    """The watchdog over long statements is not led astray by a session's name either."""
    world.tenant(limits={"statementTimeoutSeconds": 1})
    await world.settle()
    session = world.login()
    session.execute("SET application_name = 'flowstone-login-check'; SET statement_timeout = 0")
    session.pgconn.send_query(b"SELECT pg_sleep(60)")
    await _until_late(world)
    await world.settle()
    assert world.admin("SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'") == [(0,)]
    session.close()


async def _until_late(world: World) -> None:
    """Wait until the statement is older than what a tenant may take, by the server's clock."""
    late = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND now() - query_start > '3.1 s'"
    while world.admin(late) == [(0,)]:
        world.admin("SELECT pg_sleep(0.2)")


async def test_a_table_made_to_look_like_a_tenants_is_left_alone(schema_world: World) -> None:
    """At another tenant's purge the operator neither reads it, which would run its casts, nor empties it."""
    world = schema_world
    with world.login() as session:
        _lay_a_trap(session)
    await _other(world)
    await _purged(world)
    with world.login() as session:
        assert session.execute("SELECT count(*) FROM trap").fetchone() == (1,)
        assert session.execute("SELECT count(*) FROM sprung").fetchone() == (0,)


GIVEN = {
    "a column": "GRANT SELECT (x) ON given TO {0}_a",
    "a table": "GRANT SELECT ON given TO {0}_a",
    "a policy": "CREATE POLICY p ON given TO {0}_a USING (true)",
    "default rights": "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {0}_a",
}


@pytest.mark.parametrize("isolation", ["Schema", "Database"])
@pytest.mark.parametrize("given", GIVEN)
async def test_rights_on_somebodys_own_table_keep_no_other_tenant(home: Place, isolation: str, given: str) -> None:
    """Postgres drops no role that others gave a right; the other tenant is deleted all the same, and its login shut."""
    async with inhabited(home, isolation=isolation) as world:
        await _other(world)
        [(base,)] = world.admin("SELECT role_base FROM flowstone.tenant WHERE tenant_id = 'other'")
        with world.login() as session:
            session.execute("CREATE TABLE given (x int)")
            session.execute(GIVEN[given].format(base).encode())
        await _purged(world)
        left = (
            "SELECT rolcanlogin, ARRAY(SELECT roleid FROM pg_auth_members m WHERE m.member = r.oid) "
            f"FROM pg_roles r WHERE rolname ^@ '{base}'"
        )
        assert world.admin(left) in ([], [(False, [])])
        assert world.admin("SELECT count(*) FROM flowstone.login_scope WHERE tenant_id = 'other'") == [(0,)]


async def test_a_right_for_the_owner_of_a_database_keeps_no_tenant(home: Place) -> None:
    """The owner's name is known to all as well."""
    async with inhabited(home, isolation="Database") as world:
        await _other(world, isolation="Database")
        [(base,)] = world.admin("SELECT role_base FROM flowstone.tenant WHERE tenant_id = 'other'")
        with world.login() as session:
            session.execute(f"CREATE TABLE given (x int); GRANT SELECT ON given TO {base}_o".encode())
        await _purged(world)
        assert world.admin(f"SELECT count(*) FROM pg_database WHERE datname = '{base}'") == [(0,)]


async def test_a_temporary_trap_is_left_alone(world: World) -> None:
    """Before bootstrap a tenant may make temporary tables, also as its group; no purge reads or empties them."""
    await _other(world)
    with world.login() as session:
        session.execute(
            """
            SET ROLE flowstone_tenant;
            CREATE TEMPORARY TABLE trap (tenant_id text);
            CREATE FUNCTION pg_temp.spring() RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS
                'BEGIN RAISE EXCEPTION SQLSTATE ''ZZZZZ'' USING MESSAGE = current_user; END';
            CREATE POLICY tenant_rows ON trap USING (pg_temp.spring());
            ALTER TABLE trap ENABLE ROW LEVEL SECURITY;
            GRANT ALL ON trap TO flowstone_operator;
            """
        )
        await _purged(world)


async def test_nobody_fills_the_canaries_table(world: World) -> None:
    """Every tenant has rights there, as on any table of tenants; many rows would make the proof too slow for all."""
    with world.login() as session, pytest.raises(psycopg.errors.CheckViolation):
        session.execute("INSERT INTO flowstone.canary (id, note) VALUES (1, 'x')")


async def _other(world: World, **spec: str) -> None:
    """Make a Tenant `other` that is to be deleted."""
    body = {"namespaces": ["three"], "deletionPolicy": "Delete", "confirmDeletion": "other", **spec}
    world.kube.put(custom("tenants", None, "other"), {"kind": "Tenant", "metadata": {"name": "other"}, "spec": body})
    assert await world.settle("other") == 60


async def _purged(world: World) -> None:
    """Delete it, and see it go."""
    world.kube.remove(custom("tenants", None, "other"))
    await world.settle("other")
    world.admin("UPDATE flowstone.tenant SET retain_until = now() - interval '1 s' WHERE tenant_id = 'other'")
    await world.settle("other")
    assert world.admin("SELECT state FROM flowstone.tenant WHERE tenant_id = 'other'") == [("purged",)]
    assert custom("tenants", None, "other") not in world.kube.objects


def _lay_a_trap(session: Session) -> None:
    """Whoever reads `trap` as text, or deletes from it, runs the tenant's code with rights of his own."""
    session.execute(
        """
        CREATE TABLE sprung (who text);
        CREATE TABLE trap (tenant_id text);
        CREATE POLICY tenant_rows ON trap USING (true);
        CREATE FUNCTION spring() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO ' || current_schema() || '.sprung VALUES (current_user); RETURN OLD; END';
        CREATE TRIGGER spring BEFORE DELETE ON trap FOR EACH ROW EXECUTE FUNCTION spring();
        """.replace("' || current_schema() || '", _schema(session))
    )
    session.execute(
        f"""
        CREATE FUNCTION shown(trap) RETURNS text LANGUAGE plpgsql AS
            'BEGIN INSERT INTO {_schema(session)}.sprung VALUES (current_user); RETURN ''x''; END';
        CREATE CAST (trap AS text) WITH FUNCTION shown(trap);
        GRANT ALL ON trap, sprung TO flowstone_operator;
        INSERT INTO trap VALUES ('other');
        """.encode()
    )


def _schema(session: Session) -> str:
    row = session.execute("SELECT current_schema()").fetchone()
    assert row is not None
    return str(row[0])


async def test_what_a_tenant_leaves_behind_does_not_keep_its_role(world: World) -> None:
    """Default privileges are objects too; the purge takes them away, or the role could never be dropped."""
    with world.login() as session:
        session.execute("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO flowstone_tenant")
        session.execute("ALTER DEFAULT PRIVILEGES FOR ROLE flowstone_tenant GRANT SELECT ON TABLES TO CURRENT_USER")
    world.tenant(deletionPolicy="Delete", confirmDeletion="acme")
    await world.settle()
    world.kube.remove(ACME)
    await world.settle()
    world.admin("UPDATE flowstone.tenant SET retain_until = now() - interval '1 s'")
    await world.settle()
    left = "SELECT count(*) FROM pg_roles r, flowstone.tenant t WHERE t.tenant_id = 'acme' AND r.rolname ^@ t.role_base"
    assert world.admin(left) == [(0,)]


MISLEADING = {
    "default privileges": "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC",
    "its group's privileges": "ALTER DEFAULT PRIVILEGES FOR ROLE flowstone_tenant GRANT ALL ON TABLES TO PUBLIC",
    "a view": "CREATE VIEW shown AS SELECT * FROM flowstone.canary",
    "a materialised view": "CREATE MATERIALIZED VIEW kept AS SELECT * FROM flowstone.materialization",
    "a function of its own rights": "CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
    "a table for all": "CREATE TABLE t (tenant_id text); GRANT ALL ON t TO PUBLIC, flowstone_pool",
    "its group's password": "SET ROLE flowstone_tenant; ALTER ROLE flowstone_tenant PASSWORD 'x'",
}


@pytest.mark.parametrize("what", MISLEADING)
async def test_no_tenant_makes_the_proof_fail(schema_world: World, what: str) -> None:
    """What a tenant does with its own opens nothing and is no offence, or one tenant would stop everybody's work."""
    with schema_world.login() as session:
        session.execute(MISLEADING[what].encode())
        with schema_world.ledger.database.transaction() as tx:
            assert [one.what for one in lint(tx)] == []


async def test_settings_of_any_size_are_not_read_whole(world: World) -> None:
    """A login may give itself hundreds of megabytes; the operator reads their beginnings, and takes them off."""
    with world.login() as session:
        for name in ("search_path", "local_preload_libraries"):
            session.execute(f"ALTER ROLE CURRENT_USER SET {name} = '{'x,' * 500_000}x'".encode())
    view = TenantCatalogue(world.ledger.database, "c1").view("acme", "t/c1/acme", statement_timeout=0)
    assert max(len(one) for login in view.logins.values() for one in login.settings) == 500
    await world.settle()
    assert world.condition("CredentialDrift")[0] == "True"
    assert world.admin("SELECT max(length(s::text)) < 1000 FROM pg_db_role_setting s") == [(True,)]


KEPT_FROM_ITSELF = {
    "row security": "ALTER TABLE kept ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    "a policy": "ALTER TABLE kept ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; "
    "CREATE POLICY p ON kept USING (false)",
    "no right": "REVOKE ALL ON kept FROM CURRENT_USER",
    "no column": "CREATE TABLE nothing ()",
}


@pytest.mark.parametrize("isolation", ["Schema", "Database"])
@pytest.mark.parametrize("what", KEPT_FROM_ITSELF)
async def test_nothing_in_its_own_place_keeps_a_tenant(home: Place, tmp_path: Path, isolation: str, what: str) -> None:
    """Whatever it shuts its own tables against, they are exported, or digested, and deleted."""
    exports = None if isolation == "Database" else tmp_path
    async with inhabited(home, isolation=isolation, exports=exports) as world:
        with world.login() as session:
            session.execute("CREATE TABLE kept AS SELECT 1 AS x")
            session.execute(KEPT_FROM_ITSELF[what].encode())
        await _ended(world, isolation)


async def test_no_number_of_tables_keeps_a_tenant(schema_world: World) -> None:
    """Each takes a lock when it is dropped; so they are dropped some at a time."""
    with schema_world.login() as session:
        session.execute("CREATE TABLE one (id int GENERATED ALWAYS AS IDENTITY); CREATE VIEW two AS SELECT * FROM one")
        session.execute("CREATE SEQUENCE three; CREATE TYPE four AS (x int); CREATE MATERIALIZED VIEW m AS TABLE one")
        session.execute(
            "DO 'BEGIN FOR i IN 1..8000 LOOP EXECUTE ''CREATE TABLE m'' || i || '' ()''; "
            "IF i % 500 = 0 THEN COMMIT; END IF; END LOOP; END'"
        )
    await _ended(schema_world, "Schema")


async def _ended(world: World, isolation: str) -> None:
    """Delete the Tenant `acme` with its rows, and see it go."""
    world.tenant(isolation=isolation, deletionPolicy="Delete", confirmDeletion="acme")
    await world.settle()
    world.kube.remove(ACME)
    await world.settle()
    world.admin("UPDATE flowstone.tenant SET retain_until = now() - interval '1 s'")
    await world.settle()
    assert world.admin("SELECT state FROM flowstone.tenant WHERE tenant_id = 'acme'") == [("purged",)]


@pytest.mark.parametrize("isolation", ["Schema", "Database"])
async def test_who_takes_most_of_the_servers_locks_is_ended(home: Place, isolation: str) -> None:
    """They are for all databases: advisory ones of its own database, or those of tables of its own, fill them too."""
    async with inhabited(home, isolation=isolation) as world:
        with world.login() as session:
            session.execute("BEGIN")
            if isolation == "Database":
                session.execute("SELECT count(pg_advisory_lock(n)) FROM generate_series(1, 8000) n")
            else:
                session.execute(
                    "DO 'BEGIN FOR i IN 1..7000 LOOP EXECUTE ''CREATE TABLE m'' || i || '' ()''; END LOOP; END'"
                )
            assert end_waiting(world.ledger.database) == 1
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
        with world.login() as session:
            session.execute("SELECT 1")
            assert end_waiting(world.ledger.database) == 0


async def test_a_tenant_that_a_program_registered_gets_its_logins(world: World) -> None:
    """A row of the registry without role names, as Python leaves it, is taken over by the Tenant of that id."""
    world.admin("INSERT INTO flowstone.tenant (cluster, tenant_id, scope) VALUES ('c1', 'other', 't/c1/other')")
    world.kube.put(custom("tenants", None, "other"), {"metadata": {"name": "other"}, "spec": {"namespaces": ["three"]}})
    assert await world.settle("other") == 60
    logins = "SELECT count(*) FROM flowstone.login_scope WHERE tenant_id = 'other'"
    assert world.admin(logins) == [(1,)]


async def test_a_batch_that_outlives_rotations_keeps_its_credentials(world: World) -> None:
    """While it is open its session works, and so does a login that it opens late with what its Secret held at first."""
    world.admin("UPDATE flowstone.tenant SET rotated_at = now() - interval '1 hour'")
    world.admin(
        "INSERT INTO flowstone.batch (backfill, scope, job_name, template_digest, partitions) "
        "VALUES (gen_random_uuid(), 't/c1/acme', 'j', 'd', 1)"
    )
    start = world.secret()
    with world.login(start) as session:
        for number in range(3):
            world.kube.objects[ACME]["metadata"]["annotations"] = {"flowstone.dev/rotate": str(number)}
            await world.settle()
            assert session.execute("SELECT count(*) FROM flowstone.batch").fetchone() == (1,)
            world.login(start).close()
        assert world.secret()["PGUSER"] != start["PGUSER"]
    world.admin("UPDATE flowstone.batch SET state = 'closed', closed_at = now()")
    world.kube.objects[ACME]["metadata"]["annotations"] = {"flowstone.dev/rotate": "at last"}
    await world.settle()
    with pytest.raises(psycopg.OperationalError):
        world.login(start)
