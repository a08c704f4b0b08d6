"""What a worker needs of the process around it, passed in: log, clock, pause, chance, and whether to stop."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from flowstone.worker.log import Log


class Stopped(KeyboardInterrupt):
    """Raised in the main thread when the pod is asked to go.

    psycopg cancels a statement that is under way for this kind of exception, and no `except Exception` swallows it.
    """


class StopSignal:
    """Turns the first SIGTERM into `Stopped`, and remembers it in case the user's code swallows that."""

    def __init__(self) -> None:
        self.came = False
        self._held = False

    def install(self) -> None:
        """Take over SIGTERM; process 1 of a container would ignore it."""
        signal.signal(signal.SIGTERM, self._stop)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Put `Stopped` off to the end of a block that must not be left half done."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self.came:
            raise Stopped

    def _stop(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the tidying up
        self.came = True
        if not self._held:
            raise Stopped


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The process around a worker.

    Attributes:
        clock: Seconds that only grow.
        pause: Waits so many seconds.
        chance: A number from 0 to 1, for pauses that differ from worker to worker.
        stop: Knows whether the process was asked to stop.
    """

    log: Log
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random
    stop: StopSignal = field(default_factory=StopSignal)

    def stopwatch(self) -> Callable[[], float]:
        """Return a function that tells the seconds since now, to the millisecond."""
        begin = self.clock()
        return lambda: round(self.clock() - begin, 3)
