"""What tenants cost: `python -m tests.bench.bench_tenants [tenants] [rows of each] [rows of one]`.

First tenants are made one after the other by the operator's own reconcile, with Kubernetes in memory and a real server;
the rate of the last tenth is compared with that of the first. Meanwhile another session looks in `pg_locks` for what
the operator locks of a table with tenants' rows. Then one tenant's rows are read from that table in three ways, in turn
and in one run: by a login that no policy binds, with an explicit WHERE; by the tenant's own login; by a pooled login
with a signed context. An aggregate goes over all of the tenant's rows; a point read is measured as a client sees it
(prepared, all pages cached), and once more repeated inside the server, where nothing but the statement takes time.
"""

from __future__ import annotations

import asyncio
import base64
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from flowstone.db.context_keys import install_context_keys
from flowstone.kube.paths import core, custom
from flowstone.tenant.signing import ContextKeys
from tests.postgres.conftest import Place
from tests.postgres.servers import installed
from tests.postgres.tenant.proving import tables
from tests.postgres.tenant.tenant_world import CLUSTER, World, homes, inhabited, plain_server

Session = psycopg.Connection[TupleRow]

TABLE = "public.booking"
"""Made by `op.tenant_table`."""

CALLS = 2_000
LOOPS = 20_000
ROUNDS = 7

HARMLESS = {"AccessShareLock", "RowShareLock", "RowExclusiveLock"}

LOCKS = f"""
    SELECT DISTINCT l.mode FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.relation = '{TABLE}'::regclass AND a.pid <> pg_backend_pid()
"""

AGGREGATE = f"SELECT count(*), sum(length(note)) FROM {TABLE}"
POINT = f"PERFORM note FROM {TABLE}"


class LockWatch:
    """Looks again and again for locks on the table, in a thread of its own."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._stop = threading.Event()
        self.modes: set[str] = set()
        self.looks = 0

    def run(self) -> None:
        """Look until told to stop."""
        with self._place.connect() as session:
            while not self._stop.is_set():
                self.modes |= {mode for (mode,) in session.execute(LOCKS)}
                self.looks += 1
                self._stop.wait(0.02)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look while the block runs."""
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()


async def onboard(world: World, number: int) -> list[float]:
    """Make so many tenants; returns the seconds that each took."""
    took = []
    for n in range(number):
        body = {"metadata": {"name": f"t{n}"}, "spec": {"namespaces": ["one"], "id": f"tenant-{n}"}}
        world.kube.put(custom("tenants", None, f"t{n}"), body)
        start = time.perf_counter()
        assert await world.settle(f"t{n}") == 60
        took.append(time.perf_counter() - start)
    return took


