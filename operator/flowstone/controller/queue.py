"""A work queue of keys, and the workers that empty it.

Invariants:

1. A key waits at most once: adding it again can only bring it forward.
2. At most one worker has a key; what is added meanwhile waits until that worker is done, and is not lost.
3. A key whose processing failed comes back after a back-off that doubles per failure, with jitter; other
   keys do not wait for it.
4. A key rests as long as its last turn took, at most `REST` seconds, whatever is added meanwhile; only what its worker
   itself asked for comes earlier. So on a busy machine one turn sees more events, and on an idle one nobody waits.

After Kubernetes' client-go workqueue, of which it has the deduplication, the delay and the rate limit.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable, Hashable
from random import Random
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

REST = 1.0
"""Seconds that a key rests after a turn, at most."""


class WorkQueue(Generic[K]):
    """Keys with the time from which each may be worked on.

    Args:
        clock: Seconds, monotonic.
        random: Source of the jitter.
        base: Seconds of the first back-off.
        limit: Seconds of the longest back-off.
    """

    def __init__(self, *, clock: Callable[[], float], random: Random, base: float = 0.5, limit: float = 60) -> None:
        self._clock = clock
        self._random = random
        self._base = base
        self._limit = limit
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = itertools.count()  # keys need not be comparable
        self._taken: dict[K, float] = {}  # since when
        self._resting: dict[K, float] = {}  # until when
        self._failures: dict[K, int] = {}
        self._changed = asyncio.Event()
        self.added = 0
        """Calls of `add` so far."""
        self.retries = 0
        """Failures that were put back so far."""

    def __len__(self) -> int:
        return len(self._due)

    @property
    def busy(self) -> int:
        """Keys that a worker has."""
        return len(self._taken)

    def add(self, key: K, delay: float = 0) -> None:
        """Ask for `key` to be worked on in `delay` seconds, or earlier if it is due earlier already."""
        self.added += 1
        self._schedule(key, max(self._clock() + max(delay, 0), self._resting.get(key, 0)))

    def _schedule(self, key: K, due: float) -> None:
        if self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        self._push(key, due)

    async def get(self) -> K:
        """Wait for a key that is due and that nobody has, and take it."""
        while True:
            self._changed.clear()
            key = self._pop()
            if key is not None:
                self._taken[key] = self._clock()
                self._resting.pop(key, None)
                return key
            await self._wait()

    def done(self, key: K, again: float | None = None) -> None:
        """Give `key` back after success; with `again` it comes back in that many seconds."""
        self._failures.pop(key, None)
        now = self._clock()
        rested = now + min(now - self._taken[key], REST)
        if key in self._due:
            self._due[key] = max(self._due[key], rested)
        self._release(key)
        if again is not None:
            self._resting[key] = rested
            self._schedule(key, now + again)

    def failed(self, key: K) -> float:
        """Give `key` back after a failure; returns the seconds until it is tried again."""
        count = self._failures[key] = self._failures.get(key, 0) + 1
        self.retries += 1
        ceiling = min(self._limit, self._base * 2.0 ** min(count - 1, 16))
        delay = ceiling * self._random.uniform(0.5, 1)
        self._release(key)
        self.add(key, delay)
        return delay

    def _release(self, key: K) -> None:
        del self._taken[key]
        if key in self._due:
            self._push(key, self._due[key])

    def _push(self, key: K, due: float) -> None:
        heapq.heappush(self._heap, (due, next(self._order), key))
        self._changed.set()

    def _pop(self) -> K | None:
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if key not in self._taken and self._due.get(key) == due:
                del self._due[key]
                return key
        return None

    async def _wait(self) -> None:
        timeout = max(self._heap[0][0] - self._clock(), 0) if self._heap else None
        try:
            await asyncio.wait_for(self._changed.wait(), timeout)
        except TimeoutError:
            return


Process = Callable[[K], Awaitable[float | None]]
"""Works on a key; returns the seconds until it wants it back, or None."""

OnError = Callable[[K, Exception, float], None]
"""Told of a failure, and of the seconds until the key is tried again."""


async def run_workers(queue: WorkQueue[K], process: Process[K], on_error: OnError[K], *, count: int) -> None:
    """Empty `queue` with `count` workers until cancelled."""
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(_work(queue, process, on_error))


async def _work(queue: WorkQueue[K], process: Process[K], on_error: OnError[K]) -> None:
    while True:
        key = await queue.get()
        try:
            again = await process(key)
        except asyncio.CancelledError:
            queue.done(key)
            raise
        except Exception as error:
            on_error(key, error, queue.failed(key))
        else:
            queue.done(key, again)
