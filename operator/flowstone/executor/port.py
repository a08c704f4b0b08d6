"""The port between the engine and what runs a batch.

A batch's run is `Running` until nothing of it can act any more, then `Ended`; `Gone` when there is no trace of it.
Adapters (`jobs` on Kubernetes, `processes` on this machine) translate their own world into these values and do what
the engine says; the engine decides on these values alone. Both pass one conformance suite.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from flowstone.backfill.records import ClaimedBatch, OpenBatch

PATIENCE = timedelta(seconds=8)
"""A run starts within this, usually; only for slower ones it is worth asking why."""


@dataclass(frozen=True, slots=True)
class Running:
    """The run is under way, or waits to start, or still ends.

    Attributes:
        ready: Its process has started (a pod is ready or has ended).
        stopping: It was asked to stop and has not ended yet.
        lost: Its machine does not answer any more; what it had not reported goes back at once.
    """

    ready: bool = False
    stopping: bool = False
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over and nothing of it can act any more.

    Attributes:
        succeeded: It ended with exit code 0.
        exit_code: The code it ended with; None when no process ever told one.
        disrupted: It was ended from outside (eviction, preemption, node loss, admission); charge nobody.
        unstarted: Its command could not be started at all, as with a program that is not in the image; charge nobody.
        reason: A short word, such as `OOMKilled`, `Error`, `DeadlineExceeded`.
        message: The last words of its log, or what the platform said.
        positions: Outcomes by position, for a worker without a database: position -> error, "" = success.
    """

    succeeded: bool
    exit_code: int | None = None
    disrupted: bool = False
    reason: str = ""
    message: str = ""
    positions: tuple[tuple[int, str], ...] | None = None
    unstarted: bool = False

    @property
    def blameless(self) -> bool:
        """Nothing that it worked on can be to blame."""
        return self.disrupted or self.unstarted


@dataclass(frozen=True, slots=True)
class Gone:
    """There is no trace of the run; whatever it did not report is unknown."""


RunState = Running | Ended | Gone


@dataclass(frozen=True, slots=True)
class Blockage:
    """Why a run does not start.

    Attributes:
        reason: CamelCase and stable: QuotaExceeded, PodSecurity, ImagePull, ServiceAccount, Volume, Config,
            Unschedulable, CreateFailed, NameConflict.
        message: The platform's own words.
        waiting: True when it is only waiting for room (unschedulable), which is no fault of the request.
        partial: It concerns these runs alone, so others are handed out meanwhile.
    """

    reason: str
    message: str
    waiting: bool = False
    partial: bool = False

    @property
    def halts(self) -> bool:
        """Whether nothing more is handed out meanwhile: it would only meet the same."""
        return not (self.waiting or self.partial)


@dataclass(frozen=True, slots=True)
class View:
    """One open batch and how its run goes.

    Attributes:
        launched: The run is known to have been created; if not, it is to be created now.
        uid: The platform's id of the run, when it is there.
        handle: What the adapter wants back with `stop`.
    """

    batch: OpenBatch
    run: RunState
    launched: bool
    uid: str | None = None
    handle: Any = None

    @property
    def started(self) -> bool:
        """Its process has started, or is past it."""
        return not isinstance(self.run, Running) or self.run.ready

    @property
    def stopping(self) -> bool:
        """It has been asked to stop."""
        return isinstance(self.run, Running) and self.run.stopping

    @property
    def lost(self) -> bool:
        """Its machine does not answer any more."""
        return isinstance(self.run, Running) and self.run.lost

    def slow(self, now: datetime) -> bool:
        """Whether it should have started by now."""
        return not self.started and now - self.batch.opened_at >= PATIENCE


@dataclass(frozen=True, slots=True)
class Sight:
    """What one look showed.

    Attributes:
        runs: Names of runs that there is a trace of, also of batches that are closed.
        blockage: Why a batch does not start, if one does not and somebody says why.
    """

    seen: Sequence[View]
    runs: Collection[str] = ()
    blockage: Blockage | None = None


class Executor(Protocol):
    """Runs the batches of one backfill."""

    async def look(self, batches: Sequence[OpenBatch]) -> Sight:
        """How the runs of these open batches go."""

    async def prepare(self) -> str:
        """Make sure that runs can be launched; returns a digest of what would be launched.

        Raises:
            InvalidSpec: What is to be run makes no sense.
            AssetNotFound: There is nothing to run yet.
        """

    async def launch(self, batch: ClaimedBatch) -> str | Blockage:
        """Start a batch under its deterministic name, or find that it has been; returns the run's uid."""

    async def stop(self, unwanted: Sequence[View]) -> None:
        """Ask runs to end; they are over when `look` says so."""

    async def tidy(self, unwanted: Collection[str]) -> None:
        """Take away the traces of runs whose outcome is recorded."""
