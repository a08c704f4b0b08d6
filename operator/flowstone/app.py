"""The operator, put together: the only module that knows Kopf, Kubernetes and Postgres at once.

Kopf -> key -> work queue -> reconcile          one replica of two or more, all of them at work
sweep: every `resyncSeconds`, all keys again, and what the ledger still holds of resources that are gone
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import signal
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial

import kopf

from flowstone.backfill.asset_reconcile import AssetReconciler, is_finished
from flowstone.backfill.edges.assets import Assets
from flowstone.backfill.edges.namespace_login import NamespaceLogin
from flowstone.backfill.edges.orphans import close_orphan
from flowstone.backfill.edges.reporter import Reporter
from flowstone.backfill.edges.seen_jobs import SeenJobs
from flowstone.backfill.edges.tenants import Tenants
from flowstone.backfill.reconcile import BackfillReconciler, Environment
from flowstone.backfill.request import Limits, Tools
from flowstone.backfill.secret import Endpoint
from flowstone.controller.queue import WorkQueue, run_workers
from flowstone.db.bootstrap import hardened
from flowstone.db.connection import session_name
from flowstone.db.endpoint import place_of
from flowstone.db.ledger import Ledger
from flowstone.db.lock_watch import end_waiting
from flowstone.db.logins import Logins
from flowstone.db.outcomes import Outcomes
from flowstone.db.own_databases import OwnDatabases
from flowstone.db.proof import IsolationProof
from flowstone.db.tenant_catalogue import TenantCatalogue
from flowstone.db.tenant_purge import TenantPurge
from flowstone.db.tenant_steps import TenantSteps
from flowstone.errors import FlowStoneError, KubernetesRefused, KubernetesUnavailable, LedgerError
from flowstone.guard import Guards
from flowstone.handlers import watch
from flowstone.handlers.health import serve
from flowstone.handlers.job_watch import follow_jobs
from flowstone.handlers.watch import Key
from flowstone.kube.client import Kube
from flowstone.kube.paths import core, custom
from flowstone.settings import OperatorSettings
from flowstone.telemetry import Health, Logger, Metrics, configure_logging
from flowstone.tenant.changes import Ending
from flowstone.tenant.reconcile import TenantEnvironment, TenantReconciler
from flowstone.tenant.signing import ContextKeys
from flowstone.tenant.verdicts import Verdicts

KOPF_SETTLED = 30.0
"""Seconds after which a watch that was started again counts as healthy."""

KOPF_PAUSE = 5.0
"""Seconds before Kopf is started again after it gave up, such as on a watch that RBAC forbids."""


TENANT_WORKERS = 2
"""Tenants that are reconciled at the same time."""

THREADS = 32
"""Blocking calls at the same time."""

LOCK_WATCH_PAUSE = 2.0
"""Seconds between two looks for sessions that block everybody."""

PRUNE_PAUSE = 3600.0
"""Seconds between two prunings of old history."""

PRUNED_CHUNKS = 100
"""Chunks of history that one sweep takes away, at most: half a million rows."""

Reconcile = Callable[[str, str], Awaitable[float | None]]


def main() -> None:
    """Run the operator until SIGTERM."""
    log = configure_logging()
    asyncio.run(Operator(OperatorSettings(), log).run())


def _now() -> datetime:
    return datetime.now(UTC)


class Operator:
    """One replica."""

    def __init__(self, settings: OperatorSettings, log: Logger) -> None:
        self._settings = settings
        self._log = log
        self._metrics = Metrics()
        self._health = Health()
        self._random = random.Random()  # noqa: S311 - jitter, not secrets
        self._queue: WorkQueue[Key] = WorkQueue(clock=time.monotonic, random=self._random)
        # Apart, because each Tenant waits for a proof that may take a minute, and no Backfill shall stand behind them.
        self._tenants: WorkQueue[Key] = WorkQueue(clock=time.monotonic, random=self._random)
        self._seen = SeenJobs(clock=time.monotonic)
        self._stop = asyncio.Event()
        self._prune_at = time.monotonic()
        self._owner = session_name(settings.pod_name, secrets.token_hex(4))

    async def run(self) -> None:
        """Serve health, watch and reconcile until told to stop."""
        self._stop_on_signals()
        async with serve(self._health, self._metrics, port=self._settings.health_port):
            self._kube = await self._connect()
            self._cluster = await self._cluster_id()
            self._ledger = Ledger.connect(self._settings.database_url, cluster=self._cluster, name=self._owner)
            try:
                await self._work()
            finally:
                await asyncio.to_thread(self._let_go)
                await self._kube.close()

    async def _connect(self) -> Kube:
        return await Kube.connect(count=lambda verb, status: self._metrics.api.labels(verb, str(status)).inc())

    async def _cluster_id(self) -> str:
        if self._settings.cluster_id:
            return self._settings.cluster_id
        while True:
            try:
                namespace = await self._kube.get(core("namespaces", None, "kube-system"))
            except FlowStoneError as error:
                self._note("clusterId", f"cannot read namespace kube-system, set the chart's clusterId: {error}")
                await asyncio.sleep(KOPF_PAUSE)
                continue
            self._note("clusterId", None)
            if namespace is None:
                raise SystemExit("there is no namespace kube-system: set the chart's value clusterId")
            return str(namespace["metadata"]["uid"])

    async def _work(self) -> None:
        self._reconcilers = self._compose()
        # One thread for each worker and for what they do side by side; the default would be six on two cores.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="ledger"))
        tasks = [
            asyncio.create_task(run_workers(self._queue, self._reconcile, self._failed, count=self._settings.workers)),
            asyncio.create_task(run_workers(self._tenants, self._reconcile, self._failed, count=TENANT_WORKERS)),
            asyncio.create_task(self._watch()),
            *(asyncio.create_task(self._watch_jobs(one)) for one in self._settings.watch_namespaces or (None,)),
            asyncio.create_task(self._sweep()),
            asyncio.create_task(self._watch_locks()),
            asyncio.create_task(self._stop.wait()),
        ]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    def _compose(self) -> dict[str, Reconcile]:
        databases = OwnDatabases(self._ledger.database, self._settings.database_url)
        self._outcomes = Outcomes(self._ledger.database, databases)
        assets = Assets(self._kube, self._settings)
        tenants = Tenants(
            self._kube,
            self._ledger,
            Guards.installed(),
            cluster=self._cluster,
            clock=time.monotonic,
            enabled=self._settings.tenants,
        )
        environment = Environment(
            kube=self._kube,
            tools=self._tools(),
            login=NamespaceLogin(
                self._kube, Logins(self._ledger.database), self._endpoint(), lambda: secrets.token_urlsafe(24)
            ),
            assets=assets,
            tenants=tenants,
            seen=self._seen,
            outcomes=self._outcomes,
            reporter=Reporter(self._kube, self._log, now=_now, clock=time.monotonic, instance=self._settings.pod_name),
            now=_now,
        )
        return {
            "Backfill": BackfillReconciler(environment),
            "Asset": AssetReconciler(
                self._kube, assets, lambda namespace, name: self._queue.add(Key("Backfill", namespace, name)), _now
            ),
            "Tenant": TenantReconciler(self._tenant_environment()),
        }

    def _tenant_environment(self) -> TenantEnvironment:
        database = self._ledger.database
        logins = Logins(database)
        databases = OwnDatabases(database, self._settings.database_url)
        exports = self._settings.tenant_export_folder
        proof = IsolationProof(
            database,
            self._settings.database_url,
            cluster=self._cluster,
            keys=self._context_keys(),
            log=self._log,
            observe=self._metrics.isolation,
        )
        return TenantEnvironment(
            kube=self._kube,
            ledger=self._ledger,
            catalogue=TenantCatalogue(database, self._cluster),
            steps=TenantSteps(database, logins, databases, self._cluster),
            purge=TenantPurge(database, logins, databases, self._cluster, exports),
            ending=Ending(timedelta(days=self._settings.tenant_retention_days), exports=exports is not None),
            databases=databases,
            cluster=self._cluster,
            owner=self._owner,
            login_conninfo=self._settings.database_url,
            endpoint=self._endpoint(),
            verdicts=Verdicts(
                lambda: hardened(database),
                proof,
                clock=time.monotonic,
                every=min(60.0, self._settings.resync_seconds) / 2,  # no resync tells what was found before the last
            ),
            new_password=lambda: secrets.token_urlsafe(24),
            now=_now,
            log=self._log,
            resync=self._settings.resync_seconds,
            lease_seconds=self._settings.lease_seconds,
        )

    def _context_keys(self) -> ContextKeys | None:
        file = self._settings.context_key_file
        return None if file is None else ContextKeys.from_file(file, self._cluster)

    def _tools(self) -> Tools:
        limits = Limits(
            owner=self._owner,
            cluster=self._cluster,
            max_parallel=self._settings.max_parallel,
            lease_seconds=self._settings.lease_seconds,
            resync_seconds=self._settings.resync_seconds,
            node_lost_seconds=self._settings.node_lost_seconds,
        )
        return Tools(self._ledger, limits, self._metrics, self._log, _now, self._random.random)

    def _endpoint(self) -> Endpoint:
        own = place_of(self._settings.database_url)
        return Endpoint(
            host=self._settings.worker_pghost or own.host,
            port=self._settings.worker_pgport or own.port,
            database=self._settings.worker_pgdatabase or own.database,
            sslmode=self._settings.worker_pgsslmode,
        )

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def _reconcile(self, key: Key) -> float | None:
        reconcile = self._reconcilers[key.kind]
        with self._metrics.seconds.labels(key.kind).time():
            again = await reconcile(key.namespace, key.name)
        self._metrics.reconciles.labels(key.kind, "done").inc()
        self._note(str(key), None)
        self._metrics.queue_depth.set(len(self._queue) + len(self._tenants))
        return again

    def _failed(self, key: Key, error: Exception, delay: float) -> None:
        """What ends up here could not be written to the resource's status.

        A missing right and an API server out of reach concern everybody, so they go to /readyz; what the server has
        against one resource goes to the log and the metrics alone, or one namespace could make all replicas unready.
        """
        self._metrics.reconciles.labels(key.kind, type(error).__name__).inc()
        expected = isinstance(error, FlowStoneError)
        if isinstance(error, KubernetesUnavailable) or (isinstance(error, KubernetesRefused) and error.status == 403):
            self._note(str(key), str(error))
        self._log.warning(
            "reconcile_failed",
            kind=key.kind,
            namespace=key.namespace,
            name=key.name,
            error=str(error),
            again_in=round(delay, 1),
            exc_info=None if expected else error,
        )

    # -- events -------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Keep Kopf running; when it gives up, /readyz says why and the sweep alone keeps things going."""
        handlers = watch.registry(self._enqueue, tenants=self._settings.tenants)
        while True:
            ready = asyncio.Event()
            report = asyncio.create_task(self._report_ready(ready))
            try:
                await kopf.operator(
                    registry=handlers,
                    settings=watch.settings(),
                    clusterwide=not self._settings.watch_namespaces,
                    namespaces=self._settings.watch_namespaces,
                    ready_flag=ready,
                    identity=watch.identity(self._settings.pod_name),
                )
                self._stop.set()  # Kopf takes the signals to itself, and ends quietly only after one
                return
            except Exception as error:
                problem = f"cannot watch: {error}"
            finally:
                report.cancel()
            self._note("watch", problem)
            await asyncio.sleep(KOPF_PAUSE)

    async def _watch_jobs(self, namespace: str | None) -> None:
        note = partial(self._note, f"Jobs of {namespace or 'all'}")
        await follow_jobs(self._kube, namespace, self._seen, self._enqueue, note)

    def _enqueue(self, key: Key, delay: float = 0) -> None:
        (self._tenants if key.kind == "Tenant" else self._queue).add(key, delay)

    async def _report_ready(self, ready: asyncio.Event) -> None:
        await ready.wait()
        await asyncio.sleep(KOPF_SETTLED)
        self._note("watch", None)

    async def _sweep(self) -> None:
        """All keys again every `resyncSeconds`, so that a lost event costs no more than that."""
        while True:
            try:
                await self._sweep_once()
                self._note("sweep", None)
            except FlowStoneError as error:
                self._note("sweep", str(error))
            await asyncio.sleep(self._settings.resync_seconds * self._random.uniform(0.9, 1.1))

    async def _watch_locks(self) -> None:
        """No scope's login blocks the others for longer than some seconds."""
        while True:
            await asyncio.sleep(LOCK_WATCH_PAUSE)
            with suppress(LedgerError):  # each backfill's status says what is the matter with the ledger
                if ended := await asyncio.to_thread(end_waiting, self._ledger.database):
                    self._log.warning("blocking_sessions_ended", sessions=ended)

    async def _sweep_once(self) -> None:
        found = []
        for namespace in self._settings.watch_namespaces or (None,):
            found += await self._kube.list(custom("backfills", namespace))
        for backfill in found:
            if not is_finished(backfill):
                self._queue.add(Key("Backfill", backfill["metadata"]["namespace"], backfill["metadata"]["name"]))
        for tenant in await self._kube.list(custom("tenants")) if self._settings.tenants else ():
            self._enqueue(Key("Tenant", "", tenant["metadata"]["name"]))
        await self._close_orphans({backfill["metadata"]["uid"] for backfill in found})
        await self._prune()

    async def _close_orphans(self, uids: set[str]) -> None:
        try:
            known = await asyncio.to_thread(self._ledger.live_uids)
            for uid, namespace, name in known:
                served = not self._settings.watch_namespaces or namespace in self._settings.watch_namespaces
                if served and uid not in uids:
                    await close_orphan(self._kube, self._outcomes, self._ledger, namespace=namespace, uid=uid)
                    self._log.info("backfill_forgotten", namespace=namespace, backfill=name, uid=uid)
        except LedgerError as error:  # each backfill's status says so too; without backfills nobody needs it
            self._log.warning("sweep_without_ledger", error=str(error))

    async def _prune(self) -> None:
        """Let old history go, once an hour; what one sweep does not get done is left to the next one."""
        if time.monotonic() < self._prune_at:
            return
        try:
            for _ in range(PRUNED_CHUNKS):
                if not await asyncio.to_thread(self._ledger.prune, self._settings.history_days):
                    self._prune_at = time.monotonic() + PRUNE_PAUSE
                    return
        except LedgerError as error:
            self._log.warning("history_not_pruned", error=str(error))

    # -- start and stop -----------------------------------------------------------------------------------------------

    def _stop_on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)

    def _let_go(self) -> None:
        try:
            self._ledger.release_leases(self._owner)
        except LedgerError:
            logging.getLogger("flowstone").info("leases_not_released")  # they run out by themselves
        self._ledger.close()

    def _note(self, subject: str, problem: str | None) -> None:
        if self._health.report(subject, problem):
            event = "problem_solved" if problem is None else "problem"
            self._log.warning(event, subject=subject, problem=problem)
