"""What the conformance suite needs of a place where batches run, and one backfill driven there pass by pass."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog

from flowstone.api.parse import AssetResource, parse_asset, parse_backfill
from flowstone.backfill.engine import Engine
from flowstone.backfill.plan import Plan, make_plan
from flowstone.backfill.records import ClaimedBatch, ClaimRequest
from flowstone.backfill.request import Limits, Progress, Request, Tools
from flowstone.backfill.standing import Standing
from flowstone.db.ledger import Ledger
from flowstone.executor.jobs import job_prefix
from flowstone.executor.port import Executor
from flowstone.telemetry import Metrics

CLUSTER = "conformance"

Json = dict[str, Any]


class World(Protocol):
    """A place where batches run.

    Attributes:
        namespace: Where the backfills belong.
        ledger: The ledger, as the operator.
        seconds: How long anything may take here at most.
        pod: What the pod template says besides the container.
    """

    namespace: str
    ledger: Ledger
    seconds: float
    pod: Json

    async def new_uid(self, name: str) -> str:
        """A uid for a backfill of this name, with whatever has to be there for it."""

    def executor(self, name: str, uid: str, asset: AssetResource) -> Executor:
        """The adapter, as a start of the program makes it."""

    def function(self, name: str, **environment: str) -> Json:
        """A container that runs a function of `tests/e2e/code.py`."""

    def program(self, *words: str) -> Json:
        """A container that runs any program."""

    def alive(self, uid: str) -> set[str]:
        """Fences of the runs of a backfill that have a process, seen from outside."""

    def traces(self, uid: str) -> set[str]:
        """Names of the runs of a backfill of which anything is left, seen from outside."""

    def destroy(self, uid: str, run: str) -> None:
        """Take a run away with all its traces, behind everybody's back."""


@dataclass
class Case:
    """One backfill over an asset; `restart` is what a crash and a new start of the program are."""

    world: World
    asset: AssetResource
    request: Request
    keys: Sequence[str]
    executor: Executor

    @property
    def uid(self) -> str:
        """The backfill's uid."""
        return self.request.uid

    def restart(self) -> None:
        """Forget all that is not in the ledger or in the place itself."""
        self.executor = self.world.executor(self.request.name, self.uid, self.asset)

    def edit(self, **changes: Any) -> None:
        """Change the spec."""
        self.request = replace(self.request, spec=self.request.spec.model_copy(update=changes))

    async def step(self) -> Standing:
        """One pass."""
        limits = Limits(owner="conformance", cluster=CLUSTER)
        tools = Tools(
            self.world.ledger, limits, Metrics(), structlog.get_logger(), lambda: datetime.now(UTC), lambda: 0.5
        )
        return await Engine(tools, self.request, self.executor, self.plan, Progress()).advance()

    async def plan(self) -> Plan:
        """The rows."""
        metadata = {"name": self.request.name, "namespace": self.request.namespace, "uid": self.uid}
        return make_plan(CLUSTER, parse_backfill({"metadata": metadata, "spec": self.request.raw}), self.asset)

    async def finish(self) -> Standing:
        """Pass after pass, to the end, and one more that tidies."""
        await self.until(lambda standing: standing.finished, "finished")
        return await self.step()

    async def until(self, good: Callable[[Standing], bool], what: str) -> Standing:
        """Pass after pass, until one is good."""
        deadline = time.monotonic() + self.world.seconds
        while not good(standing := await self.step()):
            assert time.monotonic() < deadline, f"not {what} in {self.world.seconds} s: {standing}, {self.rows()}"
            await asyncio.sleep(0.1)
        return standing

    async def until_alive(self, number: int) -> set[str]:
        """Pass after pass, until so many runs have a process; returns their fences."""
        await self.until(lambda _: len(self.world.alive(self.uid)) == number, f"{number} alive")
        return self.world.alive(self.uid)

    async def claim(self) -> list[ClaimedBatch]:
        """Hand out what may be handed out, and launch nothing of it, as a program that dies right then."""
        spec = self.request.spec
        digest = await self.executor.prepare()
        asked = ClaimRequest(
            max_parallel=spec.max_parallel,
            operator_limit=1000,
            batch_size=spec.batch_size or 1,
            order=spec.order,
            select=spec.select,
            template_digest=digest,
            job_prefix=self.request.run_prefix,
        )
        return self.world.ledger.claim(self.uid, asked)

    def rows(self) -> dict[str, tuple[str, int, str | None]]:
        """State, attempts and reason of each row."""
        query = "SELECT partition, state, attempts, reason FROM flowstone.materialization WHERE backfill = %(uid)s"
        with self.world.ledger.database.transaction() as tx:
            return {
                key: (state, attempts, reason) for key, state, attempts, reason in tx.rows(query, {"uid": self.uid})
            }

    def errors(self) -> dict[str, str]:
        """The errors of failed partitions."""
        return {failure.partition: failure.error for failure in self.world.ledger.failures(self.uid)}

    def batches(self) -> list[str]:
        """How each batch of the backfill ended."""
        query = "SELECT coalesce(outcome, 'open') FROM flowstone.batch WHERE backfill = %(uid)s ORDER BY fence"
        with self.world.ledger.database.transaction() as tx:
            return [outcome for (outcome,) in tx.rows(query, {"uid": self.uid})]


async def start(world: World, container: Json, keys: Sequence[str], **spec: Any) -> Case:
    """Make a backfill over some letters."""
    name = f"case-{uuid.uuid4().hex[:6]}"
    manifest = {
        "metadata": {"name": name, "namespace": world.namespace},
        "spec": {
            "partitionedBy": [{"name": "letter", "type": "string"}],
            "template": {"spec": {"containers": [container], **world.pod}, "metadata": {}},
        },
    }
    asset, uid = parse_asset(manifest), await world.new_uid(name)
    raw = {"asset": name, "keys": list(keys), **spec}
    request = Request(uid, world.namespace, name, parse_backfill({"spec": raw}).spec, raw, job_prefix(name, uid))
    return Case(world, asset, request, keys, world.executor(name, uid, asset))


async def eventually(good: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for something outside."""
    deadline = time.monotonic() + seconds
    while not good():
        assert time.monotonic() < deadline, f"not {what} in {seconds} s"
        await asyncio.sleep(0.1)
