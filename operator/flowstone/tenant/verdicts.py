"""What every tenant's status says about the server as a whole, looked up once in a while for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from flowstone.errors import LedgerError, LedgerRefused
from flowstone.tenant.status import Findings, Verdict

EVERY_SECONDS = 60.0
"""How long a finding is good for, unless told."""


class Verdicts:
    """The present findings about hardening and isolation.

    Args:
        hardened: Reads condition `Hardened` back from the catalogue.
        isolated: Proves isolation, or returns the last proof while it is good; None where nothing proves it.
        clock: Seconds, monotonic.
        every: Seconds that a finding is good for.
        now: The time of day.
    """

    def __init__(
        self,
        hardened: Callable[[], Verdict],
        isolated: Callable[[], Verdict | None],
        *,
        clock: Callable[[], float],
        every: float = EVERY_SECONDS,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._readers: tuple[Callable[[], Verdict | None], ...] = (hardened, isolated)
        self._clock = clock
        self._every = every
        self._now = now
        self._found: list[Verdict | None] = [None, None]
        self._at: float | None = None
        self._looked: datetime | None = None
        self._lock = asyncio.Lock()

    async def __call__(self) -> Findings:
        """Return what is known; a ledger that does not answer leaves the last findings."""
        async with self._lock:
            if self._at is None or self._clock() - self._at >= self._every:
                await self._look()
        return Findings(self._found[0], self._found[1], self._looked)

    async def _look(self) -> None:
        began = self._now()
        for number, read in enumerate(self._readers):
            try:
                self._found[number] = await asyncio.to_thread(read)
            except LedgerRefused as error:  # a right or a table is missing: people shall see it, not miss the condition
                self._found[number] = Verdict("Unknown", "NotKnown", str(error))
            except LedgerError:
                return  # the tenant's own reconcile says so, in its status
        self._at, self._looked = self._clock(), began
