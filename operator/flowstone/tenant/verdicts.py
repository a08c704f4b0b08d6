"""What every tenant's status says about the server as a whole, looked up once in a while for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from flowstone.errors import LedgerError
from flowstone.tenant.status import Verdict

EVERY_SECONDS = 60.0
"""How long a finding is good for."""


class Verdicts:
    """The present findings about hardening and isolation.

    Args:
        hardened: Reads condition `Hardened` back from the catalogue.
        isolated: Returns the last proof of isolation; None before the first.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        hardened: Callable[[], Verdict],
        isolated: Callable[[], Verdict | None],
        *,
        clock: Callable[[], float],
    ) -> None:
        self._read = hardened
        self._isolated = isolated
        self._clock = clock
        self._hardened: Verdict | None = None
        self._at: float | None = None
        self._lock = asyncio.Lock()

    async def __call__(self) -> tuple[Verdict | None, Verdict | None]:
        """Return (hardened, isolated); a ledger that does not answer leaves the last finding."""
        async with self._lock:
            if self._at is None or self._clock() - self._at >= EVERY_SECONDS:
                try:
                    self._hardened = await asyncio.to_thread(self._read)
                    self._at = self._clock()
                except LedgerError:
                    pass  # the tenant's own reconcile says so, in its status
        return self._hardened, self._isolated()
