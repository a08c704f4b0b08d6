"""Tenants with a database of their own, against real servers: made, kept shut, repaired, rotated, deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from flowstone.db.own_databases import OwnDatabases
from flowstone.tenant.own_database import Names
from tests.postgres.conftest import OPERATOR_PASSWORD, Place
from tests.postgres.tenant.tenant_world import ACME, World, any_server, home, inhabited

__all__ = ["any_server", "home"]

pytestmark = pytest.mark.postgres


@pytest.fixture
async def world(home: Place) -> AsyncIterator[World]:
    """A Tenant `acme` with a database of its own."""
    async with inhabited(home, isolation="Database") as world:
        yield world


def own(world: World) -> str:
    """Return the name of acme's database."""
    return world.secret()["PGDATABASE"]


def inside(world: World, statement: str) -> list[tuple[object, ...]]:
    """Do something in acme's database by hand, as a superuser."""
    with psycopg.connect(world.place.server.conninfo(own(world)), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


async def test_the_credentials_lead_to_a_database_of_its_own(world: World) -> None:
    """It says nothing of the tenant, belongs to a role that cannot log in, and all three ways lead there."""
    secret = world.secret()
    name = own(world)
    assert name.startswith("tn_")
    assert "acme" not in name
    assert secret["uri"].endswith(f"/{name}")
    assert f":{name}:" in secret["pgpass"]
    assert world.condition("Ready")[0] == "True"
    owner = (
        "SELECT r.rolname, r.rolcanlogin FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba WHERE d.datname = %s"
    )
    assert world.admin(owner, name) == [(f"{name}_o", False)]
    with world.login() as connection:
        assert connection.execute("SELECT current_database()").fetchone() == (name,)
        connection.execute("CREATE TABLE mine (id int)")
        connection.execute("CREATE TEMPORARY TABLE scratch (id int)")


async def test_nobody_else_is_let_in(world: World) -> None:
    """The access list names the two logins and the operator; the tenant's login has no right on the ledger."""
    grants = (
        "SELECT pg_get_userbyid(x.grantee), x.privilege_type FROM pg_database, aclexplode(datacl) x "
        "WHERE datname = %s AND x.grantee <> datdba ORDER BY 1, 2"
    )
    login = world.secret()["PGUSER"]
    of_logins = [(f"{own(world)}_{slot}", right) for slot in "ab" for right in ("CONNECT", "TEMPORARY")]
    assert world.admin(grants, own(world)) == [("flowstone_operator", "CONNECT"), *of_logins]
    groups = (
        "SELECT m.roleid::regrole::text FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member WHERE rolname = %s"
    )
    assert world.admin(groups, login) == [("flowstone_apart",)]
    world.admin(f"REVOKE CONNECT ON DATABASE {world.place.name} FROM PUBLIC")
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(world.secret()["uri"], dbname=world.place.name)


async def test_the_login_cannot_open_its_database(world: World) -> None:
    """It owns neither database nor schema, so it cannot let others in, nor touch the fence."""
    name = own(world)
    for statement in (
        f"ALTER DATABASE {name} OWNER TO CURRENT_USER",
        f"DROP DATABASE {name}",
        "CREATE SCHEMA other",
        f"SET ROLE {name}_o",
        "ALTER TABLE flowstone.materialization DISABLE ROW LEVEL SECURITY",
        "INSERT INTO flowstone.batch (fence, backfill) VALUES (1, gen_random_uuid())",
        "UPDATE flowstone.materialization SET fence = 2",
        "DELETE FROM flowstone.materialization",
    ):
        with world.login() as connection, pytest.raises(psycopg.Error) as refused:
            connection.execute(statement.encode())
        assert refused.value.sqlstate == "42501", statement
    with world.login() as connection:
        connection.execute(f"GRANT ALL ON DATABASE {name} TO PUBLIC".encode())  # warns, and grants nothing
        connection.execute("GRANT ALL ON SCHEMA public TO PUBLIC")
        connection.execute("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO PUBLIC")  # lets nobody in
    assert await world.settle() == 60
    assert world.condition("CredentialDrift")[0] == "False"


async def test_a_settled_tenant_costs_no_write(world: World) -> None:
    """Reconciling again changes nothing, neither in Kubernetes nor in a catalogue."""
    world.kube.writes.clear()
    query = (
        "SELECT xmin::text FROM pg_database WHERE datname ^@ 'tn_' UNION ALL SELECT xmin::text FROM flowstone.tenant"
    )
    there = "SELECT string_agg(xmin::text, ',' ORDER BY oid) FROM pg_class WHERE relnamespace >= 16384"
    before = world.admin(query), inside(world, there)
    assert await world.settle() == 60
    assert world.kube.writes == []
    assert (world.admin(query), inside(world, there)) == before


OUTSIDE = {
    "everybody may connect": "GRANT CONNECT ON DATABASE {name} TO PUBLIC",
    "a stranger may connect": "GRANT CONNECT ON DATABASE {name} TO flowstone_pool",
    "its login makes schemas": "GRANT CREATE ON DATABASE {name} TO {login}",
    "its login passes it on": "GRANT CONNECT ON DATABASE {name} TO {login} WITH GRANT OPTION",
    "its login is shut out": "REVOKE CONNECT ON DATABASE {name} FROM {login}",
    "the operator is shut out": "REVOKE CONNECT ON DATABASE {name} FROM flowstone_operator",
    "it is closed": "ALTER DATABASE {name} ALLOW_CONNECTIONS false",
    "it may be copied": "ALTER DATABASE {name} IS_TEMPLATE true",
    "its login is in the group": "GRANT flowstone_tenant TO {login} GRANTED BY flowstone_operator",
}
INSIDE = {
    "public is open": "GRANT USAGE, CREATE ON SCHEMA public TO PUBLIC",
    "outcomes are open": "GRANT ALL ON flowstone.materialization TO {login}",
    "a column is open": "GRANT UPDATE (fence) ON flowstone.materialization TO {login}",
    "row security is off": "ALTER TABLE flowstone.materialization DISABLE ROW LEVEL SECURITY",
    "a policy is gone": "DROP POLICY scope_reports ON flowstone.batch",
    "a policy is changed": "ALTER POLICY scope_reports ON flowstone.materialization USING (true)",
    "a policy is added": "CREATE POLICY more ON flowstone.materialization USING (true)",
    "a table is gone": "DROP TABLE flowstone.batch",
    "a trigger": (
        "CREATE TRIGGER also BEFORE UPDATE ON flowstone.batch FOR EACH ROW "
        "EXECUTE FUNCTION suppress_redundant_updates_trigger()"
    ),
}


async def test_what_somebody_changes_by_hand_is_shown_and_repaired(world: World) -> None:
    """One reconcile finds each of it, says so, and puts it right; the next one finds nothing."""
    words = {"name": own(world), "login": world.secret()["PGUSER"]}
    seen = {}
    for what, statement in (OUTSIDE | INSIDE).items():
        if what in OUTSIDE:
            world.admin(statement.format(**words))
        else:
            inside(world, statement.format(**words))
        await world.settle()
        seen[what] = world.condition("CredentialDrift")[0], world.condition("Ready")[0]
        await world.settle()
        assert world.condition("CredentialDrift")[0] == "False", what
        world.login().close()
    assert seen == dict.fromkeys(OUTSIDE | INSIDE, ("True", "True"))


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER DATABASE {name} OWNER TO {login}",
        "ALTER ROLE {name}_o LOGIN PASSWORD 'x'; GRANT {name}_o TO flowstone_pool",
    ],
)
async def test_what_the_operator_may_not_repair_is_named(world: World, statement: str) -> None:
    """The tenant is not ready, and Hardened says what is open about its database."""
    world.admin(statement.format(name=own(world), login=world.secret()["PGUSER"]))
    for _ in range(3):
        await world.reconciler("", "acme")
    assert world.condition("Ready")[0] == "False"
    assert world.condition("Hardened")[:2] == ("False", "DatabaseOpen")
    if "OWNER" in statement:
        world.admin(f"ALTER DATABASE {own(world)} OWNER TO {own(world)}_o")
        await world.settle()
        assert world.condition("Ready")[0] == "True"