def tell_onboarding(took: Sequence[float], watch: LockWatch) -> None:
    """Print the rates, their ratio, and what was locked."""
    part = max(len(took) // 10, 1)
    first, last = part / sum(took[:part]), part / sum(took[-part:])
    print(f"onboarding {len(took)} tenants: first {part} at {first:.1f}/s, last {part} at {last:.1f}/s")
    print(f"  ratio {last / first:.2f}, wanted at least 0.8")
    print(f"  locks on {TABLE} in {watch.looks} looks: {sorted(watch.modes) or 'none'}")
    print(f"  stronger than ROW EXCLUSIVE: {sorted(watch.modes - HARMLESS) or 'none'}")


@dataclass(frozen=True)
class Way:
    """A way to read a tenant's rows.

    Attributes:
        where: Its explicit condition, if it has one.
        context: The signed context, if it has one.
    """

    name: str
    session: Session
    where: str = ""
    context: str = ""

    def begin(self) -> None:
        """Begin a transaction with the context in it."""
        self.session.execute("BEGIN")
        if self.context:
            self.session.execute("SELECT set_config('flowstone.context', %s, true)", [self.context])

    def aggregate(self) -> float:
        """Seconds of one aggregate, at best of three."""
        query = f"{AGGREGATE} WHERE {self.where}" if self.where else AGGREGATE
        self.begin()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            self.session.execute(query.encode())
            times.append(time.perf_counter() - start)
        self.session.execute("ROLLBACK")
        return min(times)

    def point(self, number: int) -> float:
        """Seconds of one point read, of many that a client sends."""
        query = f"SELECT note FROM {TABLE} WHERE {self.where + ' AND ' if self.where else ''}id = %s".encode()
        self.begin()
        for n in range(10):
            self.session.execute(query, [n], prepare=True)
        start = time.perf_counter()
        for n in range(CALLS):
            self.session.execute(query, [n % number + 1], prepare=True)
        took = (time.perf_counter() - start) / CALLS
        self.session.execute("ROLLBACK")
        return took

    def inside(self, number: int) -> float:
        """Seconds of one point read, of many inside the server."""
        query = f"{POINT} WHERE {self.where + ' AND ' if self.where else ''}id = n % {number} + 1"
        self.begin()
        start = time.perf_counter()
        self.session.execute(f"DO $$ BEGIN FOR n IN 1..{LOOPS} LOOP {query}; END LOOP; END $$".encode())
        took = (time.perf_counter() - start) / LOOPS
        self.session.execute("ROLLBACK")
        return took


def fill(world: World, tenants: int, rows: int, big: int) -> None:
    """Give every tenant so many rows, as they come over time: all tenants' rows mixed; and one of them many more."""
    for first, last, whose in ((1, rows, f"0, {tenants - 1}"), (rows + 1, big, f"{tenants // 2}, {tenants // 2}")):
        world.admin(
            f"INSERT INTO {TABLE} (tenant_id, id, note) OVERRIDING SYSTEM VALUE "
            f"SELECT 'tenant-' || t, n, 'row ' || n || ' of some organisation, with a text of usual length' "
            f"FROM generate_series({first}, {last}) n, generate_series({whose}) t"
        )
    world.admin(f"VACUUM ANALYZE {TABLE}")
    world.admin("CHECKPOINT")


def ways(world: World, keys: ContextKeys, tenant: str, name: str) -> list[Way]:
    """The ways to read a tenant's rows, each with a session."""
    secret = world.kube.objects[core("secrets", "one", f"flowstone-tenant-{name}")]
    own = base64.b64decode(secret["data"]["uri"]).decode()
    admin = world.place.admin
    with psycopg.connect(admin, autocommit=True) as session:
        install_context_keys(session, keys)
        session.execute("CREATE ROLE bench_pool LOGIN PASSWORD 'bench' IN ROLE flowstone_pool")
    pool = make_conninfo(admin, user="bench_pool", password="bench")
    where = f"tenant_id = '{tenant}'"
    context = keys.sign(tenant, int(time.time()) + 3600)
    return [
        Way("explicit WHERE", psycopg.connect(admin, autocommit=True), where),
        Way("tenant's own login", psycopg.connect(own, autocommit=True)),
        Way("signed context", psycopg.connect(pool, autocommit=True), context=context),
    ]


KINDS: tuple[tuple[str, Callable[[Way, int], float], tuple[float, float]], ...] = (
    ("aggregate", lambda way, rows: way.aggregate(), (1.15, 1.15)),
    ("point read by a client", Way.point, (2.0, 3.0)),
    ("point read inside the server", Way.inside, (2.0, 3.0)),
)
"""What is measured, and the ratios wanted of the tenant's own login and of the signed context."""


def compare(found: Sequence[Way], rows: int) -> None:
    """Read in turn, and print medians and ratios."""
    for kind, measured, bounds in KINDS:
        times = [[measured(way, rows) for way in found] for _ in range(ROUNDS)]
        reference, *others = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{kind}, by explicit WHERE: {reference * 1e6:.1f} us")
        for way, took, bound in zip(found[1:], others, bounds, strict=True):
            print(f"  {way.name}: {took * 1e6:.1f} us, ratio {took / reference:.2f}, wanted at most {bound}")


async def measure(tenants: int, rows: int, big: int) -> None:
    """Measure on the newest server of this machine."""
    with plain_server(max(installed())) as server:
        with server.connect() as admin:
            admin.execute("ALTER SYSTEM SET log_statement = 'none'")
            admin.execute("SELECT pg_reload_conf()")
        for home in homes(server):
            tables(home)
            async with inhabited(home) as world:
                watch = LockWatch(home)
                with watch.watching():
                    took = await onboard(world, tenants)
                tell_onboarding(took, watch)
                fill(world, tenants, rows, big)
                print(f"{(tenants - 1) * rows + big} rows of {tenants} tenants, {big} of the one that reads")
                keys = ContextKeys.generate(CLUSTER)
                found = ways(world, keys, f"tenant-{tenants // 2}", f"t{tenants // 2}")
                compare(found, rows)
                for way in found:
                    way.session.close()
                world.admin("DROP ROLE bench_pool")


if __name__ == "__main__":
    sizes = [int(text) for text in sys.argv[1:]]
    asyncio.run(measure(*(sizes + [1000, 1000, 100_000][len(sizes) :])))
