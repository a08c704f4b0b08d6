"""The engine: one pass over one backfill, whatever runs its batches.

    settle what became of the open batches -> hand out new ones -> say where it stands

It may be killed between any two lines. What makes that harmless: rows are claimed in the ledger before their run
exists and the run's name follows from the claim; a run's traces go only after its outcome is recorded; every write is
guarded by a fence or an expected state. So whoever comes next reads where things stand and goes on from there. The
lease merely keeps two replicas from doing the same work twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import ParamSpec, TypeVar

from flowstone.backfill import outcome, patience, steering
from flowstone.backfill.plan import Plan
from flowstone.backfill.records import (
    BackfillRecord,
    ClaimedBatch,
    ClaimRequest,
    CommonError,
    Counts,
    NewBackfill,
    Retry,
    Skipped,
)
from flowstone.backfill.request import LeasedError, Progress, Request, Tools
from flowstone.backfill.sizing import PLENTY, batch_size, open_slots
from flowstone.backfill.standing import QUIET, Standing, goes_on, is_shared, judge
from flowstone.backfill.tenancy import Admission
from flowstone.controller.gather import each
from flowstone.errors import FlowStoneError, LedgerBusy, LedgerUnavailable
from flowstone.executor.port import Blockage, Executor, Gone, Running, View

P = ParamSpec("P")
T = TypeVar("T")

SOON = 2.0
"""Seconds until a backfill with work under way is looked at again without an event."""

CANCEL_SECONDS = 3.0
"""Seconds that one pass spends on cancelling what is queued, at most."""

UNSTARTED = 5.0
"""Seconds until a batch that does not start, or a dependency that does not answer, is looked at again."""


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking call of the ledger beside the event loop."""
    return await asyncio.to_thread(call, *args, **kwargs)


async def everybody() -> Admission:
    """The admission of work without tenants."""
    return Admission()


