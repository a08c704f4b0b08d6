"""An executor that runs nothing: a test says what its runs do, and how they end.

What a worker would write is written to the real ledger, under the batch's fence, with the worker's own conditions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import structlog

from flowstone.api.backfill import BackfillSpec
from flowstone.api.parse import parse_asset, parse_backfill
from flowstone.backfill.engine import Engine
from flowstone.backfill.plan import Plan, make_plan
from flowstone.backfill.records import ClaimedBatch, OpenBatch
from flowstone.backfill.request import Limits, Progress, Request, Tools
from flowstone.backfill.standing import Standing
from flowstone.backfill.tenancy import Admission
from flowstone.db.ledger import Ledger
from flowstone.executor.port import Blockage, Ended, Executor, Gone, Running, RunState, Sight, View
from flowstone.telemetry import Metrics
from tests.postgres.conftest import Place

METADATA = {"name": "daily", "namespace": "analytics", "uid": "u"}
ASSET = {
    "partitionedBy": [{"name": "key", "type": "string"}],
    "template": {"spec": {"containers": [{"name": "main", "image": "none"}]}},
}


TENANTS = ("acme", "zeta")
TENANTS_ASSET = ASSET | {"partitionedBy": [{"name": "tenant", "type": "tenant"}, {"name": "key", "type": "string"}]}


class DiedError(Exception):
    """The replica ends in the middle of a step, as after a SIGKILL."""


@dataclass
class Run:
    """A run that was launched: how it goes, and what it works on."""

    batch: ClaimedBatch
    uid: str
    state: RunState = field(default_factory=lambda: Running(ready=True))

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop and has not ended yet."""
        return isinstance(self.state, Running) and self.state.stopping


