"""One start of `flowstone run --local`: from the file to its end on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from flowstone.api.base import API_VERSION
from flowstone.api.parse import AssetResource, BackfillResource, parse_asset, parse_backfill
from flowstone.api.partitions import described
from flowstone.backfill import status
from flowstone.backfill.details import look_up
from flowstone.backfill.engine import in_thread
from flowstone.backfill.local import Interrupts, Pass
from flowstone.backfill.plan import Plan, asset_identity, make_plan
from flowstone.backfill.request import Request
from flowstone.backfill.tenancy import Admission, places_of
from flowstone.cli.exits import Exit, of_backfill
from flowstone.cli.local_tenants import LocalTenants
from flowstone.cli.manifests import Request as Manifests
from flowstone.cli.watching import Show, picture
from flowstone.db.embedded_tenants import open_home
from flowstone.db.ledger import Ledger
from flowstone.errors import InvalidSpec
from flowstone.executor.delivery import delivery_of
from flowstone.executor.jobs import Work, job_prefix
from flowstone.executor.program import program_of
from flowstone.guard import Guards
from flowstone.local import LocalJob, LocalMachine, home_of

CLUSTER = "local"
"""Cluster id of work on this machine, as in Python."""

DETAILS_EVERY = 0.5
"""Seconds between two looks at what costs a query over many rows."""

_IDENTITY = uuid.UUID("6f0b7d5e-5d0b-4f0e-9a53-3f6a2f0c7a11")
"""Name space of the uids that follow from what a file asks for."""

CTRL_C = (
    "Nothing more is started, and what runs ends first. Ctrl-C again stops it and gives back what is not done.",
    "Stopping what runs. Ctrl-C again leaves at once, and leaves the processes to themselves.",
    "Leaving. The same command takes up again what still runs.",
)
"""What the first, second and third Ctrl-C do, in words."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """An open ledger, how it was reached, and the folder for runs and logins."""

    ledger: Ledger
    conninfo: str
    home: Path
    embedded: bool


@contextmanager
def place(database: str | None, folder: Path | None) -> Iterator[Place]:
    """Open the ledger that is named, or start the one that comes along.

    Raises:
        LedgerUnavailable, SchemaNotCompatible, LedgerRefused: There is none to work with; says what to do.
    """
    home = home_of(folder)
    if database is not None:
        with Ledger.connect(database, cluster=CLUSTER) as ledger:
            ledger.check_schema()
            yield Place(ledger, database, home, embedded=False)
        return
    server = open_home(folder, CLUSTER)
    try:
        with Ledger.connect(server.operator_url, cluster=CLUSTER) as ledger:
            yield Place(ledger, server.operator_url, home, embedded=True)
    finally:
        server.close()


class Session:
    """One start of the command.

    Args:
        screen: Where progress and remarks go.
    """

    def __init__(self, here: Place, asked: Manifests, namespace: str | None, screen: Console) -> None:
        self._ledger = here.ledger
        self._screen = screen
        self._interrupts = Interrupts()
        self._machine = LocalMachine(here.ledger, here.conninfo, here.home, os.environ)
        self._backfill, self._asset = _parsed(asked, namespace or asked.namespace or "default")
        self._tenants = LocalTenants(here.ledger, Guards.installed(), cluster=CLUSTER, create=here.embedded)
        self._plan = self._planned()
        self._job = self._made(asked)
        self._face = Face(here.ledger, self._described(asked), delivery_of(self._asset.spec.template))

    async def run(self) -> tuple[Exit, Json]:
        """Work it off; the exit code, and the Backfill as it stands then."""
        for note in self._job.program.notes:
            self._screen.print(f"note: {note}", style="dim", soft_wrap=True)
        await self._supersede()
        with self._signals(), picture(self._screen) as draw:
            try:
                standing = await self._machine.run(
                    self._job, interrupts=self._interrupts, show=lambda found: self._face.show(found, draw)
                )
            except KeyboardInterrupt:
                return Exit.INTERRUPTED, self._face.resource
        if not standing.finished:
            self._screen.print("Stopped. The same command goes on from here.")
            return Exit.INTERRUPTED, self._face.resource
        self._name_log()
        return of_backfill(self._face.resource) or Exit.OK, self._face.resource

    def _planned(self) -> Plan:
        admission = self._tenants.judge(self._backfill, self._asset)
        usable = self._tenants.usable() if self._asset.spec.tenant_dimension is not None else ()
        return make_plan(CLUSTER, self._backfill, self._asset, tenants=usable, skipped=admission.refused)

    def _made(self, asked: Manifests) -> LocalJob:
        backfill, asset = self._backfill, self._asset
        uid = str(uuid.uuid5(_IDENTITY, "/".join((CLUSTER, backfill.namespace, backfill.name, self._digest()))))
        work = Work(
            backfill=backfill.name,
            namespace=backfill.namespace,
            uid=uid,
            asset_id=asset.id,
            asset=asset_identity(CLUSTER, asset),
            dimensions=described(asset.spec),
            template={},
        )
        request = Request(
            uid,
            backfill.namespace,
            backfill.name,
            backfill.spec,
            asked.backfill["spec"],
            job_prefix(backfill.name, uid),
        )

        async def plan() -> Plan:
            return self._plan

        async def admit() -> Admission:
            return await in_thread(self._tenants.judge, backfill, asset)

        storage = partial(places_of, asset.spec.storage)
        return LocalJob(request, work, program_of(asset.spec.template, os.environ), plan, admit, storage)

    def _digest(self) -> str:
        """What is asked for: a file that asks for other partitions is another backfill."""
        return f"{self._backfill.spec.frozen_digest()}/{self._plan.set_hash}"

    def _described(self, asked: Manifests) -> Json:
        metadata = {**asked.backfill["metadata"], "namespace": self._backfill.namespace, "generation": 1}
        metadata |= {"uid": self._job.request.uid, "creationTimestamp": status.stamp(datetime.now(UTC))}
        return {**asked.backfill, "metadata": metadata}

    async def _supersede(self) -> None:
        """Close what an earlier version of the file asked for under this name, or this one would wait for it."""
        own = self._job.request
        for uid, namespace, name in await in_thread(self._ledger.live_uids):
            if (namespace, name) == (own.namespace, own.name) and uid != own.uid:
                record = await in_thread(self._ledger.find, uid)
                if record is not None and record.finished_at is None:
                    self._screen.print("The file asks for something else than before: what it asked for is closed.")
                await self._machine.forget(uid, self._job)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def asked() -> None:
            self._screen.print(CTRL_C[min(self._interrupts.asked, 2)], style="yellow", soft_wrap=True)
            self._interrupts.ask()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, asked)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _name_log(self) -> None:
        failures = self._face.resource["status"].get("failures") or []
        if failures:
            executor, job = self._machine.executor(self._job), failures[0]["job"]
            self._screen.print(f"log of {job}: {executor.log_of(job)}", soft_wrap=True)


class Face:
    """The Backfill as a cluster would show it, from what the passes find.

    Attributes:
        resource: The resource with its status as it is now.
    """

    def __init__(self, ledger: Ledger, resource: Json, delivery: str) -> None:
        self.resource = resource
        self._ledger = ledger
        self._delivery = delivery
        self._uid: str = resource["metadata"]["uid"]
        self._detailed_at = 0.0

    async def show(self, found: Pass, draw: Show) -> None:
        """Take in a pass and draw it."""
        report = status.Report(
            standing=found.standing,
            counts=found.counts,
            generation=1,
            ready_when="Finished",
            delivery=self._delivery,
            active_batches=len(found.batches),
            details=await self._details(found),
        )
        previous = self.resource.get("status") or {}
        self.resource = {**self.resource, "status": status.compose(report, previous, datetime.now(UTC))}
        draw(self.resource)

    async def _details(self, found: Pass) -> status.Details | None:
        now = asyncio.get_running_loop().time()
        if found.counts is None or (not found.standing.finished and now - self._detailed_at < DETAILS_EVERY):
            return None
        self._detailed_at = now
        return await in_thread(look_up, self._ledger, self._uid, found.counts)


def _parsed(asked: Manifests, namespace: str) -> tuple[BackfillResource, AssetResource]:
    """The Backfill and its Asset, which must be in the same file here.

    Raises:
        InvalidSpec: It is not there, or one of them makes no sense.
    """
    backfill = parse_backfill(_within(asked.backfill, namespace))
    for asset in asked.assets:
        if asset["metadata"]["name"] == backfill.spec.asset:
            return backfill, parse_asset(_within(asset, namespace))
    remedy = f"put the Asset ({API_VERSION}) into the same file, after a line ---"
    raise InvalidSpec("spec.asset", backfill.spec.asset, remedy)


def _within(manifest: Mapping[str, Any], namespace: str) -> Json:
    return {**manifest, "metadata": {**manifest["metadata"], "namespace": namespace}}
