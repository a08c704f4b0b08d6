"""Postgres away, frozen, cut off after the commit, restarted: how soon the ledger says so, and how it comes back."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from flowstone.backfill.records import Counts
from flowstone.db.connection import Database, open_pool
from flowstone.db.deadline import Deadline
from flowstone.db.ledger import Ledger
from flowstone.errors import LedgerBusy, LedgerRefused, LedgerUnavailable
from tests.postgres.conftest import CLUSTER, Place, Queue, request
from tests.postgres.proxy import Proxy
from tests.postgres.servers import Cluster, free_port, installed

SOON = 12.0
"""Seconds within which an outage must show: the deadline of a transaction, and a margin for a busy machine."""


@pytest.fixture
def proxy(place: Place) -> Iterator[Proxy]:
    """A proxy before the test's server."""
    with Proxy(place.server.port) as proxy:
        yield proxy


@pytest.fixture
def distant(place: Place, proxy: Proxy) -> Iterator[Ledger]:
    """The ledger through the proxy."""
    with Ledger.connect(make_conninfo(place.operator, port=proxy.port), cluster=CLUSTER) as ledger:
        ledger.check_schema()
        yield ledger


def until_back(ledger: Ledger, seconds: float = 20.0) -> float:
    """Ask until the ledger answers; return after how many seconds it did."""
    start = time.monotonic()
    while True:
        try:
            ledger.check_schema()
        except LedgerUnavailable:
            assert time.monotonic() - start < seconds
        else:
            return time.monotonic() - start


def test_opening_does_not_wait(place: Place) -> None:
    """A ledger can be made while no server is there; asking it says unavailable, soon."""
    start = time.monotonic()
    with Ledger.connect(f"host=127.0.0.1 port={free_port()} user=x dbname=x", cluster=CLUSTER) as ledger:
        made = time.monotonic() - start
        with pytest.raises(LedgerUnavailable):
            ledger.check_schema()
        asked = time.monotonic() - start
    assert made < 1.0
    assert asked < SOON


def test_a_frozen_way_shows_soon_and_thaws(distant: Ledger, proxy: Proxy) -> None:
    """A proxy that swallows everything and closes nothing is noticed; afterwards the ledger works by itself."""
    proxy.freeze()
    start = time.monotonic()
    with pytest.raises(LedgerUnavailable):
        distant.check_schema()
    assert time.monotonic() - start < SOON
    proxy.thaw()
    assert until_back(distant) < SOON


def test_a_cut_shows_at_once_and_heals(distant: Ledger, proxy: Proxy) -> None:
    """Closed connections are errors at once, and new ones are made when they can be."""
    proxy.cut()
    start = time.monotonic()
    with pytest.raises(LedgerUnavailable):
        distant.check_schema()
    assert time.monotonic() - start < SOON
    proxy.thaw()
    assert until_back(distant) < SOON


def test_a_claim_whose_answer_is_lost_is_found_again(distant: Ledger, proxy: Proxy, queue: Queue) -> None:
    """Cut off between commit and answer, the batch is open under its name, and a repeated claim stays at the cap."""
    uid = queue(["a", "b", "c"])
    proxy.mute_after(b"COMMIT")
    with pytest.raises(LedgerUnavailable):
        distant.claim(uid, request(max_parallel=1))
    proxy.thaw()
    until_back(distant)
    (batch,) = distant.open_batches(uid)
    assert [row.partition for row in distant.rows_of(batch.fence)] == ["a"]
    assert batch.job_name == f"bf-01234567-{batch.fence}"
    assert distant.claim(uid, request(max_parallel=1)) == []
    assert distant.counts(uid) == Counts(total=3, queued=2, running=1)


def test_a_restarted_server_is_used_again() -> None:
    """After a crash and a restart the pool's dead connections cost one refused request, not one each."""
    folder = Path(tempfile.mkdtemp(prefix="flowstone-pg-"))
    cluster = Cluster(installed()[max(installed())], folder)
    cluster.initialize()
    cluster.start()
    try:
        pool = open_pool(cluster.server("restarted").conninfo("postgres"), size=4)
        database = Database(pool)
        with database.transaction(), database.transaction(), database.transaction() as tx:
            assert tx.row("SELECT 1") == (1,)
        cluster.stop()
        with pytest.raises(LedgerUnavailable), database.transaction() as tx:
            tx.row("SELECT 1")
        cluster.start()
        failures = 0
        while True:
            try:
                with database.transaction(), database.transaction(), database.transaction() as tx:
                    tx.row("SELECT 1")
                break
            except LedgerUnavailable:
                failures += 1
        pool.close()
        assert failures <= 1
    finally:
        cluster.stop()
        shutil.rmtree(folder)


def test_errors_are_flowstones(ledger: Ledger, place: Place) -> None:
    """A wrong statement, a locked row and a broken connection come out as errors of FlowStone."""
    with pytest.raises(LedgerRefused, match="division by zero"), ledger.database.transaction() as tx:
        tx.row("SELECT 1/0")
    with place.connect() as other, other.transaction():
        other.execute("LOCK TABLE flowstone.backfill")
        with pytest.raises(LedgerBusy), ledger.database.transaction() as tx:
            tx.row("SELECT 1 FROM flowstone.backfill")
    with pytest.raises(LedgerUnavailable), ledger.database.transaction() as tx:
        tx.row("SELECT pg_terminate_backend(pg_backend_pid())")


def test_a_deadline_can_be_extended(place: Place) -> None:
    """While there is progress a connection outlives its first deadline; without any it does not."""
    with psycopg.connect(place.admin) as connection, Deadline(connection, 1.0) as deadline:
        deadline.extend(60.0)
        connection.execute("SELECT pg_sleep(1.5)")
    with (
        pytest.raises(psycopg.OperationalError),
        psycopg.connect(place.admin) as connection,
        Deadline(connection, 0.2),
    ):
        connection.execute("SELECT pg_sleep(30)")


def test_sessions_carry_their_settings(ledger: Ledger) -> None:
    """Each session names itself, waits two seconds for a lock, and is ended when it idles in a transaction."""
    names = ("application_name", "lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
    with ledger.database.transaction() as tx:
        values = [tx.row(f"SHOW {name}") for name in names]
    assert values == [("flowstone-operator",), ("2s",), ("8s",), ("30s",)]
