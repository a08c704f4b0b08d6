"""Batches as processes of this machine, for the conformance suite."""

from __future__ import annotations

import os
import shutil
import signal
import sysconfig
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from flowstone.api.parse import AssetResource
from flowstone.api.partitions import described
from flowstone.backfill.edges.local_login import LocalLogin, target_of
from flowstone.backfill.plan import asset_identity
from flowstone.db.ledger import Ledger
from flowstone.db.logins import Logins
from flowstone.executor.jobs import Work
from flowstone.executor.processes import Processes
from flowstone.executor.program import program_of, surroundings
from tests.conformance.world import CLUSTER, Json

CODE = Path(__file__).parents[1] / "e2e" / "code.py"


class ProcessesWorld:
    """This machine, with a folder of its own for runs."""

    namespace = "conformance"
    seconds = 60.0
    pod: Json = {"terminationGracePeriodSeconds": 2}  # noqa: RUF012 - read only

    def __init__(self, ledger: Ledger, conninfo: str, folder: Path) -> None:
        self.ledger = ledger
        self._conninfo = conninfo
        self._folder = folder
        (folder / "code").mkdir()
        shutil.copy(CODE, folder / "code" / "work.py")

    async def new_uid(self, name: str) -> str:
        return str(uuid.uuid4())

    def executor(self, name: str, uid: str, asset: AssetResource) -> Processes:
        identity = asset_identity(CLUSTER, asset)
        target = target_of(self._conninfo)
        return Processes(
            folder=self._folder / "runs" / uid,
            program=program_of(asset.spec.template, os.environ),
            work=Work(name, self.namespace, uid, asset.id, identity, described(asset.spec), {}),
            login=LocalLogin(Logins(self.ledger.database), target, self._folder / "logins", lambda: uuid.uuid4().hex),
            around=surroundings(os.environ, sysconfig.get_path("scripts")),
        )

    def function(self, name: str, **environment: str) -> Json:
        given = {"PYTHONPATH": str(self._folder / "code"), **environment}
        env = [{"name": key, "value": value} for key, value in given.items()]
        return {"name": "main", "command": ["flowstone", "work", f"work:{name}"], "env": env}

    def program(self, *words: str) -> Json:
        return {"name": "main", "command": list(words)}

    def alive(self, uid: str) -> set[str]:
        return {fence for pid, fence in processes_of(uid) if "supervisor.py" not in command_of(pid)}

    def traces(self, uid: str) -> set[str]:
        folder = self._folder / "runs" / uid
        return {entry.name for entry in folder.iterdir()} if folder.exists() else set()

    def destroy(self, uid: str, run: str) -> None:
        for pid, fence in processes_of(uid):
            if run.endswith(f"-{fence}"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self._folder / "runs" / uid / run)

    def close(self) -> None:
        """Leave no process behind."""
        runs = self._folder / "runs"
        for uid in [entry.name for entry in runs.iterdir()] if runs.exists() else []:
            for pid, _ in processes_of(uid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def processes_of(uid: str) -> list[tuple[int, str]]:
    """Pid and fence of each living process that was given a batch of this backfill."""
    entries = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [(int(entry.name), fence) for entry in entries if (fence := _fence(entry, uid))]


def _fence(entry: Path, uid: str) -> str | None:
    try:
        pairs: Any = (one.partition("=") for one in (entry / "environ").read_text(errors="replace").split("\0"))
        given = {name: value for name, _, value in pairs}
    except OSError:  # it ended meanwhile; a zombie's environment reads as empty
        return None
    return given.get("FLOWSTONE_FENCE") if given.get("FLOWSTONE_BACKFILL") == uid else None


def command_of(pid: int) -> str:
    """The command line of a process, as `ps` shows it to everybody."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return "supervisor.py"  # gone, so not alive
