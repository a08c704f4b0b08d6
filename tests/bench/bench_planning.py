"""How long queueing takes, and how that compares with a bare COPY: `python -m tests.bench.bench_planning [rows]`.

Both sides run in turn against the same server, with the same rows, into identical tables with identical indexes. The
bare COPY gets its text ready-made, so the ratio includes what it costs to make the rows in Python. Memory is the
growth of this process's peak over the whole of planning.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
import uuid
from collections.abc import Iterator

import psycopg
import structlog
from psycopg.rows import TupleRow

from flowstone.backfill.records import ClaimRequest, NewBackfill
from flowstone.db.ledger import Ledger
from flowstone.db.migrate import migrate
from tests.postgres.servers import Server, installed, local

PASSWORD = "operator-secret-0815"
SCOPE = "n/6f1d2a52-6f0f-4d24-8f0e-2a6c8a1b9d11/analytics"
ASSET = "6f1d2a52-6f0f-4d24-8f0e-2a6c8a1b9d11/analytics/daily-delays"
ROUNDS = 3

Admin = psycopg.Connection[TupleRow]


def keys(number: int) -> Iterator[str]:
    """Partition keys of the length of a datetime."""
    return (f"2013-{n // 40_000:02d}-{n:06d}T00:00:00Z" for n in range(number))


def queued(ledger: Ledger, number: int) -> float:
    """Seconds to plan a backfill."""
    uid = str(uuid.uuid4())
    ledger.register(NewBackfill(uid, "bench", "analytics", "b", SCOPE, f"{ASSET}-{uid[:8]}", {}, "h"))
    start = time.perf_counter()
    ledger.plan(uid, ((SCOPE, key) for key in keys(number)), total=number, set_hash="h", select="Missing")
    return time.perf_counter() - start


def copied(admin: Admin, number: int) -> float:
    """Seconds of a COPY of the same rows into an identical table."""
    uid = str(uuid.uuid4())
    asset = f"{ASSET}-{uid[:8]}"
    lines = [f"{SCOPE}\t{asset}\t{uid}\tqueued\t\\N\t{key}\t{n}\n" for n, key in enumerate(keys(number))]
    blocks = ["".join(lines[n : n + 512]).encode() for n in range(0, len(lines), 512)]
    start = time.perf_counter()
    with (
        admin.transaction(),
        admin.cursor() as cursor,
        cursor.copy("COPY public.bare (scope, asset, backfill, state, reason, partition, ordinal) FROM STDIN") as copy,
    ):
        for block in blocks:
            copy.write(block)
    return time.perf_counter() - start


def peak() -> float:
    """The process's peak memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def empty(admin: Admin) -> None:
    """Start each round from empty tables."""
    admin.execute("TRUNCATE flowstone.materialization, flowstone.batch, flowstone.latest, public.bare")
    admin.execute("CHECKPOINT")


def compare(admin: Admin, ledger: Ledger, number: int) -> None:
    """Print seconds, ratio and memory for a number of partitions."""
    ours, bare = [], []
    empty(admin)
    queued(ledger, min(number, 1000))
    before = peak()
    ours.append(queued(ledger, number))
    memory = peak() - before
    for _ in range(ROUNDS):
        empty(admin)
        bare.append(copied(admin, number))
        empty(admin)
        ours.append(queued(ledger, number))
    ratio = statistics.median(ours) / statistics.median(bare)
    print(
        f"queue {number:>9,}: {statistics.median(ours):.3f} s (best {min(ours):.3f}), bare COPY "
        f"{statistics.median(bare):.3f} s (best {min(bare):.3f}), ratio {ratio:.2f}, memory +{memory:.1f} MB"
    )


def operations(ledger: Ledger, number: int) -> None:
    """Print what the steps of one reconcile cost on a backfill of that size."""
    uid = next(uid for uid, _, _ in reversed(ledger.live_uids()))
    claim = ClaimRequest(20, 200, 500, "Ascending", "Missing", "d", "b-")
    for name, step in (
        ("counts", lambda: ledger.counts(uid)),
        ("claim 20 x 500", lambda: ledger.claim(uid, claim)),
        ("open_batches", lambda: ledger.open_batches(uid)),
        ("next_retry", lambda: ledger.next_retry(uid)),
        ("intervals queued", lambda: ledger.intervals(uid, "queued")),
        ("failures", lambda: ledger.failures(uid)),
        ("throughput", lambda: ledger.throughput(uid, 60)),
        ("counts", lambda: ledger.counts(uid)),
    ):
        start = time.perf_counter()
        step()
        print(f"{name:>20} of {number:,}: {(time.perf_counter() - start) * 1000:.1f} ms")


def bench(server: Server, sizes: list[int]) -> None:
    """Run all comparisons on one server."""
    conninfo = server.conninfo("postgres")
    migrate(conninfo, operator_password=PASSWORD, log=structlog.get_logger())
    operator = server.conninfo("postgres", "flowstone_operator", PASSWORD)
    with server.connect() as admin, Ledger.connect(operator, cluster="bench") as ledger:
        admin.execute("CREATE TABLE public.bare (LIKE flowstone.materialization INCLUDING ALL)")
        for name in ("log_statement = none", "fsync = on", "max_wal_size = '4GB'"):
            admin.execute(f"ALTER SYSTEM SET {name}".encode())
        admin.execute("SELECT pg_reload_conf()")
        for number in sizes:
            compare(admin, ledger, number)
        operations(ledger, sizes[-1])


if __name__ == "__main__":
    with local(max(installed())) as started:
        bench(started, [366, int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000])
