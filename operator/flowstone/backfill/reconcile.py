"""The reconcile of one Backfill resource: read it, let the engine advance, report. One replica of several does it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from flowstone.api.parse import BackfillResource, parse_backfill
from flowstone.backfill import status
from flowstone.backfill.details import look_up
from flowstone.backfill.edges.apart_executor import ApartExecutor
from flowstone.backfill.edges.assets import Assets
from flowstone.backfill.edges.job_executor import JobExecutor
from flowstone.backfill.edges.namespace_login import NamespaceLogin
from flowstone.backfill.edges.orphans import close_orphan
from flowstone.backfill.edges.reporter import Reporter
from flowstone.backfill.edges.seen_jobs import SeenJobs
from flowstone.backfill.edges.tenants import Tenants
from flowstone.backfill.engine import UNSTARTED, Engine, in_thread
from flowstone.backfill.overlap import with_older
from flowstone.backfill.plan import Plan, make_plan
from flowstone.backfill.request import LeasedError, Progress, Request, Tools
from flowstone.backfill.standing import Stand, Standing
from flowstone.backfill.tenancy import Admission
from flowstone.db.outcomes import Outcomes
from flowstone.errors import (
    AssetNotFound,
    InvalidSpec,
    KubernetesRefused,
    LedgerBusy,
    LedgerRefused,
    LedgerUnavailable,
    SchemaNotCompatible,
    TenantUnknown,
)
from flowstone.executor.delivery import delivery_of
from flowstone.executor.jobs import job_prefix
from flowstone.kube.client import Json, Kube
from flowstone.kube.paths import custom

CONFLICT = 0.5
"""Seconds until a resource that changed under our hands is read again."""

ELSEWHERE = 3.0
"""Seconds for which a backfill that another replica has is not looked at, whatever events come."""

LARGE = 50_000
"""Partitions from which on planning takes long enough to be shown."""


@dataclass(frozen=True, slots=True)
class Environment:
    """All that a reconcile needs of the world; the composition root fills it."""

    kube: Kube
    tools: Tools
    login: NamespaceLogin
    tenants: Tenants
    seen: SeenJobs
    outcomes: Outcomes
    assets: Assets
    reporter: Reporter
    now: Callable[[], datetime]


class BackfillReconciler:
    """Moves one Backfill, its rows in the ledger and its Jobs towards each other."""

    def __init__(self, environment: Environment) -> None:
        self._env = environment
        self._elsewhere: dict[tuple[str, str], datetime] = {}

    async def __call__(self, namespace: str, name: str) -> float | None:
        """Reconcile; returns the seconds until the key is wanted back, or None."""
        until = self._elsewhere.get((namespace, name))
        if until is not None and (left := (until - self._env.now()).total_seconds()) > 0:
            return left
        self._elsewhere.pop((namespace, name), None)
        try:
            return await self._reconcile(namespace, name)
        except LeasedError:  # events of its Jobs come several times a second, and the other replica sees to them
            self._elsewhere[namespace, name] = self._env.now() + timedelta(seconds=ELSEWHERE)
            return ELSEWHERE  # by then its owner may be dead, and nothing else would tell

    async def _reconcile(self, namespace: str, name: str) -> float | None:
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
        """Close what the ledger still holds open of a resource that is gone."""
        ledger = self._env.tools.ledger
        for uid, of_namespace, of_name in await asyncio.to_thread(ledger.live_uids):
            if (of_namespace, of_name) == (namespace, name):
                await close_orphan(self._env.kube, self._env.outcomes, ledger, namespace=namespace, uid=uid)
                self._env.tools.log.info("backfill_forgotten", namespace=namespace, backfill=name, uid=uid)


class _Reconcile:
    """One pass over one resource."""

    def __init__(self, env: Environment, resource: Json) -> None:
        self._env = env
        self._resource = resource
        self._uid: str = resource["metadata"]["uid"]
        self._progress = Progress()
        self._delivery: str | None = None

    async def run(self) -> float | None:
        """Let the engine advance; whatever stops it becomes a standing that people can read."""
        try:
            standing = await self._advance(parse_backfill(self._resource))
        except LedgerBusy:
            return CONFLICT
        except (InvalidSpec, AssetNotFound, TenantUnknown, KubernetesRefused, *_LEDGER_TROUBLE) as error:
            standing = self._trouble(error)
        return await self._report(standing)

    async def _advance(self, backfill: BackfillResource) -> Standing:
        executor = JobExecutor(
            kube=self._env.kube,
            assets=self._env.assets,
            login=self._env.login,
            tenants=self._env.tenants,
            seen=self._env.seen,
            backfill=backfill,
            cluster=self._env.tools.limits.cluster,
            now=self._env.now,
            node_lost=timedelta(seconds=self._env.tools.limits.node_lost_seconds),
        )
        ledger = self._env.tools.ledger
        apart = ApartExecutor(
            executor, self._env.outcomes, partial(ledger.open_batches, self._uid), self._env.tools.log
        )
        request = Request(
            uid=self._uid,
            namespace=backfill.namespace,
            name=backfill.name,
            spec=backfill.spec,
            raw=self._resource["spec"],
            run_prefix=job_prefix(backfill.name, self._uid),
        )

        async def plan() -> Plan:
            asset = await executor.asset()
            await self._env.assets.check(asset)
            admission = await self._env.tenants.at_planning(backfill, asset)
            usable = (
                await self._env.tenants.usable(backfill.namespace) if asset.spec.tenant_dimension is not None else ()
            )
            make = partial(make_plan, tenants=usable, skipped=admission.refused)
            made = await in_thread(make, self._env.tools.limits.cluster, backfill, asset)
            if made.total >= LARGE:
                await self._report(Standing(Stand.PLANNING, "Planning", f"queueing {made.total:,} partitions"))
            return made

        async def admit() -> Admission:
            return await self._env.tenants.at_hand_out(backfill, executor.known_asset or await executor.asset())

        try:
            standing = await Engine(self._env.tools, request, apart, plan, self._progress, admit).advance()
            return await with_older(ledger, self._uid, standing, self._progress.counts)
        finally:
            if executor.known_asset is not None:
                self._delivery = delivery_of(executor.known_asset.spec.template)

    def _trouble(self, error: Exception) -> Standing:
        match error:
            case InvalidSpec():
                return Standing(Stand.INVALID, "InvalidSpec", str(error))
            case AssetNotFound():
                return Standing(Stand.ASSET_MISSING, "AssetNotFound", str(error))
            case TenantUnknown():
                self._progress.again = UNSTARTED
                return Standing(Stand.ASSET_MISSING, "TenantNotFound", f"spec: {error}")
            case KubernetesRefused(status=403):
                reason, message = "RBAC", error.message
            case KubernetesRefused():
                reason, message = "Refused", error.message
            case SchemaNotCompatible():
                reason, message = "SchemaNotCompatible", str(error)
            case _:
                reason, message = "LedgerUnreachable", str(error)
        self._progress.again = UNSTARTED
        return Standing(Stand.BLOCKED, reason, message)

    # -- reporting ----------------------------------------------------------------------------------------------------

    async def _report(self, standing: Standing) -> float | None:
        counts = self._progress.counts
        report = status.Report(
            standing=standing,
            counts=counts,
            generation=self._resource["metadata"]["generation"],
            ready_when=self._resource["spec"].get("readyWhen", "Accepted"),
            delivery=self._delivery,
            active_batches=len(self._progress.batches),
        )
        if counts and not self._progress.pruned and (standing.finished or self._env.reporter.due(self._resource)):
            details = await in_thread(look_up, self._env.tools.ledger, self._uid, counts)
            report = replace(report, details=details)
        written = await self._env.reporter.report(self._resource, report)
        return self._progress.again if written else CONFLICT


_LEDGER_TROUBLE = (LedgerUnavailable, LedgerRefused, SchemaNotCompatible)
