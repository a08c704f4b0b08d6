"""Attacks that the proof does not run on people's databases: they lock what others use, or need several sessions.

Each is tried from a tenant's own login and from a pooled one, before bootstrap and after, on every server there is. The
proof itself runs on all of them too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg

from flowstone.db.canaries import Cage
from flowstone.db.ledger import Ledger
from tests.postgres.conftest import Place, copied, prepare
from tests.postgres.servers import Server, ends, local, named
from tests.postgres.tenant.proving import CLUSTER, Proving, field, prepare_proving

__all__ = ["field"]

pytestmark = pytest.mark.postgres

Session = psycopg.Connection[Any]

NEWEST = 17
"""In a container, where the cluster's docker is there."""

SERVERS = [f"local-{major}" for major in ends()]


@pytest.fixture(scope="module", params=[*SERVERS, f"container-{NEWEST}"])
def any_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The oldest and the newest server of this machine, and one in a container."""
    with named(request.param) as server:
        prepare_proving(server)
        yield server


@contextmanager
def session(conninfo: str | None) -> Iterator[Session]:
    """A session of a canary or of a pooled login."""
    assert conninfo is not None
    with closing(psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)) as connection:
        connection.execute("SET statement_timeout = '10s'")
        yield connection


PROTECTION = """
    SELECT p.polrelid::regclass::text, p.polname::text, p.polroles::regrole[]::text FROM pg_policy p
    UNION ALL
    SELECT c.oid::regclass::text, c.relacl::text, c.relrowsecurity::text FROM pg_class c
    WHERE c.relnamespace IN ('flowstone'::regnamespace, 'public'::regnamespace)
    UNION ALL
    SELECT p.oid::regprocedure::text, p.proacl::text, '' FROM pg_proc p WHERE p.pronamespace = 'flowstone'::regnamespace
    ORDER BY 1, 2, 3
"""
"""All that keeps tenants apart in a database."""


def protection(place: Place) -> list[Any]:
    """What the superuser sees of it."""
    return place.all(PROTECTION)


def test_the_proof_holds_here(field: Proving) -> None:
    """Linter, attacks and comparison find nothing open."""
    assert [str(one) for one in field.verify().open] == []


@pytest.mark.parametrize("who", ["tenant", "pool"])
def test_nobody_drops_what_its_group_was_given(field: Proving, who: str) -> None:
    """DROP OWNED BY and REASSIGN OWNED BY a group one belongs to leave every policy, right and owner as it was."""
    with field.canaries.out() as cage, session(_conninfo(cage, who)) as attacker:
        before = protection(field.place)
        for statement in (
            "DROP OWNED BY flowstone_{0}",
            "DROP OWNED BY flowstone_{0} CASCADE",
            "SET ROLE flowstone_{0}; DROP OWNED BY CURRENT_USER",
            "REASSIGN OWNED BY flowstone_{0} TO CURRENT_USER",
            "DROP OWNED BY flowstone_owner",
            "DROP OWNED BY CURRENT_USER",
        ):
            _tried(attacker, statement.format(who))
        assert protection(field.place) == before


def _conninfo(cage: Cage, who: str) -> str | None:
    return cage.pool if who == "pool" else cage.attacker.conninfo


def _tried(attacker: Session, statement: str) -> None:
    """Try a statement; refused or not, what it does is looked at afterwards."""
    with suppress(pg.InsufficientPrivilege, pg.InvalidParameterValue):
        attacker.execute(statement.encode())
    attacker.execute("RESET ROLE")


def test_a_victim_waits_for_nobody(field: Proving) -> None:
    """What a tenant holds in an open transaction stands in no other tenant's way: keys, locks, snapshots, listeners."""
    with field.canaries.out() as cage, session(cage.attacker.conninfo) as attacker, session(cage.victim.conninfo) as b:
        attacker.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        attacker.execute("LISTEN canary")
        attacker.execute("SELECT count(*) FROM flowstone.canary, flowstone.materialization, flowstone.batch")
        attacker.execute("SELECT FROM flowstone.canary FOR UPDATE")
        attacker.execute("INSERT INTO flowstone.canary (id, note) VALUES (77, 'same key')")
        attacker.execute("UPDATE flowstone.materialization SET state = 'failed' WHERE state = 'running'")
        attacker.execute("UPDATE flowstone.batch SET reporting = true")
        b.execute("SET lock_timeout = '1ms'")
        b.execute("INSERT INTO flowstone.canary (id, note) VALUES (77, 'same key')")
        b.execute("UPDATE flowstone.canary SET note = note || '.'")
        assert b.execute("UPDATE flowstone.materialization SET state = 'failed' WHERE state = 'running'").rowcount == 1
        b.execute("DELETE FROM flowstone.canary WHERE id = 77")
        attacker.execute("ROLLBACK")


