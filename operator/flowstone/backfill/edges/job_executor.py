"""Batches as Kubernetes Jobs: seen, created under their deterministic names, deleted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta

from flowstone.api.parse import AssetResource, BackfillResource
from flowstone.backfill import job_views
from flowstone.backfill.edges.assets import Assets, work_of
from flowstone.backfill.edges.namespace_login import NamespaceLogin
from flowstone.backfill.edges.seen_jobs import SeenJobs
from flowstone.backfill.edges.tenants import Tenants
from flowstone.backfill.plan import asset_identity, is_for_tenants, scope_of
from flowstone.backfill.records import ClaimedBatch, OpenBatch
from flowstone.backfill.tenancy import places_of
from flowstone.backfill.tenancy import refusal as tenant_refusal
from flowstone.controller.gather import each
from flowstone.errors import AssetNotFound, KubernetesRefused
from flowstone.executor.jobs import job_manifest
from flowstone.executor.port import Blockage, Sight, View
from flowstone.executor.template import template_digest
from flowstone.kube.client import Json, Kube
from flowstone.kube.paths import core, jobs
from flowstone.tenant.names import tenant_of_scope

EVENTS_READ = 3
"""Batches that do not start whose Events are read in one look; the others suffer from the same cause."""


class JobExecutor:
    """The Jobs of one Backfill, an adapter of `executor.port.Executor`.

    Args:
        node_lost: How long a pod may outlive its deletion before it is taken away by force.
    """

    def __init__(
        self,
        *,
        kube: Kube,
        assets: Assets,
        login: NamespaceLogin,
        tenants: Tenants,
        seen: SeenJobs,
        backfill: BackfillResource,
        cluster: str,
        now: Callable[[], datetime],
        node_lost: timedelta,
    ) -> None:
        self._kube = kube
        self._assets = assets
        self._login = login
        self._tenants = tenants
        self._seen = seen
        self._backfill = backfill
        self._namespace = backfill.namespace
        self._cluster = cluster
        self._now = now
        self._node_lost = node_lost
        self.known_asset: AssetResource | None = None
        """The asset, once it was read."""

    async def asset(self) -> AssetResource:
        """The Asset as it is now.

        Raises:
            AssetNotFound: There is none (yet).
        """
        name = self._backfill.spec.asset
        found = await self._assets.find(self._namespace, name)
        if found is None:
            where = f"in namespace {self._namespace!r}"
            raise AssetNotFound(f"spec.asset: there is no Asset {name!r} {where}: create it, or correct the name")
        self.known_asset = found
        return found

    async def look(self, batches: Sequence[OpenBatch]) -> Sight:
        """Read the Jobs, and pods and Events where the Jobs alone do not tell enough."""
        now = self._now()
        found = await self._jobs(batches)
        pairs = job_views.pair(batches, found)
        pods = await self._pods([batch.fence for batch, job in pairs if job_views.needs_pods(batch, job, now)])
        seen = [job_views.view(batch, job, pods, now) for batch, job in pairs]
        names = [job["metadata"]["name"] for job in found if not job_views.is_deleted(job)]
        return Sight(seen, names, await self._blockage([one for one in seen if one.slow(now)], now))

    async def _pods(self, fences: Sequence[int]) -> list[Json]:
        if not fences:
            return []
        labels = job_views.pods_selector(self._backfill.uid, fences)
        return await self._kube.list(core("pods", self._namespace), labels=labels)

    async def _jobs(self, batches: Sequence[OpenBatch]) -> list[Json]:
        """The backfill's Jobs as a watch has told of them, or as the server tells: at times, and for the last word."""
        uid = self._backfill.uid
        found = self._seen.of(self._namespace, uid) if batches else None
        if found is None:
            found = await self._kube.list(jobs(self._namespace), labels=job_views.selector(uid))
            self._seen.compared(self._namespace, uid)
            return found
        behind = [batch.job_name for batch, job in job_views.pair(batches, found) if job is None]
        read = await each(self._job, behind)
        return [*found, *(job for job in read if job is not None)]

    async def _job(self, name: str) -> Json | None:
        return await self._kube.get(jobs(self._namespace, name))

    async def prepare(self) -> str:
        """Read and check the Asset, and let the namespace's Jobs in at the ledger."""
        asset = self.known_asset or await self.asset()
        await self._assets.check(asset)
        if not is_for_tenants(asset.spec, self._backfill.spec):
            await self._login.ensure(self._namespace, scope_of(self._cluster, self._namespace))
        return template_digest(asset.spec.template)

    async def launch(self, batch: ClaimedBatch) -> str | Blockage:
        """Create the Job, with the credentials of its scope alone, or adopt the one of this name that is ours."""
        asset = self.known_asset or await self.asset()
        identity = asset_identity(self._cluster, asset)
        work = work_of(asset, backfill=self._backfill.name, uid=self._backfill.uid, identity=identity)
        tenant_id = tenant_of_scope(batch.scope)
        secret = self._login.secret_name if tenant_id is None else await self._tenant_secret(asset, tenant_id)
        if isinstance(secret, Blockage):
            return secret
        places = places_of(asset.spec.storage, tenant_id)
        manifest = job_manifest(batch, work, secret=secret, tenant=tenant_id, storage=places)
        try:
            return _uid(await self._kube.create(jobs(self._namespace), manifest))
        except KubernetesRefused as refused:
            if refused.reason == "AlreadyExists":
                return await self._adopt(batch.job_name)
            return refusal(refused)

    async def _tenant_secret(self, asset: AssetResource, tenant_id: str) -> str | Blockage:
        """The Secret of a tenant; asked again here, for a batch that was claimed before the tenant was refused."""
        tenant = (await self._tenants.known()).get(tenant_id)
        if tenant is None:
            return Blockage("TenantNotReady", f"tenant {tenant_id}: its Tenant is not there", partial=True)
        refused = tenant_refusal(asset, tenant, self._tenants.guards)
        return tenant.secret if refused is None else Blockage("TenantRefused", refused, partial=True)

    async def _adopt(self, name: str) -> str | Blockage:
        job = await self._job(name)
        if job is not None and job_views.is_owned(job, self._backfill.uid):
            return _uid(job)
        return Blockage("NameConflict", f"a Job named {name!r} belongs to somebody else: delete or rename it")

    async def stop(self, unwanted: Sequence[View]) -> None:
        """Ask for the deletion of Jobs and their pods; take those away whose node has not answered for too long."""
        await self.tidy([one.batch.job_name for one in unwanted if one.uid is not None and not one.stopping])
        now = self._now()
        await each(self._take_away, [one for one in unwanted if job_views.overdue(one, now, self._node_lost)])

    async def _take_away(self, one: View) -> None:
        """First the Job, which would start another pod; then the pods, without waiting for their kubelet."""
        if one.uid is not None:
            await self._kube.delete(jobs(self._namespace, one.batch.job_name), uid=one.uid)
        for pod in job_views.overdue(one, self._now(), self._node_lost):
            metadata = pod["metadata"]
            await self._kube.delete(core("pods", self._namespace, metadata["name"]), uid=metadata["uid"], grace=0)

    async def tidy(self, unwanted: Collection[str]) -> None:
        """Delete Jobs by name; the names are drawn from fences and never used again."""
        await each(self._delete, unwanted)

    async def _delete(self, name: str) -> None:
        await self._kube.delete(jobs(self._namespace, name))

    async def _blockage(self, slow: Sequence[View], now: datetime) -> Blockage | None:
        for one in slow[:EVENTS_READ]:
            why = job_views.why_not_started(one, await self._events(one), now)
            if why is not None:
                return why
        return None

    async def _events(self, one: View) -> list[Json]:
        found: list[Json] = []
        for name in job_views.concerned(one):
            fields = f"involvedObject.name={name}"
            found += await self._kube.list(core("events", self._namespace), fields=fields)
        return found


def refusal(refused: KubernetesRefused) -> Blockage:
    """What the refusal of a Job means to people."""
    if refused.status == 403:
        return Blockage("QuotaExceeded" if "exceeded quota" in refused.message else "RBAC", refused.message)
    return Blockage("CreateFailed", refused.message)


def _uid(job: Json) -> str:
    uid: str = job["metadata"]["uid"]
    return uid
