"""flowstone bootstrap: what it does is read back from the catalogue, on each server version, and names what is open."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
import structlog

from flowstone.cli.app import main
from flowstone.db.bootstrap import bootstrap, hardened, printed
from flowstone.db.ledger import Ledger
from flowstone.errors import LedgerRefused
from flowstone.tenant.hardening import MEASURES, Finding, verdict
from flowstone.tenant.signing import ContextKeys
from tests.postgres.conftest import Place, copied, prepare
from tests.postgres.servers import Server, ends, local

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module", params=ends(), ids=lambda major: f"pg{major}")
def fresh_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of its own: bootstrap changes more than one database."""
    with local(request.param) as server:
        prepare(server)
        yield server


@pytest.fixture
def bare(fresh_server: Server) -> Iterator[Place]:
    """A migrated database; a copy has not the grants that `migrate` makes on its own one."""
    for place in copied(fresh_server):
        with place.connect() as admin:
            admin.execute(f"GRANT CONNECT ON DATABASE {place.name} TO flowstone_operator".encode())
        yield place


def seen(place: Place) -> tuple[str, str]:
    """Return what the operator says about the server."""
    with Ledger.connect(place.operator, cluster="c1") as ledger:
        found = hardened(ledger.database)
        return found.truth, found.message


def test_before_nothing_is_believed_and_after_all_is_read_back(bare: Place) -> None:
    """Before: everything that is open is named. After: nothing is; run again, it changes nothing and says the same."""
    truth, message = seen(bare)
    assert truth == "False"
    for words in ("may connect to a database: ", "schema public", "lo_creat", "flowstone bootstrap"):
        assert words in message
    with bare.server.connect() as admin:
        admin.execute("CREATE ROLE neighbour LOGIN PASSWORD 'neighbour'")
    try:
        keys = ContextKeys.generate()
        for _ in range(2):
            found = bootstrap(bare.admin, keys=keys, log=structlog.get_logger())
            assert (found.truth, found.message) == ("True", "all measures were read back")
        assert seen(bare)[0] == "True"
        psycopg.connect(bare.server.conninfo("postgres", "neighbour", "neighbour")).close()
        assert bare.all("SELECT count(*) FROM flowstone.context_key") == [(1,)]
    finally:
        with bare.server.connect() as admin:
            admin.execute("DROP OWNED BY neighbour")
            for (name,) in admin.execute("SELECT datname FROM pg_database WHERE datallowconn").fetchall():
                admin.execute(f'REVOKE ALL ON DATABASE "{name}" FROM neighbour'.encode())
            admin.execute("DROP ROLE neighbour")


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("GRANT CONNECT ON DATABASE postgres TO PUBLIC", "may connect to a database: postgres"),
        ("GRANT USAGE ON SCHEMA public TO PUBLIC", "schema public"),
        ("GRANT EXECUTE ON FUNCTION pg_advisory_lock(bigint) TO PUBLIC", "pg_advisory_lock"),
        ("GRANT EXECUTE ON FUNCTION flowstone.context_scope() TO PUBLIC", "context_scope"),
        ("ALTER ROLE flowstone_tenant LOGIN", "flowstone_tenant"),
        (
            "CREATE LANGUAGE shell HANDLER plpgsql_call_handler",
            "a language or wrapper leads out of the database: shell",
        ),
        # Not every server has such an extension's files; by its name it is known.
        ("UPDATE pg_extension SET extname = 'dblink'", "a language or wrapper leads out of the database: dblink"),
    ],
)
def test_what_is_opened_again_is_named(bare: Place, statement: str, words: str) -> None:
    """One thing opened by hand: the verdict turns, and names it."""
    bootstrap(bare.admin, keys=None, log=structlog.get_logger())
    with bare.connect() as admin:
        admin.execute(statement.encode())
    truth, message = seen(bare)
    assert truth == "False"
    assert words in message
    with bare.connect() as admin:
        admin.execute("ALTER ROLE flowstone_tenant NOLOGIN")


def test_a_new_database_is_noticed(bare: Place) -> None:
    """A database that somebody makes later lets everybody in, and is named until bootstrap runs again."""
    bootstrap(bare.admin, keys=None, log=structlog.get_logger())
    with bare.server.connect() as admin:
        admin.execute("CREATE DATABASE later")
        try:
            assert "may connect to a database: later" in seen(bare)[1]
            assert bootstrap(bare.admin, keys=None, log=structlog.get_logger()).truth == "True"
        finally:
            admin.execute("DROP DATABASE later")


def test_without_a_superuser_what_succeeds_without_effect_is_found(bare: Place) -> None:
    """Run as a login without the rights it does not fail, and says what is still open."""
    with bare.server.connect() as admin:
        admin.execute("CREATE DATABASE open")
        admin.execute("CREATE ROLE weak LOGIN CREATEROLE PASSWORD 'weak'")
        admin.execute(f"GRANT CONNECT ON DATABASE {bare.name} TO weak".encode())
    try:
        weak = bare.server.conninfo(bare.name, "weak", "weak")
        found = bootstrap(weak, keys=None, log=structlog.get_logger())
        assert found.truth == "False"
        assert "may connect to a database: open" in found.message
    finally:
        with bare.server.connect() as admin:
            admin.execute("DROP DATABASE open")
            admin.execute(f"REVOKE ALL ON DATABASE {bare.name} FROM weak".encode())
            admin.execute("DROP ROLE weak")


def test_the_printed_script_does_the_same(bare: Place) -> None:
    """An administrator runs the printed SQL; afterwards the operator reads back that all is done."""
    with bare.connect() as admin:
        admin.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")
        admin.execute(printed(bare.admin).encode())
    assert seen(bare)[0] == "True"
    with pytest.raises(LedgerRefused, match="database"):
        printed("host=localhost")


@pytest.mark.parametrize(
    ("version", "truth"),
    [(150013, "False"), (150014, "True"), (160009, "False"), (170005, "False"), (170006, "True"), (190000, "True")],
)
def test_servers_with_known_holes_are_named(version: int, truth: str) -> None:
    """Below the minor version that closed them the server is not hardened, whatever else was done."""
    assert verdict([Finding(measure, ()) for measure in MEASURES], version).truth == truth


def test_what_is_optional_leaves_it_hardened(bare: Place) -> None:
    """A managed service may not give temp_file_limit: it is named, and the verdict holds."""
    optional: Callable[[str], bool] = lambda name: "disk" in name  # noqa: E731 - one word
    findings = [Finding(m, ("x",) if optional(m.name) else ()) for m in MEASURES]
    found = verdict(findings, 180004)
    assert found.truth == "True"
    assert "disk" in found.message


def test_without_a_ledger_it_says_what_to_do_first(fresh_server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """In a database that was not migrated it does nothing, and names the command that comes first."""
    with fresh_server.connect() as admin:
        admin.execute("CREATE DATABASE unmade")
        assert main(["bootstrap", "--database-url", fresh_server.conninfo("unmade")]) == 3
        said = capsys.readouterr()
        assert "database unmade has no ledger yet: run `flowstone migrate` first" in " ".join(said.err.split())
        assert "measure-refused" not in said.out + said.err
        admin.execute("DROP DATABASE unmade")


def test_the_command_line(bare: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """`flowstone bootstrap` ends with 0 when all was read back; --print-sql prints what it would do."""
    assert main(["bootstrap", "--database-url", bare.admin]) == 0
    assert "Hardened: True" in capsys.readouterr().out
    assert main(["bootstrap", "--print-sql", "--database-url", bare.admin]) == 0
    assert "-- PUBLIC may connect to a database\n" in capsys.readouterr().out