def test_pooled_sessions_are_strangers_to_each_other(field: Proving) -> None:
    """One session of the pooled login neither reads what another sends, nor ends it, nor names it to the server."""
    with field.canaries.out() as cage, session(cage.pool) as victim, session(cage.pool) as attacker:
        victim.execute("SELECT 'what another tenant asks'")
        for statement in (
            "SELECT query FROM pg_stat_activity",
            "SELECT pg_stat_get_backend_activity(1)",
            f"SELECT pg_terminate_backend({victim.info.backend_pid})",
            f"SELECT pg_cancel_backend({victim.info.backend_pid})",
        ):
            with pytest.raises(pg.InsufficientPrivilege):
                attacker.execute(statement.encode())
        assert victim.execute("SELECT 1").fetchone() == (1,)


def test_own_names_and_passwords_lead_nowhere(field: Proving) -> None:
    """What a login may change of itself and of its group gives it, and others, no foreign row."""
    with field.canaries.out() as cage:
        with session(cage.attacker.conninfo) as attacker:
            for statement in (
                f"ALTER ROLE CURRENT_USER SET session_authorization = '{cage.victim.role_name}'",
                "ALTER ROLE CURRENT_USER SET role = 'flowstone_operator'",
                "ALTER ROLE CURRENT_USER SET row_security = off",
                "ALTER ROLE CURRENT_USER SET search_path = pg_temp, flowstone",
                "SET ROLE flowstone_tenant; ALTER ROLE flowstone_tenant PASSWORD 'x'",
                "SET ROLE flowstone_tenant; ALTER ROLE flowstone_tenant SET row_security = off",
                f"GRANT {cage.attacker.role_name} TO flowstone_pool",
                f"GRANT {cage.attacker.role_name} TO {cage.victim.role_name}",
            ):
                _tried(attacker, statement)
        try:
            with session(cage.attacker.conninfo) as again:
                assert again.execute("SELECT session_user").fetchone() == (cage.attacker.role_name,)
                again.execute("SET row_security = on")
                rows = again.execute("SELECT DISTINCT tenant_id FROM flowstone.canary").fetchall()
                assert rows == [(cage.attacker.tenant_id,)]
            with session(cage.victim.conninfo) as victim:
                assert len(victim.execute("SELECT FROM flowstone.canary").fetchall()) == 2
        finally:
            field.admin(
                f"ALTER ROLE {cage.attacker.role_name} RESET ALL",
                "ALTER ROLE flowstone_tenant RESET ALL",
                "ALTER ROLE flowstone_tenant PASSWORD NULL",
            )


def test_statistics_and_catalogues_tell_no_values(field: Proving) -> None:
    """After ANALYZE, and with extended statistics, no view or function shows a tenant another's values."""
    with field.canaries.out() as cage:
        field.admin("CREATE STATISTICS flowstone.canary_both (mcv) ON id, note FROM flowstone.canary")
        field.admin("ANALYZE flowstone.canary", "ANALYZE public.booking")
        with session(cage.attacker.conninfo) as attacker:
            for view in ("pg_stats", "pg_stats_ext", "pg_stats_ext_exprs"):
                query = f"SELECT v::text FROM {view} v WHERE schemaname IN ('flowstone', 'public')"
                told = str(attacker.execute(query.encode()).fetchall())
                assert "victim" not in told
                assert "tenant_" not in told.replace("tenant_id", "")
            for statement in (
                "SELECT * FROM pg_statistic_ext_data",
                "SELECT last_value FROM public.booking_id_seq",
                "SELECT currval('public.booking_id_seq')",
            ):
                with pytest.raises(pg.InsufficientPrivilege):
                    attacker.execute(statement.encode())


def test_before_bootstrap_what_works_is_admitted(any_server: Server) -> None:
    """Without bootstrap no attack gets anywhere but those that `Hardened` names; the group's rights hold there too."""
    if any_server.pid == 0:
        pytest.skip("one server has one bootstrap: the container's was run")
    with local(int(any_server.name.split("-")[1])) as server:
        prepare(server)
        for place in copied(server):
            with place.connect() as admin:
                admin.execute("ALTER ROLE flowstone_operator NOBYPASSRLS")
                admin.execute(f"GRANT TEMPORARY, CREATE ON DATABASE {place.name} TO flowstone_operator".encode())
            with _bare(place) as field:
                report = field.verify(keys=None)
                assert [str(one) for one in report.open] == []
                assert {"pool/end a session", "pool/words of others", "reach/lock"} <= set(report.admitted)
                test_nobody_drops_what_its_group_was_given(field, "pool")


@contextmanager
def _bare(place: Place) -> Iterator[Proving]:
    with Ledger.connect(place.operator, cluster=CLUSTER) as ledger:
        yield Proving(place, ledger)
