"""Logins of scopes: made once, known by OID, let in by a verifier that nobody logs, ended when they must."""

from __future__ import annotations

import base64
import threading
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from flowstone.backfill.edges.local_login import LocalLogin, target_of
from flowstone.db.catalogue_linter import lint
from flowstone.db.ledger import Ledger
from flowstone.db.logins import Login, Logins, try_login
from flowstone.db.passwords import scram_verifier
from flowstone.db.tenants import TenantRegistry
from flowstone.errors import LedgerBusy, LedgerError, LedgerRefused, LedgerUnavailable
from tests.postgres.conftest import CLUSTER, OTHER_SCOPE, SCOPE, WORKER_PASSWORD, Place, Queue, login, request
from tests.postgres.servers import free_port
from tests.postgres.test_ledger import done


def test_the_verifier_is_the_servers(place: Place) -> None:
    """With the same salt and rounds, our verifier is the one that Postgres makes itself."""
    with place.connect() as admin:
        admin.execute("SET password_encryption = 'scram-sha-256'")
        admin.execute("CREATE ROLE sample PASSWORD 'correct horse battery 1'")
        (stored,) = admin.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'sample'").fetchone() or ("",)
        admin.execute("DROP ROLE sample")
    rounds, salt = stored.split("$")[1].split(":")
    salt_bytes = base64.b64decode(salt)
    assert scram_verifier("correct horse battery 1", salt_bytes, int(rounds)) == stored


@pytest.mark.parametrize("password", ["", "pässword", "line\nend"])
def test_passwords_that_saslprep_would_change_are_refused(password: str) -> None:
    """Only printable ASCII has one form on both sides."""
    with pytest.raises(ValueError, match="printable ASCII"):
        scram_verifier(password)


def test_a_login_comes_to_life_in_steps(logins: Logins, place: Place) -> None:
    """Made without the right to log in, it gets in once its password is set, and with no other."""
    made = logins.ensure(SCOPE, "ns")
    assert made == Login(made.role_name, made.role_oid, SCOPE, "a", can_login=False)
    assert len(made.role_name) == len("ns__a") + 20
    assert try_login(place.login(made.role_name)) is False
    logins.set_password(made.role_name, scram_verifier(WORKER_PASSWORD))
    assert try_login(place.login(made.role_name)) is True
    assert try_login(place.server.conninfo(place.name, made.role_name, "wrong")) is False
    assert logins.ensure(SCOPE, "ns") == Login(made.role_name, made.role_oid, SCOPE, "a", can_login=True)


def test_names_are_not_guessed_from_scopes(logins: Logins) -> None:
    """Every scope and every slot gets a name of its own, in the alphabet of base32."""
    names = [logins.ensure(scope, "ns", slot=slot).role_name for scope in (SCOPE, OTHER_SCOPE) for slot in ("a", "b")]
    assert len(set(names)) == 4
    assert [name[-2:] for name in names] == ["_a", "_b", "_a", "_b"]
    assert set("".join(name[3:-2] for name in names)) <= set("abcdefghijklmnopqrstuvwxyz234567")


def test_a_login_whose_role_is_gone_is_made_anew(logins: Logins, place: Place) -> None:
    """A restored database may name roles that the server never had, or that are others now."""
    made = logins.ensure(SCOPE, "ns")
    with place.connect() as admin:
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(made.role_name)))
        admin.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(made.role_name)))
    again = logins.ensure(SCOPE, "ns")
    assert again.role_name != made.role_name
    with place.connect() as admin:
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(made.role_name)))


def test_replicas_make_one_login(logins: Logins, place: Place) -> None:
    """Four threads that want the same scope's login end with one role."""
    made: list[str] = []

    def run() -> None:
        while True:
            try:
                made.append(logins.ensure(SCOPE, "ns").role_name)
            except LedgerBusy:
                continue
            return

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert place.all("SELECT role_name FROM flowstone.login_scope") == [(made[0],)]
    known = "SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)"
    assert place.all(known, made) == [(made[0],)]


def test_replicas_set_one_password_at_the_same_time(logins: Logins, place: Place) -> None:
    """Eight threads that let the same login in take turns: none of them sees Postgres' "tuple concurrently updated"."""
    name = logins.ensure(SCOPE, "ns").role_name
    verifier = scram_verifier(WORKER_PASSWORD)
    start = threading.Barrier(8)
    refused: list[LedgerError] = []

    def run() -> None:
        start.wait()
        for _ in range(10):
            try:
                logins.set_password(name, verifier)
            except LedgerError as error:
                refused.append(error)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == []
    assert try_login(place.login(name)) is True


def test_no_verifier_is_logged(logins: Logins, place: Place) -> None:
    """Neither success nor failure of setting a password writes it, or its verifier, to a log that has everything."""
    made = logins.ensure(SCOPE, "ns")
    password = "never-seen-in-a-log-1"
    verifier = scram_verifier(password)
    logins.set_password(made.role_name, verifier)
    with place.connect() as admin:
        admin.execute(sql.SQL("ALTER ROLE {} SUPERUSER").format(sql.Identifier(made.role_name)))
        with pytest.raises(LedgerRefused, match="could not be set") as caught:
            logins.set_password(made.role_name, verifier)
        admin.execute(sql.SQL("ALTER ROLE {} NOSUPERUSER").format(sql.Identifier(made.role_name)))
    log = place.server.log()
    assert "password of a role could not be set" in log
    assert verifier not in log + str(caught.value)
    assert verifier.split("$")[2] not in log
    assert password not in log