async def test_rotation_lets_the_other_login_in(world: World) -> None:
    """Both logins work after a rotation, and each uses what the other made."""
    old = world.secret()
    with world.login() as connection:
        connection.execute("CREATE TABLE mine (id int)")
    world.kube.objects[ACME]["metadata"]["annotations"] = {"flowstone.dev/rotate": "1"}
    await world.settle()
    new = world.secret()
    assert new["PGUSER"] != old["PGUSER"]
    world.login(old).close()
    with world.login() as connection:
        connection.execute("CREATE TABLE later (id int)")
    world.kube.objects[ACME]["metadata"]["annotations"] = {"flowstone.dev/rotate": "2"}
    await world.settle()
    assert world.secret()["PGUSER"] == old["PGUSER"]
    with world.login() as connection:
        connection.execute("INSERT INTO later VALUES (1)")
    await world.settle()
    assert world.condition("CredentialDrift")[0] == "False"


async def test_isolation_stays_what_it_was(world: World) -> None:
    """Rows would be left behind, so a change is refused with what to write instead."""
    world.tenant(isolation="Shared")
    await world.settle()
    assert world.condition("Stalled")[1] == "IsolationChanged"
    assert "Database" in world.condition("Stalled")[2]


async def test_a_lost_database_is_not_replaced_by_an_empty_one(world: World) -> None:
    """Who dropped it is to restore it; until then the tenant is not ready, and is so again afterwards."""
    name = own(world)
    world.admin(f"ALTER DATABASE {name} RENAME TO aside")
    await world.settle()
    assert world.condition("Stalled")[1] == "DatabaseLost"
    assert name in world.condition("Stalled")[2]
    world.admin(f"ALTER DATABASE aside RENAME TO {name}")
    await world.settle()
    assert world.condition("Ready")[0] == "True"


