"""Batches of tenants that have a database of their own, whatever runs them: an adapter around another executor.

It sees to it that the fence is raised in the tenant's database before a run is created, and that what was reported
there is in the ledger before anything is decided about the batch. A run of which that is not known yet goes on, as far
as the engine can see; so nobody but the batches of a database that does not answer waits for it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from flowstone.backfill.outcome import Unheard
from flowstone.backfill.records import ClaimedBatch, OpenBatch
from flowstone.db.outcomes import Outcomes
from flowstone.errors import DatabaseUnavailable, LedgerBusy, LedgerRefused
from flowstone.executor.port import Blockage, Executor, Gone, Running, Sight, View
from flowstone.telemetry import Logger

UNAVAILABLE = "DatabaseUnavailable"
"""Reason of a batch whose tenant's database does not answer, or not as it should."""

_OF_THE_TENANT = (DatabaseUnavailable, LedgerRefused)
"""What goes wrong in one tenant's database; the ledger itself being away concerns everybody."""


class ApartExecutor:
    """An executor whose batches may report elsewhere.

    Args:
        inner: Runs the batches.
        read: Reads this backfill's open batches from the ledger.
    """

    def __init__(
        self, inner: Executor, outcomes: Outcomes, read: Callable[[], Sequence[OpenBatch]], log: Logger
    ) -> None:
        self._inner = inner
        self._outcomes = outcomes
        self._read = read
        self._log = log

    async def look(self, batches: Sequence[OpenBatch]) -> Sight:
        """How the runs go, and in the ledger what they have reported by then."""
        sight = await self._inner.look(batches)
        own = await asyncio.to_thread(self._outcomes.own, [one.batch.scope for one in sight.seen])
        if not own:
            return sight
        trouble = await asyncio.to_thread(self._collect, sight.seen, own)
        fresh = {one.fence: one for one in await asyncio.to_thread(self._read)}
        seen = [_known(one, fresh.get(one.batch.fence, one.batch), one.batch.fence in trouble) for one in sight.seen]
        blockage = next((one for one in trouble.values() if one is not None), None)
        return replace(sight, seen=seen, blockage=sight.blockage or blockage)

    async def prepare(self) -> str:
        """Make sure that runs can be launched."""
        return await self._inner.prepare()

    async def launch(self, batch: ClaimedBatch) -> str | Blockage:
        """Raise the fence where the outcomes will be, then start the run."""
        own = (await asyncio.to_thread(self._outcomes.own, [batch.scope])).get(batch.scope)
        if own is not None:
            try:
                await asyncio.to_thread(self._outcomes.raise_fence, own, batch.fence)
            except _OF_THE_TENANT as error:
                return Blockage(UNAVAILABLE, str(error), partial=True)
            except LedgerBusy as error:
                self._log.warning("outcomes_held", fence=batch.fence, error=str(error))
                return Blockage("OutcomesHeld", f"a session of the tenant's held its outcomes: {error}", partial=True)
        return await self._inner.launch(batch)

    async def stop(self, unwanted: Sequence[View]) -> None:
        """Ask runs to end."""
        await self._inner.stop(unwanted)

    async def tidy(self, unwanted: Collection[str]) -> None:
        """Take away the traces of runs."""
        await self._inner.tidy(unwanted)

    def _collect(self, seen: Sequence[View], own: Mapping[str, str]) -> dict[int, Blockage | None]:
        """Bring the ledger up to date; returns the batches of which it is not, and why, where people should know."""
        trouble: dict[int, Blockage | None] = {}
        views = defaultdict(list)
        for one in seen:
            if one.batch.scope in own:
                views[own[one.batch.scope]].append(one)
        for name, ours in views.items():
            try:
                trouble |= self._collect_from(name, ours)
            except _OF_THE_TENANT as error:
                trouble |= {one.batch.fence: Blockage(UNAVAILABLE, str(error), partial=True) for one in ours}
        return trouble

    def _collect_from(self, own: str, views: Sequence[View]) -> dict[int, Blockage | None]:
        going = [one.batch for one in views if one.launched and not _is_over(one)]
        if going:
            self._outcomes.collect(own, going)
        held: dict[int, Blockage | None] = {}
        for one in filter(_is_over, views):
            try:
                self._outcomes.conclude(own, one.batch)
            except LedgerBusy:  # the next look finds the rows free
                self._log.warning("sessions_ended", fence=one.batch.fence)
                held[one.batch.fence] = None
        return held


def _is_over(one: View) -> bool:
    """Whether nothing that its run may still say counts."""
    return not isinstance(one.run, Running) or one.lost


def _known(one: View, batch: OpenBatch, troubled: bool) -> View:
    """Return a view as the engine may judge it.

    A batch that was never launched goes back at once, so that it holds no slot for a database that is away.
    """
    if not troubled:
        return replace(one, batch=batch)
    if not one.launched:
        return replace(one, batch=batch, run=Gone(), launched=True)
    return replace(one, batch=batch, run=Unheard(ready=True))