@pytest.mark.parametrize("name", ["flowstone_operator", "postgres", "nobody-at-all", 'x"; DROP ROLE y; --'])
def test_other_roles_are_not_touched(logins: Logins, name: str) -> None:
    """Passwords, sessions and roles of anything but a scope's login are out of reach."""
    for step in (lambda: logins.set_password(name, "x"), lambda: logins.end_sessions(name), lambda: logins.drop(name)):
        with pytest.raises(LedgerRefused, match=r"not in flowstone\.login_scope"):
            step()


def test_dropping_ends_sessions_and_takes_the_mapping_along(logins: Logins, place: Place) -> None:
    """After a drop neither the open session, nor the role, nor its scope is left."""
    name = login(logins, SCOPE)
    with psycopg.connect(place.login(name), autocommit=True) as session:
        logins.drop(name)
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
    assert try_login(place.login(name)) is False
    assert place.all("SELECT 1 FROM flowstone.login_scope") == []


def test_an_absent_server_says_nothing_about_a_password() -> None:
    """A refused connection is no refused login."""
    with pytest.raises(LedgerUnavailable):
        try_login(f"host=127.0.0.1 port={free_port()} user=x dbname=x")


def test_a_full_server_says_nothing_about_a_password(logins: Logins, place: Place) -> None:
    """A login at its connection limit is not told to be wrong."""
    name = login(logins, SCOPE)
    with place.connect() as admin:
        admin.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT 0").format(sql.Identifier(name)))
    with pytest.raises(LedgerUnavailable):
        try_login(place.login(name))


def test_a_lost_workers_locks_are_broken(ledger: Ledger, logins: Logins, queue: Queue, place: Place) -> None:
    """Settling never waits for a worker's open transaction; its session is ended, and then the row is settled."""
    uid = queue(["a", "b"])
    one, two = ledger.claim(uid, request())
    address = place.login(login(logins, SCOPE))
    lost = psycopg.connect(address)
    with psycopg.connect(address) as healthy:
        lost.execute("UPDATE flowstone.materialization SET state = 'succeeded' WHERE fence = %s", [one.fence])
        healthy.execute("UPDATE flowstone.materialization SET state = 'succeeded' WHERE fence = %s", [two.fence])
        with pytest.raises(LedgerBusy):
            ledger.settle(one.fence, [done("a", "queued")], close="Lost")
        assert ledger.end_holders(one.fence) == 1
        with pytest.raises(psycopg.OperationalError):
            lost.execute("SELECT 1")
        settle_soon(ledger, one.fence)
    lost.close()
    counts = ledger.counts(uid)
    assert (counts.queued, counts.succeeded) == (1, 1)


def settle_soon(ledger: Ledger, fence: int) -> None:
    """Settle as soon as the ended session has let go, which takes the server a moment."""
    for _ in range(1000):
        try:
            return ledger.settle(fence, [done("a", "queued")], close="Lost")
        except LedgerError:
            continue
    return ledger.settle(fence, [done("a", "queued")], close="Lost")


def foreign_logins(ledger: Ledger) -> list[str]:
    """Logins that the proof's linter takes for a hole."""
    with ledger.database.transaction() as tx:
        return [what for one in lint(tx) if "not its own" in one.check.name for what in one.what]


def test_the_linter_knows_the_tenants_logins_of_local_work(
    ledger: Ledger, logins: Logins, place: Place, tmp_path: Path
) -> None:
    """Local work's login, new or from before this was recorded, is the tenant's own; one of another name stays a hole.

    Once an operator has given it another password it is not this machine's any more, and keeps that password."""
    scope = TenantRegistry(ledger.database, CLUSTER).register("acme").scope
    local = LocalLogin(logins, target_of(place.operator), tmp_path, lambda: WORKER_PASSWORD)
    name = local(scope)["PGUSER"]
    assert place.all("SELECT role_base || '_a' FROM flowstone.tenant") == [(name,)]
    assert foreign_logins(ledger) == []
    with place.connect() as admin:
        admin.execute("UPDATE flowstone.tenant SET role_base = NULL")
    assert foreign_logins(ledger) == [name]
    assert logins.ensure(scope, "tn", "acme").role_name == name
    assert foreign_logins(ledger) == []
    logins.drop(name)
    assert logins.ensure(scope, "tn", "acme").role_name == name
    logins.ensure(scope, "tn", "acme", "b", "x" * 20)
    assert foreign_logins(ledger) == [f"tn_{'x' * 20}_b"]
    logins.set_password(name, scram_verifier("the-operators-own"))
    again = LocalLogin(logins, target_of(place.operator), tmp_path, lambda: WORKER_PASSWORD)
    with pytest.raises(LedgerRefused, match="used by an operator"):
        again(scope)
    assert try_login(place.server.conninfo(place.name, name, "the-operators-own"))