async def test_deleted_by_mistake_and_applied_again(world: World) -> None:
    """With Retain the logins stop and the rows stay; the same id finds them again under fresh credentials."""
    old = world.secret()
    with world.login() as connection:
        connection.execute("CREATE TABLE mine (id int)")
        connection.execute("INSERT INTO mine VALUES (42)")
    world.kube.objects[ACME]["metadata"]["deletionTimestamp"] = "2026-11-25T00:00:00Z"
    await world.settle()
    with pytest.raises(psycopg.OperationalError):
        world.login(old)
    assert world.admin("SELECT count(*) FROM pg_database WHERE datname = %s", old["PGDATABASE"]) == [(1,)]
    world.kube.objects.pop(ACME, None)
    world.tenant(isolation="Database")
    await world.settle()
    with world.login() as connection:
        assert connection.execute("SELECT id FROM mine").fetchall() == [(42,)]


async def test_a_confirmed_deletion_drops_the_database_in_the_end(world: World) -> None:
    """Suspended, exported, kept for a week, then database, owner and logins are gone, and the id is refused."""
    name = own(world)
    with world.login() as connection:
        connection.execute("CREATE TABLE mine (id int)")
        connection.execute("INSERT INTO mine SELECT * FROM generate_series(1, 1000)")
    world.tenant(isolation="Database", deletionPolicy="Delete", confirmDeletion="acme")
    await world.settle()
    world.kube.objects[ACME]["metadata"]["deletionTimestamp"] = "2026-11-25T00:00:00Z"
    await world.settle()
    digest, until = world.admin("SELECT export_digest, retain_until FROM flowstone.tenant")[0]
    assert len(digest) == 64
    assert until > datetime.now(UTC) + timedelta(days=6)
    world.admin("UPDATE flowstone.tenant SET retain_until = now() - interval '1 second'")
    await world.settle()
    assert world.admin("SELECT state FROM flowstone.tenant") == [("purged",)]
    assert world.admin("SELECT count(*) FROM pg_database WHERE datname = %s", name) == [(0,)]
    assert world.admin("SELECT count(*) FROM pg_roles WHERE rolname ^@ %s", name) == [(0,)]


