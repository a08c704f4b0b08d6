"""The reconcile of a Tenant against real servers: logins, Secrets, rotation, drift, revocation, deletion and return."""

from __future__ import annotations

import base64
import threading
from collections.abc import AsyncIterator

import psycopg
import pytest

from flowstone.kube.paths import core, custom
from tests.postgres.conftest import OPERATOR_PASSWORD, Place
from tests.postgres.tenant.tenant_world import ACME, World, any_server, home, inhabited

__all__ = ["any_server", "home"]

pytestmark = pytest.mark.postgres


@pytest.fixture
async def world(home: Place) -> AsyncIterator[World]:
    """A cluster with three namespaces, and a Tenant `acme` in two of them that is provisioned."""
    async with inhabited(home) as world:
        yield world


async def test_a_tenant_gets_a_login_and_secrets(world: World) -> None:
    """The Secret of each namespace lets in a login that says nothing of the tenant and sees its scope alone."""
    secret = world.secret()
    assert secret == world.secret("two")
    assert core("secrets", "three", "flowstone-tenant-acme") not in world.kube.objects
    assert secret["PGUSER"].startswith("tn_")
    assert "acme" not in secret["PGUSER"]
    fields = [secret[f"PG{name}"] for name in ("HOST", "PORT", "DATABASE", "USER", "PASSWORD")]
    assert secret["pgpass"] == ":".join(fields) + "\n"
    with world.login() as connection:
        rows = connection.execute("SELECT scope, tenant_id FROM flowstone.login_scope").fetchall()
        assert rows == [("t/c1/acme", "acme")]
        assert connection.execute("SELECT count(*) FROM flowstone.materialization").fetchone() == (0,)
    assert world.condition("Ready")[0] == "True"
    assert world.condition("CredentialDrift")[0] == "False"
    assert world.condition("Hardened")[:2] == ("False", "BootstrapMissing")


async def test_a_settled_tenant_costs_no_write(world: World) -> None:
    """Reconciling again writes nothing, neither to Kubernetes nor to a role."""
    world.kube.writes.clear()
    query = "SELECT xmin::text FROM pg_authid WHERE rolname ^@ 'tn_' UNION ALL SELECT xmin::text FROM flowstone.tenant"
    before = world.admin(query)
    assert await world.settle() == 60
    assert world.kube.writes == []
    assert world.admin(query) == before


async def test_rotation_swaps_the_logins_and_both_are_good(world: World) -> None:
    """A request rotates once: the Secrets hold the other login, and the old credentials go on working."""
    old = world.secret()
    world.kube.objects[ACME]["metadata"]["annotations"] = {"flowstone.dev/rotate": "1"}
    await world.settle()
    new = world.secret()
    assert new["PGUSER"] != old["PGUSER"]
    assert world.secret("two") == new
    for secret in (old, new):
        world.login(secret).close()
    await world.settle()
    assert world.secret() == new


async def test_rotation_waits_for_sessions_and_batches(world: World) -> None:
    """The login that stands by is not re-keyed while it has a session, or a batch is open that may use it."""
    old = world.secret()
    annotations = world.kube.objects[ACME]["metadata"].setdefault("annotations", {})
    annotations["flowstone.dev/rotate"] = "1"
    await world.settle()
    new = world.secret()
    with world.login(old):
        annotations["flowstone.dev/rotate"] = "2"
        await world.settle()
        assert world.secret() == new
        assert "wait" in world.condition("Ready")[2]
    world.admin(
        "INSERT INTO flowstone.batch (backfill, scope, job_name, template_digest, partitions, opened_at)"
        " VALUES (gen_random_uuid(), 't/c1/acme', 'j', 'd', 1, now() - interval '1 hour')"
    )
    await world.settle()
    assert world.secret() == new
    world.admin("UPDATE flowstone.batch SET state = 'closed', closed_at = now()")
    await world.settle()
    assert world.secret()["PGUSER"] == old["PGUSER"]
    assert world.secret()["PGPASSWORD"] != old["PGPASSWORD"]
    world.login(new).close()


