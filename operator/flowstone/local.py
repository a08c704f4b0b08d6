"""Local mode, put together: one ledger, and backfills as processes of this machine.

`flowstone run --local` and `backfills.run(..., function=f)` both end up here.
"""

from __future__ import annotations

import hashlib
import logging
import random
import secrets
import socket
import sysconfig
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import structlog

from flowstone.backfill.edges.local_login import LocalLogin, target_of
from flowstone.backfill.engine import everybody, in_thread
from flowstone.backfill.local import Interrupts, LocalRun, Show, alone
from flowstone.backfill.plan import Plan
from flowstone.backfill.request import Limits, Request, Tools
from flowstone.backfill.standing import Standing
from flowstone.backfill.tenancy import Admission, KnownTenant
from flowstone.db.embedded import default_folder
from flowstone.db.ledger import Ledger
from flowstone.db.logins import Logins
from flowstone.db.tenants import TenantRow
from flowstone.errors import LedgerBusy, LedgerError
from flowstone.executor.jobs import Work
from flowstone.executor.processes import Processes, Storage, no_storage
from flowstone.executor.program import Program, surroundings
from flowstone.telemetry import Logger, Metrics

NO_LIMIT = 10_000
"""Open batches of all backfills of a cluster id together: here each backfill's own `maxParallel` is what counts."""


def home_of(folder: Path | None) -> Path:
    """Where local mode keeps runs and logins: with the embedded database's folder, or, by default, beside it."""
    return default_folder().parent / "local" if folder is None else folder / "local"


def known_tenant(row: TenantRow, namespace: str) -> KnownTenant:
    """A registered tenant as a backfill sees it; on this machine every namespace may use every tenant."""
    return KnownTenant(row.tenant_id, row.tier, row.scope, secret="", namespaces=(namespace,), limit=row.max_parallel)


@dataclass(frozen=True, slots=True)
class LocalJob:
    """One backfill to work off.

    Attributes:
        plan: Makes the plan, while there is none.
        admit: Judges the backfill's tenants before every hand-out.
        storage: The parts of the asset's storage location for a tenant.
        path: Where its processes look for Python modules besides.
    """

    request: Request
    work: Work
    program: Program
    plan: Callable[[], Awaitable[Plan]]
    admit: Callable[[], Awaitable[Admission]] = everybody
    storage: Storage = no_storage
    path: Sequence[str] = ()


class LocalMachine:
    """Works off backfills of one ledger on this machine.

    Args:
        ledger: The ledger, as `flowstone_operator`; stays the caller's.
        conninfo: The connection string that it was opened with.
        home: Private folder for runs and logins.
        environment: What the processes inherit, FlowStone's and Postgres's own variables left out.
    """

    def __init__(self, ledger: Ledger, conninfo: str, home: Path, environment: Mapping[str, str]) -> None:
        self._ledger = ledger
        self._target = target_of(conninfo)
        self._environment = environment
        self._logins = home / "logins"
        # The same backfill in another database is another backfill, with runs of its own.
        self._runs = home / "runs" / hashlib.sha256(repr(sorted(self._target.items())).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """Which machine this is, and which of its folders; the same after a restart."""
        return f"{socket.gethostname()}:{self._runs}"

    def executor(self, job: LocalJob) -> Processes:
        """What runs the batches of a backfill."""
        login = LocalLogin(Logins(self._ledger.database), self._target, self._logins, lambda: secrets.token_urlsafe(24))
        return Processes(
            folder=self._folder(job.request.uid),
            program=job.program,
            work=job.work,
            login=login,
            around=surroundings(self._environment, sysconfig.get_path("scripts"), job.path),
            storage=job.storage,
        )

    async def run(self, job: LocalJob, *, interrupts: Interrupts, show: Show) -> Standing:
        """Work off a backfill until it is finished, or rests after a request to stop.

        Raises:
            LedgerBusy: Another process of this machine works on it.
            KeyboardInterrupt: It was asked to stop for the third time.
            FlowStoneError: What is asked for makes no sense.
        """
        uid, tools = job.request.uid, self._tools()
        with alone(self._lock(uid)):
            try:
                loop = LocalRun(
                    tools, job.request, self.executor(job), job.plan, job.admit, interrupts=interrupts, show=show
                )
                return await loop.run()
            finally:
                await in_thread(self._release, uid, tools.limits.owner)

    async def forget(self, uid: str, job: LocalJob) -> None:
        """Close a backfill in whose place `job` stands: its processes are stopped, its history stays."""
        await in_thread(self._ledger.close_orphan, uid)
        executor = self.executor(replace(job, request=replace(job.request, uid=uid)))
        while runs := (await executor.look(())).runs:
            await executor.tidy(runs)
            await executor.changed(0.1)

    async def forget_dead(self, uid: str, job: LocalJob) -> None:
        """The same, unless a process of this machine still works on that backfill."""
        with suppress(LedgerBusy), alone(self._lock(uid)):
            await self.forget(uid, job)

    def _release(self, uid: str, owner: str) -> None:
        try:
            self._ledger.release_lease(uid, owner)
        except LedgerError:  # it runs out by itself
            _log().info("lease_not_released", uid=uid)

    def _lock(self, uid: str) -> Path:
        return self._runs / f"{uid}.lock"

    def _folder(self, uid: str) -> Path:
        return self._runs / uid

    def _tools(self) -> Tools:
        # The same owner for whoever has the lock: after a crash the next start need not wait for the lease to run out.
        limits = Limits(owner=self.name, cluster=self._ledger.cluster, max_parallel=NO_LIMIT)
        jitter = random.Random().random  # noqa: S311 - spreads retries, keeps no secret
        return Tools(self._ledger, limits, Metrics(), _log(), lambda: datetime.now(UTC), jitter)


def _log() -> Logger:
    """A library says what it did to the standard logging of the program that uses it, and prints nothing."""
    log: Logger = structlog.wrap_logger(
        logging.getLogger("flowstone.local"),
        processors=[structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return log
