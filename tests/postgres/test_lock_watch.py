"""A login that waits for a lock it may not have holds up nobody for long."""

from __future__ import annotations

import psycopg
from psycopg.rows import TupleRow

from flowstone.db.ledger import Ledger
from flowstone.db.lock_watch import end_waiting
from flowstone.db.logins import Logins
from tests.postgres.conftest import OTHER_SCOPE, SCOPE, Place, login

Session = psycopg.Connection[TupleRow]

WAITING = "SELECT pid FROM pg_locks WHERE locktype = 'relation' AND NOT granted"


def wait_for_the_lock(place: Place, session: Session, statement: bytes) -> None:
    """Send a statement, and return when it waits for its lock."""
    session.pgconn.send_query(statement)
    for _ in range(100):
        if place.all(WAITING):
            return
        place.all("SELECT pg_sleep(0.05)")
    raise AssertionError("it does not wait for a lock")


def test_who_waits_for_an_exclusive_lock_is_ended(place: Place, ledger: Ledger, logins: Logins) -> None:
    """Two sessions of one login block the ledger's table for all; one look ends both, however short the wait is."""
    mine, other = login(logins, SCOPE), login(logins, OTHER_SCOPE)
    with psycopg.connect(place.login(other), autocommit=True) as victim:
        reader = psycopg.connect(place.login(mine))
        reader.execute("SELECT count(*) FROM flowstone.materialization")
        waiter = psycopg.connect(place.login(mine), autocommit=True)
        wait_for_the_lock(place, waiter, b"CREATE RULE mine AS ON UPDATE TO flowstone.materialization DO NOTHING")
        assert end_waiting(ledger.database, patience=3600) == 2
        victim.execute("SET statement_timeout = '5s'")
        assert victim.execute("SELECT count(*) FROM flowstone.materialization").fetchone() == (0,)
        waiter.close()
        reader.close()


def test_who_waits_for_another_table_is_given_some_time(place: Place, ledger: Ledger, logins: Logins) -> None:
    """There a tenant may have the right to a lock; what it waits for is another session's, which goes on."""
    mine, other = login(logins, SCOPE), login(logins, OTHER_SCOPE)
    with place.connect() as admin:
        admin.execute("CREATE TABLE public.shared (x int)")
        admin.execute("GRANT USAGE ON SCHEMA public TO flowstone_namespace")
        admin.execute("GRANT SELECT, DELETE ON public.shared TO flowstone_namespace")
    with psycopg.connect(place.login(other)) as reader:
        reader.execute("SELECT count(*) FROM public.shared")
        waiter = psycopg.connect(place.login(mine), autocommit=True)
        wait_for_the_lock(place, waiter, b"BEGIN; LOCK TABLE public.shared")
        assert end_waiting(ledger.database, patience=3600) == 0
        assert end_waiting(ledger.database, patience=0) == 1
        waiter.close()
        assert reader.execute("SELECT 1").fetchone() == (1,)


def test_other_waits_are_left_alone(place: Place, ledger: Ledger, logins: Logins) -> None:
    """A reader that waits for somebody else's lock, and a superuser who waits for a strong one, are not ended."""
    with place.connect() as admin, psycopg.connect(place.login(login(logins, SCOPE)), autocommit=True) as reader:
        with admin.transaction():
            admin.execute("LOCK TABLE flowstone.materialization IN ACCESS EXCLUSIVE MODE")
            wait_for_the_lock(place, reader, b"SELECT count(*) FROM flowstone.materialization")
            assert end_waiting(ledger.database, patience=0) == 0
        while reader.pgconn.get_result() is not None:
            pass
        assert reader.execute("SELECT 1").fetchone() == (1,)
