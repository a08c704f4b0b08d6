"""One backfill on this machine: the engine's passes, one after another, until it is over or somebody asks to stop.

What the operator has a resource and a work queue for is a loop here: a pass, a wait until a process ended, a pass. The
first request to stop lets the processes run to their end, the second stops them and gives back what they had not
finished, the third leaves at once and leaves the processes to themselves. Whatever happens, the next start goes on.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from flowstone.backfill.engine import UNSTARTED, Engine
from flowstone.backfill.overlap import find_older
from flowstone.backfill.plan import Plan
from flowstone.backfill.records import Counts, OpenBatch
from flowstone.backfill.request import LeasedError, Progress, Request, Tools
from flowstone.backfill.standing import WAITS_FOR_BACKFILL, Stand, Standing
from flowstone.backfill.tenancy import Admission
from flowstone.db.waiting import Waiting
from flowstone.errors import LedgerBusy, LedgerUnavailable
from flowstone.executor.processes import Processes

BUSY = 0.5
"""Seconds until rows that somebody else has locked are looked at again."""


_STOPPING = {
    "Drain": "asked to stop: nothing more is started, and what runs ends first; the next start goes on",
    "Kill": "asked to stop: what ran is stopped, and what it had not done is queued again; the next start goes on",
}


class Interrupts:
    """How often somebody asked to stop; safe to ask from a signal handler or another thread."""

    def __init__(self) -> None:
        self._asked = 0

    def ask(self) -> None:
        """Ask once more."""
        self._asked += 1

    @property
    def asked(self) -> int:
        """How often it was asked so far."""
        return self._asked

    def more_than(self, before: int) -> bool:
        """Whether it was asked again since it had been asked so often."""
        return self._asked > before

    @property
    def suspend(self) -> Literal["Drain", "Kill"] | None:
        """What the engine is to do about it."""
        return None if self._asked == 0 else "Drain" if self._asked == 1 else "Kill"


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass found.

    Attributes:
        counts: None when they could not be looked up.
        waiting: The backfill that it waits for, if it does.
    """

    standing: Standing
    counts: Counts | None
    batches: Sequence[OpenBatch]
    again: float
    waiting: Waiting | None = None

    @property
    def rests(self) -> bool:
        """It was asked to stop, and nothing runs any more."""
        return self.standing.stand is Stand.SUSPENDED and not self.batches


Show = Callable[[Pass], Awaitable[None]]


class LocalRun:
    """Works off one backfill.

    Args:
        plan: Makes the plan; called only while the backfill is not planned yet.
        admit: Judges the tenants of the backfill, before every hand-out.
        show: Told of each pass.
    """

    def __init__(
        self,
        tools: Tools,
        request: Request,
        executor: Processes,
        plan: Callable[[], Awaitable[Plan]],
        admit: Callable[[], Awaitable[Admission]],
        *,
        interrupts: Interrupts,
        show: Show,
    ) -> None:
        self._tools = tools
        self._request = request
        self._executor = executor
        self._plan = plan
        self._admit = admit
        self._interrupts = interrupts
        self._show = show

    async def run(self) -> Standing:
        """Go on until the backfill is finished, or until it rests after a request to stop.

        Raises:
            KeyboardInterrupt: Somebody asked for the third time; processes may still run.
            FlowStoneError: What is asked for makes no sense, or the ledger refuses it.
        """
        while True:
            asked = self._interrupts.asked
            if asked > 2:
                raise KeyboardInterrupt
            now = await self._pass()
            await self._show(now)
            if now.standing.finished or now.rests:
                return now.standing
            await self._executor.changed(now.again, also=partial(self._interrupts.more_than, asked))

    async def _pass(self) -> Pass:
        progress = Progress()
        spec = self._request.spec
        if suspend := self._interrupts.suspend:
            spec = spec.model_copy(update={"suspend": suspend})
        engine = Engine(
            self._tools, replace(self._request, spec=spec), self._executor, self._plan, progress, self._admit
        )
        try:
            standing = await engine.advance()
        except LeasedError:
            message = "another machine works on this backfill; it goes on here when that one stops"
            standing, progress.again = Standing(Stand.RUNNING, "Leased", message), self._tools.limits.lease_seconds / 2
        except LedgerBusy as error:
            standing, progress.again = Standing(Stand.RUNNING, "LedgerBusy", str(error)), BUSY
        except LedgerUnavailable as error:
            standing, progress.again = Standing(Stand.BLOCKED, "LedgerUnreachable", str(error)), UNSTARTED
        if standing.stand is Stand.SUSPENDED and suspend:
            standing = replace(standing, reason="Interrupted", message=_STOPPING[suspend])
        again = progress.again if progress.again is not None else UNSTARTED
        waiting = await find_older(self._tools.ledger, self._request.uid, standing, progress.counts)
        if waiting is not None:
            standing = Standing(Stand.WAITING, WAITS_FOR_BACKFILL, _waits(waiting))
        return Pass(standing, progress.counts, progress.batches, again, waiting)


def _waits(waiting: Waiting) -> str:
    remedy = "it goes on when that one is done" if waiting.worked_on else "work that one off, or cancel it"
    return f"backfill {waiting.name} ({waiting.uid}) has the same partitions and was asked for earlier: {remedy}"


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Keep other processes of this machine off a backfill meanwhile; the lock ends with this process, however it ends.

    Raises:
        LedgerBusy: Another process has it.
    """
    lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = _taken(lock)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _taken(lock: Path) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode() or "?"
            os.close(descriptor)
            message = f"process {holder} of this machine works on this backfill: wait for it, or stop it with Ctrl-C"
            raise LedgerBusy(message) from None
        if _is_at(lock, descriptor):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            return descriptor
        os.close(descriptor)  # its holder removed the file just before we had the lock


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