async def test_rotation_under_logins_fails_none(world: World) -> None:
    """Three rotations while others log in without a pause, always with what the Secret holds: not one failure."""
    stop, failures, done = threading.Event(), [], []

    def keep_logging_in() -> None:
        while not stop.is_set():
            try:
                world.login().close()
                done.append(1)
            except psycopg.Error as error:
                failures.append(error)

    threads = [threading.Thread(target=keep_logging_in) for _ in range(2)]
    for thread in threads:
        thread.start()
    users = []
    try:
        for number in range(200):
            world.kube.objects[ACME]["metadata"]["annotations"] = {"flowstone.dev/rotate": str(number)}
            await world.settle()
            users.append(world.secret()["PGPASSWORD"])
            if len(set(users)) > 3:
                break
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(set(users)) > 3
    assert failures == []
    assert len(done) > 20


HAND = {
    "password": ("ALTER ROLE {role} PASSWORD 'known to somebody'", "password"),
    "login": ("ALTER ROLE {role} NOLOGIN", "right to log in"),
    "membership": ("REVOKE flowstone_tenant FROM {role} GRANTED BY flowstone_operator", "taken out"),
    "attributes": ("ALTER ROLE {role} CREATEROLE CREATEDB", "attributes"),
    "expiry": ("ALTER ROLE {role} VALID UNTIL '2001-01-01'", "expire"),
    "a limit": ("ALTER ROLE {role} CONNECTION LIMIT 3", "limit or setting"),
    "a setting": ("ALTER ROLE {role} SET search_path = evil", "limit or setting"),
    "a setting here": ("ALTER ROLE {role} IN DATABASE {database} SET search_path = evil", "limit or setting"),
    "mapping": ("UPDATE flowstone.login_scope SET scope = 't/c1/other' WHERE role_name = '{role}'", "other rows"),
    "its tenant": ("UPDATE flowstone.login_scope SET tenant_id = 'x' WHERE role_name = '{role}'", "other rows"),
    "mapping gone": ("DELETE FROM flowstone.login_scope WHERE role_name = '{role}'", "other rows"),
    "a stranger": (
        "INSERT INTO flowstone.login_scope VALUES ('flowstone_pool', 1, 't/c1/acme', 'b', 'acme')",
        "foreign role",
    ),
    "renamed": ("ALTER ROLE {role} RENAME TO somebody", "renamed or dropped"),
    "dropped": ("DROP OWNED BY {role}; DROP ROLE {role}", "renamed or dropped"),
}


@pytest.mark.parametrize("what", HAND)
async def test_what_somebody_changes_by_hand_is_shown_and_repaired(world: World, what: str) -> None:
    """One reconcile finds the change, says so, and puts it right: the Secret's credentials work, for its rows alone."""
    statement, words = HAND[what]
    role = world.secret()["PGUSER"]
    if world.place.server.name == "local-15":
        statement = statement.replace(" GRANTED BY flowstone_operator", "")
    world.admin(statement.format(role=role, database=world.place.name))
    await world.reconciler("", "acme")
    truth, _, message = world.condition("CredentialDrift")
    assert truth == "True"
    assert words in message
    assert world.secret()["PGPASSWORD"] not in message
    assert [one["note"] for one in world.kube.events] == [message]
    await world.settle()
    assert await world.settle() == 60
    assert world.condition("CredentialDrift")[0] == "False"
    assert world.condition("Ready")[0] == "True"
    with world.login() as connection:
        assert connection.execute("SELECT scope FROM flowstone.login_scope").fetchall() == [("t/c1/acme",)]
    strangers = "SELECT count(*) FROM flowstone.login_scope WHERE scope = 't/c1/acme' AND NOT role_name ^@ %s"
    assert world.admin(strangers, role[:-2]) == [(0,)]


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("GRANT flowstone_pool TO {role}", "member of another role"),
        ("GRANT pg_read_all_data TO {role}", "member of another role"),
        ("GRANT {role} TO flowstone_pool", "member of a login"),
    ],
)
async def test_a_membership_that_a_superuser_gave_is_taken_back_or_shown(
    world: World, statement: str, words: str
) -> None:
    """Up to 15 the operator takes it back; from 16 on only the giver may, so the Tenant is not ready and says so."""
    role = world.secret()["PGUSER"]
    world.admin(statement.format(role=role))
    assert await world.settle() == 60
    assert words in world.condition("CredentialDrift")[2]
    if world.place.server.name == "local-15":
        await world.settle()
        assert world.condition("Ready")[0] == "True"
        assert world.condition("CredentialDrift")[0] == "False"
    else:
        assert world.condition("CredentialDrift")[1] == "NotRepaired"
        assert world.condition("Ready")[1] == "DriftNotRepaired"
        world.admin(statement.format(role=role).replace("GRANT", "REVOKE").replace(" TO ", " FROM "))
        await world.settle()
    assert await world.settle() == 60
    assert world.condition("CredentialDrift")[0] == "False"
    assert world.condition("Ready")[0] == "True"


