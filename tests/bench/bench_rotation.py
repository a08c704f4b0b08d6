"""Rotation under load: `python -m tests.bench.bench_rotation [seconds] [logins a second]`.

Several threads log in with whatever the Secret holds when they begin, so many times a second in all, while the
operator's own reconcile rotates the credentials again and again. Beside them a batch is open from before the first
rotation to the end: its session, and logins that it opens late with the credentials of its start, must go on working.
Kubernetes is in memory, the server is real. Not one failure is wanted.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from dataclasses import dataclass, field

import psycopg

from tests.postgres.servers import installed
from tests.postgres.tenant.tenant_world import ACME, World, homes, inhabited, plain_server

THREADS = 4

BATCH = """
    INSERT INTO flowstone.batch (backfill, scope, job_name, template_digest, partitions)
    VALUES (gen_random_uuid(), 't/c1/acme', 'j', 'd', 1)
"""


@dataclass
class Load:
    """Threads that log in at a steady rate, and what came of it.

    Attributes:
        rate: Logins a second, in all.
    """

    world: World
    rate: float
    failures: list[str] = field(default_factory=list)
    done: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            due += THREADS / self.rate
            self._login()
            self._stop.wait(max(0.0, due - time.monotonic()))

    def _login(self) -> None:
        try:
            self.world.login(self.world.secret()).close()
        except psycopg.Error as error:
            self.failures.append(str(error))
        with self._lock:
            self.done += 1

    def start(self) -> list[threading.Thread]:
        """Begin."""
        threads = [threading.Thread(target=self._run) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        return threads

    def stop(self, threads: list[threading.Thread]) -> None:
        """End."""
        self._stop.set()
        for thread in threads:
            thread.join()


async def rotate(world: World, seconds: float) -> int:
    """Ask for fresh credentials again and again; returns how often they came."""
    seen, end, number = {world.secret()["PGPASSWORD"]}, time.monotonic() + seconds, 0
    while time.monotonic() < end:
        number += 1
        world.kube.objects[ACME]["metadata"].setdefault("annotations", {})["flowstone.dev/rotate"] = str(number)
        await world.settle()
        seen.add(world.secret()["PGPASSWORD"])
        await asyncio.sleep(0.05)
    return len(seen) - 1


async def long_batch(world: World, seconds: float) -> tuple[int, list[str]]:
    """Ask for rotations while a batch is open; returns how often they came, and what failed for the batch.

    The last rotation is put an hour back. So one more comes at once, to the login that stands by; the next one would
    be to the batch's own, and waits.
    """
    world.admin("UPDATE flowstone.tenant SET rotated_at = now() - interval '1 hour'")
    world.admin(BATCH)
    start = world.secret()
    failures: list[str] = []
    with world.login(start) as session:
        rotations = await rotate(world, seconds)
        for work in (lambda: session.execute("SELECT count(*) FROM flowstone.batch"), world.login(start).close):
            try:
                work()
            except psycopg.Error as error:
                failures.append(str(error))
    world.admin("UPDATE flowstone.batch SET state = 'closed', closed_at = now()")
    return rotations, failures


async def measure(seconds: float, rate: float) -> None:
    """Measure on the newest server of this machine."""
    with plain_server(max(installed()), log_statement="none") as server:
        for home in homes(server):
            async with inhabited(home, limits={"connections": 50}) as world:
                load = Load(world, rate)
                threads = load.start()
                began = time.monotonic()
                try:
                    rotations = await rotate(world, seconds)
                    held, broken = await long_batch(world, seconds)
                finally:
                    load.stop(threads)
                took = time.monotonic() - began
                print(f"{load.done} logins, {load.done / took:.0f} a second")
                print(f"  {rotations} rotations without a batch, {held} while one was open, wanted 1")
                print(f"  failed logins: {len(load.failures)} {sorted(set(load.failures))[:3]}, wanted 0")
                print(f"  failures of the batch: {broken}, wanted none")


if __name__ == "__main__":
    sizes = [float(text) for text in sys.argv[1:]]
    asyncio.run(measure(*(sizes + [20, 100][len(sizes) :])))