class ScriptedExecutor:
    """An executor whose runs go as the test says.

    Attributes:
        runs: What there is a trace of, by name.
        launched: Every batch ever launched.
        stops: Runs that were asked to stop, as often as they were.
        dies: Where the replica shall die: before or after the next run is created, "" for nowhere.
        digest: Of the template; another one stands for an edit.
        blockage: Why runs that are not ready do not start.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.launched: list[ClaimedBatch] = []
        self.stops: list[str] = []
        self.dies = ""
        self.digest = "digest-1"
        self.blockage: Blockage | None = None

    async def look(self, batches: Sequence[OpenBatch]) -> Sight:
        """How the runs go."""
        seen = [self._view(batch) for batch in batches]
        return Sight(seen, list(self.runs), None if all(one.started for one in seen) else self.blockage)

    def _view(self, batch: OpenBatch) -> View:
        run = self.runs.get(batch.job_name)
        if run is None:
            launched = batch.job_uid is not None
            return View(batch, Gone() if launched else Running(), launched=launched)
        return View(batch, run.state, launched=True, uid=run.uid)

    async def prepare(self) -> str:
        """There is nothing to make ready."""
        return self.digest

    async def launch(self, batch: ClaimedBatch) -> str | Blockage:
        """Start a run, or find it."""
        if self.dies == "before":
            raise DiedError
        if batch.job_name not in self.runs:
            self.runs[batch.job_name] = Run(batch, f"uid-{batch.fence}")
            self.launched.append(batch)
        if self.dies == "after":
            raise DiedError
        return self.runs[batch.job_name].uid

    async def stop(self, unwanted: Sequence[View]) -> None:
        """Mark runs as stopping; the test ends them."""
        for one in unwanted:
            self.stops.append(one.batch.job_name)
            run = self.runs.get(one.batch.job_name)
            if run is not None and isinstance(run.state, Running):
                run.state = replace(run.state, stopping=True)

    async def tidy(self, unwanted: Collection[str]) -> None:
        """Forget runs."""
        for name in unwanted:
            self.runs.pop(name, None)

    @property
    def going(self) -> list[Run]:
        """Runs that have not ended, oldest first."""
        return [run for run in self.runs.values() if isinstance(run.state, Running)]


class Worker:
    """Writes what a worker in a run would write, under its fence and its conditions."""

    def __init__(self, place: Place, uid: str) -> None:
        self._place = place
        self._uid = uid

    def report(self, batch: ClaimedBatch, partition: str, error: str | None = None) -> bool:
        """Report one partition; False when the run is superseded."""
        names = [self._uid, batch.scope, partition, batch.fence]
        with self._place.connect() as admin, admin.transaction():
            admin.execute("UPDATE flowstone.batch SET reporting = true WHERE fence = %s", [batch.fence])
            written = admin.execute(
                "UPDATE flowstone.materialization SET state = %s, error = %s, finished_at = now() WHERE backfill = %s"
                " AND scope = %s AND partition = %s AND fence = %s AND state = 'running'",
                ["failed" if error else "succeeded", error, *names],
            )
        return written.rowcount == 1

    def pending(self, batch: ClaimedBatch) -> list[str]:
        """What a batch has not reported, in order."""
        rows = self._place.all(
            "SELECT partition FROM flowstone.materialization WHERE fence = %s AND state = 'running' ORDER BY ordinal",
            batch.fence,
        )
        return [partition for (partition,) in rows]


@dataclass
class Story:
    """One backfill, its executor and a replica that reconciles it.

    Attributes:
        admission: What is said of the tenants before each hand-out.
    """

    ledger: Ledger
    place: Place
    uid: str
    keys: Sequence[str]
    spec: dict[str, Any] = field(default_factory=dict)
    executor: ScriptedExecutor = field(default_factory=ScriptedExecutor)
    owner: str = "replica-1"
    asset: dict[str, Any] = field(default_factory=lambda: ASSET)
    admission: Admission = field(default_factory=Admission)

    def __post_init__(self) -> None:
        self.progress = Progress()
        self.worker = Worker(self.place, self.uid)

    def edit(self, **fields: Any) -> None:
        """Edit the spec; None takes a field away."""
        self.spec = {key: value for key, value in (self.spec | fields).items() if value is not None}

    def step(self) -> Standing:
        """One pass of the engine."""
        self.progress = Progress()
        return asyncio.run(self._engine().advance())

    def _engine(self) -> Engine:
        parsed = parsed_spec(self.spec)
        request = Request(self.uid, "analytics", "b", parsed, self.spec, f"b-{self.uid[:8]}-")
        limits = Limits(owner=self.owner, cluster=self.ledger.cluster, resync_seconds=60)
        log = structlog.get_logger()
        tools = Tools(self.ledger, limits, Metrics(), log, lambda: datetime.now(UTC), lambda: 0.0)

        async def plan() -> Plan:
            wanted = parse_backfill({"metadata": METADATA, "spec": {"asset": "daily", **self.spec, "keys": self.keys}})
            asset = parse_asset({"metadata": METADATA, "spec": self.asset})
            return make_plan(self.ledger.cluster, wanted, asset, tenants=TENANTS)

        async def admit() -> Admission:
            return self.admission

        return Engine(tools, request, self.engine_executor(), plan, self.progress, admit)

    def engine_executor(self) -> Executor:
        """What the engine is given to run batches with."""
        return self.executor

    # -- what runs do

    def succeed(self, run: Run) -> None:
        """A run reports all it has as done, and ends."""
        for partition in self.worker.pending(run.batch):
            self.worker.report(run.batch, partition)
        run.state = Ended(succeeded=True, exit_code=0)

    def fail(self, run: Run, error: str = "ValueError: bad row") -> None:
        """A run reports all it has as failed, and ends."""
        for partition in self.worker.pending(run.batch):
            self.worker.report(run.batch, partition, error)
        run.state = Ended(succeeded=True, exit_code=0)

    def later(self, seconds: int) -> None:
        """So much time passes for batches, open or closed."""
        with self.place.connect() as admin:
            admin.execute(
                "UPDATE flowstone.batch SET opened_at = opened_at - make_interval(secs => %(seconds)s),"
                " closed_at = closed_at - make_interval(secs => %(seconds)s)",
                {"seconds": seconds},
            )

    def stopped(self) -> None:
        """Runs that were asked to stop are over."""
        for run in list(self.executor.going):
            if isinstance(run.state, Running) and run.state.stopping:
                run.state = Ended(succeeded=False, exit_code=143, disrupted=True)

    def states(self) -> Mapping[str, str]:
        """State of each partition."""
        rows = self.place.all(
            "SELECT partition, state FROM flowstone.materialization WHERE backfill = %s ORDER BY ordinal", self.uid
        )
        return dict(rows)


def parsed_spec(spec: Mapping[str, Any]) -> BackfillSpec:
    """The spec as the operator reads it."""
    return parse_backfill({"metadata": {"name": "b"}, "spec": {"asset": "daily", **spec}}).spec