@pytest.mark.parametrize("what", ["deleted", "emptied", "another password", "another host", "no base64"])
async def test_a_secret_that_was_changed_is_put_right(world: World, what: str) -> None:
    """One namespace's Secret is written again from the other's, with the same credentials: no pod is shut out."""
    path, before = core("secrets", "one", "flowstone-tenant-acme"), world.secret("two")
    data = world.kube.objects[path]["data"]
    if what == "deleted":
        del world.kube.objects[path]
    else:
        changes = {
            "emptied": dict.fromkeys(data, ""),
            "another password": {"PGPASSWORD": base64.b64encode(b"mine").decode()},
            "another host": {"PGHOST": base64.b64encode(b"evil.example").decode()},
            "no base64": {"PGPASSWORD": "?"},
        }
        data |= changes[what]
    await world.settle()
    assert world.secret("one") == world.secret("two") == before
    world.login().close()


async def test_all_secrets_lost_means_fresh_credentials(world: World) -> None:
    """When no Secret holds a password any more, new ones are made, and said."""
    old = world.secret()
    for namespace in ("one", "two"):
        del world.kube.objects[core("secrets", namespace, "flowstone-tenant-acme")]
    await world.reconciler("", "acme")
    assert "lost" in world.condition("CredentialDrift")[2]
    await world.settle()
    assert world.secret()["PGPASSWORD"] != old["PGPASSWORD"]
    world.login().close()


async def test_a_namespace_that_is_taken_away_loses_its_credentials(world: World) -> None:
    """Its Secret goes, the others get new credentials, and what it knew is stopped, open sessions too."""
    old = world.secret("two")
    session = world.login(old)
    world.tenant(namespaces=["one", "three"])
    await world.settle()
    assert core("secrets", "two", "flowstone-tenant-acme") not in world.kube.objects
    assert world.secret("one") == world.secret("three") != old
    world.login().close()
    with pytest.raises(psycopg.OperationalError):
        world.login(old)
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")
    assert world.condition("CredentialDrift")[0] == "False"


async def test_a_foreign_secret_of_that_name_is_left_alone(world: World) -> None:
    """Somebody else's Secret stalls the Tenant, and is not overwritten."""
    path = core("secrets", "three", "flowstone-tenant-acme")
    world.kube.put(path, {"metadata": {"name": "flowstone-tenant-acme"}, "data": {"a": "Yg=="}})
    world.tenant(namespaces=["three"])
    await world.settle()
    assert world.condition("Stalled")[1] == "SecretNameTaken"
    assert world.kube.objects[path]["data"] == {"a": "Yg=="}


async def test_a_namespace_that_is_not_there_yet_is_waited_for(world: World) -> None:
    """The others are served; the missing one is named, and served when it appears."""
    world.tenant(namespaces=["one", "later"])
    await world.settle()
    assert world.condition("Ready")[1] == "NamespaceNotFound"
    world.login().close()
    world.kube.put(core("namespaces", None, "later"), {"metadata": {"name": "later"}})
    await world.settle()
    assert world.secret("later") == world.secret("one")
    assert world.condition("Ready")[0] == "True"


