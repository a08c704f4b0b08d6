"""What a tenant does to the operator: to be overlooked, to act with its rights, or to stand in its way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
import structlog

from flowstone.db.bootstrap import bootstrap
from flowstone.db.catalogue_linter import lint
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


async def test_a_session_that_hides_is_ended_all_the_same(world: World) -> None:
    """A tenant names its session like the operator's login check; deletion ends it like any other."""
    session = world.login()
    session.execute("SET application_name = 'flowstone-login-check'")
    world.kube.remove(ACME)
    await world.settle()
    assert ACME not in world.kube.objects
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")


@pytest.mark.parametrize("isolation", ["Shared", "Database"])
async def test_a_session_that_changes_its_own_role_does_not_keep_it(home: Place, isolation: str) -> None:
    """An open ALTER ROLE holds the role's row in the catalogue, under any name; deletion goes on all the same."""
    async with inhabited(home, isolation=isolation) as world:
        session = world.login()
        session.execute("SET application_name = 'flowstone-login-check'; BEGIN; ALTER ROLE CURRENT_USER PASSWORD 'x'")
        world.kube.remove(ACME)
        await world.settle()
        assert ACME not in world.kube.objects
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")


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
        world.kube.remove(ACME)
        await world.settle()
        assert ACME not in world.kube.objects
        with pytest.raises(psycopg.OperationalError):
            idle.execute("SELECT 1")
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
    other = custom("tenants", None, "other")
    spec = {"namespaces": ["three"], "deletionPolicy": "Delete", "confirmDeletion": "other"}
    world.kube.put(other, {"metadata": {"name": "other"}, "spec": spec})
    assert await world.settle("other") == 60
    world.kube.remove(other)
    await world.settle("other")
    world.admin("UPDATE flowstone.tenant SET retain_until = now() - interval '1 s' WHERE tenant_id = 'other'")
    await world.settle("other")
    assert world.admin("SELECT state FROM flowstone.tenant WHERE tenant_id = 'other'") == [("purged",)]
    with world.login() as session:
        assert session.execute("SELECT count(*) FROM trap").fetchone() == (1,)
        assert session.execute("SELECT count(*) FROM sprung").fetchone() == (0,)


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
    assert world.admin("SELECT count(*) FROM pg_roles WHERE rolname ^@ 'tn_'") == [(0,)]


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
