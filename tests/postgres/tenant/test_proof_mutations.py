"""The proof is itself proven: each known hole is planted, and linter, attacks or differential must see it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from flowstone.tenant.proof import Report
from tests.figures import FIGURE
from tests.postgres.servers import Server, installed, local
from tests.postgres.tenant.holes import HOLES, Hole
from tests.postgres.tenant.proving import Proving, prepare_proving, proving

pytestmark = pytest.mark.postgres


SERVERS = sorted(installed())[None if os.environ.get("FLOWSTONE_EVERY_SERVER") else -1 :]
"""The newest server here; each takes over a minute, so the others only where FLOWSTONE_EVERY_SERVER is set."""


@pytest.fixture(scope="module", params=SERVERS, ids=lambda major: f"pg{major}")
def any_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each server version of this machine."""
    with local(request.param) as server:
        prepare_proving(server)
        yield server


def planted(server: Server, hole: Hole) -> Report:
    """Plant a hole in a database of its own, and return what the proof says."""
    with proving(server) as field:
        with field.canaries.out() as cage:
            words = {
                "a": cage.attacker.role_name,
                "b": cage.victim.role_name,
                "ta": cage.attacker.tenant_id,
                "tb": cage.victim.tenant_id,
            }
        try:
            field.admin(*(_filled(statement, words) for statement in hole.plant))
            return field.verify()
        finally:
            _take_back(field, hole, words)


def _filled(statement: str, words: dict[str, str]) -> str:
    for name, value in words.items():
        statement = statement.replace(f"{{{name}}}", value)
    return statement


def _take_back(field: Proving, hole: Hole, words: dict[str, str]) -> None:
    """Leave the server's roles as they were."""
    for name in (words["a"], words["b"]):
        field.admin(f"REASSIGN OWNED BY {name} TO postgres", f"DROP OWNED BY {name}")
    field.admin(*(_filled(statement, words) for statement in hole.undo))


def test_every_known_hole_is_seen(any_server: Server, record_property: Callable[[str, object], None]) -> None:
    """Each hole turns the proof red, and a database without one is green; the kill rate is printed."""
    with proving(any_server) as field:
        assert [str(one) for one in field.verify().open] == []
    found = {hole.name: {one.kind for one in planted(any_server, hole).open} for hole in HOLES}
    survivors = [name for name, kinds in found.items() if not kinds]
    killed = len(HOLES) - len(survivors)
    by = {kind: sum(1 for kinds in found.values() if kind in kinds) for kind in ("lint", "attack", "difference")}
    rate = f"{killed} of {len(HOLES)} holes seen ({killed / len(HOLES):.0%})"
    record_property(FIGURE, f"{any_server.name}: {rate}; by kind: {by}")
    assert survivors == []


def test_holes_have_names_of_their_own() -> None:
    """Two holes of one name would count as one."""
    assert len({hole.name for hole in HOLES}) == len(HOLES)