class Engine:
    """One pass over one backfill.

    Args:
        plan: Makes the plan; called only while the backfill is not planned yet.
        admit: Judges the tenants of the backfill, before every hand-out.
    """

    def __init__(
        self,
        tools: Tools,
        request: Request,
        executor: Executor,
        plan: Callable[[], Awaitable[Plan]],
        progress: Progress,
        admit: Callable[[], Awaitable[Admission]] = everybody,
    ) -> None:
        self._tools = tools
        self._ledger = tools.ledger
        self._request = request
        self._uid = request.uid
        self._spec = request.spec
        self._executor = executor
        self._make_plan = plan
        self._progress = progress
        self._admit = admit
        self._log = tools.log.bind(namespace=request.namespace, backfill=request.name)

    async def advance(self) -> Standing:
        """Move everything as far as it goes now, and judge.

        Raises:
            LeasedError: Another replica has this backfill.
            FlowStoneError: What stands in the way; what is done so far stays done.
        """
        await in_thread(self._ledger.check_schema)
        record = await in_thread(self._ledger.find, self._uid)
        if record is not None and record.finished_at is not None and not steering.orders(self._spec, record):
            return await self._stay_finished(record)
        if record is None or record.total is None:
            record = await self._plan()
        else:
            await self._lease()
        record = await self._obey(record)
        if record.finished_at is not None:
            return await self._stay_finished(record)
        open_views, closed = await self._settle()
        over_budget = await self._over_budget(record)
        try:
            await self._steer(open_views, over_budget)
        finally:
            await self._tidy(closed)  # after the hand-out: a free slot is in a greater hurry than a trace
        return await self._conclude(open_views, over_budget)

    async def _steer(self, open_views: Sequence[View], over_budget: str) -> None:
        """Hand out, or do what the spec or the budget wants instead."""
        if self._spec.cancel:
            await self._halt(open_views, kill=True)
            await self._cancel_queued()
        elif self._spec.suspend:
            await self._halt(open_views, kill=self._spec.suspend == "Kill")
        elif over_budget:
            await self._halt(open_views, kill=False)
        else:
            await self._hand_out_or_count(open_views)

    # -- steering -----------------------------------------------------------------------------------------------------

    async def _obey(self, record: BackfillRecord) -> BackfillRecord:
        """Honour what new tokens ask for."""
        orders = steering.orders(self._spec, record)
        if orders is None:
            return record
        self._log.info("backfill_steered", resume=orders.resume, retry_failed=orders.retry_failed)
        return await in_thread(self._ledger.obey, self._uid, orders)

    async def _over_budget(self, record: BackfillRecord) -> str:
        """Why the failure budget stops this backfill; "" when it does not."""
        budget = self._spec.failure_budget
        if budget is None:
            if record.stopped is not None:
                await in_thread(self._ledger.stop, self._uid, None)
            return ""
        counts = Counts(total=record.total or 0, failed=await in_thread(self._ledger.failed, self._uid))
        nth = steering.needs_spread(budget, counts, record.forgiven)
        spread = None if nth is None else await in_thread(self._ledger.spread, self._uid, nth)
        verdict = steering.judge_budget(budget, counts, record, spread)
        stopped = steering.mark(budget) if verdict.passed else None
        if stopped != record.stopped:
            await in_thread(self._ledger.stop, self._uid, stopped)
        if not verdict.passed:
            return ""
        return steering.told(budget, verdict, await in_thread(self._ledger.common_error, self._uid))

    # -- planning -----------------------------------------------------------------------------------------------------

    async def _plan(self) -> BackfillRecord:
        plan = await self._make_plan()
        await in_thread(self._ledger.register, self._new(plan))
        await self._lease()
        write = partial(
            self._ledger.plan, total=plan.total, set_hash=plan.set_hash, select=plan.select, skipped=plan.skipped
        )
        await in_thread(write, self._uid, plan.rows())
        self._log.info("backfill_planned", total=plan.total)
        record = await in_thread(self._ledger.find, self._uid)
        if record is None:
            raise LedgerUnavailable("the backfill just planned is not in the ledger: was the ledger restored?")
        return record

    def _new(self, plan: Plan) -> NewBackfill:
        return NewBackfill(
            uid=self._uid,
            cluster=self._tools.limits.cluster,
            namespace=self._request.namespace,
            name=self._request.name,
            scope=plan.scope,
            asset=plan.asset,
            spec=self._request.raw,
            spec_hash=self._spec.frozen_digest(),
        )

    async def _lease(self) -> None:
        limits = self._tools.limits
        if not await in_thread(self._ledger.take_lease, self._uid, limits.owner, limits.lease_seconds):
            raise LeasedError

    # -- settling -----------------------------------------------------------------------------------------------------

    async def _settle(self) -> tuple[list[View], set[str]]:
        """Write down what became of the open batches; returns those that stay open, and the runs nobody needs now."""
        sight = await self._executor.look(await in_thread(self._ledger.open_batches, self._uid))
        self._progress.blockage = sight.blockage
        rules = self._rules()
        held = set()
        for one in sight.seen:
            if one.batch.job_uid is None and one.uid is not None:
                await in_thread(self._ledger.record_job, one.batch.fence, one.batch.job_name, one.uid)
            if outcome.needs_settling(one.batch, one.run) and not await self._try_to_settle(one, rules):
                held.add(one.batch.job_name)
        await self._executor.stop([one for one in sight.seen if one.lost])
        remaining = [one for one in sight.seen if isinstance(one.run, Running)]
        return remaining, set(sight.runs) - {one.batch.job_name for one in remaining} - held

    async def _try_to_settle(self, one: View, rules: outcome.Rules) -> bool:
        """Settle a batch; when a worker still holds its rows though the run is over, end that worker's session.

        Other batches do not wait for it, and the next pass finds the rows free.
        """
        try:
            await self._settle_one(one, rules)
        except LedgerBusy:
            if not isinstance(one.run, Running) or one.lost:
                ended = await in_thread(self._ledger.end_holders, one.batch.fence)
                self._log.warning("sessions_ended", fence=one.batch.fence, sessions=ended)
            return False
        return True

    def _rules(self) -> outcome.Rules:
        retry, spec = self._spec.retry, self._spec
        policy = outcome.RetryPolicy(retry.limit, retry.backoff_seconds, retry.max_backoff_seconds)
        stopped = spec.cancel or spec.suspend == "Kill"
        return outcome.Rules(policy, self._tools.now(), spec.cancel, self._tools.jitter, stopped)

    async def _settle_one(self, one: View, rules: outcome.Rules) -> None:
        rows = await in_thread(self._ledger.rows_of, one.batch.fence)
        if outcome.would_split(one.batch, rows, one.run, rules.policy):
            failed = await in_thread(self._ledger.failed_parts, self._uid, rules.policy.limit + 1)
            rules = replace(rules, failed_parts=failed)
        settled = outcome.settle(one.batch, rows, one.run, rules)
        await in_thread(partial(self._ledger.settle, close=settled.outcome), settled.fence, settled.changes)
        for change in settled.changes:
            self._tools.metrics.partitions.labels(change.state).inc()
        if settled.close:
            self._tools.metrics.batches.labels(settled.close).inc()
            self._log.info("batch_closed", fence=settled.fence, outcome=settled.close)

    async def _tidy(self, closed: set[str]) -> None:
        """Take away the traces of closed batches; those that a failure names stay, for their logs."""
        if closed:
            failures = await in_thread(self._ledger.failures, self._uid)
            await self._executor.tidy(closed - {failure.job for failure in failures})

    # -- handing out --------------------------------------------------------------------------------------------------

    async def _hand_out_or_count(self, seen: Sequence[View]) -> None:
        """Hand out; what stands in the way must not keep people from seeing what is done meanwhile."""
        try:
            await self._hand_out(seen)
        except FlowStoneError:
            self._progress.counts = await in_thread(self._ledger.counts, self._uid)
            self._progress.batches = await in_thread(self._ledger.open_batches, self._uid)
            if self._progress.batches:
                self._progress.again = UNSTARTED
            raise

    async def _hand_out(self, seen: Sequence[View]) -> None:
        digest = await self._executor.prepare()
        await self._replace_unstarted(seen, digest)
        batches = await self._unlaunched(seen)
        await self._hold_back(digest)
        if self._progress.blockage is None or not self._progress.blockage.halts:
            batches += await self._claim(digest, seen)
        await each(self._launch, batches)

    async def _replace_unstarted(self, seen: Sequence[View], digest: str) -> None:
        """Runs that never started are made anew from an edited template; their rows go back uncharged once gone."""
        stale = [one for one in seen if not one.started and not one.stopping and one.batch.template_digest != digest]
        await self._executor.stop([one for one in stale if one.launched])

    async def _hold_back(self, digest: str) -> None:
        """Wait longer and longer when batch after batch ends in vain, and say so."""
        vain = await in_thread(self._ledger.vain, self._uid, digest)
        why = patience.blockage(vain, self._tools.now())
        self._progress.blockage = self._progress.blockage or why

    async def _unlaunched(self, seen: Sequence[View]) -> list[ClaimedBatch]:
        """Batches that were claimed and whose run was not created, by this replica or by one that died."""
        found = []
        for batch in [one.batch for one in seen if not one.launched]:
            rows = await in_thread(self._ledger.rows_of, batch.fence)
            keys = tuple(row.partition for row in rows)
            found.append(ClaimedBatch(batch.fence, batch.scope, batch.job_name, keys, batch.template_digest))
        return found

    async def _claim(self, digest: str, seen: Sequence[View]) -> Sequence[ClaimedBatch]:
        admission = await self._admit()
        for scope, reason in admission.refused.items():
            while await in_thread(self._ledger.skip, self._uid, scope, reason):
                await self._lease()
        spec, retry = self._spec, self._spec.retry
        await in_thread(self._ledger.hasten, self._uid, retry.backoff_seconds, retry.max_backoff_seconds)
        pace = None if spec.batch_size else await in_thread(self._ledger.pace, self._uid)
        size = await self._batch_size(pace)
        if size is None:
            return []
        known = pace is not None or spec.batch_size is not None
        request = ClaimRequest(
            max_parallel=open_slots(spec.max_parallel, known=known, oldest=_oldest(seen, self._tools.now())),
            operator_limit=self._tools.limits.max_parallel,
            batch_size=size,
            order=spec.order,
            select=spec.select,
            template_digest=digest,
            job_prefix=self._request.run_prefix,
            tenant_limits=admission.limits,
        )
        claimed = await in_thread(self._ledger.claim, self._uid, request)
        if admission.waiting:
            waiting = next(iter(admission.waiting.values()))
            self._progress.blockage = self._progress.blockage or Blockage("TenantNotReady", waiting, partial=True)
        self._tools.metrics.batches.labels("claimed").inc(len(claimed))
        return claimed

    async def _batch_size(self, pace: float | None) -> int | None:
        """Partitions in the next batches; None when none waits."""
        spec = self._spec
        size = partial(
            batch_size,
            spec.batch_size,
            slots=spec.max_parallel,
            target_seconds=spec.target_batch_seconds,
            seconds_per_partition=pace,
        )
        queued = await in_thread(self._ledger.queued, self._uid, spec.max_parallel * size(queued=PLENTY))
        return size(queued=queued) if queued else None

    async def _launch(self, batch: ClaimedBatch) -> None:
        launched = await self._executor.launch(batch)
        known = self._progress.blockage
        if isinstance(launched, Blockage):  # what concerns everybody is said before what concerns some
            self._progress.blockage = launched if known is None or (known.partial and launched.halts) else known
        else:
            await in_thread(self._ledger.record_job, batch.fence, batch.job_name, launched)

    # -- halting ------------------------------------------------------------------------------------------------------

    async def _halt(self, seen: Sequence[View], *, kill: bool) -> None:
        """Start nothing more: what was never launched goes back; with `kill` what runs is asked to stop."""
        if kill:
            await self._executor.stop([one for one in seen if one.launched])
        for one in seen:
            if not one.launched:
                await self._settle_one(replace(one, run=Gone()), self._rules())

    async def _cancel_queued(self) -> None:
        """Cancel chunk after chunk for some seconds; then people shall see how far it is, and the next pass goes on."""
        until = self._tools.now() + timedelta(seconds=CANCEL_SECONDS)
        while await in_thread(self._ledger.cancel, self._uid) and self._tools.now() < until:
            await self._lease()

    # -- judging ------------------------------------------------------------------------------------------------------

    async def _conclude(self, seen: Sequence[View], over_budget: str) -> Standing:
        counts = self._progress.counts = await in_thread(self._ledger.counts, self._uid)
        self._progress.batches = await in_thread(self._ledger.open_batches, self._uid)
        retry = await in_thread(self._ledger.next_retry, self._uid) if counts.queued else None
        skipped, common = await self._reasons(counts)
        standing = judge(
            counts,
            open_batches=len(self._progress.batches),
            cancelled=self._spec.cancel,
            suspended=self._spec.suspend,
            over_budget=over_budget,
            blockage=self._progress.blockage,
            waited=_waited(seen, self._tools.now()),
            started=sum(one.started for one in seen),
            moving=await self._is_moving(seen),
            skipped=skipped,
            retry=retry,
            common=common,
        )
        if standing.finished:
            await in_thread(self._ledger.finish, self._uid)
        else:
            self._progress.again = self._next_look(counts, retry, halted=bool(over_budget or self._spec.suspend))
        return standing

    async def _is_moving(self, seen: Sequence[View]) -> bool:
        """Whether batches run in spite of a blockage, or did of late; looked up only where it matters."""
        why = self._progress.blockage
        if why is None or not is_shared(why):
            return False
        if goes_on(self._progress.batches, seen, why, self._tools.now()):
            return True
        return await in_thread(self._ledger.moved, self._uid, QUIET.total_seconds())

    def _next_look(self, counts: Counts, retry: Retry | None, *, halted: bool) -> float:
        if self._spec.cancel and counts.queued:
            return 0
        if self._progress.blockage is not None:
            return UNSTARTED
        if self._progress.batches:
            return SOON
        if halted:
            return self._tools.limits.resync_seconds
        wait = (retry.at - self._tools.now()).total_seconds() if retry else UNSTARTED
        return min(max(wait, 0.1), self._tools.limits.resync_seconds)

    async def _stay_finished(self, record: BackfillRecord) -> Standing:
        """A finished backfill with an unchanged spec is a no-op for ever."""
        self._progress.pruned = record.pruned
        counts = self._progress.counts = await in_thread(self._ledger.counts, self._uid)
        await self._tidy(set((await self._executor.look(())).runs))
        skipped, common = await self._reasons(counts)
        return judge(counts, open_batches=0, cancelled=self._spec.cancel, skipped=skipped, common=common)

    async def _reasons(self, counts: Counts) -> tuple[Sequence[Skipped], CommonError | None]:
        """Why partitions were skipped, and what most failures have in common; looked up only for the last word."""
        if counts.open:
            return (), None
        skipped = await in_thread(self._ledger.skipped, self._uid) if counts.skipped else ()
        return skipped, await in_thread(self._ledger.common_error, self._uid) if counts.failed else None


def _oldest(seen: Sequence[View], now: datetime) -> float | None:
    return max(((now - one.batch.opened_at).total_seconds() for one in seen), default=None)


def _waited(seen: Sequence[View], now: datetime) -> timedelta:
    return max((now - one.batch.opened_at for one in seen if not one.started), default=timedelta(0))