async def test_limits_follow_the_spec(world: World) -> None:
    """An edit of the limits is applied to the login, and is no drift."""
    world.tenant(limits={"connections": 2, "statementTimeoutSeconds": 1, "maxParallel": 7})
    await world.reconciler("", "acme")
    assert world.condition("CredentialDrift")[0] == "False"
    await world.settle()
    with world.login() as first, world.login():
        with pytest.raises(psycopg.OperationalError, match="too many connections"):
            world.login()
        with pytest.raises(psycopg.errors.QueryCanceled):
            first.execute("SELECT pg_sleep(5)")
        assert await world.settle() == 60
    assert world.admin("SELECT max_parallel FROM flowstone.tenant") == [(7,)]


async def test_a_statement_whose_limit_the_tenant_lifted_is_ended(world: World) -> None:
    """A tenant may set its own statement_timeout away; the operator ends the statement all the same."""
    world.tenant(limits={"statementTimeoutSeconds": 1})
    await world.settle()
    with world.login() as connection:
        connection.execute("SET statement_timeout = 0")
        ended: list[Exception] = []

        def run() -> None:
            try:
                connection.execute("SELECT pg_sleep(60)")
            except psycopg.Error as error:
                ended.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        while not ended:
            await world.reconciler("", "acme")
        thread.join()
    assert isinstance(ended[0], psycopg.errors.AdminShutdown)


async def test_deleting_by_mistake_loses_nothing(world: World) -> None:
    """The logins stop, open sessions end, the rows stay; applied again, the same tenant finds them."""
    world.admin(
        "INSERT INTO flowstone.latest VALUES ('t/c1/acme', 'a', 'p', now(), NULL, gen_random_uuid(), 1);"
        "INSERT INTO flowstone.materialization (scope, asset, partition, backfill, ordinal, state, fence)"
        " VALUES ('t/c1/acme', 'a', 'p', gen_random_uuid(), 0, 'running', 1)"
    )
    old, session = world.secret(), world.login()
    world.kube.remove(ACME)
    await world.settle()
    assert ACME not in world.kube.objects
    assert not [path for path in world.kube.objects if "secrets" in path]
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        world.login(old)
    assert world.admin("SELECT state FROM flowstone.tenant") == [("suspended",)]
    world.tenant()
    await world.settle()
    with world.login() as connection:
        assert connection.execute("SELECT asset FROM flowstone.materialization").fetchall() == [("a",)]
    assert world.secret()["PGPASSWORD"] != old["PGPASSWORD"]
    assert world.condition("Ready")[0] == "True"
    assert world.condition("CredentialDrift")[0] == "False"


async def test_deletion_is_confirmed_kept_for_a_while_and_final(world: World) -> None:
    """With the id written out the rows are digested, kept, and purged when it is time; the id is never free again."""
    world.admin(
        "INSERT INTO flowstone.materialization (scope, asset, partition, backfill, ordinal, state, fence) VALUES"
        " ('t/c1/acme', 'a', 'p', gen_random_uuid(), 0, 'succeeded', 0), ('t/c1/other', 'a', 'p', gen_random_uuid(), 0,"
        " 'succeeded', 0)"
    )
    world.tenant(deletionPolicy="Delete", confirmDeletion="acme")
    await world.settle()
    world.kube.remove(ACME)
    assert await world.settle() == 60
    assert "kept until" in world.condition("Ready")[2]
    [(digest,)] = world.admin("SELECT export_digest FROM flowstone.tenant")
    assert len(digest) == 64
    assert world.admin("SELECT count(*) FROM flowstone.materialization WHERE scope = 't/c1/acme'") == [(1,)]
    world.admin("UPDATE flowstone.tenant SET retain_until = now() - interval '1 second'")
    await world.settle()
    assert ACME not in world.kube.objects
    assert world.admin("SELECT DISTINCT scope FROM flowstone.materialization") == [("t/c1/other",)]
    assert world.admin("SELECT DISTINCT scope FROM flowstone.latest") == [("t/c1/other",)]
    assert world.admin("SELECT count(*) FROM pg_roles WHERE rolname ^@ 'tn_'") == [(0,)]
    world.tenant()
    await world.settle()
    assert world.condition("Stalled")[1] == "TenantPurged"


