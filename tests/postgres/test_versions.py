"""The core of the ledger on every PostgreSQL there is: this machine's programs, and images by testcontainers.

In CI (`make test` sets FLOWSTONE_REQUIRE_CLUSTER=1) containers have to be there; elsewhere they are skipped when no
DOCKER_HOST is set.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from alembic import command
from psycopg.rows import TupleRow

from flowstone.backfill.records import Counts
from flowstone.db.ledger import Ledger
from flowstone.db.logins import Logins, try_login
from flowstone.db.migrate import config, engine_for
from tests.postgres.conftest import SCOPE, Place, Queue, copied, login, prepare, request
from tests.postgres.servers import Server, installed, named
from tests.postgres.test_ledger import done
from tests.postgres.test_scope_login import ATTACKS, BEATEN, Setting, Worker, everything, outcome, setting

__all__ = ["setting"]

CONTAINERS = (15, 17)

SERVERS = [*(f"local-{major}" for major in sorted(installed())), *(f"container-{major}" for major in CONTAINERS)]


@pytest.fixture(scope="module", params=SERVERS)
def any_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each server in turn, with the database that tests copy."""
    with named(request.param) as server:
        prepare(server)
        yield server


@pytest.fixture
def place(any_server: Server) -> Iterator[Place]:
    """A fresh database on the server at hand."""
    yield from copied(any_server)


def test_the_version_is_the_one_asked_for(any_server: Server) -> None:
    """The servers are what their names say."""
    with any_server.connect() as connection:
        assert str(connection.info.server_version // 10000) == any_server.name.split("-")[1]


def test_models_and_migrations_agree(place: Place) -> None:
    """`alembic check` is clean on each version."""
    with engine_for(place.admin).connect() as connection:
        command.check(config(connection))


def test_the_operator_is_no_superuser_and_inherits_nothing(place: Place) -> None:
    """The operator administers both groups, is ruled by neither, and may make roles and databases."""
    rights = """
        SELECT rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolinherit,
               pg_has_role(oid, 'flowstone_namespace', 'USAGE'), pg_has_role(oid, 'flowstone_tenant', 'USAGE')
        FROM pg_roles WHERE rolname = 'flowstone_operator'
    """
    assert place.all(rights) == [(False, True, True, True, False, False, False)]


def test_attacks_are_beaten(worker: Worker, setting: Setting, place: Place) -> None:
    """None of the attacks of a scope's login succeeds on any version."""
    before = everything(place)
    assert {name: outcome(worker, attack) for name, attack in ATTACKS.items() if not beaten(worker, attack)} == {}
    assert everything(place) == before


def beaten(worker: Worker, attack: str) -> bool:
    """Whether the attack was refused or touched nothing."""
    return outcome(worker, attack) in BEATEN


@pytest.mark.parametrize("bypass", [True, False])
def test_a_backfill_from_plan_to_end(ledger: Ledger, logins: Logins, queue: Queue, place: Place, bypass: bool) -> None:
    """Planned, claimed, reported by the scope's login, settled and counted, with and without BYPASSRLS."""
    with place.connect() as admin:
        admin.execute(f"ALTER ROLE flowstone_operator {'' if bypass else 'NO'}BYPASSRLS".encode())
        try:
            uid = queue([f"p{number}" for number in range(6)])
            (batch,) = ledger.claim(uid, request(batch_size=3, max_parallel=1))
            with psycopg.connect(place.login(login(logins, SCOPE)), autocommit=True) as worker:
                report(worker, batch.fence, "p0", "succeeded")
                report(worker, batch.fence, "p1", "failed")
            changes = [
                done("p1", "failed", expected="failed", reason="AttemptsUsedUp", attempts=1, charged=True),
                done("p2", "queued"),
            ]
            ledger.settle(batch.fence, changes, close="Failed")
            assert ledger.counts(uid) == Counts(total=6, queued=4, succeeded=1, failed=1)
            assert ledger.cancel(uid) == 4
        finally:
            admin.execute("ALTER ROLE flowstone_operator BYPASSRLS")


def report(worker: psycopg.Connection[TupleRow], fence: int, partition: str, state: str) -> None:
    """What a worker does."""
    query = """
        UPDATE flowstone.materialization SET state = %s, finished_at = now()
        WHERE fence = %s AND partition = %s AND state = 'running'
    """
    assert worker.execute(query, [state, fence, partition]).rowcount == 1


def test_the_life_of_a_login(logins: Logins, place: Place) -> None:
    """Made, let in, its session ended, dropped; by an operator that is no superuser; and nothing in the log."""
    name = login(logins, SCOPE)
    with psycopg.connect(place.login(name), autocommit=True):
        assert logins.end_sessions(name) == 1
    logins.drop(name)
    assert try_login(place.login(name)) is False
    assert "SCRAM-SHA-256$" not in place.server.log()
