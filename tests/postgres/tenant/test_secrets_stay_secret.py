"""No password and no verifier is written down anywhere, by a server that writes down whatever it is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import structlog

from flowstone.db.bootstrap import bootstrap
from flowstone.db.logins import Logins
from flowstone.db.passwords import scram_verifier
from flowstone.errors import FlowStoneError
from tests.postgres.conftest import OPERATOR_PASSWORD, Place
from tests.postgres.servers import Server, ends, installed
from tests.postgres.tenant.tenant_world import ACME, World, homes, inhabited, plain_server

pytestmark = pytest.mark.postgres

TALKATIVE = {
    "log_min_messages": "debug1",
    "log_min_duration_statement": "0",
    "log_min_duration_sample": "0",
    "log_error_verbosity": "verbose",
    "log_parameter_max_length": "-1",
    "log_parameter_max_length_on_error": "-1",
    "log_connections": "on",
    "log_replication_commands": "on",
}
"""On top of log_statement = all and log_min_error_statement = debug1."""

STATEMENTS = {
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.track": "all",
    "pg_stat_statements.track_utility": "on",
}
"""Keeps what runs inside functions too."""


@pytest.fixture(scope="module", params=ends(), ids=lambda major: f"pg{major}")
def talkative(request: pytest.FixtureRequest) -> Iterator[tuple[Server, bool]]:
    """The oldest and the newest server of this machine, and whether it has pg_stat_statements."""
    has = any((folder / "pg_stat_statements.so").exists() for folder in _libraries(installed()[request.param]))
    with plain_server(request.param, **TALKATIVE, **(STATEMENTS if has else {})) as server:
        yield server, has


def _libraries(programs: Path) -> list[Path]:
    return [programs.parent / "lib", programs.parent / "lib" / "postgresql"]


async def test_nothing_is_written_down(talkative: tuple[Server, bool], capfd: pytest.CaptureFixture[str]) -> None:
    """Provisioning, rotation, repair, failures half-way, deletion and return leave no secret in any log or status."""
    server, has_statements = talkative
    for home in homes(server):
        bootstrap(home.admin, keys=None, log=structlog.get_logger())
        verifiers: set[str] = set()
        async with inhabited(home) as world:
            verifiers |= await _lived(world)
            assert len(world.issued) >= 4
            objects = {path: body for path, body in world.kube.objects.items() if "/secrets/" not in path}
            told = {
                "server's log": server.log(),
                "operator's log": "".join(capfd.readouterr()),
                "objects": json.dumps(objects),
                "statements": _statements(home) if has_statements else "",
            }
            secret = [*world.issued, OPERATOR_PASSWORD, *(part for one in verifiers for part in _parts(one))]
    assert "ALTER ROLE" in told["server's log"]
    assert "could not be set" in told["server's log"]
    assert len(verifiers) >= 4
    assert {place for place, text in told.items() for word in [*secret, "SCRAM-SHA-256$"] if word in text} == set()


async def _lived(world: World) -> set[str]:
    """Go through a tenant's life; returns the verifiers there were."""
    seen = _verifiers(world)
    annotations = world.kube.objects[ACME]["metadata"].setdefault("annotations", {})
    annotations["flowstone.dev/rotate"] = "1"
    await world.settle()
    seen |= _verifiers(world)
    world.admin(f"ALTER ROLE {world.secret()['PGUSER']} PASSWORD NULL")
    await world.settle()
    world.admin("ALTER ROLE flowstone_operator NOCREATEROLE")
    annotations["flowstone.dev/rotate"] = "2"
    await world.reconciler("", "acme")
    world.admin("ALTER ROLE flowstone_operator CREATEROLE")
    await world.settle()
    seen |= _verifiers(world)
    _fail_half_way(world)
    world.kube.remove(ACME)
    await world.settle()
    world.tenant()
    await world.settle()
    world.login().close()
    with pytest.raises(psycopg.OperationalError):
        world.login({"uri": world.secret()["uri"].replace(world.secret()["PGPASSWORD"], "wrong")})
    return seen | _verifiers(world)


def _fail_half_way(world: World) -> None:
    """Set the password of a login whose role is gone, so that the very statement with the verifier fails."""
    world.admin("INSERT INTO flowstone.login_scope VALUES ('tn_gone_a', 1, 't/c1/gone', 'a', 'gone')")
    password = "a password that nobody ever has"
    world.issued.append(password)
    with pytest.raises(FlowStoneError):
        Logins(world.ledger.database).set_password("tn_gone_a", scram_verifier(password))
    world.admin("DELETE FROM flowstone.login_scope WHERE role_name = 'tn_gone_a'")


def _verifiers(world: World) -> set[str]:
    return {one for (one,) in world.admin("SELECT rolpassword FROM pg_authid WHERE rolpassword <> ''")}


def _parts(verifier: str) -> list[str]:
    """A verifier's salt, stored key and server key: SCRAM-SHA-256$iterations:salt$stored:server."""
    _, salted, keys = verifier.split("$")
    return [salted.split(":")[1], *keys.split(":")]


def _statements(home: Place) -> str:
    """All that pg_stat_statements has kept."""
    with home.connect() as admin:
        admin.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        kept = "\n".join(query for (query,) in admin.execute("SELECT query FROM pg_stat_statements"))
    assert "flowstone_verifier" in kept
    return kept
