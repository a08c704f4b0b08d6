"""A Backfill watched from outside while it runs: the ledger in single snapshots, Jobs as the API server has them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg

from tests.e2e.kubectl import JobWatch, Json

SETTLED_SECONDS = 30.0
"""A pass may act on a `maxParallel` that it read this long ago: it was cut off between reading and acting."""

_LOOK = """
    SELECT (SELECT total FROM flowstone.backfill WHERE uid = %(uid)s),
           (SELECT count(*) FROM flowstone.materialization WHERE backfill = %(uid)s),
           (SELECT count(*) FROM flowstone.materialization WHERE backfill = %(uid)s AND state = 'succeeded'),
           (SELECT count(*) FROM chaos.made), (SELECT count(DISTINCT partition) FROM chaos.made)
"""


@dataclass
class Watcher:
    """Looks at the ledger and the user's table in one snapshot, again and again, by a way that is never cut.

    Attributes:
        looks: How often it looked.
        succeeded: Partitions that the last look showed done.
        wrong: What was not as it must be; empty is good.
    """

    conninfo: str
    uid: str
    total: int
    looks: int = 0
    succeeded: int = 0
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            with suppress(psycopg.OperationalError):  # the server's pod may be restarted
                self._watch_once()

    def _watch_once(self) -> None:
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            while not self._stop.wait(self.total / 20_000):  # to count them all again takes its time too
                row = connection.execute(_LOOK, {"uid": self.uid}).fetchone()
                if row is not None and row[0] is not None:
                    self._judge(*row)

    def _judge(self, total: int, rows: int, succeeded: int, made: int, different: int) -> None:
        self.looks, self.succeeded = self.looks + 1, succeeded
        if (total, rows) != (self.total, self.total):
            self.wrong.append(f"total {total}, rows {rows} instead of {self.total}")
        if not succeeded == made == different:
            self.wrong.append(f"{succeeded} successes, {made} rows of the user, of {different} partitions")


@dataclass
class TimedJobs(JobWatch):
    """Open Jobs whenever one appears."""

    appeared: list[tuple[float, int]] = field(default_factory=list)

    def note(self, event: Json) -> None:
        """Take in one event of the watch."""
        before = len(self.all)
        super().note(event)
        if len(self.all) > before:
            self.appeared.append((time.time(), len(self.open)))


def handed_out(conninfo: str, uid: str) -> list[tuple[float, int]]:
    """When the ledger handed out each batch, and how many were open then, itself included."""
    query = """
        SELECT extract(epoch FROM b.opened_at)::float, (
            SELECT count(*)::int FROM flowstone.batch AS o
            WHERE o.backfill = b.backfill AND o.fence <= b.fence
              AND (o.closed_at IS NULL OR o.closed_at > b.opened_at)
        ) FROM flowstone.batch AS b WHERE b.backfill = %s ORDER BY b.fence
    """
    with psycopg.connect(conninfo) as connection:
        return [(at, number) for at, number in connection.execute(query, [uid])]


def over_cap(appeared: Sequence[tuple[float, int]], caps: Sequence[tuple[float, int]]) -> list[tuple[float, int, int]]:
    """Hand-outs that no `maxParallel` in force at the time, or shortly before, allowed: (time, open, cap)."""
    wrong = []
    for at, number in appeared:
        allowed = max(in_force(caps, at - SETTLED_SECONDS, at))
        if number > allowed:
            wrong.append((at, number, allowed))
    return wrong


def in_force(caps: Sequence[tuple[float, int]], begin: float, end: float) -> list[int]:
    """The caps that held at some moment between two; the first one held before its own time."""
    ends = [at for at, _ in caps[1:]] + [float("inf")]
    starts = [float("-inf")] + [at for at, _ in caps[1:]]
    return [cap for (_, cap), start, stop in zip(caps, starts, ends, strict=True) if start <= end and stop >= begin]
