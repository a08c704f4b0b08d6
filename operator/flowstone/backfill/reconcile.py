"""The reconcile of one Backfill: read, settle, hand out, report. The only asynchronous story of this package.

It may be killed between any two lines. What makes that harmless: rows are claimed in the ledger before their Job
exists and the Job's name follows from the claim; a Job is deleted only after its outcome is recorded; every write is
guarded by a fence, an expected state or a resourceVersion. So whoever comes next reads where things stand and goes
on from there. The lease merely keeps two replicas from doing the same work twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import ParamSpec, TypeVar

from flowstone.api.parse import AssetResource, BackfillResource, parse_backfill
from flowstone.backfill import outcome, status, views
from flowstone.backfill.edges.assets import Assets, work_of
from flowstone.backfill.edges.batch_jobs import BatchJobs
from flowstone.backfill.edges.namespace_login import NamespaceLogin
from flowstone.backfill.edges.reporter import Reporter
from flowstone.backfill.plan import Plan, make_plan
from flowstone.backfill.records import BackfillRecord, ClaimedBatch, ClaimRequest, Counts, NewBackfill, OpenBatch
from flowstone.backfill.sizing import batch_size
from flowstone.backfill.standing import Stand, Standing, judge
from flowstone.backfill.views import View
from flowstone.controller.gather import each
from flowstone.db.ledger import Ledger
from flowstone.errors import (
    InvalidSpec,
    KubernetesRefused,
    LedgerBusy,
    LedgerRefused,
    LedgerUnavailable,
    SchemaNotCompatible,
)
from flowstone.executor.delivery import delivery_of
from flowstone.executor.jobs import Work, job_manifest, job_prefix
from flowstone.executor.port import Blockage, Gone, Running
from flowstone.executor.template import template_digest
from flowstone.kube.client import Json, Kube
from flowstone.kube.paths import custom
from flowstone.settings import OperatorSettings
from flowstone.telemetry import Logger, Metrics

P = ParamSpec("P")
T = TypeVar("T")

SOON = 2.0
"""Seconds until a backfill with work under way is looked at again without an event."""

UNSTARTED = 5.0
"""Seconds until a batch that does not start, or a dependency that does not answer, is looked at again."""

CONFLICT = 0.5
"""Seconds until a resource that changed under our hands is read again."""

RATE_WINDOW = 60.0
"""Seconds over which the throughput is measured."""


@dataclass(frozen=True, slots=True)
class Environment:
    """All that a reconcile needs of the world; the composition root fills it.

    Attributes:
        owner: This replica, as the owner of leases.
        jitter: A new number in 0..1 for each call.
    """

    kube: Kube
    ledger: Ledger
    login: NamespaceLogin
    assets: Assets
    reporter: Reporter
    settings: OperatorSettings
    cluster: str
    owner: str
    metrics: Metrics
    log: Logger
    now: Callable[[], datetime]
    jitter: Callable[[], float]


class _LeasedError(Exception):
    """Another replica has this backfill."""


class _AssetMissingError(Exception):
    """The asset is not there (yet)."""


class BackfillReconciler:
    """Moves one Backfill, its rows in the ledger and its Jobs towards each other."""

    def __init__(self, environment: Environment) -> None:
        self._env = environment

    async def __call__(self, namespace: str, name: str) -> float | None:
        """Reconcile; returns the seconds until the key is wanted back, or None."""
        try:
            resource = await self._env.kube.get(custom("backfills", namespace, name))
        except KubernetesRefused as refused:  # without the resource there is no status to write to
            await self._env.reporter.complain(namespace, name, Standing(Stand.BLOCKED, "RBAC", refused.message))
            raise
        if resource is None:
            await self._forget(namespace, name)
            return None
        return await _Reconcile(self._env, resource).run()

    async def _forget(self, namespace: str, name: str) -> None:
        """Close what the ledger still holds open of a resource that is gone; its Jobs go by owner reference."""
        for uid, of_namespace, of_name in await asyncio.to_thread(self._env.ledger.live_uids):
            if (of_namespace, of_name) == (namespace, name):
                await asyncio.to_thread(self._env.ledger.close_orphan, uid)
                self._env.log.info("backfill_forgotten", namespace=namespace, name=name, uid=uid)


class _Reconcile:
    """One pass over one Backfill."""

    def __init__(self, env: Environment, resource: Json) -> None:
        self._env = env
        self._resource = resource
        self._uid: str = resource["metadata"]["uid"]
        self._namespace: str = resource["metadata"]["namespace"]
        self._name: str = resource["metadata"]["name"]
        self._jobs = BatchJobs(env.kube, self._namespace, self._uid, env.now)
        self._log = env.log.bind(namespace=self._namespace, name=self._name)
        self._counts: Counts | None = None
        self._batches: Sequence[OpenBatch] = ()
        self._blockage: Blockage | None = None
        self._delivery: str | None = None
        self._again: float | None = None

    async def run(self) -> float | None:
        """Go through the story; whatever stops it becomes a standing that people can read."""
        try:
            standing = await self._advance(parse_backfill(self._resource))
        except _LeasedError:
            return self._env.settings.lease_seconds / 2
        except LedgerBusy:
            return CONFLICT
        except (InvalidSpec, _AssetMissingError, KubernetesRefused, *_LEDGER_TROUBLE) as error:
            standing = self._trouble(error)
        return await self._report(standing)

    def _trouble(self, error: Exception) -> Standing:
        match error:
            case InvalidSpec():
                return Standing(Stand.INVALID, "InvalidSpec", str(error))
            case _AssetMissingError():
                return Standing(Stand.ASSET_MISSING, "AssetNotFound", str(error))
            case KubernetesRefused(status=403):
                reason, message = "RBAC", error.message
            case KubernetesRefused():
                reason, message = "Refused", error.message
            case SchemaNotCompatible():
                reason, message = "SchemaNotCompatible", str(error)
            case _:
                reason, message = "LedgerUnreachable", str(error)
        self._again = UNSTARTED
        return Standing(Stand.BLOCKED, reason, message)

    async def _advance(self, backfill: BackfillResource) -> Standing:
        ledger = self._env.ledger
        await self._db(ledger.check_schema)
        record = await self._db(ledger.find, self._uid)
        if record is not None and record.finished_at is not None:
            return await self._stay_finished(backfill)
        if record is None or record.total is None:
            record = await self._plan(backfill)
        else:
            await self._lease()
        open_batches = await self._settle(backfill)
        if backfill.spec.cancel:
            await self._cancel(backfill, open_batches)
        else:
            await self._hand_out(backfill, record, open_batches)
        return await self._conclude(backfill, open_batches)

    # -- planning -----------------------------------------------------------------------------------------------------

    async def _plan(self, backfill: BackfillResource) -> BackfillRecord:
        ledger = self._env.ledger
        asset = await self._asset(backfill)
        await self._env.assets.check(asset)
        plan = await asyncio.to_thread(make_plan, self._env.cluster, backfill, asset)
        await self._db(ledger.register, self._new(backfill, plan))
        await self._lease()
        await self._db(
            partial(ledger.plan, total=plan.total, set_hash=plan.set_hash, select=plan.select), self._uid, plan.rows()
        )
        self._log.info("backfill_planned", total=plan.total)
        record = await self._db(ledger.find, self._uid)
        if record is None:
            raise LedgerUnavailable("the backfill just planned is not in the ledger: was the ledger restored?")
        return record

    def _new(self, backfill: BackfillResource, plan: Plan) -> NewBackfill:
        return NewBackfill(
            uid=self._uid,
            cluster=self._env.cluster,
            namespace=self._namespace,
            name=self._name,
            scope=plan.scope,
            asset=plan.asset,
            spec=self._resource["spec"],
            spec_hash=backfill.spec.frozen_digest(),
        )

    async def _asset(self, backfill: BackfillResource) -> AssetResource:
        name = backfill.spec.asset
        asset = await self._env.assets.find(self._namespace, name)
        if asset is None:
            message = f"spec.asset: there is no Asset {name!r} in namespace {self._namespace!r}: create it"
            raise _AssetMissingError(message)
        self._delivery = delivery_of(asset.spec.template)
        return asset

    async def _lease(self) -> None:
        seconds = self._env.settings.lease_seconds
        if not await self._db(self._env.ledger.take_lease, self._uid, self._env.owner, seconds):
            raise _LeasedError

    # -- settling -----------------------------------------------------------------------------------------------------

    async def _settle(self, backfill: BackfillResource) -> list[View]:
        """Write down what became of the open batches; returns those that stay open."""
        sight = await self._jobs.look(await self._db(self._env.ledger.open_batches, self._uid))
        self._blockage = sight.blockage
        rules = self._rules(backfill)
        for one in sight.seen:
            if one.batch.job_uid is None and one.job is not None:
                await self._record_job(one.batch.fence, one.job)
            if outcome.needs_settling(one.batch, one.run):
                await self._settle_one(one, rules)
        remaining = [one for one in sight.seen if isinstance(one.run, Running)]
        await self._tidy(sight.jobs, remaining)
        return remaining

    def _rules(self, backfill: BackfillResource) -> outcome.Rules:
        retry = backfill.spec.retry
        policy = outcome.RetryPolicy(retry.limit, retry.backoff_seconds, retry.max_backoff_seconds)
        return outcome.Rules(policy, self._env.now(), backfill.spec.cancel, self._env.jitter)

    async def _settle_one(self, one: View, rules: outcome.Rules) -> None:
        ledger = self._env.ledger
        rows = await self._db(ledger.rows_of, one.batch.fence)
        settled = outcome.settle(one.batch, rows, one.run, rules)
        await self._db(partial(ledger.settle, close=settled.close), settled.fence, settled.changes)
        for change in settled.changes:
            self._env.metrics.partitions.labels(change.state).inc()
        if settled.close:
            self._env.metrics.batches.labels(settled.close).inc()
            self._log.info("batch_closed", fence=settled.fence, outcome=settled.close)

    async def _tidy(self, found: Sequence[Json], remaining: Sequence[View]) -> None:
        """Delete the Jobs whose outcome is recorded; those that a failure names stay, for their logs."""
        batches = [one.batch for one in remaining]
        if views.leftovers(found, batches, ()):
            failures = await self._db(self._env.ledger.failures, self._uid)
            await self._jobs.delete(views.leftovers(found, batches, [failure.job for failure in failures]))

    # -- handing out --------------------------------------------------------------------------------------------------

    async def _hand_out(self, backfill: BackfillResource, record: BackfillRecord, seen: Sequence[View]) -> None:
        asset = await self._asset(backfill)
        await self._env.assets.check(asset)
        await self._replace_unstarted(seen, template_digest(asset.spec.template))
        batches = await self._unlaunched(seen)
        if self._blockage is None or self._blockage.waiting:
            await self._env.login.ensure(self._namespace, record.scope)
            batches += await self._claim(backfill, asset)
        work = work_of(asset, backfill=self._name, uid=self._uid, identity=record.asset)
        await each(partial(self._launch, work), batches)

    async def _replace_unstarted(self, seen: Sequence[View], digest: str) -> None:
        """Jobs that never started are made anew from an edited template; their rows go back uncharged once gone."""
        stale = [one for one in seen if not one.started and not one.stopping and one.batch.template_digest != digest]
        await self._jobs.delete([one.job for one in stale if one.job is not None])

    async def _unlaunched(self, seen: Sequence[View]) -> list[ClaimedBatch]:
        """Batches that were claimed and whose Job was not created, by this replica or by one that died."""
        found = []
        for batch in [one.batch for one in seen if not one.launched]:
            rows = await self._db(self._env.ledger.rows_of, batch.fence)
            keys = tuple(row.partition for row in rows)
            found.append(ClaimedBatch(batch.fence, batch.scope, batch.job_name, keys, batch.template_digest))
        return found

    async def _claim(self, backfill: BackfillResource, asset: AssetResource) -> Sequence[ClaimedBatch]:
        counts = await self._db(self._env.ledger.counts, self._uid)
        if not counts.queued:
            return []
        spec = backfill.spec
        request = ClaimRequest(
            max_parallel=spec.max_parallel,
            operator_limit=self._env.settings.max_parallel,
            batch_size=batch_size(spec.batch_size, queued=counts.queued, slots=spec.max_parallel),
            order=spec.order,
            select=spec.select,
            template_digest=template_digest(asset.spec.template),
            job_prefix=job_prefix(self._name, self._uid),
        )
        claimed = await self._db(self._env.ledger.claim, self._uid, request)
        self._env.metrics.batches.labels("claimed").inc(len(claimed))
        return claimed

    async def _launch(self, work: Work, batch: ClaimedBatch) -> None:
        manifest = job_manifest(batch, work, secret=self._env.login.secret_name)
        created = await self._jobs.create(manifest)
        if isinstance(created, Blockage):
            self._blockage = self._blockage or created
        else:
            await self._record_job(batch.fence, created)

    async def _record_job(self, fence: int, job: views.Json) -> None:
        metadata = job["metadata"]
        await self._db(self._env.ledger.record_job, fence, metadata["name"], metadata["uid"])

    # -- cancelling ---------------------------------------------------------------------------------------------------

    async def _cancel(self, backfill: BackfillResource, seen: Sequence[View]) -> None:
        await self._db(self._env.ledger.cancel, self._uid)
        await self._jobs.delete([one.job for one in seen if one.job is not None])
        rules = self._rules(backfill)
        for one in seen:
            if not one.launched:
                await self._settle_one(replace(one, run=Gone()), rules)

    # -- reporting ----------------------------------------------------------------------------------------------------

    async def _conclude(self, backfill: BackfillResource, seen: Sequence[View]) -> Standing:
        counts = self._counts = await self._db(self._env.ledger.counts, self._uid)
        self._batches = await self._db(self._env.ledger.open_batches, self._uid)
        standing = judge(
            counts,
            open_batches=len(self._batches),
            cancelled=backfill.spec.cancel,
            blockage=self._blockage,
            waited=_waited(seen, self._env.now()),
        )
        if standing.finished:
            await self._db(self._env.ledger.finish, self._uid)
        else:
            self._again = await self._next_look()
        return standing

    async def _next_look(self) -> float:
        if self._blockage is not None:
            return UNSTARTED
        if self._batches:
            return SOON
        due = await self._db(self._env.ledger.next_due, self._uid)
        wait = (due - self._env.now()).total_seconds() if due else UNSTARTED
        return min(max(wait, 0.1), self._env.settings.resync_seconds)

    async def _stay_finished(self, backfill: BackfillResource) -> Standing:
        """A finished backfill with an unchanged spec is a no-op for ever."""
        counts = self._counts = await self._db(self._env.ledger.counts, self._uid)
        sight = await self._jobs.look(())
        await self._tidy(sight.jobs, ())
        return judge(counts, open_batches=0, cancelled=backfill.spec.cancel)

    async def _report(self, standing: Standing) -> float | None:
        report = status.Report(
            standing=standing,
            counts=self._counts,
            generation=self._resource["metadata"]["generation"],
            ready_when=self._resource["spec"].get("readyWhen", "Accepted"),
            delivery=self._delivery,
            active_batches=len(self._batches),
        )
        if report.counts and (standing.finished or self._env.reporter.due(self._resource)):
            report = await self._detailed(report, report.counts)
        written = await self._env.reporter.report(self._resource, report)
        return self._again if written else CONFLICT

    async def _detailed(self, report: status.Report, counts: Counts) -> status.Report:
        """What costs a query over many rows, and is therefore only looked up when it can be written."""
        ledger = self._env.ledger
        details = status.Details(
            failures=await self._db(ledger.failures, self._uid) if counts.failed else (),
            rate=await self._db(ledger.throughput, self._uid, RATE_WINDOW),
            succeeded=status.intervals_text(await self._db(ledger.intervals, self._uid, "succeeded")),
            failed=status.intervals_text(await self._db(ledger.intervals, self._uid, "failed")),
        )
        return replace(report, details=details)

    async def _db(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(call, *args, **kwargs)


_LEDGER_TROUBLE = (LedgerUnavailable, LedgerRefused, SchemaNotCompatible)


def _waited(seen: Sequence[View], now: datetime) -> timedelta:
    return max((now - one.batch.opened_at for one in seen if not one.started), default=timedelta(0))
