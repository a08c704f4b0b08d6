"""Batches as processes of this machine, an adapter of `executor.port.Executor`.

Each batch is one command under a supervisor of its own, in a folder `<backfill uid>/<run's name>`. The runs outlive
whoever started them, as Jobs outlive the operator: a parent that starts anew finds them in their folders and goes on.
They are known on this machine alone, so a backfill is worked off on one machine at a time; should two try, fences
keep what is recorded right.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from flowstone.backfill.records import ClaimedBatch, OpenBatch
from flowstone.errors import InvalidSpec
from flowstone.executor.jobs import Work, contract_values
from flowstone.executor.port import Blockage, Gone, Running, Sight, View
from flowstone.executor.program import Program, resolved
from flowstone.executor.run_folder import KEYS, MESSAGE, RunFolder
from flowstone.tenant.names import tenant_of_scope

GLANCE = 0.03
"""Seconds between two glances at whether a run has ended."""

Login = Callable[[str], Mapping[str, str]]
"""Makes sure that a scope's login is let in; returns libpq's variables for it."""

Storage = Callable[[str | None], Mapping[str, str]]
"""The parts of the asset's storage location for a tenant."""


def no_storage(tenant: str | None) -> Mapping[str, str]:
    """The storage of an asset that names none."""
    return {}


class Processes:
    """The processes of one backfill.

    Args:
        folder: Where the runs of this backfill lie; made when it is needed.
        program: What each batch runs.
        work: What the backfill's batches have in common; its template is not used.
        login: See `Login`; called in a thread.
        around: What the processes inherit of this one's environment.
        storage: See `Storage`.
    """

    def __init__(
        self,
        *,
        folder: Path,
        program: Program,
        work: Work,
        login: Login,
        around: Mapping[str, str],
        storage: Storage = no_storage,
    ) -> None:
        self._folder = folder
        self._program = program
        self._work = work
        self._login = login
        self._around = around
        self._storage = storage
        self._running: set[str] = set()

    # -- the port -----------------------------------------------------------------------------------------------------

    async def look(self, batches: Sequence[OpenBatch]) -> Sight:
        """Read the folders."""
        seen = [self._view(batch) for batch in batches]
        self._running = {one.batch.job_name for one in seen if one.launched and isinstance(one.run, Running)}
        return Sight(seen, self._names())

    async def prepare(self) -> str:
        """Make sure that this machine has the program."""
        program = self._program.words[0]
        if "$" not in program and self._find(program) is None:
            remedy = "there is no such program on this machine: install it, put it on PATH, or run in a cluster"
            raise InvalidSpec("Asset.spec.template.spec.containers[0].command", program, remedy)
        return self._program.digest

    async def launch(self, batch: ClaimedBatch) -> str | Blockage:
        """Start the batch's process, unless it was started before."""
        run = self._run(batch.job_name)
        if not run.has_started:
            try:
                await asyncio.to_thread(self._start, run, batch)
            except OSError as error:
                return Blockage("CreateFailed", f"the process cannot be started: {error}")
        self._running.add(batch.job_name)
        return self._uid(batch.job_name)

    async def stop(self, unwanted: Sequence[View]) -> None:
        """Send SIGTERM to processes, and SIGKILL to those that do not end in time."""
        for one in unwanted:
            self._run(one.batch.job_name).stop()

    async def tidy(self, unwanted: Collection[str]) -> None:
        """Remove folders; a process that still runs is stopped first, and its folder goes with the next look."""
        for name in unwanted:
            run = self._run(name)
            if isinstance(run.state(), Running):
                run.stop()
            else:
                run.remove()
        if not self._names() and self._folder.is_dir():
            shutil.rmtree(self._folder, ignore_errors=True)

    # -- what only local mode needs -----------------------------------------------------------------------------------

    async def changed(self, seconds: float, also: Callable[[], bool] = lambda: False) -> None:
        """Wait until a run has ended, or `also` says so, or the time is over."""
        until = time.monotonic() + seconds
        # What is waited for is a file that another process writes; no event tells of it everywhere.
        while time.monotonic() < until and not also() and not self._any_over():  # noqa: ASYNC110
            await asyncio.sleep(GLANCE)

    def log_of(self, run: str) -> Path:
        """Where the output of a run is."""
        return self._run(run).path / "log"

    # -- folders ------------------------------------------------------------------------------------------------------

    def _view(self, batch: OpenBatch) -> View:
        run = self._run(batch.job_name)
        state = run.state()
        if state is not None:
            return View(batch, state, launched=True, uid=self._uid(batch.job_name))
        if batch.job_uid is None or run.exists:
            return View(batch, Running(), launched=False)
        return View(batch, Gone(), launched=True)

    def _any_over(self) -> bool:
        return any(self._run(name).is_over for name in self._running)

    def _start(self, run: RunFolder, batch: ClaimedBatch) -> None:
        login = self._login(batch.scope)
        run.write_keys(batch.partitions)
        tenant = tenant_of_scope(batch.scope)
        contract = contract_values(
            batch,
            self._work,
            partitions_file=str(run.path / KEYS),
            tenant=tenant,
            storage=self._storage(tenant),
        )
        message = {"FLOWSTONE_TERMINATION_LOG": str(run.path / MESSAGE)}
        words, environment = resolved(self._program, {**contract, **message, **login}, self._around)
        run.start(words, environment, self._working_folder(), self._program.grace)

    def _working_folder(self) -> str | None:
        folder = self._program.folder
        return folder if folder and Path(folder).is_dir() else None

    def _find(self, program: str) -> str | None:
        place = os.path.join(self._working_folder() or "", program) if "/" in program else program
        return shutil.which(place, path=self._around.get("PATH"))

    def _uid(self, name: str) -> str:
        return str(uuid.uuid5(uuid.UUID(self._work.uid), name))

    def _run(self, name: str) -> RunFolder:
        return RunFolder(self._folder / name)

    def _names(self) -> list[str]:
        return [entry.name for entry in self._folder.iterdir() if entry.is_dir()] if self._folder.is_dir() else []