async def test_a_lost_database_does_not_hold_up_the_end(world: World) -> None:
    """Whoever dropped it and then deletes the Tenant for good gets rid of it."""
    name = own(world)
    world.tenant(isolation="Database", deletionPolicy="Delete", confirmDeletion="acme")
    await world.settle()
    world.admin(f"DROP DATABASE {name} WITH (FORCE)")
    world.kube.objects[ACME]["metadata"]["deletionTimestamp"] = "2026-11-25T00:00:00Z"
    await world.settle()
    world.admin("UPDATE flowstone.tenant SET retain_until = now() - interval '1 second'")
    await world.settle()
    assert world.admin("SELECT state FROM flowstone.tenant") == [("purged",)]
    assert world.admin("SELECT count(*) FROM pg_roles WHERE rolname ^@ %s", name) == [(0,)]


async def test_an_export_tells_rows_apart_whatever_their_order(world: World) -> None:
    """The same rows give the same digest though they lie in another order; a changed one gives another."""
    databases, names = OwnDatabases(world.ledger.database, world.place.operator), Names(own(world), ())
    with world.login() as connection:
        connection.execute("CREATE TABLE mine (id int)")
        connection.execute("INSERT INTO mine VALUES (1), (2)")
        first = databases.digest(names)
        connection.execute("DELETE FROM mine WHERE id = 1")
        assert databases.digest(names) != first
        connection.execute("INSERT INTO mine VALUES (1)")
        assert databases.digest(names) == first


async def test_an_export_runs_nothing_of_the_tenant(world: World) -> None:
    """A policy or cast of the tenant's would run with the operator's session; it is passed by."""
    databases, names = OwnDatabases(world.ledger.database, world.place.operator), Names(own(world), ())
    with world.login() as connection:
        connection.execute("CREATE TABLE mine (id int)")
        connection.execute("INSERT INTO mine VALUES (1)")
        connection.execute(
            "CREATE FUNCTION words(mine) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''ran''; END'"
        )
        connection.execute("CREATE CAST (mine AS text) WITH FUNCTION words(mine)")
        before = databases.digest(names)
        connection.execute("CREATE POLICY peek ON mine USING (words(mine) IS NULL)")
        connection.execute("ALTER TABLE mine ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        assert databases.digest(names) == before
        kept = connection.execute("SELECT relforcerowsecurity FROM pg_class WHERE oid = 'mine'::regclass").fetchone()
        assert kept == (True,)


@pytest.mark.parametrize("after", ["role", "database", "closed"])
async def test_what_broke_off_half_way_is_finished(home: Place, after: str) -> None:
    """Whichever statement was the last one, the next reconcile goes on from there."""
    async with inhabited(home, isolation="Shared") as world:
        world.kube.objects.pop(ACME)
        base = f"tn_halfway{after:a<13}"
        world.admin("UPDATE flowstone.tenant SET tenant_id = 'before', scope = 't/c1/before'")
        world.admin("UPDATE flowstone.login_scope SET scope = 't/c1/before', tenant_id = 'before'")
        world.admin(
            "INSERT INTO flowstone.tenant (cluster, tenant_id, scope, isolation, role_base) "
            "VALUES ('c1', 'acme', 't/c1/acme', 'Database', %s)",
            base,
        )
        with psycopg.connect(
            home.server.conninfo(home.name, "flowstone_operator", OPERATOR_PASSWORD), autocommit=True
        ) as operator:
            operator.execute(f"CREATE ROLE {base}_o NOLOGIN ROLE flowstone_operator".encode())
            if after != "role":
                operator.execute(
                    f"CREATE DATABASE {base} OWNER {base}_o TEMPLATE template0 ALLOW_CONNECTIONS false".encode()
                )
            if after == "closed":
                operator.execute(f"SET ROLE {base}_o".encode())
                operator.execute(f"REVOKE ALL ON DATABASE {base} FROM PUBLIC".encode())
                operator.execute(f"ALTER DATABASE {base} ALLOW_CONNECTIONS true".encode())
        world.tenant(isolation="Database")
        for name in ("one", "two"):
            world.kube.objects.pop(f"/api/v1/namespaces/{name}/secrets/flowstone-tenant-acme", None)
        await world.settle()
        assert world.condition("Ready")[0] == "True", world.condition("Ready")
        assert own(world) == base
        world.login().close()
