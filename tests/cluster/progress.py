"""One line per step, with the time since the start."""

import sys
import time
from collections.abc import Callable


class Progress:
    """Prints what happens; lines from several threads do not mix, because each is one write."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()

    def __call__(self, message: str) -> None:
        """Print one step."""
        elapsed = self._clock() - self._start
        sys.stdout.write(f"[{elapsed:6.1f}s] {message}\n")
        sys.stdout.flush()