@pytest.mark.parametrize(
    "spec", [{"deletionPolicy": "Delete"}, {"deletionPolicy": "Delete", "confirmDeletion": "acm"}, {}]
)
async def test_without_the_confirmation_rows_are_kept(world: World, spec: dict[str, str]) -> None:
    """Delete without the id, or with another one, suspends."""
    world.tenant(**spec)
    await world.settle()
    world.kube.remove(ACME)
    await world.settle()
    assert ACME not in world.kube.objects
    assert world.admin("SELECT state, export_digest FROM flowstone.tenant") == [("suspended", None)]


async def test_the_way_out_touches_nothing(world: World) -> None:
    """With the annotation `abandon` a deleted Tenant lets go without the database."""
    world.kube.objects[ACME]["metadata"]["annotations"] = {"flowstone.dev/abandon": ""}
    world.kube.remove(ACME)
    world.ledger.close()
    assert await world.settle() is None
    assert ACME not in world.kube.objects
    assert world.admin("SELECT state FROM flowstone.tenant") == [("active",)]


async def test_two_resources_with_one_id(world: World) -> None:
    """The second one is refused while the first one lives, and takes over when it is gone."""
    other = custom("tenants", None, "acme-again")
    world.kube.put(
        other, {"kind": "Tenant", "metadata": {"name": "acme-again"}, "spec": {"id": "acme", "namespaces": ["three"]}}
    )
    await world.settle("acme-again")
    stalled = {one["type"]: one["reason"] for one in world.kube.objects[other]["status"]["conditions"]}
    assert stalled["Stalled"] == "IdTaken"
    world.login().close()
    world.kube.remove(ACME)
    await world.settle()
    await world.settle("acme-again")
    found = {one["type"]: one["status"] for one in world.kube.objects[other]["status"]["conditions"]}
    assert found["Ready"] == "True"


async def test_schema_mode(world: World) -> None:
    """The tenant makes tables in a schema of its own, that it does not own and nobody else may enter."""
    world.tenant(isolation="Schema")
    await world.settle()
    with world.login() as connection:
        connection.execute("CREATE TABLE mine (id int)")
        [schema] = connection.execute("SELECT current_schema()").fetchone() or ("",)
        assert connection.execute("SELECT count(*) FROM mine").fetchone() == (0,)
        for statement in ("ALTER SCHEMA {} OWNER TO CURRENT_USER", "DROP SCHEMA {} CASCADE"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.format(schema).encode())
        connection.execute(f"GRANT ALL ON SCHEMA {schema} TO PUBLIC".encode())  # warns, and grants nothing
    grantees = "SELECT count(*) FROM pg_namespace, aclexplode(nspacl) WHERE nspname = %s AND grantee = 0"
    assert world.admin(grantees, schema) == [(0,)]
    world.admin(f"GRANT USAGE ON SCHEMA {schema} TO PUBLIC")
    world.kube.objects[ACME]["metadata"]["annotations"] = {"flowstone.dev/rotate": "1"}
    await world.settle()
    with world.login() as connection:
        connection.execute("CREATE TABLE later (id int)")
    world.kube.objects[ACME]["metadata"]["annotations"] = {"flowstone.dev/rotate": "2"}
    await world.settle()
    with world.login() as connection:
        connection.execute("INSERT INTO later VALUES (1)")
        assert connection.execute("SELECT count(*) FROM mine").fetchone() == (0,)
    assert world.admin(grantees, schema) == [(0,)]
    owner = "SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = %s"
    assert world.admin(owner, schema) == [("flowstone_operator",)]


async def test_no_secret_is_logged(world: World) -> None:
    """After provisioning, rotation and repair neither a password nor a verifier is in the server's log."""
    world.kube.objects[ACME]["metadata"]["annotations"] = {"flowstone.dev/rotate": "1"}
    await world.settle()
    world.admin(f"ALTER ROLE {world.secret()['PGUSER']} PASSWORD NULL")
    await world.settle()
    log = world.place.server.log()
    assert "CREATE ROLE" in log
    assert "SCRAM-SHA-256$" not in log
    assert world.issued
    assert not [password for password in [*world.issued, OPERATOR_PASSWORD] if password in log]
